package commit

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	goleak.VerifyTestMain(m)
}

// commitTime is how long the store of these tests takes.
const commitTime = time.Millisecond

// timedStore commits in a fixed time and notes the groups. The claims here
// are about time and grouping, on a clock of synctest; ingress_test.go has a
// real Postgres.
type timedStore struct {
	took time.Duration
	err  error

	mu     sync.Mutex
	groups []int
}

func (s *timedStore) Accept(ctx context.Context, group []*mail.Submission) error {
	s.mu.Lock()
	s.groups = append(s.groups, len(group))
	s.mu.Unlock()
	select {
	case <-time.After(s.took):
		return s.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *timedStore) AcceptStream(ctx context.Context, _ *mail.Submission, content io.Reader) error {
	if _, err := io.Copy(io.Discard, content); err != nil {
		return err
	}
	return s.Accept(ctx, make([]*mail.Submission, 1))
}

func (s *timedStore) sizes() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]int(nil), s.groups...)
}

// notingBus notes what it was asked to ring for.
type notingBus struct {
	err  error
	took time.Duration

	mu     sync.Mutex
	frames [][]mail.QueuedMessage
}

func (b *notingBus) PublishQueued(_ context.Context, messages []mail.QueuedMessage) error {
	<-time.After(b.took) // a bus that blocks
	b.mu.Lock()
	defer b.mu.Unlock()
	b.frames = append(b.frames, messages)
	return b.err
}

func run(t *testing.T, s *timedStore, b *notingBus, timeout time.Duration) *Committer {
	t.Helper()
	c := New(s, b, timeout, 2)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	return c
}

func submission() *mail.Submission {
	return &mail.Submission{
		Message:    mail.Message{ID: mail.NewQueueID(), SizeBytes: 4096},
		Recipients: []mail.Recipient{{No: 1, ForwardPath: "b@example.net", Domain: "example.net"}},
	}
}

// timed runs f and returns how long it took on the bubble's clock.
func timed(f func()) time.Duration {
	began := time.Now()
	f()
	return time.Since(began)
}

func TestLoneSessionDoesNotLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &timedStore{took: commitTime}
		seat := run(t, s, &notingBus{}, time.Minute).Seat()
		for range 3 { // one right behind the other, too
			took := timed(func() {
				seat.Begin()
				if err := seat.Accept(submission()); err != nil {
					t.Error(err)
				}
			})
			if took != commitTime {
				t.Errorf("took %s, want %s", took, commitTime)
			}
		}
	})
}

// Four of five is enough: the linger ends early.
func TestLingerEndsWhenMostWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &timedStore{took: commitTime}
		c := run(t, s, &notingBus{}, time.Minute)
		seats := make([]*Seat, 10)
		for i := range seats {
			seats[i] = c.Seat()
			seats[i].Begin()
		}
		var wg sync.WaitGroup
		began := time.Now()
		for i, seat := range seats[:8] {
			wg.Go(func() {
				<-time.After(time.Duration(i) * 100 * time.Microsecond)
				if err := seat.Accept(submission()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took, want := time.Since(began), 700*time.Microsecond+commitTime; took != want {
			t.Errorf("took %s, want %s", took, want)
		}
		if got := s.sizes(); len(got) != 1 || got[0] != 8 {
			t.Errorf("groups %v, want one of 8", got)
		}
	})
}

// Sessions that do not come cost the others one linger, not one per message.
func TestSlowSessionsAreNotWaitedForTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &timedStore{took: commitTime}
		c := run(t, s, &notingBus{}, time.Minute)
		for range 100 {
			c.Seat().Begin() // and never more
		}
		seat := c.Seat()
		for i, want := range []time.Duration{linger + commitTime, commitTime, commitTime} {
			took := timed(func() {
				seat.Begin()
				if err := seat.Accept(submission()); err != nil {
					t.Error(err)
				}
			})
			if took != want {
				t.Errorf("message %d took %s, want %s", i+1, took, want)
			}
		}
	})
}

// Sessions that were released together come back together: the group of the
// next round is waited for although none of them has begun yet.
func TestReleasedSessionsAreExpectedBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &timedStore{took: commitTime}
		c := run(t, s, &notingBus{}, time.Minute)
		const sessions, rounds = 20, 10
		var wg sync.WaitGroup
		for i := range sessions {
			seat := c.Seat()
			seat.Begin()
			wg.Go(func() {
				for range rounds {
					<-time.After(time.Duration(i) * 20 * time.Microsecond)
					seat.Begin()
					<-time.After(100 * time.Microsecond)
					if err := seat.Accept(submission()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if groups := len(s.sizes()); groups > sessions*rounds/10 {
			t.Errorf("%d messages in %d groups: %v", sessions*rounds, groups, s.sizes())
		}
	})
}

// A session that leaves is not waited for.
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := run(t, &timedStore{took: commitTime}, &notingBus{}, time.Minute)
		gone, seat := c.Seat(), c.Seat()
		gone.Begin()
		seat.Begin()
		time.AfterFunc(time.Millisecond, gone.Leave)
		took := timed(func() {
			if err := seat.Accept(submission()); err != nil {
				t.Error(err)
			}
		})
		if want := time.Millisecond + commitTime; took != want {
			t.Errorf("took %s, want %s", took, want)
		}
	})
}

// A second commit runs beside a slow one, a third does not; and a group is
// bounded.
func TestSecondCommitterOnlyWhenSaturated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &timedStore{took: 100 * time.Millisecond}
		c := run(t, s, &notingBus{}, time.Minute)
		var wg sync.WaitGroup
		accept := func(after time.Duration) {
			seat := c.Seat()
			wg.Go(func() {
				<-time.After(after)
				if err := seat.Accept(submission()); err != nil {
					t.Error(err)
				}
			})
		}
		accept(0)
		accept(5 * time.Millisecond) // waits until the first is slow
		accept(6 * time.Millisecond)
		accept(50 * time.Millisecond) // waits until one has ended
		at := func(want time.Duration, groups int) {
			t.Helper()
			<-time.After(want)
			synctest.Wait()
			if got := len(s.sizes()); got != groups {
				t.Errorf("after %s: %d groups, want %d", want, got, groups)
			}
		}
		at(slow-time.Millisecond, 1)
		at(2*time.Millisecond, 2)
		at(70*time.Millisecond, 2)
		at(10*time.Millisecond, 3)
		wg.Wait()
		if got := s.sizes(); len(got) != 3 || got[1] != 2 {
			t.Errorf("groups %v", got)
		}
	})
}

func TestGroupIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &timedStore{took: commitTime}
		c := run(t, s, &notingBus{}, time.Minute)
		var wg sync.WaitGroup
		for range maxMessages + 10 {
			seat := c.Seat()
			seat.Begin()
			wg.Go(func() {
				if err := seat.Accept(submission()); err != nil {
					t.Error(err)
				}
			})
		}
		for range 10 {
			seat, sub := c.Seat(), submission()
			sub.SizeBytes = maxBytes / 2
			wg.Go(func() {
				if err := seat.Accept(sub); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		total := 0
		for _, n := range s.sizes() {
			total += n
			if n > maxMessages {
				t.Errorf("a group of %d", n)
			}
		}
		if total != maxMessages+20 {
			t.Errorf("%d messages in %v", total, s.sizes())
		}
		if c.bytes != 0 || len(c.waiting) != 0 {
			t.Errorf("%d bytes and %d messages wait", c.bytes, len(c.waiting))
		}
	})
}

// With Postgres away everybody hears within the timeout, those who wait
// behind a commit that hangs included.
func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := run(t, &timedStore{took: time.Hour}, &notingBus{}, 10*time.Second)
		var wg sync.WaitGroup
		for i := range 50 {
			seat := c.Seat()
			wg.Go(func() {
				<-time.After(time.Duration(i) * 100 * time.Millisecond)
				took := timed(func() {
					if err := seat.Accept(submission()); err == nil {
						t.Error("accepted")
					}
				})
				if took > 10*time.Second {
					t.Errorf("heard after %s", took)
				}
			})
		}
		wg.Wait()
	})
}

// One bad message does not take the others with it, and only the good ones
// are rung for.
func TestPartialError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := errors.New("bad")
		s := &timedStore{took: commitTime, err: &store.PartialError{Errors: []error{nil, bad, nil}}}
		b := &notingBus{}
		c := run(t, s, b, time.Minute)
		errs := make([]error, 3)
		var wg sync.WaitGroup
		seats := []*Seat{c.Seat(), c.Seat(), c.Seat()}
		for _, seat := range seats {
			seat.Begin()
		}
		for i, seat := range seats {
			wg.Go(func() {
				<-time.After(time.Duration(i) * time.Microsecond)
				errs[i] = seat.Accept(submission())
			})
		}
		wg.Wait()
		synctest.Wait()
		if errs[0] != nil || !errors.Is(errs[1], bad) || errs[2] != nil {
			t.Errorf("errors %v", errs)
		}
		if len(b.frames) != 1 || len(b.frames[0]) != 2 || len(b.frames[0][0].Recipients) != 1 {
			t.Errorf("frames %v", b.frames)
		}
	})
}

// A bus that blocks or fails delays nobody.
func TestPublishingNeverDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &notingBus{took: time.Second, err: errors.New("down")}
		seat := run(t, &timedStore{took: commitTime}, b, time.Minute).Seat()
		for range 2 * backlog {
			took := timed(func() {
				if err := seat.Accept(submission()); err != nil {
					t.Error(err)
				}
			})
			if took > commitTime {
				t.Errorf("took %s", took)
			}
		}
	})
}

// At the end what waits is committed and rung for; who comes later is told.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, b := &timedStore{took: commitTime}, &notingBus{}
		c := New(s, b, time.Minute, 2)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		other, seat := c.Seat(), c.Seat()
		other.Begin() // makes seat linger
		accepted := make(chan error, 1)
		go func() { accepted <- seat.Accept(submission()) }()
		synctest.Wait()
		cancel()
		if err := <-accepted; err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(b.frames) != 1 {
			t.Errorf("%d frames, want 1", len(b.frames))
		}
		if err := other.Accept(submission()); !errors.Is(err, ErrStopped) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// The watchdog of a stream runs while Postgres is waited for, not while the
// client is.
func TestStreamTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := run(t, &timedStore{took: commitTime}, &notingBus{}, 10*time.Second)
		slow := io.MultiReader(sleepy{}, strings.NewReader("end"))
		if err := c.AcceptStream(t.Context(), submission(), slow); err != nil {
			t.Errorf("a slow client: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		c := run(t, &timedStore{took: time.Hour}, &notingBus{}, 10*time.Second)
		took := timed(func() {
			if err := c.AcceptStream(t.Context(), submission(), strings.NewReader("end")); !errors.Is(err, ErrLate) {
				t.Errorf("Postgres hangs: %v", err)
			}
		})
		if took != 10*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

// sleepy ends after a minute.
type sleepy struct{}

func (sleepy) Read([]byte) (int, error) {
	<-time.After(time.Minute)
	return 0, io.EOF
}

// Large messages take turns, and nobody waits for longer than it wants.
func TestTurns(t *testing.T) {
	c := New(nil, nil, time.Minute, 2)
	first, err := c.Turn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.Turn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Turn(gone); !errors.Is(err, ErrBusy) {
		t.Errorf("a third turn: %v", err)
	}
	first()
	third, err := c.Turn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second()
	third()
}
