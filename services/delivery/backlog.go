package delivery

import (
	"time"

	"github.com/postrider/postrider/pkg/store"
)

// What a flow may hold in memory, as parts of the bound of its site. Pulls
// and large flows leave a quarter to flows that have next to nothing here: so
// a flow that is new goes out by turns at once, however much waits.
const (
	fewPart   = 20 // a twentieth is next to nothing
	spare     = 4  // a quarter is kept for those
	maxFlows  = 100
	maxBehind = 4096
)

// backlog is what a site knows of its mail in Postgres. The site guards it.
type backlog struct {
	parked  bool  // more may wait in Postgres
	from    int16 // the slot in which: that of another part, when ours has none
	pulling bool
	behind  map[flow]bool  // flows that have parked mail, as far as is known
	low     map[string]int // by pool: as few held have more pulled
	cursor  *store.Flow    // of the round through more flows than one look finds
}

// bound is how many jobs of a pool the site may hold in memory: its own bound,
// and never more than what all others leave free, so that there is always
// room for a site that has nothing here yet.
func (s *site) bound(pool string) int {
	return min(s.limits.Ready, (s.home.freeJobs()+s.ready.heldOf[pool])/2)
}

// few is how many jobs are next to nothing.
func few(bound int) int { return max(bound/fewPart, 1) }

// mustWait reports whether mail of a flow is to be parked: older mail of the
// flow is, or the flow has its share of the memory.
func (s *site) mustWait(f flow) bool {
	bound := s.bound(f.pool)
	room := bound - s.ready.heldOf[f.pool]
	switch {
	case room < 1 || s.behind[f]:
		return true
	case s.ready.held[f] < few(bound):
		return false
	}
	return s.parked || room <= bound/spare
}

// parkedOne says that mail of a flow goes to Postgres.
func (s *site) parkedOne(f flow) {
	s.parked = true
	s.noteBehind(f)
}

func (s *site) noteBehind(f flow) {
	if s.behind == nil || len(s.behind) >= maxBehind {
		s.behind = map[flow]bool{}
	}
	s.behind[f] = true
}

// wantsMore reports whether as few jobs of a pool are held that more are to be
// pulled.
func (s *site) wantsMore() bool {
	for pool, low := range s.low {
		if s.ready.heldOf[pool] <= low {
			return true
		}
	}
	return false
}

// portion is how many recipients of a parked flow to pull.
type portion struct {
	flow
	parked  store.Flow
	held, n int // in memory, and to be pulled
}

// plan decides how much of which parked flows comes into memory, by the same
// shares by which it goes out, and reserves the places. whole says that there
// are no other flows.
func (s *site) plan(parked []store.Flow, whole bool, now time.Time) []portion {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pulling = true
	s.low = map[string]int{}
	if whole {
		s.behind = nil
	}
	byPool := map[string][]portion{}
	for _, p := range parked {
		f := s.home.flow(p)
		s.noteBehind(f)
		byPool[f.pool] = append(byPool[f.pool], portion{flow: f, parked: p})
	}
	var all []portion
	for pool, flows := range byPool {
		if s.stranded(pool, now) != nil {
			continue
		}
		all = append(all, s.divide(flows, s.bound(pool))...)
	}
	if s.breaker.isOpen() { // one probe
		all = all[:min(len(all), max(1-s.ready.len()-s.coming, 0))]
		for i := range all {
			all[i].n = 1
		}
	}
	for _, sh := range all {
		s.reserve(places{sh.flow, sh.n}, 1)
	}
	return all
}

// divide gives each flow of a pool what it may have of the memory, less what
// it holds. A flow that holds more than half of that gets nothing: so pulls
// are few and large. A flow that has nothing here gets a few in any case.
func (s *site) divide(flows []portion, bound int) (got []portion) {
	total := bound - bound/spare
	weights := 0.0
	tenants := map[int16]map[string]int{} // by priority: the campaigns of each tenant
	for _, f := range flows {
		of := tenants[f.priority]
		if of == nil {
			of = map[string]int{}
			tenants[f.priority] = of
			weights += weight(f.priority)
		}
		of[f.tenant]++
	}
	for _, f := range flows {
		of := tenants[f.priority]
		may := max(int(float64(total)*weight(f.priority)/weights)/len(of)/of[f.tenant], 1)
		f.held = s.ready.held[f.flow]
		if f.held == 0 || f.held <= may/2 {
			f.n = may - f.held
			got = append(got, f)
		}
	}
	if len(got) == 0 {
		return nil
	}
	held := s.ready.heldOf[got[0].pool]
	return fit(got, min(total-held, pullBatch), bound-held, few(bound))
}

// fit cuts the portions so that they sum to no more than a limit, those that
// are small whole. New flows get a few beyond that, as long as there is room.
func fit(all []portion, limit, room, few int) (fitting []portion) {
	for i, p := range all {
		n := min(p.n, max(limit/(len(all)-i), min(limit, 1)))
		if p.held == 0 {
			n = max(n, min(p.n, few))
		}
		if p.n = min(n, room); p.n < 1 {
			continue
		}
		limit, room = limit-p.n, room-p.n
		fitting = append(fitting, p)
	}
	return fitting
}

// pulled takes over what came of a pull: got counts the recipients by flow.
func (s *site) pulled(shares []portion, got map[flow]int, seenAll bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pulling = false
	for _, sh := range shares {
		if got[sh.flow] < sh.n {
			delete(s.behind, sh.flow)
		} else {
			s.low[sh.pool] = 0
		}
	}
	s.parked = len(s.behind) > 0 || !seenAll
	for pool := range s.low {
		s.low[pool] = s.ready.heldOf[pool] / 2
	}
}
