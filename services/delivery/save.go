package delivery

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/delivery/internal/pace"
)

// What a site remembers is saved while it works, so that the next home after
// one that died counts what that one did. The rule that makes it exact: no
// more events of a limit than pace.Window.IsAhead says begin before the state
// is saved. So the next home adds as many to what was saved, and has all; and
// before it begins any itself it saves that.

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

// unknown is how long before the end of a worker, which saves so often, the
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

// windows returns those of the lane, of which a successor must know all.
func (l *lane) windows() [3]*pace.Window {
	return [...]*pace.Window{&l.messages, &l.connections, &l.warming}
}

// isAhead reports whether none of the events of a window may begin before the
// state of the site is saved, and has that done.
func (l *lane) isAhead(w *pace.Window, now time.Time) bool {
	if w.Period() <= l.site.home.config.HomeLease || !w.IsAhead() {
		return false
	}
	s := l.site
	s.note(now)
	if s.urgent = true; s.saving.IsZero() {
		select {
		case s.home.saveNow <- s:
		default: // at the next tick
		}
	}
	return true
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
	state := siteState{Home: s.home.id, Clean: clean, SavedAt: now, Unknown: unknown(s.saveEvery()), Lanes: map[string]counts{}}
	if died := s.before.diedAt; !died.IsZero() {
		state.Died = max(now.Sub(died), 1)
	}
	state.Outage, state.Failed = s.saveOutage(now)
	s.urgent = false
	for _, l := range s.lanes {
		for _, w := range l.windows() {
			w.Saving()
		}
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
	for _, l := range s.lanes {
		for _, w := range l.windows() {
			w.Saved(err == nil)
		}
	}
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
		var sites []*site
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			sites = w.sitesIn(nil)
		case s := <-w.saveNow:
			for sites = append(sites, s); len(w.saveNow) > 0; {
				sites = append(sites, <-w.saveNow)
			}
		}
		now := time.Now()
		var due []*site
		var states []store.SiteState
		for _, s := range sites {
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
