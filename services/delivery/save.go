package delivery

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"github.com/postrider/postrider/pkg/store"
)

// What a site remembers is saved while it works, so that the next home after
// one that died counts what that one did. The rule that makes it exact: an
// event that is not saved yet is never older than unknown, because nothing new
// begins where one is. So the next home adds what the limits allow in that
// time to what was saved, and has all.

const (
	// saveTick is how often sites are looked at that have something to save.
	saveTick = 200 * time.Millisecond
	// saveParts is how many times in the shortest period of its limits the
	// state of a site is saved, but not more often than each minSave; maxSave
	// is enough for long periods.
	saveParts = 10
	minSave   = 400 * time.Millisecond
	maxSave   = 5 * time.Second
)

// period is the shortest period of the limits of a site that outlasts the
// change to another home; zero if there is none: then that waits one out.
func (s *site) period() (shortest time.Duration) {
	see := func(p time.Duration) {
		if p > s.home.config.HomeLease && (shortest == 0 || p < shortest) {
			shortest = p
		}
	}
	see(s.limits.MessageRate.Period)
	see(s.limits.ConnectionRate.Period)
	for _, l := range s.lanes {
		see(l.limits.MessageRate.Period)
		see(l.limits.ConnectionRate.Period)
		see(l.selection.Period)
		if l.source.WarmUp != "" {
			see(day)
		}
	}
	return shortest
}

// saveEvery is how often the state is saved while the site works.
func (s *site) saveEvery() time.Duration {
	period := s.period()
	if period == 0 {
		return maxSave
	}
	return min(max(period/saveParts, minSave), maxSave)
}

// unknown is how long before the end of a home, which saves so often, the
// first event may have been of which its successor knows nothing.
func unknown(saveEvery time.Duration) time.Duration { return 2*saveEvery + saveTick }

// note says that something happened that the next home must count. Caller
// holds mu.
func (s *site) note(now time.Time) {
	if s.unsaved.IsZero() {
		s.unsaved = now
	}
}

// noteOutage says that a host began or ceased to answer. It is saved at once:
// the next home would try what is dead with all that its limits allow. Caller
// holds mu.
func (s *site) noteOutage(now time.Time) {
	s.note(now)
	s.urgent = true
}

// tooMuchUnsaved reports whether nothing may begin before the state is saved.
// Caller holds mu.
func (s *site) tooMuchUnsaved(now time.Time) bool {
	first := s.saving
	if first.IsZero() {
		first = s.unsaved
	}
	// Few sites have a period, and then it matters: the cheap look comes first.
	return !first.IsZero() && now.Sub(first) > 2*minSave && s.period() > 0 && now.Sub(first) > unknown(s.saveEvery())
}

// recall has the lanes that an earlier home used, and this one has not, count
// what that one did: it is still to be remembered. Caller holds mu.
func (s *site) recall() {
	for name := range s.before.state.Lanes {
		s.lane(s.home.sourceOf(name))
	}
	if c := s.before.state.counts; len(c.Messages)+len(c.Connections) > 0 || c.Slow != nil {
		s.lane(here)
	}
}

// isKnown reports whether the site has been met here, so that its limits are
// known by which it counts.
func (s *site) isKnown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hosts != nil
}

// save returns what the next home should know of the site.
func (s *site) save(clean bool) store.SiteState {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.saving.IsZero() {
		s.saving = s.unsaved
	}
	s.unsaved = time.Time{}
	s.recall()
	state := siteState{SavedAt: now, Clean: clean, Unknown: unknown(s.saveEvery()), Lanes: map[string]counts{}}
	state.Outage, state.Failed = s.saveOutage(now)
	s.urgent = false
	for _, l := range s.lanes {
		c := count(now, &l.messages, &l.connections)
		c.Slow, c.Warming = l.slow.Save(now), l.warming.Save(now)
		c.Allowed = l.concurrency.Allowed()
		if l.source.Name == "" {
			state.counts = c
		} else if len(c.Messages)+len(c.Connections)+len(c.Warming) > 0 || c.Slow != nil {
			state.Lanes[l.source.Name] = c
		}
	}
	text, err := json.Marshal(state)
	if err != nil {
		panic(err) // a struct of numbers and times
	}
	return store.SiteState{Site: s.name, Slot: s.slot, State: text}
}

// saved says what became of the state that save returned.
func (s *site) saved(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && !s.saving.IsZero() {
		s.unsaved = s.saving
		s.urgent = true
	}
	s.saving = time.Time{}
	s.dispatch() // it may have waited for this
}

// toSave reports whether a successor would miss what the site remembers: for
// short periods it waits one out.
func (s *site) toSave(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.unsaved.IsZero() || s.stopped:
		return false
	case s.urgent:
		return true
	case now.Sub(s.unsaved) < s.saveEvery()/2:
		return false
	}
	for _, l := range s.lanes {
		if l.slow.Share() < 1 {
			return true
		}
	}
	return s.period() > 0
}

// runSave saves what successors of a dead home would miss until ctx is done.
func (w *worker) runSave(ctx context.Context) error {
	tick := time.NewTicker(saveTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := time.Now()
		var due []*site
		var states []store.SiteState
		for _, s := range w.sitesIn(nil) {
			if s.toSave(now) {
				due = append(due, s)
				states = append(states, s.save(false))
			}
		}
		within, cancel := context.WithTimeout(w.keep, storeWithin)
		err := w.store.SaveSites(within, w.id, states)
		cancel()
		for _, s := range due {
			s.saved(err)
		}
		if err != nil && ctx.Err() == nil {
			slog.Warn("state of sites not saved", "worker_id", w.id, "error", err)
			sleep(ctx, firstStorePause)
		}
	}
}
