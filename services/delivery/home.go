package delivery

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

const (
	// renewals is how many renewals the lease on the slots has room for: all
	// but the last may be late.
	renewals = 5
	// sweepEvery is how often frames for workers that are gone are looked for:
	// a resolver with an old map of the slots publishes them after the drain.
	sweepEvery = 2 * time.Second
	// lookAfter is how long after the end of another's lease its slots are
	// looked at.
	lookAfter = 5 * time.Millisecond
	// renewWithin bounds one renewal, so that a Postgres that hangs does not
	// hold up the next one.
	renewWithin = 2 * time.Second
	// leaseMargin is how long before the end of a lease a worker stops to do
	// what the lease is for.
	leaseMargin = 500 * time.Millisecond
	// moveEvery is how often slots on their way to another home are looked at.
	moveEvery = 100 * time.Millisecond
)

// errGone says that this worker was declared dead: its claims were taken
// back, and it must begin a new life.
var errGone = errors.New("this worker was declared dead and its claims were taken back")

// lease counts our own monotonic time from before each renewal was sent, so
// that it ends here before it ends on Postgres's clock.
type lease struct {
	mu    sync.Mutex
	until time.Time // guarded by mu
}

func (l *lease) extend(until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = until
}

// left returns how long transactions may still be opened: zero or less when
// the lease is over.
func (l *lease) left() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Until(l.until.Add(-leaseMargin))
}

// tenure is the part that a slot has in the life of this worker.
type tenure int

const (
	away    tenure = iota // not ours
	ours                  // its sites are served here
	leaving               // being given up: nothing new begins
)

// homes keeps this worker the home of its fair share of the slots.
type homes struct {
	*worker
	live         []mail.WorkerID // as of the last renewal
	renewed      []int16         // as of the last renewal, which was asked for then
	renewedAt    time.Time
	renewErr     error     // of the last renewal
	backAt       time.Time // when the lease on the slots was last renewed that had ended
	othersEnd    time.Time // when the first of the others is none any more, unless it renews
	drains       sync.Map  // the workers that are being drained
	leavingSince time.Time // when slots were last begun to be given up
	keepUntil    time.Time // no slot is given up before
	session      string    // of Postgres, that answered the last renewal

	// Slots are taken and released beside the renewals, one step at a time: a
	// Postgres that is slow must not make a worker lose what it has, nor give
	// up before it has more.
	moving    bool
	moved     chan func() // what is to follow the step; holds one
	releasing []int16     // by the step that is under way
}

// run renews the lease and moves slots until ctx is done and all slots are
// given up, or with errGone.
func (h *homes) run(ctx context.Context) error {
	every := h.config.HomeLease / renewals
	renew := time.NewTimer(every)
	defer renew.Stop()
	move := time.NewTicker(moveEvery)
	defer move.Stop()
	done := ctx.Done()
	if err := h.renew(); err != nil {
		return err
	}
	h.balance()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		select {
		case <-sweep.C:
			h.sweep()
		case <-renew.C:
			asked := time.Now()
			if err := h.renew(); err != nil {
				return err
			}
			h.endLease()
			if ctx.Err() == nil {
				h.balance()
			}
			// Who has not renewed for as long may be dead: its slots are looked
			// at the moment they are free.
			next := asked.Add(every)
			if h.othersEnd.After(asked) && h.othersEnd.Before(next) {
				next = h.othersEnd
			}
			renew.Reset(time.Until(next))
		case follow := <-h.moved:
			h.moving = false
			follow()
		case <-move.C:
			h.endLease()
			h.release()
			h.forgetStopped()
			if ctx.Err() != nil && h.slotsIn(ours, leaving) == nil {
				return nil
			}
		case <-done:
			done = nil
			h.leave(h.slotsIn(ours))
		case <-h.keep.Done():
			return nil
		}
	}
}

// renew extends the lease and gives up what is no longer ours.
func (h *homes) renew() error {
	// One that hangs must not put off what the end of the lease asks for.
	within := renewWithin
	if left := h.tenure.left() + leaseMargin/2; left > 0 {
		within = min(within, left)
	}
	ctx, cancel := context.WithTimeout(h.keep, within)
	defer cancel()
	asked := time.Now()
	got, err := h.store.Renew(ctx, h.id, store.Terms{Claims: h.config.Lease, Slots: h.config.HomeLease})
	if h.renewErr = err; err != nil {
		slog.Warn("lease not renewed", "worker_id", h.id, "left", h.tenure.left().Round(time.Millisecond), "error", err)
		return nil
	}
	if got.Gone {
		return errGone
	}
	h.sawSession(got.Session)
	h.lease.extend(asked.Add(h.config.Lease))
	if h.tenure.left() <= 0 {
		h.voidShares()
		h.backAt = asked
	}
	h.tenure.extend(asked.Add(h.config.HomeLease))
	h.renewed, h.renewedAt = got.Slots, asked
	h.othersEnd = time.Time{}
	if got.Next > 0 {
		h.othersEnd = time.Now().Add(got.Next + lookAfter)
	}
	for _, other := range h.live {
		if !slices.Contains(got.Live, other) {
			h.drain(other)
		}
	}
	h.live = got.Live
	var lost []int16
	for _, slot := range h.slotsIn(ours, leaving) {
		if !slices.Contains(got.Slots, slot) && !slices.Contains(h.releasing, slot) {
			lost = append(lost, slot)
		}
	}
	h.lose(lost, "Postgres says that their lease has ended")
	h.releaseStrays(ctx, got.Slots)
	return nil
}

// releaseStrays frees slots that Postgres takes for ours and that we do not
// serve, because an answer of Postgres was lost. Those in which sessions of
// ours are about to end are renewed until they have.
func (h *homes) releaseStrays(ctx context.Context, renewed []int16) {
	known := append(h.slotsIn(ours, leaving), h.slotsBeingCut()...)
	strays := slices.DeleteFunc(slices.Clone(renewed), func(slot int16) bool { return slices.Contains(known, slot) })
	if len(strays) == 0 || h.moving {
		return
	}
	if err := h.store.ReleaseSlots(ctx, h.id, strays, false); err != nil {
		slog.Warn("slots that are not served not released", "worker_id", h.id, "slots", len(strays), "error", err)
	}
}

// endLease gives up all slots when the lease on them ends here: from the end
// on Postgres's clock on they may have another home.
func (h *homes) endLease() {
	if h.tenure.left() > 0 {
		return
	}
	h.lose(h.slotsIn(ours, leaving), "the lease could not be renewed in time")
}

// lose forgets slots that have, or may soon have, another home.
func (h *homes) lose(slots []int16, why string) {
	if len(slots) == 0 {
		return
	}
	slog.Warn("slots lost", "worker_id", h.id, "slots", len(slots), "reason", why, "renewed_ago", time.Since(h.renewedAt).Round(time.Millisecond), "error", h.renewErr)
	h.setTenure(slots, away)
	h.stopSites(slots)
	for _, s := range h.sitesIn(slots) {
		s.abandon()
	}
}

// share returns how many slots belong to this worker: as many as to each
// other, the rest going to the lowest ids.
func share(live []mail.WorkerID, id mail.WorkerID) int {
	rank := slices.Index(live, id)
	if rank < 0 {
		return 0
	}
	n := mail.Slots / len(live)
	if rank < mail.Slots%len(live) {
		n++
	}
	return n
}

// balance takes free slots up to the fair share, or begins to give up what is
// over it. Only what must move moves.
func (h *homes) balance() {
	mine := h.slotsIn(ours)
	switch want := share(h.live, h.id); {
	case len(mine) > want && time.Now().After(h.keepUntil):
		h.leave(h.quietest(mine, len(mine)-want))
	case len(mine) < want && h.tenure.left() > 0 && !h.moving:
		h.take(want - len(mine))
	}
}

// sweep drains what waits on the bus for workers that are gone. One worker
// does it for all.
func (h *homes) sweep() {
	if len(h.live) == 0 || h.live[0] != h.id || h.taking.Err() != nil {
		return
	}
	live := slices.Clone(h.live)
	if _, busy := h.drains.LoadOrStore(h.id, true); busy {
		return // the last sweep has not had its answer
	}
	h.helpers.Go(func() error {
		defer h.drains.Delete(h.id)
		found, err := h.bus.ReadyWorkers(h.taking)
		if err != nil {
			return nil // without the bus there is nothing to drain
		}
		for _, id := range found {
			// A worker that has registered since is younger than all.
			if id < live[len(live)-1] && !slices.Contains(live, id) {
				h.drain(id)
			}
		}
		return nil
	})
}

// drain takes the frames that a dead worker left on the bus.
func (h *homes) drain(dead mail.WorkerID) {
	if _, already := h.drains.LoadOrStore(dead, true); already || h.taking.Err() != nil {
		return
	}
	h.helpers.Go(func() error {
		defer h.drains.Delete(dead)
		if err := h.bus.DrainReady(h.taking, dead, h.receive); err != nil {
			// Its requests are rung again when they are due.
			slog.Warn("frames of a dead worker not drained", "worker_id", h.id, "dead", dead, "error", err)
		}
		return nil
	})
}
