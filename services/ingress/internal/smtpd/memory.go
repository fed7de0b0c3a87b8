package smtpd

import (
	"sync"
	"sync/atomic"
)

// Content is read into buffers of these sizes, each a step of growth. Larger
// content is streamed, unless its lines are to be mended.
const (
	headroom    = 2 << 10 // before the content, for our Received field
	smallBuffer = 16<<10 + headroom
	largeBuffer = 1<<20 + headroom
	mendBuffer  = 8<<20 + headroom
	growth      = 8

	// streamMemory is what a large message holds: the buffer that it begins
	// in, and the chunk in which the store takes it.
	streamMemory = largeBuffer + 256<<10
)

// bufferSizes are the steps, smallest first.
var bufferSizes = [...]int{smallBuffer, smallBuffer * growth, largeBuffer, mendBuffer}

// largeStep is the last step of content that is not to be mended.
const largeStep = 2

var bufferPools [len(bufferSizes)]sync.Pool

// memory bounds the content that all sessions hold together.
type memory struct {
	limit int64
	used  atomic.Int64
}

// reserve takes n bytes of the budget, or nothing.
func (m *memory) reserve(n int64) bool {
	if m.used.Add(n) > m.limit {
		m.used.Add(-n)
		return false
	}
	return true
}

func (m *memory) release(n int64) { m.used.Add(-n) }

// buffer holds the content of one message: bytes[start:]. What is before
// start is room for our trace field.
type buffer struct {
	memory   *memory
	step     int
	reserved int64
	bytes    []byte
	start    int
	pooled   *[]byte
}

// newBuffer returns an empty buffer for content of about the given size, or
// false when the budget does not allow it.
func newBuffer(m *memory, sizeBytes int64) (*buffer, bool) {
	step := 0
	for step < largeStep && int64(bufferSizes[step]-headroom) <= sizeBytes {
		step++
	}
	if !m.reserve(int64(bufferSizes[step])) {
		return nil, false
	}
	b := &buffer{memory: m, step: step, reserved: int64(bufferSizes[step]), start: headroom}
	b.take()
	b.bytes = b.bytes[:headroom]
	return b, true
}

// take gets the memory of the step from its pool.
func (b *buffer) take() {
	pooled, ok := bufferPools[b.step].Get().(*[]byte)
	if !ok {
		fresh := make([]byte, bufferSizes[b.step])
		pooled = &fresh
	}
	b.pooled, b.bytes = pooled, *pooled
}

// free is the space behind the content.
func (b *buffer) free() []byte { return b.bytes[len(b.bytes):cap(b.bytes)] }

// wrote says that n bytes of free are content now.
func (b *buffer) wrote(n int) { b.bytes = b.bytes[:len(b.bytes)+n] }

// large reports whether content that goes on is to be streamed.
func (b *buffer) large() bool { return b.step >= largeStep }

// largest reports whether the buffer cannot grow.
func (b *buffer) largest() bool { return b.step == len(bufferSizes)-1 }

// grow makes room, or returns false when the budget does not allow it.
func (b *buffer) grow() bool {
	if !b.reserveMore(int64(bufferSizes[b.step+1] - bufferSizes[b.step])) {
		return false
	}
	old, step, pooled := b.bytes, b.step, b.pooled
	b.step++
	b.take()
	b.bytes = b.bytes[:copy(b.bytes, old)]
	bufferPools[step].Put(pooled)
	return true
}

func (b *buffer) reserveMore(n int64) bool {
	if !b.memory.reserve(n) {
		return false
	}
	b.reserved += n
	return true
}

// content is what the buffer holds.
func (b *buffer) content() []byte { return b.bytes[b.start:] }

// prepend puts text before the content, into the room that is there for it.
func (b *buffer) prepend(text []byte) {
	b.start -= len(text)
	copy(b.bytes[b.start:], text)
}

// cut takes spans of the content out. They are in order, and do not overlap.
func (b *buffer) cut(spans []span) {
	content := b.content()
	end := 0
	for i := len(spans) - 1; i >= 0; i-- {
		if i == len(spans)-1 {
			end = spans[i].to
		}
		from := 0
		if i > 0 {
			from = spans[i-1].to
		}
		end -= copy(content[end-(spans[i].from-from):end], content[from:spans[i].from])
	}
	b.start += end
}

// replace puts other content into the buffer, or returns false when it is too
// large for one.
func (b *buffer) replace(content []byte) bool {
	for len(content) > cap(b.bytes)-headroom {
		if b.largest() || !b.grow() {
			return false
		}
	}
	b.start = headroom
	b.bytes = append(b.bytes[:headroom], content...)
	return true
}

// close gives memory and budget back. The content must not be used any more.
func (b *buffer) close() {
	bufferPools[b.step].Put(b.pooled)
	b.memory.release(b.reserved)
	b.bytes, b.pooled = nil, nil
}
