package delivery

import (
	"context"
	"errors"
	"log/slog"
	"math"
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
	// moveWithin bounds taking and releasing slots, which happen between two
	// renewals.
	moveWithin = time.Second
	// leaveWithin is how long a slot may be on its way to another home: if a
	// connection will not end it stays here, because its sites wait
	// meanwhile, and is left alone for leaveAgain.
	leaveWithin = 10 * time.Second
	leaveAgain  = 2 * time.Minute
	// leaseMargin is how long before the end of a lease a worker stops to do
	// what the lease is for.
	leaseMargin = 500 * time.Millisecond
	// moveEvery is how often slots on their way to another home are looked at.
	moveEvery = 100 * time.Millisecond

	// SlotsTopic is the notice on the bus that slots have a new home.
	SlotsTopic = "slots"
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
	othersEnd    time.Time       // when the first of the others is none any more, unless it renews
	drains       sync.Map        // the workers that are being drained
	leavingSince time.Time       // when slots were last begun to be given up
	keepUntil    time.Time       // no slot is given up before
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
	ctx, cancel := context.WithTimeout(h.keep, renewWithin)
	defer cancel()
	asked := time.Now()
	got, err := h.store.Renew(ctx, h.id, store.Terms{Claims: h.config.Lease, Slots: h.config.HomeLease})
	if err != nil {
		slog.Warn("lease not renewed", "worker_id", h.id, "left", h.lease.left(), "error", err)
		return nil
	}
	if got.Gone {
		return errGone
	}
	h.lease.extend(asked.Add(h.config.Lease))
	h.tenure.extend(asked.Add(h.config.HomeLease))
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
		if !slices.Contains(got.Slots, slot) {
			lost = append(lost, slot)
		}
	}
	h.lose(lost)
	h.releaseStrays(ctx, got.Slots)
	return nil
}

// releaseStrays frees slots that Postgres takes for ours and that we do not
// serve, because an answer of Postgres was lost. Those that still have a
// connection of ours are renewed until it has ended.
func (h *homes) releaseStrays(ctx context.Context, renewed []int16) {
	known := append(h.slotsIn(ours, leaving), h.slotsStillOpen()...)
	strays := slices.DeleteFunc(slices.Clone(renewed), func(slot int16) bool { return slices.Contains(known, slot) })
	if len(strays) == 0 {
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
	h.lose(h.slotsIn(ours, leaving))
}

// lose forgets slots that have, or may soon have, another home.
func (h *homes) lose(slots []int16) {
	if len(slots) == 0 {
		return
	}
	slog.Warn("slots lost", "worker_id", h.id, "slots", len(slots))
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
	case len(mine) < want && h.tenure.left() > 0:
		if err := h.take(want - len(mine)); err != nil {
			slog.Warn("slots not taken", "worker_id", h.id, "error", err)
		}
	}
}

// take becomes the home of up to n slots that have none.
func (h *homes) take(n int) error {
	ctx, cancel := context.WithTimeout(h.keep, moveWithin)
	defer cancel()
	before, err := h.store.SlotHomes(ctx)
	if err != nil {
		return err
	}
	var want []int16
	held := append(h.slotsIn(ours, leaving), h.slotsStillOpen()...)
	for i := range before {
		// Begin at a different slot than the others, so that workers that
		// start together do not all want the same ones.
		slot := int16((i + int(h.id)*mail.Slots/8) % mail.Slots)
		if !before[slot].Live && !slices.Contains(held, slot) && len(want) < n {
			want = append(want, slot)
		}
	}
	if len(want) == 0 {
		return nil
	}
	taken, err := h.store.TakeSlots(ctx, h.id, h.config.HomeLease, want)
	if err != nil {
		return err
	}
	if len(taken) == 0 {
		return nil
	}
	// What other parts were told of these slots was said before they were taken.
	if err := h.readDivisions(ctx); err != nil {
		return err // the next renewal releases the slots
	}
	states, err := h.store.LoadSites(ctx, taken)
	if err != nil {
		return err
	}
	h.welcome(taken, before, states)
	h.announce(len(taken))
	for _, slot := range taken {
		if dead := before[slot].Worker; dead != 0 && !slices.Contains(h.live, dead) {
			h.drain(dead)
		}
	}
	h.look()
	return nil
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

// quietest returns n of the slots: those with parts of sites of which other
// homes should have some, else those with the fewest open connections.
func (h *homes) quietest(slots []int16, n int) []int16 {
	open := map[int16]int{}
	for _, slot := range h.crowded(slots, len(h.live)) {
		open[slot] -= math.MaxInt32
	}
	for _, s := range h.sitesIn(slots) {
		s.mu.Lock()
		open[s.slot] += len(s.sessions)
		s.mu.Unlock()
	}
	slices.SortStableFunc(slots, func(a, b int16) int { return open[a] - open[b] })
	return slots[:n]
}

// leave begins to give up slots: what waits is laid aside in Postgres for the
// next home, what is under way ends.
func (h *homes) leave(slots []int16) {
	if len(slots) == 0 {
		return
	}
	slog.Info("slots to be given up", "worker_id", h.id, "slots", len(slots))
	h.setTenure(slots, leaving)
	h.leavingSince = time.Now()
	h.stopSites(slots)
}

// release gives up those leaving slots in which no connection is open any
// more, with what the next home should know.
func (h *homes) release() {
	h.keepBusy()
	var free []int16
	var states []store.SiteState
	var left []*site
	for _, slot := range h.slotsIn(leaving) {
		sites := h.sitesIn([]int16{slot})
		if slices.ContainsFunc(sites, (*site).busy) {
			continue
		}
		free = append(free, slot)
		for _, s := range sites {
			states, left = append(states, s.save(true)), append(left, s)
		}
	}
	if len(free) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(h.keep, moveWithin)
	defer cancel()
	err := h.store.SaveSites(ctx, states)
	for _, s := range left {
		s.saved(err)
	}
	if err == nil {
		err = h.store.ReleaseSlots(ctx, h.id, free, true)
	}
	if err != nil {
		slog.Warn("slots not given up yet", "worker_id", h.id, "error", err)
		return
	}
	h.setTenure(free, away)
	h.announce(len(free))
}

// keepBusy keeps the slots that take too long to give up, unless the process
// ends.
func (h *homes) keepBusy() {
	if h.taking.Err() != nil || time.Since(h.leavingSince) < leaveWithin {
		return
	}
	slots := h.slotsIn(leaving)
	if len(slots) == 0 {
		return
	}
	h.keepUntil = time.Now().Add(leaveAgain)
	slog.Info("slots kept: their connections will not end", "worker_id", h.id, "slots", len(slots))
	h.setTenure(slots, ours)
	for _, s := range h.sitesIn(slots) {
		s.goOn()
	}
}

func (h *homes) announce(n int) {
	slog.Info("slots moved", "worker_id", h.id, "moved", n, "held", len(h.slotsIn(ours)))
	if err := h.bus.Announce(h.keep, SlotsTopic); err != nil {
		// Resolvers reread the map of the slots from time to time anyway.
		slog.Debug("slots not announced", "worker_id", h.id, "error", err)
	}
}
