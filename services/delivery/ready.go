package delivery

import (
	"cmp"
	"slices"
)

const (
	// lookAhead is how many jobs of one campaign are looked through for one
	// that fits an open connection.
	lookAhead = 32
	// maxPassed is how often others that fit better may pass a job.
	maxPassed = 16
)

// ready is what is claimed for a site and waits for a connection. A job goes
// out by the share of its priority, then by turns of the tenants, then of the
// campaigns, then by age. Mail of one pool never waits for the sources of
// another. Not safe for concurrent use; the site guards it.
type ready struct {
	first []*job // to be tried again at once, before all others
	lines []*line
	count int

	held   map[flow]int   // jobs of each flow in lines, and places reserved for more
	heldOf map[string]int // the same by pool
}

// flow is mail that takes turns with other mail.
type flow struct {
	priority               int16
	pool, tenant, campaign string
}

// line is the jobs of one pool.
type line struct {
	pool    string
	classes []*class
	pass    float64 // as that of a class
}

// class is the jobs of one priority.
type class struct {
	priority int16
	pass     float64 // advances with each job by 1/weight; the smallest is next
	turns[*tenant]
}

// tenant is the jobs of one tenant.
type tenant struct {
	name string
	turns[*campaign]
}

// campaign is the jobs of one campaign, oldest first.
type campaign struct {
	name string
	jobs []*job
}

// turns is a ring of those who take turns.
type turns[T any] struct {
	all  []T
	next int // index of the one whose turn it is
}

// each calls do for each, beginning with the one whose turn it is, until do
// returns true: that one has had its turn.
func (t *turns[T]) each(do func(T) bool) bool {
	for i := range t.all {
		at := (t.next + i) % len(t.all)
		if do(t.all[at]) {
			t.next = (at + 1) % len(t.all)
			return true
		}
	}
	return false
}

// prune drops those that are empty and keeps the turn where it is.
func (t *turns[T]) prune(empty func(T) bool) {
	for i := len(t.all) - 1; i >= 0; i-- {
		if empty(t.all[i]) {
			t.all = slices.Delete(t.all, i, i+1)
			if i < t.next {
				t.next--
			}
		}
	}
	if t.next >= len(t.all) {
		t.next = 0
	}
}

// weight gives each priority twice the share of the one below: a high one
// goes ahead, and none starves.
func weight(priority int16) float64 {
	return float64(int64(1) << min(max(int(priority)+16, 0), 32))
}

func (r *ready) len() int { return r.count }

// add puts a job behind the others of its flow.
func (r *ready) add(j *job) {
	r.reserve(j.flow, 1)
	r.count++
	l := r.line(j.flow.pool)
	c := l.class(j.flow.priority)
	at := slices.IndexFunc(c.all, func(t *tenant) bool { return t.name == j.flow.tenant })
	if at < 0 {
		at = len(c.all)
		c.all = append(c.all, &tenant{name: j.flow.tenant})
	}
	t := c.all[at]
	at = slices.IndexFunc(t.all, func(g *campaign) bool { return g.name == j.flow.campaign })
	if at < 0 {
		at = len(t.all)
		t.all = append(t.all, &campaign{name: j.flow.campaign})
	}
	t.all[at].jobs = append(t.all[at].jobs, j)
}

// again puts a job before all others.
func (r *ready) again(j *job) {
	r.first = append(r.first, j)
	r.count++
}

func (r *ready) line(pool string) *line {
	for _, l := range r.lines {
		if l.pool == pool {
			return l
		}
	}
	l := &line{pool: pool}
	// Who comes back has no claim on the turns that it missed.
	for i, other := range r.lines {
		if i == 0 || other.pass < l.pass {
			l.pass = other.pass
		}
	}
	r.lines = append(r.lines, l)
	return l
}

func (l *line) class(priority int16) *class {
	for _, c := range l.classes {
		if c.priority == priority {
			return c
		}
	}
	c := &class{priority: priority}
	for i, other := range l.classes {
		if i == 0 || other.pass < c.pass {
			c.pass = other.pass
		}
	}
	l.classes = append(l.classes, c)
	slices.SortFunc(l.classes, func(a, b *class) int { return cmp.Compare(b.priority, a.priority) })
	return c
}

// take removes and returns the next job that fits, or nil. A job that is to be
// tried again, or has been passed often enough by others that fit, is not
// passed by others of its pool.
func (r *ready) take(fits func(*job) bool) *job {
	for i, j := range r.first {
		if slices.ContainsFunc(r.first[:i], func(before *job) bool { return before.flow.pool == j.flow.pool }) {
			continue
		}
		if fits(j) {
			r.first = slices.Delete(r.first, i, i+1)
			r.count--
			return j
		}
	}
	for _, l := range byPass(r.lines, func(l *line) float64 { return l.pass }) {
		if slices.ContainsFunc(r.first, func(before *job) bool { return before.flow.pool == l.pool }) {
			continue
		}
		j := l.take(fits)
		if j == nil {
			continue
		}
		l.pass += 1 / weight(j.flow.priority)
		r.count--
		r.reserve(j.flow, -1)
		if len(l.classes) == 0 {
			r.lines = slices.DeleteFunc(r.lines, func(o *line) bool { return o == l })
		}
		return j
	}
	return nil
}

// reserve counts n more jobs of a flow as held.
func (r *ready) reserve(f flow, n int) {
	if r.held == nil {
		r.held, r.heldOf = map[flow]int{}, map[string]int{}
	}
	if r.held[f] += n; r.held[f] == 0 {
		delete(r.held, f)
	}
	if r.heldOf[f.pool] += n; r.heldOf[f.pool] == 0 {
		delete(r.heldOf, f.pool)
	}
}

func (l *line) take(fits func(*job) bool) (found *job) {
	for _, c := range byPass(l.classes, func(c *class) float64 { return c.pass }) {
		stuck := false
		c.each(func(t *tenant) bool {
			had := t.each(func(g *campaign) bool {
				found, stuck = g.take(fits)
				return found != nil || stuck
			})
			if had && !stuck {
				t.prune(func(g *campaign) bool { return len(g.jobs) == 0 })
			}
			return had
		})
		if stuck {
			return nil
		}
		if found == nil {
			continue
		}
		c.pass += 1 / weight(c.priority)
		c.prune(func(t *tenant) bool { return len(t.all) == 0 })
		if len(c.all) == 0 {
			l.classes = slices.DeleteFunc(l.classes, func(o *class) bool { return o == c })
		}
		return found
	}
	return nil
}

// take returns the first job of the campaign that fits. stuck says that the
// oldest one does not fit and may not be passed any more.
func (g *campaign) take(fits func(*job) bool) (j *job, stuck bool) {
	for i, j := range g.jobs[:min(len(g.jobs), lookAhead)] {
		if !fits(j) {
			if i == 0 && j.passed >= maxPassed {
				return nil, true
			}
			continue
		}
		if i > 0 {
			g.jobs[0].passed++
		}
		if i == 0 {
			g.jobs[0] = nil
			g.jobs = g.jobs[1:]
		} else {
			g.jobs = slices.Delete(g.jobs, i, i+1)
		}
		return j, false
	}
	return nil, false
}

// byPass returns lines or classes in the order in which they are to be served.
func byPass[T any](all []T, pass func(T) float64) []T {
	if len(all) < 2 {
		return all
	}
	order := slices.Clone(all)
	slices.SortStableFunc(order, func(a, b T) int { return cmp.Compare(pass(a), pass(b)) })
	return order
}

// has reports whether one of the jobs that are next fits.
func (r *ready) has(fits func(*job) bool) bool {
	if slices.ContainsFunc(r.first, fits) {
		return true
	}
	found := false
	r.campaigns(func(g *campaign) {
		found = found || slices.ContainsFunc(g.jobs[:min(len(g.jobs), lookAhead)], fits)
	})
	return found
}

func (r *ready) campaigns(do func(*campaign)) {
	for _, l := range r.lines {
		for _, c := range l.classes {
			for _, t := range c.all {
				for _, g := range t.all {
					do(g)
				}
			}
		}
	}
}

// remove removes and returns the jobs of which which is true.
func (r *ready) remove(which func(*job) bool) (removed []*job) {
	keep := func(jobs []*job) []*job {
		return slices.DeleteFunc(jobs, func(j *job) bool {
			if which(j) {
				removed = append(removed, j)
				return true
			}
			return false
		})
	}
	r.first = keep(r.first)
	r.count -= len(removed)
	first := len(removed)
	r.campaigns(func(g *campaign) { g.jobs = keep(g.jobs) })
	for _, j := range removed[first:] {
		r.count--
		r.reserve(j.flow, -1)
	}
	r.lines = slices.DeleteFunc(r.lines, func(l *line) bool {
		l.classes = slices.DeleteFunc(l.classes, func(c *class) bool {
			for _, t := range c.all {
				t.prune(func(g *campaign) bool { return len(g.jobs) == 0 })
			}
			c.prune(func(t *tenant) bool { return len(t.all) == 0 })
			return len(c.all) == 0
		})
		return len(l.classes) == 0
	})
	return removed
}

// drop removes and returns everything.
func (r *ready) drop() []*job { return r.remove(func(*job) bool { return true }) }
