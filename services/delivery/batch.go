package delivery

import "time"

// batcher collects what many goroutines hand it and treats it in batches, one
// at a time: whatever comes while a batch is under way is the next batch. A
// lone item waits for nobody, unless there is a linger and more are likely to come.
type batcher[T any] struct {
	in     chan T // closed by stop
	done   chan struct{}
	limit  int // of items in a batch
	linger time.Duration
	more   func() bool // reports whether others are likely to come: if not, there is no linger
	treat  func([]T)
}

// newBatcher holds up to two batches before those who hand in must wait.
func newBatcher[T any](limit int, treat func([]T)) *batcher[T] {
	return &batcher[T]{in: make(chan T, 2*limit), done: make(chan struct{}), limit: limit, more: never, treat: treat}
}

func never() bool  { return false }
func always() bool { return true }

// lingers makes the batcher wait so long for others, as long as more are likely
// to come.
func (b *batcher[T]) lingers(linger time.Duration, more func() bool) *batcher[T] {
	b.linger, b.more = linger, more
	return b
}

// stop says that nobody hands in any more, and waits until all is treated.
func (b *batcher[T]) stop() {
	close(b.in)
	<-b.done
}

// run treats batches until stop.
func (b *batcher[T]) run() error {
	defer close(b.done)
	var batch []T
	for item := range b.in {
		batch = b.collect(append(batch[:0], item))
		b.treat(batch)
		clear(batch)
	}
	return nil
}

// collect adds what is there, and what comes within the linger.
func (b *batcher[T]) collect(batch []T) []T {
	var over <-chan time.Time
	if b.linger > 0 {
		timer := time.NewTimer(b.linger)
		defer timer.Stop()
		over = timer.C
	}
	for len(batch) < b.limit {
		select {
		case item, open := <-b.in:
			if !open {
				return batch
			}
			batch = append(batch, item)
			continue
		default:
		}
		if over == nil || !b.more() {
			return batch
		}
		select {
		case item, open := <-b.in:
			if !open {
				return batch
			}
			batch = append(batch, item)
		case <-over:
			return batch
		}
	}
	return batch
}
