package store

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// A transaction that left us whole runs even when we have hung up: Postgres
// may have been stopped, or far behind, and come to it when the client has
// long been told 451. So it asks the clock of Postgres right before COMMIT,
// and fails when the time is over. What is left is the flush of the commit.

// guard is that statement; Postgres says what time it is. A division by zero
// is the cheapest error there is.
const guard = `SELECT t, 1 / (t < $1)::integer FROM clock_timestamp() t`

// divisionByZero is its SQLSTATE. Nothing else in an accept divides.
const divisionByZero = "22012"

var errTooLate = errors.New("too late: the client has been told that it is not accepted")

// clock tells what the clock of Postgres shows, from what it last showed.
type clock struct {
	mu    sync.Mutex // guards what follows
	shown time.Time  // by Postgres
	heard time.Time  // by us, when the answer was there
}

// saw notes an answer.
func (c *clock) saw(shown time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shown, c.heard = shown, time.Now()
}

// forget drops what was seen: the clock of Postgres was set.
func (c *clock) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = time.Time{}
}

// at returns what Postgres will show at a time of ours, or a little earlier:
// the answer was under way for a while. ok is false if nothing was seen.
func (c *clock) at(t time.Time) (shown time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shown.Add(t.Sub(c.heard)), !c.heard.IsZero()
}

// inTime adds the guard of a transaction, if its context has an end.
func (s *Store) inTime(ctx context.Context, x *exchange) error {
	end, ok := ctx.Deadline()
	if !ok {
		return nil
	}
	limit, ok := s.clock.at(end)
	if !ok {
		var shown time.Time
		if err := s.durable.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&shown); err != nil {
			return err
		}
		s.clock.saw(shown)
		limit, _ = s.clock.at(end)
	}
	shown := func(fields [][]byte) { s.clock.saw(timestamp(fields[0])) }
	x.call(hotStatement{"in_time", guard, shown}, 1, func() { x.time(limit) })
	return nil
}

// late makes an error of ours of the guard's. aboutData would blame the values.
func (s *Store) late(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == divisionByZero {
		s.clock.forget()
		return errTooLate
	}
	return err
}
