package delivery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

const (
	// loadBatch bounds the messages of one dispatch: their contents are in
	// memory at once.
	loadBatch = 64
	// loadLinger is how long a dispatch waits for others. Mail that finds a
	// free connection has been dispatched with its claim and waits for nobody.
	loadLinger = time.Millisecond
	// streamBytes is what a message that is streamed is reckoned to hold in
	// memory: a chunk on its way in and one on its way out.
	streamBytes = 2 * store.ChunkBytes
	// maxRefused is how often a content is asked for that Postgres refuses.
	maxRefused = 3
)

// errUnreadable says that Postgres answers but does not give a content.
var errUnreadable = errors.New("the content cannot be read")

// load is a request whose transaction is about to begin.
type load struct {
	request *mail.DeliveryRequest
	size    int64 // bytes of the budget of contents; 0 when they are freed
	content store.Content
	err     error
	done    chan struct{} // closed when content or err is set
}

// tryReserve reserves memory for the content of a request that finds a free
// connection. Nil means that the request waits for its turn.
func (w *worker) tryReserve(request *mail.DeliveryRequest) *load {
	size := request.Message.SizeBytes
	if size == 0 || size > store.ChunkBytes || !w.contents.TryAcquire(size) {
		return nil
	}
	return &load{size: size}
}

// load marks the recipients of a job as dispatched and gets the content, of
// which so many bytes are reckoned as in memory until unload. It waits until
// the budget of contents allows, and goes together with others that load at
// the same time. While Postgres is away it waits. An error means that ctx is
// done or the lease is over, or with errUnreadable that Postgres answers and
// will not give the content.
func (w *worker) load(ctx context.Context, request *mail.DeliveryRequest) (*load, error) {
	l := &load{request: request, size: max(min(request.Message.SizeBytes, streamBytes, w.config.ContentBytes), 1)}
	if err := w.contents.Acquire(ctx, l.size); err != nil {
		return nil, err
	}
	err := w.loadWithin(ctx, l)
	if err != nil {
		w.unload(l)
		return nil, err
	}
	return l, nil
}

// unload frees the memory of a content, once; l may be nil.
func (w *worker) unload(l *load) {
	if l != nil {
		w.contents.Release(l.size)
		l.size = 0
		l.content.Free()
	}
}

func (w *worker) loadWithin(ctx context.Context, l *load) error {
	return w.insist(ctx, func() error {
		l.done = make(chan struct{})
		w.loads.in <- l
		<-l.done
		return l.err
	})
}

// insist repeats what Postgres is asked for: while it is away, for as long as
// the lease lasts. An error means that ctx is done or the lease is over, or
// with errUnreadable that Postgres answers and refuses it again and again.
func (w *worker) insist(ctx context.Context, ask func() error) error {
	for refused, pause := 0, firstStorePause; ; pause = min(2*pause, maxStorePause) {
		err := ask()
		if err == nil {
			return nil
		}
		if w.store.Ping(ctx) == nil {
			refused++
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case w.lease.left() <= 0:
			return errLeaseOver
		case refused == maxRefused:
			return fmt.Errorf("%w: %w", errUnreadable, err)
		}
		sleep(ctx, pause)
	}
}

// dispatch loads a batch. An error of the whole is put down to the one
// request that causes it, so that a broken message holds up only itself.
func (w *worker) dispatch(batch []*load) {
	requests := make([]*mail.DeliveryRequest, len(batch))
	for i, l := range batch {
		requests[i] = l.request
	}
	ctx, cancel := context.WithTimeout(w.keep, storeWithin)
	contents, err := w.store.Dispatch(ctx, w.id, requests)
	cancel()
	if err != nil && w.keep.Err() == nil {
		slog.Warn("dispatch failed", "worker_id", w.id, "requests", len(batch), "error", err)
	}
	if err != nil && len(batch) > 1 && w.keep.Err() == nil {
		for i := range batch {
			w.dispatch(batch[i : i+1])
		}
		return
	}
	for i, l := range batch {
		if l.err = err; err == nil {
			l.content = contents[i]
		}
		close(l.done)
	}
}

// open returns a reader of the content. Where a chunk cannot be read it is
// asked for again: the host has had the others.
func (w *worker) open(ctx context.Context, l *load) (io.ReadCloser, error) {
	r, err := w.store.OpenContent(ctx, l.request.Message.ID)
	return &insistent{w, ctx, r}, err
}

type insistent struct {
	*worker
	ctx context.Context
	io.ReadCloser
}

func (r *insistent) Read(p []byte) (n int, err error) {
	over := false
	err = r.insist(r.ctx, func() (err error) {
		n, err = r.ReadCloser.Read(p)
		if over = errors.Is(err, io.EOF); over {
			return nil
		}
		return err
	})
	if over {
		return n, io.EOF
	}
	return n, err
}
