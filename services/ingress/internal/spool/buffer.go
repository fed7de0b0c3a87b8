package spool

import (
	"bytes"
	"io"
	"log/slog"
	"net/netip"
	"sync"
)

// Content is held in buffers of these sizes, each a step of growth.
const (
	// Headroom is before the content, for fields of ours.
	Headroom = 2 << 10
	// Small is the buffer that content begins in, with its headroom.
	Small = 16<<10 + Headroom
	// Large is the largest that is held in memory while content comes in.
	Large = 1<<20 + Headroom
	// Growth is the factor between the smaller steps.
	Growth = 8

	whole = 8<<20 + Headroom
)

// steps, smallest first.
var steps = [...]int{Small, Small * Growth, Large, whole}

const (
	firstStep = 1 // at most, whatever the client says of the size
	largeStep = 2
	wholeStep = 3
)

var pools [len(steps)]sync.Pool

// Buffer holds the content of one message: in memory all of it, or the end
// that has not been written to disk yet. One goroutine at a time uses it.
type Buffer struct {
	spool  *Spool
	client netip.Addr
	share  Share // of the memory
	step   int
	bytes  []byte // what is before start is room for fields of ours
	start  int
	pooled *[]byte
	file   *file // nil: all is in memory
	rest   int64 // behind Head, where the content on disk goes on
}

// Buffer returns an empty buffer for content of about the given size, or
// false when the client has no share of the memory that would do.
func (s *Spool) Buffer(memory *Budget, client netip.Addr, sizeBytes int64) (*Buffer, bool) {
	b := &Buffer{spool: s, client: client, share: memory.Share(client)}
	for b.step < firstStep && int64(steps[b.step]-Headroom) <= sizeBytes {
		b.step++
	}
	for ; b.step > 0 && !b.share.TakeSpare(int64(steps[b.step])); b.step-- {
	}
	if b.step == 0 && !b.share.Take(int64(steps[0])) {
		return nil, false
	}
	b.take()
	return b, true
}

// take gets the memory of the step from its pool, with nothing in it.
func (b *Buffer) take() {
	pooled, ok := pools[b.step].Get().(*[]byte)
	if !ok {
		fresh := make([]byte, steps[b.step])
		pooled = &fresh
	}
	b.pooled, b.bytes, b.start = pooled, (*pooled)[:Headroom], Headroom
}

// change goes to another step; what is in memory stays as far as it fits.
func (b *Buffer) change(step int) {
	old, from, pooled := b.bytes[b.start:], b.step, b.pooled
	b.step = step
	b.take()
	b.bytes = append(b.bytes, old[:min(len(old), cap(b.bytes)-Headroom)]...)
	pools[from].Put(pooled)
}

// Free is the space behind the content.
func (b *Buffer) Free() []byte { return b.bytes[len(b.bytes):cap(b.bytes)] }

// Wrote says that n bytes of Free are content now.
func (b *Buffer) Wrote(n int) { b.bytes = b.bytes[:len(b.bytes)+n] }

// Room makes room when there is no space: in a larger buffer, or by writing
// what is there to disk. Errors: ErrFull, or that of the disk.
func (b *Buffer) Room() error {
	if more := int64(steps[min(b.step+1, largeStep)] - steps[b.step]); b.file == nil && more > 0 && b.share.TakeSpare(more) {
		b.change(b.step + 1)
		return nil
	}
	return b.spill()
}

// spill writes what is in memory to disk, and keeps the smallest buffer.
func (b *Buffer) spill() (err error) {
	if b.file == nil {
		if b.file, err = b.spool.create(b.client); err != nil {
			return err
		}
	}
	if err := b.file.write(b.Content()); err != nil {
		return err
	}
	b.bytes = b.bytes[:b.start]
	if b.step > 0 {
		b.share.Return(int64(steps[b.step] - steps[0]))
		b.change(0)
	}
	return nil
}

// Spilled reports whether the content is on disk: Content is not all of it.
func (b *Buffer) Spilled() bool { return b.file != nil }

// Content is what is in memory.
func (b *Buffer) Content() []byte { return b.bytes[b.start:] }

// Head brings the beginning of content that is on disk, of up to 1 MiB, back
// into memory, for Content; All has what follows too. Nothing more can be
// added. The memory is not of the budget: a caller bounds how many messages
// come to this point at a time.
func (b *Buffer) Head() error {
	if err := b.spill(); err != nil {
		return err
	}
	return b.load(largeStep)
}

// Whole is as Head, for all of the content. It reports false when that has
// more than 8 MiB, or no room in the budget, where it may take what is free.
func (b *Buffer) Whole() (bool, error) {
	if b.file == nil {
		return true, nil
	}
	if err := b.spill(); err != nil {
		return false, err
	}
	if b.file.size > whole-Headroom || !b.share.Borrow(whole) {
		return false, nil
	}
	return true, b.load(wholeStep)
}

func (b *Buffer) load(step int) error {
	b.change(step)
	n := min(b.file.size, int64(cap(b.bytes)-Headroom))
	b.bytes = b.bytes[:Headroom+int(n)]
	b.rest = n
	_, err := io.ReadFull(b.file.from(0), b.bytes[Headroom:])
	return err
}

// All reads the content, from Content to what is on disk behind it.
func (b *Buffer) All() io.Reader {
	if b.file == nil {
		return bytes.NewReader(b.Content())
	}
	return io.MultiReader(bytes.NewReader(b.Content()), b.file.from(b.rest))
}

// Borrow takes so much memory more, of what is free.
func (b *Buffer) Borrow(n int64) bool { return b.share.Borrow(n) }

// Prepend puts text before the content, into the room that is there for it.
func (b *Buffer) Prepend(text []byte) {
	b.start -= len(text)
	copy(b.bytes[b.start:], text)
}

// Insert puts a few octets into Content, from the room before it.
func (b *Buffer) Insert(text string, at int) {
	b.start -= len(text)
	content := b.Content()
	copy(content, content[len(text):len(text)+at])
	copy(content[at:], text)
}

// Span is Content()[From:To].
type Span struct{ From, To int }

// Cut takes spans of Content out. They are in order, and do not overlap.
func (b *Buffer) Cut(spans []Span) {
	content := b.Content()
	end := 0
	for i := len(spans) - 1; i >= 0; i-- {
		if i == len(spans)-1 {
			end = spans[i].To
		}
		from := 0
		if i > 0 {
			from = spans[i-1].To
		}
		end -= copy(content[end-(spans[i].From-from):end], content[from:spans[i].From])
	}
	b.start += end
}

// Replace puts other content in the place of all, or returns false when it is
// too large.
func (b *Buffer) Replace(content []byte) bool {
	for len(content) > cap(b.bytes)-Headroom {
		if b.step == wholeStep || !b.share.Borrow(int64(steps[b.step+1]-steps[b.step])) {
			return false
		}
		b.change(b.step + 1)
	}
	b.start = Headroom
	b.bytes = append(b.bytes[:Headroom], content...)
	b.rest = 0
	b.drop()
	return true
}

// drop gives the file up.
func (b *Buffer) drop() {
	if b.file == nil {
		return
	}
	if err := b.file.close(); err != nil {
		slog.Warn("content in the spool not closed", "error", err)
	}
	b.file = nil
}

// Close gives memory, file and budgets back. The content must not be used any
// more.
func (b *Buffer) Close() {
	b.drop()
	pools[b.step].Put(b.pooled)
	b.share.Close()
	b.bytes, b.pooled = nil, nil
}
