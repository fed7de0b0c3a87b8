package delivery

import (
	"encoding/json"
	"log/slog"
	"slices"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/delivery/internal/pace"
)

const (
	// saveEvery is how often the state of sites with long periods is saved,
	// so that a successor of a dead home knows most of it.
	saveEvery = 5 * time.Second
	// maxClockSkew is how far the wall clocks of two workers may differ
	// before a saved state looks older than it is.
	maxClockSkew = 5 * time.Second
)

// slot is what this worker knows of one slot. Guarded by worker.mu.
type slot struct {
	tenure  tenure
	takenAt time.Time
	saved   map[mail.Site]store.SiteState // by earlier homes, for sites not seen here yet
}

// siteState is the saved form of what a site remembers.
type siteState struct {
	SavedAt     time.Time    `json:"saved_at"`
	Clean       bool         `json:"clean"` // the home ended in order: nothing happened after
	Messages    []pace.Tally `json:"messages"`
	Connections []pace.Tally `json:"connections"`
}

// siteOf returns the site of a request if its slot is ours, or nil.
func (w *worker) siteOf(name mail.Site) *site {
	w.mu.Lock()
	defer w.mu.Unlock()
	in := &w.slots[name.Slot()]
	if in.tenure != ours {
		return nil
	}
	s := w.sites[name]
	if s == nil {
		s = w.newSite(name, in)
		w.sites[name] = s
	}
	return s
}

// newSite makes the site with what earlier homes saved of it. Caller holds
// mu.
func (w *worker) newSite(name mail.Site, in *slot) *site {
	v := w.shaping.For("", name, nil)
	s := &site{
		name: name, slot: name.Slot(), home: w,
		limits: v.Limits, named: v.Named, idleTimeout: v.IdleTimeout, longest: v.RetrySchedule.Next(0, evenly),
		sessions: map[*session]bool{}, failures: failures{},
	}
	s.applyLimits()
	saved, known := in.saved[name]
	delete(in.saved, name)
	s.suspendedUntil = saved.SuspendedUntil
	var state siteState
	if known && len(saved.State) > 0 {
		if err := json.Unmarshal(saved.State, &state); err != nil {
			slog.Warn("state of a site not understood", "site", name, "error", err)
			state = siteState{} // as after a home that died
		}
	}
	now := time.Now()
	passed := max(now.Sub(state.SavedAt)-maxClockSkew, 0)
	s.messages.Restore(now, passed, state.Messages)
	s.connections.Restore(now, passed, state.Connections)
	if !state.Clean {
		// A home that died may have gone on until its lease ended.
		unseen := w.config.Lease + saveEvery
		s.messages.Assume(in.takenAt, unseen)
		s.connections.Assume(in.takenAt, unseen)
	}
	return s
}

// save returns what the next home should know of the site.
func (s *site) save(clean bool) store.SiteState {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.changed = false
	state, err := json.Marshal(siteState{now, clean, s.messages.Save(now), s.connections.Save(now)})
	if err != nil {
		panic(err) // a struct of numbers and times
	}
	return store.SiteState{Site: s.name, State: state}
}

// toSave reports whether a successor would miss what the site remembers: for
// short periods it waits one out.
func (s *site) toSave() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	longest := max(s.limits.MessageRate.Period, s.limits.ConnectionRate.Period)
	return s.changed && !s.stopped && longest > s.home.config.Lease
}

// welcome makes slots ours, with what earlier homes saved of their sites.
func (w *worker) welcome(slots []int16, states []store.SiteState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range slots {
		w.slots[n] = slot{tenure: ours, takenAt: time.Now(), saved: map[mail.Site]store.SiteState{}}
	}
	for _, st := range states {
		if in := &w.slots[st.Site.Slot()]; in.tenure == ours {
			in.saved[st.Site] = st
		}
	}
}

func (w *worker) slotsIn(wanted ...tenure) (found []int16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n := range w.slots {
		if slices.Contains(wanted, w.slots[n].tenure) {
			found = append(found, int16(n))
		}
	}
	return found
}

func (w *worker) setTenure(slots []int16, t tenure) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range slots {
		w.slots[n].tenure = t
	}
}

// sitesIn returns the sites of the given slots; of all slots if none is
// given.
func (w *worker) sitesIn(slots []int16) (found []*site) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.sites {
		if slots == nil || slices.Contains(slots, s.slot) {
			found = append(found, s)
		}
	}
	return found
}

// stopSites ends the work for all sites of the slots and lays their jobs
// aside.
func (w *worker) stopSites(slots []int16) {
	for _, s := range w.sitesIn(slots) {
		w.layAside(s.stop())
	}
}

// forgetStopped drops the sites of slots that are away, once their last
// connection has ended.
func (w *worker) forgetStopped() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, s := range w.sites {
		if w.slots[s.slot].tenure == away && !s.busy() {
			delete(w.sites, name)
		}
	}
}

// slotsStillOpen returns the slots that are away and still have connections
// of ours: they must not come back before those have ended, because a new
// home counts from zero.
func (w *worker) slotsStillOpen() (open []int16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.sites {
		if w.slots[s.slot].tenure == away {
			open = append(open, s.slot)
		}
	}
	return open
}

// forgetQuiet drops the sites that have nothing to do and to remember.
func (w *worker) forgetQuiet() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, s := range w.sites {
		if w.slots[s.slot].tenure == ours && s.quiet() {
			delete(w.sites, name)
		}
	}
}

// values returns the values for mail of a request.
func (w *worker) values(r *mail.DeliveryRequest) shaping.Values {
	return w.shaping.For(r.Recipients[0].Domain, r.Route.Site, r.Route.Hosts)
}

// evenly is the middle of the jitter.
func evenly() float64 { return 0.5 }
