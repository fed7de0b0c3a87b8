package delivery

import (
	"cmp"
	"slices"
)

// source is an address that mail leaves from.
type source struct {
	name string // "" is this machine as it is: the system chooses the address
}

// pool is sources that share some of the mail. It never changes.
type pool struct {
	name    string
	members []member
}

// member is a source of a pool, and its share.
type member struct {
	source *source
	weight int
}

// anywhere is the pool of an installation that names no sources.
var anywhere = &pool{members: []member{{&source{}, 1}}}

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

// maxLag is how many transactions a lane that had no room may be ahead of its
// turn afterwards.
const maxLag = 10

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

func (t *turn) has(l *lane) bool { return t.index(l) >= 0 }

// next returns the lane whose turn it is among those that may open a
// connection, or nil.
func (t *turn) next() *lane {
	var best *entry
	for i := range t.lanes {
		if e := &t.lanes[i]; e.lane.openable && (best == nil || e.pass < best.pass) {
			best = e
		}
	}
	if best == nil {
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

// pool returns the pool of a name.
func (w *worker) pool(string) *pool { return anywhere }
