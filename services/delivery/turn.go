package delivery

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

// turn is the order in which a site uses the lanes of one pool: each by its
// weight, as far as it has room. Others take over what a lane cannot take, and
// a lane that had no room for long does not make up for it.
type turn struct {
	pool  *pool
	lanes []entry
}

type entry struct {
	lane   *lane
	weight float64
	pass   float64 // advances with each transaction by 1/weight; the smallest is next
}

const (
	// maxLag is how many transactions a lane that had no room may have more
	// than its share afterwards.
	maxLag = 10
	// maxLead is how many transactions of a lane that takes jobs others may be
	// ahead of: so much the weights may be off.
	maxLead = 5
)

// turn returns the turns of a pool. Caller holds mu.
func (s *site) turn(name string) *turn {
	p := s.home.pool(name)
	t := s.turns[name]
	if t != nil && t.pool == p {
		return t
	}
	fresh := &turn{pool: p}
	for _, m := range p.members {
		e := entry{lane: s.lane(m.source), weight: float64(m.weight)}
		if t != nil {
			if i := t.index(e.lane); i >= 0 {
				e.pass = t.lanes[i].pass
			}
		}
		fresh.lanes = append(fresh.lanes, e)
	}
	s.turns[name] = fresh
	return fresh
}

func (t *turn) index(l *lane) int {
	return slices.IndexFunc(t.lanes, func(e entry) bool { return e.lane == l })
}

// may reports whether a lane of the pool may take a job: none that takes it
// too is behind its turn.
func (t *turn) may(l *lane, j *job) bool {
	i := t.index(l)
	if i < 0 {
		return false
	}
	for k := range t.lanes {
		e := &t.lanes[k]
		if e.lane.takes && e.lane.source.reach&j.families != 0 && t.lanes[i].pass > e.pass+maxLead/e.weight {
			return false
		}
	}
	return true
}

// next returns the lane whose turn it is among those that may open a
// connection for a job, or nil.
func (t *turn) next(j *job) *lane {
	var best *entry
	for i := range t.lanes {
		e := &t.lanes[i]
		if e.lane.openable && e.lane.source.reach&j.families != 0 && (best == nil || e.pass < best.pass) {
			best = e
		}
	}
	if best == nil || !t.may(best.lane, j) {
		return nil
	}
	return best.lane
}

// took says that a lane has taken a job.
func (t *turn) took(l *lane) {
	if len(t.lanes) < 2 {
		return
	}
	i := t.index(l)
	if i < 0 {
		return
	}
	t.lanes[i].pass += 1 / t.lanes[i].weight
	l.pass = t.lanes[i].pass
	for k := range t.lanes {
		e := &t.lanes[k]
		e.pass = max(e.pass, t.lanes[i].pass-maxLag/e.weight)
	}
}

// byTurn returns the lanes in the order in which they are to be used.
func (s *site) byTurn() []*lane {
	if len(s.lanes) < 2 {
		return s.lanes
	}
	order := slices.Clone(s.lanes)
	slices.SortStableFunc(order, func(a, b *lane) int { return cmp.Compare(a.pass, b.pass) })
	return order
}

// noSource says why no source of a pool can be used.
type noSource struct{ why string }

func (e noSource) Error() string { return e.why }

// stranded says why mail of a pool must wait for its sources; nil if it need
// not. Caller holds mu.
func (s *site) stranded(pool string, now time.Time) *outage {
	t := s.turn(pool)
	var why []string
	for _, e := range t.lanes {
		reason := e.lane.unusable(now)
		if reason == "" {
			return nil
		}
		why = append(why, e.lane.source.Name+": "+reason)
	}
	reason := fmt.Sprintf("no source of pool %s can be used: %s", pool, strings.Join(why, "; "))
	if len(t.lanes) == 0 {
		reason = fmt.Sprintf("pool %s has no source", pool)
	}
	return &outage{answer: smtpclient.Answer{Phase: mail.PhaseQueue, Err: noSource{reason}}, at: now}
}

// unservable says why no source of the job's pool will ever reach one of its
// hosts, as things are; nil if one may. Caller holds mu.
func (s *site) unservable(j *job) error {
	t := s.turn(j.flow.pool)
	for _, e := range t.lanes {
		if e.lane.source.families()&j.families != 0 {
			return nil
		}
	}
	if len(t.lanes) == 0 || j.families == 0 {
		return nil // another reason counts
	}
	family := map[families]string{onlyIPv4: "IPv4", onlyIPv6: "IPv6"}[j.families]
	return noSource{fmt.Sprintf("the hosts have %s addresses only, and no source of pool %s has one", family, j.flow.pool)}
}

// families returns the families that a source has addresses of, whether they
// can be used now or not.
func (s *source) families() (f families) {
	if s == here {
		return eitherFamily
	}
	if s.IPv4.IsValid() {
		f |= onlyIPv4
	}
	if s.IPv6.IsValid() {
		f |= onlyIPv6
	}
	return f
}

// strand takes the jobs out of the ready queue whose pool has no source that
// can be used now, each with the reason. Caller holds mu.
func (s *site) strand(now time.Time) (asides []aside) {
	why := map[string]*outage{}
	for name := range s.turns {
		if o := s.stranded(name, now); o != nil {
			why[name] = o
		}
	}
	if len(why) == 0 {
		return nil
	}
	for name, o := range why {
		if jobs := s.ready.remove(func(j *job) bool { return j.flow.pool == name }); len(jobs) > 0 {
			s.home.jobs.Add(-int64(len(jobs)))
			s.parked = true
			asides = append(asides, aside{jobs, o})
		}
	}
	return asides
}

// resource takes over new sources. It returns the jobs that must wait now.
func (s *site) resource() []aside {
	s.mu.Lock()
	defer s.mu.Unlock()
	current := s.home.sources.Load()
	for _, l := range s.lanes {
		if l.source != here && current.byName[l.source.Name] == nil {
			l.source = &source{Source: l.source.Source, trouble: "it is not registered"}
		}
	}
	for name := range s.turns {
		s.turn(name)
	}
	now := time.Now()
	for _, l := range s.lanes {
		l.refresh(now)
	}
	asides := s.strand(now)
	if never := s.ready.remove(func(j *job) bool { return s.unservable(j) != nil }); len(never) > 0 {
		s.home.jobs.Add(-int64(len(never)))
		s.parked = true
		asides = append(asides, aside{jobs: never}) // what becomes of them is said when they are pulled
	}
	s.pullNow()
	s.dispatch()
	return asides
}
