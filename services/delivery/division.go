package delivery

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/delivery/internal/pace"
)

// This file divides hot sites over several homes. The home of the first part
// decides into how many parts; mail.Division says how a change keeps the
// limits.

const (
	// divideEvery is how often divisions are read, and what they ask for is
	// done: as often as shaping is looked at.
	divideEvery = 500 * time.Millisecond
	// crowdedFor is how long one worker may be the home of more parts of a site
	// than its share before other slots are chosen: slots may be on their way.
	crowdedFor = 30 * time.Second
)

// runDivisions keeps up with the divisions until ctx is done.
func (w *worker) runDivisions(ctx context.Context) error {
	tick := time.NewTicker(divideEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		within, cancel := context.WithTimeout(ctx, storeWithin)
		err := w.readDivisions(within)
		for _, s := range w.sitesIn(nil) {
			if err == nil {
				err = w.attend(within, s)
			}
		}
		cancel()
		if err != nil && ctx.Err() == nil {
			slog.Warn("divisions of sites stay as they are", "worker_id", w.id, "error", err)
		}
	}
}

// readDivisions takes over how sites are divided now.
func (w *worker) readDivisions(ctx context.Context) error {
	w.dividing.Lock()
	defer w.dividing.Unlock()
	all, err := w.store.Divisions(ctx)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.divisions = all
	for name, d := range all {
		// What must agree, or decide, is there to do so.
		if d.Next != nil {
			for _, slot := range d.Slots {
				w.siteIn(name, slot)
			}
		} else if len(d.Slots) > 1 {
			w.siteIn(name, d.Slots[0])
		}
	}
	w.mu.Unlock()
	for _, s := range w.sitesIn(nil) {
		if d, divided := all[s.name]; divided {
			w.layAside(s.redivide(d))
		}
	}
	return nil
}

// divisionOf returns the division of a site, as of lately.
func (w *worker) divisionOf(name mail.Site) mail.Division {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.divisions.Of(name)
}

// siteFor returns the part of its site that a request goes to, or nil if no
// part takes it here. Any part here is as good as the one that was meant.
func (w *worker) siteFor(r *mail.DeliveryRequest) *site {
	w.mu.Lock()
	defer w.mu.Unlock()
	name := r.Route.Site
	r.SetSlot(w.divisions.SlotOf(name, r.Message.ID))
	s := w.siteIn(name, r.Slot())
	if s != nil {
		return s
	}
	d, divided := w.divisions[name]
	if !divided {
		return nil
	}
	for _, slot := range d.Takers() {
		if s := w.siteIn(name, slot); s != nil {
			r.SetSlot(slot)
			return s
		}
	}
	return nil
}

// partsOf returns the parts of a site that live here.
func (w *worker) partsOf(name mail.Site) (found []*site) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.divisions.Of(name)
	for _, slot := range slices.Compact(slices.Sorted(slices.Values(slices.Concat(d.Slots, d.Next)))) {
		if s := w.siteIn(name, slot); s != nil {
			found = append(found, s)
		}
	}
	return found
}

// parkedPart names the part for the store whose parked mail is pulled.
func (s *site) parkedPart() store.ParkedSite {
	s.mu.Lock()
	defer s.mu.Unlock()
	return store.ParkedSite{Site: s.name, Slot: s.from}
}

// withSiblings adds to slots of ours those of the other parts of divided sites
// that have a part in them.
func (w *worker) withSiblings(slots []int16) []int16 {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.Clone(slots)
	for _, d := range w.divisions {
		if slices.ContainsFunc(d.Slots, func(slot int16) bool { return slices.Contains(slots, slot) }) {
			all = append(all, d.Slots...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// help has the parts of a site that are here, and have nothing parked of their
// own, pull what is parked for another one: all may be parked there from the
// time before the site was divided.
func (w *worker) help(with store.ParkedSite, own map[store.ParkedSite]bool) {
	for _, s := range w.partsOf(with.Site) {
		if !own[store.ParkedSite{Site: s.name, Slot: s.slot}] {
			s.found(with.Slot)
		}
	}
}

// found has mail pulled that is parked in a slot.
func (s *site) found(from int16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.pulling {
		s.from = from
	}
	s.parked = true
	s.pullNow() // there may be flows that have nothing here yet
	s.dispatch()
}

// portion is what this part has of each limit. Caller holds mu.
func (s *site) portion() mail.Portion { return s.division.Portion(s.slot) }

// redivide takes over how the site is divided now. It returns the jobs that
// another part must do.
func (s *site) redivide(d mail.Division) []*job {
	s.mu.Lock()
	defer s.mu.Unlock()
	step := s.division.Epoch != d.Epoch
	s.division = d
	s.adopt(d.Known)
	if !step {
		return nil
	}
	s.passive = !d.Takes(s.slot)
	s.relimit()
	if s.passive {
		s.dismissAll()
		return s.drop()
	}
	s.parked = true // the other parts may have handed on what they had
	s.pullNow()
	s.dispatch()
	return nil
}

// adopt takes over what another part has learned of the site. Caller holds mu.
func (s *site) adopt(known map[mail.Domain][]string) {
	learned := false
	for domain, names := range known {
		if domain == "" || s.named[domain] != nil {
			continue
		}
		route := &mail.Route{Hosts: hostsNamed(names)}
		if s.home.shaping.For(shaping.Query{Domain: domain, Site: s.name, Hosts: route.Hosts}).Named {
			s.named[domain], learned = route, true
		}
	}
	if names := known[""]; s.hosts == nil && len(names) > 0 {
		s.meet(hostsNamed(names))
	} else if learned {
		s.relimit()
	}
}

// known is what other parts must know of the site: shaping tells limits by it.
// Caller holds mu.
func (s *site) known() map[mail.Domain][]string {
	all := map[mail.Domain][]string{"": namesOf(s.hosts)}
	for domain, route := range s.named {
		all[domain] = namesOf(route.Hosts)
	}
	return all
}

func namesOf(hosts []mail.Host) (names []string) {
	for _, h := range hosts {
		names = append(names, h.Name)
	}
	return names
}

func hostsNamed(names []string) (hosts []mail.Host) {
	for _, name := range names {
		hosts = append(hosts, mail.Host{Name: name})
	}
	return hosts
}

// attend does what the division of a site asks of one of its parts: to agree
// to the next one when it keeps to that, and of the first part to begin it.
func (w *worker) attend(ctx context.Context, s *site) error {
	s.mu.Lock()
	d := s.division
	if d.Next != nil {
		agrees := slices.Contains(d.Slots, s.slot) && !slices.Contains(d.Agreed, s.slot) && s.keeps(time.Now())
		s.mu.Unlock()
		if !agrees {
			return nil
		}
		inForce, err := w.store.Agree(ctx, w.id, s.slot, d)
		if err != nil || !inForce {
			return err
		}
		slog.Info("site divided", "worker_id", w.id, "site", s.name, "parts", len(d.Next))
		if err := w.bus.Announce(ctx, bus.SlotsTopic); err != nil {
			slog.Debug("division not announced", "worker_id", w.id, "error", err)
		}
		return w.readDivisions(ctx)
	}
	if s.slot != d.Slots[0] || s.hosts == nil || s.stopped || s.limits.Homes == 1 && len(d.Slots) == 1 {
		s.mu.Unlock()
		return nil
	}
	wanted := s.wanted()
	known := s.known()
	s.mu.Unlock()

	told := maps.EqualFunc(d.Known, known, slices.Equal)
	d.Known = known
	homes, err := w.slotMap.get(ctx, w.store)
	if err != nil {
		return err
	}
	next := chooseSlots(d.Slots, wanted, &homes)
	if len(d.Slots) == wanted && !slices.Equal(next, d.Slots) && !s.crowdedLong(time.Now()) {
		next = d.Slots
	}
	if !slices.Equal(next, d.Slots) {
		begun, err := w.store.Divide(ctx, w.id, d, next)
		if begun {
			s.crowdedSince = time.Time{}
			slog.Info("site is being divided anew", "worker_id", w.id, "site", s.name, "from", d.Slots, "to", next)
		}
		return err
	}
	s.crowdedSince = time.Time{}
	if !told && len(d.Slots) > 1 {
		return w.store.TellParts(ctx, w.id, d)
	}
	return nil
}

// crowdedLong reports whether it has been found long enough that other slots
// would do better.
func (s *site) crowdedLong(now time.Time) bool {
	if s.crowdedSince.IsZero() {
		s.crowdedSince = now
	}
	return now.Sub(s.crowdedSince) > crowdedFor
}

// wanted returns into how many parts the site is to be divided: as shaping
// says, but no more than each limit has something for. Caller holds mu.
func (s *site) wanted() int {
	n := s.limits.Homes
	now := time.Now()
	sources := s.home.sources.Load()
	for _, name := range append(slices.Collect(maps.Keys(sources.byName)), here.Name) {
		warming := shaping.Rate{}
		if src := sources.byName[name]; src != nil {
			warming, _ = sources.warmUpRate(src, s.name, now)
		}
		n = min(n, s.limitsFrom(name).MostParts(), warming.Slower(s.selectionOf(name)).MostParts())
	}
	return n
}

// keeps reports whether the part keeps to its portion: what is open, and what
// its windows count, is no more. From then on what it adds to the windows of
// the remote host is within that, whenever the remote host sees it. A successor
// would assume no more than that leaves, so what is not saved is within it too.
// Caller holds mu.
func (s *site) keeps(now time.Time) bool {
	if s.hosts == nil {
		return false // its limits are not known yet
	}
	s.recall()
	if s.before.died {
		// A home that died may have used any lane.
		s.lane(here)
		for _, src := range s.home.sources.Load().byName {
			s.lane(src)
		}
	}
	p := s.portion()
	within := func(w *pace.Window, full shaping.Rate) bool {
		return full.IsUnlimited() || w.Counted(now) <= p.Count(full.Events)
	}
	for _, l := range s.lanes {
		if l.inUse() > p.Count(l.full.Connections) || !within(&l.messages, l.full.MessageRate) ||
			!within(&l.connections, l.full.ConnectionRate) || !within(&l.warming, l.fullWarming) {
			return false
		}
		for _, w := range l.windows() {
			if l.isAhead(w, now) {
				return false
			}
		}
	}
	return true
}

// least returns the smallest portion of the limits; 0 is none.
func least(p mail.Portion, full shaping.Limits) int {
	return min(p.Count(full.Connections), leastOf(p, full.ConnectionRate), leastOf(p, full.MessageRate))
}

// leastOf returns the portion of a rate; any of one without a bound.
func leastOf(p mail.Portion, full shaping.Rate) int {
	if full.IsUnlimited() {
		return p.Count(mail.Slots)
	}
	return p.Count(full.Events)
}
