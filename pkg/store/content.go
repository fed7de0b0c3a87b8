package store

import (
	"math/bits"
	"sync"
)

// Contents are read into buffers that are used again, each of a power of two:
// garbage of this size is what would make delivery collect all the time.
const (
	minContentBits = 12
	maxContentBits = 18 // ChunkBytes
)

var contentPools [maxContentBits - minContentBits + 1]sync.Pool

// contentPool returns the pool whose buffers hold n bytes, or nil.
func contentPool(n int) (pool *sync.Pool, size int) {
	class := max(bits.Len(uint(max(n, 1)-1)), minContentBits)
	if class > maxContentBits {
		return nil, n
	}
	return &contentPools[class-minContentBits], 1 << class
}

func newContent(n int) []byte {
	pool, size := contentPool(n)
	if pool == nil {
		return make([]byte, n)
	}
	if b, ok := pool.Get().(*[]byte); ok {
		return (*b)[:n]
	}
	return make([]byte, n, size)
}

// keepContent returns a copy of a content.
func keepContent(b []byte) []byte {
	content := newContent(len(b))
	copy(content, b)
	return content
}

// Free gives the memory of the content back, which nobody may use any more.
// Content that is not freed is garbage, no more.
func (c *Content) Free() {
	if pool, size := contentPool(cap(c.Bytes)); pool != nil && cap(c.Bytes) == size {
		b := c.Bytes[:0]
		pool.Put(&b)
	}
	*c = Content{}
}
