package commit

import (
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

// Seat is the place of one session at the committer. It tells the committer
// whom to wait for. Only its session may use it.
type Seat struct {
	c    *Committer
	done chan error // holds at most one result

	// While the seat waits the committer reads these.
	sub      *mail.Submission
	arrived  time.Time
	deadline time.Time

	// Guarded by the committer's mutex.
	state seatState
	epoch uint64 // with inside, of the count; with recent, of the group
}

type seatState uint8

const (
	out    seatState = iota // no message is expected
	inside                  // in a transaction
	recent                  // released by a group, perhaps to begin again
)

// Seat returns a place for a session. Leave it when the session ends.
func (c *Committer) Seat() *Seat { return &Seat{c: c, done: make(chan error, 1)} }

// Begin says that the session is in a transaction and moves: its message is
// worth a short wait.
func (s *Seat) Begin() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.c.count(s)
}

// Leave says that no message is to be expected.
func (s *Seat) Leave() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.c.uncount(s)
	if len(s.c.waiting) > 0 {
		s.c.signal() // those who wait may be enough now
	}
}

// Accept waits until the submission is durable: nil. With any error the
// client must be told to try again later. It returns within the timeout of
// the committer, plus what Postgres takes to give up.
func (s *Seat) Accept(sub *mail.Submission) error {
	now := time.Now()
	s.sub, s.arrived, s.deadline = sub, now, now.Add(s.c.timeout)
	if !s.c.enqueue(s, now) {
		return ErrStopped
	}
	err := <-s.done
	s.sub = nil
	return err
}

func (c *Committer) enqueue(s *Seat, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return false
	}
	c.count(s)
	c.waiting = append(c.waiting, s)
	c.bytes += s.sub.SizeBytes
	if len(c.waiting) == 1 || !c.due(now).After(now) {
		c.signal()
	}
	return true
}

// count adds the seat to those inside, once.
func (c *Committer) count(s *Seat) {
	if s.state == inside && s.epoch == c.epoch {
		return
	}
	c.uncount(s)
	s.state, s.epoch = inside, c.epoch
	c.inside++
}

// uncount takes the seat out of the counts that it is still in.
func (c *Committer) uncount(s *Seat) {
	switch {
	case s.state == inside && s.epoch == c.epoch:
		c.inside--
	case s.state == recent && s.epoch == c.group && c.recent > 0:
		c.recent--
	}
	s.state = out
}
