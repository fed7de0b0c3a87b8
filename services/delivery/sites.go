package delivery

import (
	"slices"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
)

// slot is what this worker knows of one slot. Guarded by worker.mu.
type slot struct {
	tenure  tenure
	takenAt time.Time
	before  mail.WorkerID                 // the home before; 0: there was none
	orderly bool                          // that one has saved all
	saved   map[mail.Site]store.SiteState // by earlier homes, for sites not seen here yet
}

// sitePart is what a site goes by here: a divided one has a part in each of
// its slots.
type sitePart struct {
	name mail.Site
	slot int16
}

// siteOf returns the part of a site in a slot if that is ours, or nil.
func (w *worker) siteOf(name mail.Site, slot int16) *site {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.siteIn(name, slot)
}

// siteIn is siteOf for a caller that holds mu.
func (w *worker) siteIn(name mail.Site, slot int16) *site {
	in := &w.slots[slot]
	if in.tenure != ours {
		return nil
	}
	part := sitePart{name, slot}
	s := w.sites[part]
	if s == nil {
		s = w.newSite(part, in)
		w.sites[part] = s
	}
	return s
}

// newSite makes a part of a site with what earlier homes saved of it. Caller
// holds mu.
func (w *worker) newSite(part sitePart, in *slot) *site {
	name := part.name
	v := w.shaping.For(shaping.Query{Site: name})
	s := &site{
		name: name, slot: part.slot, home: w, division: w.divisions.Of(name),
		limits: v.Limits, named: map[mail.Domain]*mail.Route{}, idleTimeout: v.IdleTimeout, longest: v.RetrySchedule.Next(0, evenly),
		turns: map[string]*turn{}, sessions: map[*session]bool{}, failures: failures{},
	}
	s.from, s.remnants = s.slot, slices.Clone(w.remnants[part])
	s.passive = !s.division.Takes(s.slot)
	s.relimit()
	saved := in.saved[name]
	delete(in.saved, name)
	s.suspendedUntil = saved.SuspendedUntil
	if until := w.suspended.of(name); until.After(s.suspendedUntil) {
		s.suspendedUntil = until
	}
	s.before = predecessorOf(saved, in, w.config.HomeLease)
	s.greeted = len(saved.State) > 0 && s.before.state.Outage == nil
	w.memories.restore(s)
	s.before.restoreOutage(s)
	return s
}

// welcome makes slots ours, with what earlier homes saved of their sites.
func (w *worker) welcome(slots []int16, before [mail.Slots]store.Home, states []store.SiteState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leaveRemnants(slots)
	w.forgetRemnants()
	for _, n := range slots {
		w.slots[n] = slot{tenure: ours, takenAt: time.Now(), before: before[n].Worker, orderly: before[n].Left, saved: map[mail.Site]store.SiteState{}}
	}
	for _, st := range states {
		if in := &w.slots[st.Slot]; in.tenure == ours {
			in.saved[st.Site] = st
		}
	}
}

// settled divides slots into those of which all that happened is saved, and
// those that came from a home that died: of sites that have not been seen here
// since, nobody knows what that one did last, for as long as limits count.
func (w *worker) settled(slots []int16) (known, unknown []int16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range slots {
		if in := &w.slots[n]; in.orderly || time.Since(in.takenAt) > day {
			known = append(known, n)
		} else {
			unknown = append(unknown, n)
		}
	}
	return known, unknown
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
	for part, s := range w.sites {
		if w.slots[s.slot].tenure == away && !s.busy() {
			delete(w.sites, part)
		}
	}
	w.forgetRemnants()
}

// slotsBeingCut returns the slots that are away and in which sessions of ours
// are about to end: they must not come back before, because a new home counts
// what these did as over. A session that waits for the answer to a final dot
// may take long, and is counted.
func (w *worker) slotsBeingCut() (cutting []int16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.sites {
		if w.slots[s.slot].tenure == away && s.isCutting() {
			cutting = append(cutting, s.slot)
		}
	}
	return cutting
}

// forgetQuiet drops the sites that have nothing to do and to remember.
func (w *worker) forgetQuiet() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for part, s := range w.sites {
		if w.slots[s.slot].tenure == ours && s.retire() {
			delete(w.sites, part)
			w.memories.keep(s)
		}
	}
}

// maxMemories bounds the sites without mail of which something is remembered.
const maxMemories = 10_000

// memories are what is remembered of sites that have nothing to do: that their
// hosts have greeted, so that mail for them waits for no first connection
// again, and which addresses failed, so that the next attempt comes to others.
type memories map[sitePart]memory

type memory struct {
	greeted  bool
	failures failures
}

// keep remembers a site that is forgotten, and forgets any other one where
// there are too many.
func (all memories) keep(s *site) {
	part := sitePart{s.name, s.slot}
	if !s.greeted && len(s.failures) == 0 {
		delete(all, part)
		return
	}
	for other := range all {
		if len(all) < maxMemories {
			break
		}
		delete(all, other)
	}
	all[part] = memory{s.greeted, s.failures}
}

// restore has a site know what is remembered of it. What an earlier home saved
// of it, if anything, is older.
func (all memories) restore(s *site) {
	if m, known := all[sitePart{s.name, s.slot}]; known {
		delete(all, sitePart{s.name, s.slot})
		s.greeted = m.greeted
		if m.failures != nil {
			s.failures = m.failures
		}
	}
}

// values returns the values for mail of a request.
func (w *worker) values(r *mail.DeliveryRequest) shaping.Values {
	return w.shaping.For(shaping.Query{Domain: r.Recipients[0].Domain, Site: r.Route.Site, Hosts: r.Route.Hosts})
}

// evenly is the middle of the jitter.
func evenly() float64 { return 0.5 }
