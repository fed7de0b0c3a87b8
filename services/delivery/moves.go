package delivery

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// This file is how slots get from one home to another.

const (
	// leaveWithin is how long a slot may be on its way to another home: if a
	// connection will not end it stays here, because its sites wait
	// meanwhile, and is left alone for leaveAgain.
	leaveWithin = 10 * time.Second
	leaveAgain  = 2 * time.Minute
)

// move takes a step in Postgres that moves slots, and has what it returns done
// between two renewals.
func (h *homes) move(ctx context.Context, within time.Duration, step func(context.Context) func()) {
	h.moving = true
	h.helpers.Go(func() error {
		ctx, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		h.moved <- step(ctx)
		return nil
	})
}

// take becomes the home of up to n slots that have none.
func (h *homes) take(n int) {
	held := append(h.slotsIn(ours, leaving), h.slotsBeingCut()...)
	others := time.Since(h.backAt) > h.config.HomeLease/2 // else they may be about to take back what they lost as we did
	h.move(h.taking, storeWithin, func(ctx context.Context) func() {
		t, err := h.taken(ctx, n, held, others)
		if err != nil {
			if h.taking.Err() == nil {
				slog.Warn("slots not taken", "worker_id", h.id, "error", err)
			}
			return func() {} // the next renewal releases those that were
		}
		return func() { h.enter(t) }
	})
}

// takeover is slots that were taken, and what is known of them.
type takeover struct {
	slots  []int16
	before [mail.Slots]store.Home
	states []store.SiteState
	at     time.Time // they were ours before
}

// taken takes up to n free slots, but for those that are held. Those that this
// worker had last come first: connections of its own may still be open there.
func (h *homes) taken(ctx context.Context, n int, held []int16, others bool) (t takeover, err error) {
	if t.before, err = h.store.SlotHomes(ctx); err != nil {
		return t, err
	}
	var want, more []int16
	for i := range t.before {
		// Begin at a different slot than the others, so that workers that
		// start together do not all want the same ones.
		slot := int16((i + int(h.id)*mail.Slots/8) % mail.Slots)
		switch home := t.before[slot]; {
		case home.Live || slices.Contains(held, slot):
		case home.Worker == h.id:
			want = append(want, slot)
		case others || home.Left:
			more = append(more, slot)
		}
	}
	want = append(want, more...)
	if want = want[:min(n, len(want))]; len(want) == 0 {
		return t, nil
	}
	if t.slots, err = h.store.TakeSlots(ctx, h.id, h.config.HomeLease, want); err != nil || len(t.slots) == 0 {
		return t, err
	}
	t.at = time.Now()
	// What other parts were told of these slots was said before they were taken.
	if err := h.readDivisions(ctx); err != nil {
		return t, err
	}
	t.states, err = h.store.LoadSites(ctx, t.slots)
	return t, err
}

// enter makes slots that were taken ours, unless the lease on them has ended
// meanwhile: a renewal that was asked for later would have it.
func (h *homes) enter(t takeover) {
	if h.renewedAt.After(t.at) {
		t.slots = slices.DeleteFunc(t.slots, func(slot int16) bool { return !slices.Contains(h.renewed, slot) })
	}
	if len(t.slots) == 0 || h.tenure.left() <= 0 || h.taking.Err() != nil {
		return // released by the next renewal, or by the end of the worker
	}
	h.welcome(t.slots, t.before, t.states)
	h.announce(len(t.slots))
	for _, slot := range t.slots {
		if dead := t.before[slot].Worker; dead != 0 && !slices.Contains(h.live, dead) {
			h.drain(dead)
		}
	}
	h.look()
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
	if h.moving {
		return // what releases now is not to be kept
	}
	h.keepBusy()
	var free []int16
	var states []store.SiteState
	var left []*site
	for _, slot := range h.slotsIn(leaving) {
		if h.isOpen(slot) {
			continue
		}
		free = append(free, slot)
		for _, s := range h.sitesIn([]int16{slot}) {
			if s.isKnown() { // else what the home before saved stands
				states, left = append(states, s.save(true)), append(left, s)
			}
		}
	}
	if len(free) == 0 {
		return
	}
	h.releasing = free
	// Not after the lease: what the next home saves must stand.
	h.move(h.keep, h.tenure.left()+leaseMargin, func(ctx context.Context) func() {
		err := h.store.SaveSites(ctx, h.id, states)
		for _, s := range left {
			s.saved(err)
		}
		known, unknown := h.settled(free)
		if err == nil {
			err = errors.Join(h.store.ReleaseSlots(ctx, h.id, known, true), h.store.ReleaseSlots(ctx, h.id, unknown, false))
		}
		return func() {
			h.releasing = nil
			if err != nil {
				slog.Warn("slots not given up yet", "worker_id", h.id, "error", err)
				return
			}
			h.setTenure(free, away)
			h.announce(len(free))
		}
	})
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
	if err := h.bus.Announce(h.keep, bus.SlotsTopic); err != nil {
		// Resolvers reread the map of the slots from time to time anyway.
		slog.Debug("slots not announced", "worker_id", h.id, "error", err)
	}
}
