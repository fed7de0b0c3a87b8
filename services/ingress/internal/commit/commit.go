// Package commit makes the messages of many sessions durable together: the
// group commit of ingress. One transaction, one COPY and one flush of the
// disk serve all the messages that are ready at about the same time.
package commit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// accepter makes submissions durable. *store.Store is one.
type accepter interface {
	Accept(ctx context.Context, group []*mail.Submission) error
	AcceptStream(ctx context.Context, sub *mail.Submission, content io.Reader) error
}

const (
	// linger bounds the wait for more messages once the committer is free. It
	// ends early when most of those who may come have come, so that only
	// sessions beside slow ones wait so long. On a machine that is busy, twenty
	// sessions take more than 5 ms to bring their next message: a shorter
	// linger cuts their group in two, and each part costs a flush.
	linger = 10 * time.Millisecond
	// slow is the age of a running commit from which a second one may start.
	slow = 25 * time.Millisecond
	// maxRunning is the number of commits at a time.
	maxRunning = 2
	// A group that has one of these is full.
	maxMessages = 256
	maxBytes    = 4 << 20
)

// The ways in which a message is not accepted without Postgres having
// refused it.
var (
	ErrLate    = errors.New("no commit within the time that a client waits")
	ErrStopped = errors.New("the committer has stopped")
)

// Committer collects the submissions of all sessions of a process. Its
// methods may be called at the same time, while Run runs.
type Committer struct {
	store     accepter
	publisher *publisher
	timeout   time.Duration
	metrics   *metrics
	wake      chan struct{} // holds at most one signal: look at the state again
	turns     chan struct{} // holds a token for each large message being written

	mu      sync.Mutex // guards what follows
	waiting []*Seat    // in the order of arrival
	bytes   int64      // of content that waits
	inside  int        // seats in a transaction, the waiting ones included
	epoch   uint64     // of the count inside: a seat of an earlier one is not in it
	recent  int        // seats that the last group released and that have not begun again
	group   uint64     // the number of that group
	freeAt  time.Time  // when the last commit ended
	running int        // commits under way
	startAt time.Time  // when the latest of them began
	stopped bool
}

// New returns a committer. A submission that is not committed within the
// timeout fails: its client may have given up by then, and would send the
// message again. Of large messages so many are written at a time as streams
// says.
func New(s accepter, p queuedPublisher, timeout time.Duration, streams int) *Committer {
	m := newMetrics()
	return &Committer{
		store: s, publisher: newPublisher(p, m), timeout: timeout, metrics: m,
		wake: make(chan struct{}, 1), turns: make(chan struct{}, streams),
	}
}

// Run commits until ctx is done, then finishes what waits. Sessions must have
// ended, or they get ErrStopped.
func (c *Committer) Run(ctx context.Context) error {
	var commits errgroup.Group
	publishing, stopPublishing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPublishing()
	var publish errgroup.Group
	publish.Go(func() error { c.publisher.run(publishing); return nil })

	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		group, wait := c.take(time.Now(), ctx.Err() != nil)
		if len(group) > 0 {
			commits.Go(func() error { c.commit(context.WithoutCancel(ctx), group); return nil })
			continue
		}
		if ctx.Err() != nil {
			break
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-c.wake:
		case <-timer.C:
		}
	}
	err := commits.Wait()
	c.stop()
	stopPublishing()
	return errors.Join(err, publish.Wait())
}

// take returns the group to be committed now, or how long nothing happens by
// itself.
func (c *Committer) take(now time.Time, all bool) (group []*Seat, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuseLate(now)
	due := c.due(now)
	if len(c.waiting) == 0 || !all && due.After(now) {
		return nil, due.Sub(now)
	}
	if !c.gathered(now) && !c.full() {
		// The linger has ended, and those who have not come are slow. They
		// are not waited for until they show again that they move.
		c.epoch++
		c.inside, c.recent = 0, 0
	}
	n, bytes := 0, int64(0)
	for n < len(c.waiting) && n < maxMessages && (n == 0 || bytes+c.waiting[n].sub.SizeBytes <= maxBytes) {
		bytes += c.waiting[n].sub.SizeBytes
		n++
	}
	group = c.waiting[:n:n]
	c.waiting = append([]*Seat(nil), c.waiting[n:]...)
	c.bytes -= bytes
	for _, s := range group {
		c.uncount(s)
	}
	c.running++
	c.startAt = now
	return group, 0
}

// due returns when a group is to be taken.
func (c *Committer) due(now time.Time) time.Time {
	never := now.Add(time.Hour)
	if len(c.waiting) == 0 {
		return never
	}
	late := c.waiting[0].deadline
	switch {
	case c.running >= maxRunning:
		return late
	case c.full():
		return now
	case c.running > 0:
		return earlier(c.startAt.Add(slow), late)
	case c.gathered(now):
		return now
	}
	from := c.waiting[0].arrived
	if c.freeAt.After(from) {
		from = c.freeAt
	}
	return from.Add(linger)
}

func (c *Committer) full() bool { return len(c.waiting) >= maxMessages || c.bytes >= maxBytes }

// gathered reports whether at least four of five sessions wait that are in a
// transaction, or were in the last group and are likely to be back at once.
func (c *Committer) gathered(now time.Time) bool {
	expected := c.inside
	if now.Sub(c.freeAt) < linger {
		expected += c.recent
	}
	return len(c.waiting)*5 >= expected*4
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// refuseLate ends the wait of those whose time is over.
func (c *Committer) refuseLate(now time.Time) {
	for len(c.waiting) > 0 && !c.waiting[0].deadline.After(now) {
		s := c.waiting[0]
		c.waiting = c.waiting[1:]
		c.bytes -= s.sub.SizeBytes
		c.uncount(s)
		s.done <- ErrLate
	}
}

// commit makes one group durable and tells its sessions.
func (c *Committer) commit(ctx context.Context, group []*Seat) {
	began := time.Now()
	subs := make([]*mail.Submission, len(group))
	for i, s := range group {
		subs[i] = s.sub
	}
	ctx, cancel := context.WithDeadline(ctx, group[0].deadline)
	err := c.store.Accept(ctx, subs)
	cancel()
	errs := make([]error, len(group))
	var partial *store.PartialError
	if isPartial := errors.As(err, &partial); !isPartial && err != nil {
		for i := range errs {
			errs[i] = err
		}
	} else if isPartial {
		errs = partial.Errors
	}
	c.metrics.committed(ctx, group, time.Since(began), err)
	c.publisher.publish(accepted(subs, errs)) // copies: a session may use its memory again below
	c.release(group)
	for i, s := range group {
		s.done <- errs[i]
	}
}

func (c *Committer) release(group []*Seat) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	c.freeAt = time.Now()
	c.group++
	c.recent = len(group)
	for _, s := range group {
		s.state, s.epoch = recent, c.group
	}
	c.signal()
}

// ErrBusy says that too many large messages wait to be written.
var ErrBusy = errors.New("too many large messages at this moment")

// Turn waits until a large message may be written, until ctx is done: ErrBusy.
// End the turn soon after the content was read: others wait. Whoever has a
// turn has all of the content; no client is waited for.
func (c *Committer) Turn(ctx context.Context) (end func(), err error) {
	select {
	case c.turns <- struct{}{}:
		return func() { <-c.turns }, nil
	case <-ctx.Done():
		return nil, ErrBusy
	}
}

// AcceptStream makes one submission durable whose content is too large to
// hold, in a transaction of its own, and publishes it. The caller has a Turn.
// The error of content is returned as it is wrapped by the store. The wait for
// Postgres is bounded by the timeout each time that it has been given something
// to do.
func (c *Committer) AcceptStream(ctx context.Context, sub *mail.Submission, content io.Reader) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(c.timeout, func() { cancel(ErrLate) })
	defer watchdog.Stop()
	err := c.store.AcceptStream(ctx, sub, &watchedReader{r: content, watchdog: watchdog, timeout: c.timeout})
	c.metrics.streamed(ctx, err)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return fmt.Errorf("%w: %w", cause, err)
		}
		return err
	}
	c.publisher.publish(accepted([]*mail.Submission{sub}, []error{nil}))
	return nil
}

// watchedReader holds the watchdog while the client is waited for.
type watchedReader struct {
	r        io.Reader
	watchdog *time.Timer
	timeout  time.Duration
}

func (w *watchedReader) Read(p []byte) (int, error) {
	w.watchdog.Stop()
	n, err := w.r.Read(p)
	w.watchdog.Reset(w.timeout)
	return n, err
}

// stop refuses whoever comes after the end.
func (c *Committer) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	for _, s := range c.waiting {
		s.done <- ErrStopped
	}
	c.waiting = nil
}

// signal makes Run look at the state again.
func (c *Committer) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
