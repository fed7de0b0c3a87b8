package delivery

import (
	"cmp"
	"slices"
)

const (
	// lookAhead is how many jobs of one tenant are looked through for one
	// that fits an open connection.
	lookAhead = 32
	// maxPassed is how often others that fit better may pass a job.
	maxPassed = 16
)

// ready is what is claimed for a site and waits for a connection. A job goes
// out by the share of its priority, then by turns of the tenants, then by
// age. Not safe for concurrent use; the site guards it.
type ready struct {
	first   []*job // to be tried again at once, before all others
	classes []*class
	count   int
}

// class is the jobs of one priority.
type class struct {
	priority int16
	pass     float64 // advances with each job by 1/weight; the smallest is next
	tenants  []*tenant
	turn     int // index of the tenant that is next
}

// tenant is the jobs of one tenant, oldest first.
type tenant struct {
	name string
	jobs []*job
}

// weight gives each priority twice the share of the one below: a high one
// goes ahead, and none starves.
func (c *class) weight() float64 {
	return float64(int64(1) << min(max(int(c.priority)+16, 0), 32))
}

func (r *ready) len() int { return r.count }

// add puts a job behind the others of its priority and tenant.
func (r *ready) add(j *job) {
	m := &j.request.Message
	c := r.class(m.Priority)
	for _, t := range c.tenants {
		if t.name == m.Tenant {
			t.jobs = append(t.jobs, j)
			r.count++
			return
		}
	}
	c.tenants = append(c.tenants, &tenant{m.Tenant, []*job{j}})
	r.count++
}

// again puts a job before all others.
func (r *ready) again(j *job) {
	r.first = append(r.first, j)
	r.count++
}

func (r *ready) class(priority int16) *class {
	for _, c := range r.classes {
		if c.priority == priority {
			return c
		}
	}
	c := &class{priority: priority}
	// A class that comes back has no claim on the turns that it missed.
	for i, other := range r.classes {
		if i == 0 || other.pass < c.pass {
			c.pass = other.pass
		}
	}
	r.classes = append(r.classes, c)
	slices.SortFunc(r.classes, func(a, b *class) int { return cmp.Compare(b.priority, a.priority) })
	return c
}

// has reports whether one of the jobs that are next fits.
func (r *ready) has(fits func(*job) bool) bool {
	if slices.ContainsFunc(r.first, fits) {
		return true
	}
	for _, c := range r.classes {
		for _, t := range c.tenants {
			if slices.ContainsFunc(t.jobs[:min(len(t.jobs), lookAhead)], fits) {
				return true
			}
		}
	}
	return false
}

// take removes and returns the next job that fits, or nil. A job that has
// been passed often enough by others that fit is not passed again.
func (r *ready) take(fits func(*job) bool) *job {
	if len(r.first) > 0 {
		j := r.first[0]
		if !fits(j) {
			return nil
		}
		r.first = r.first[1:]
		r.count--
		return j
	}
	for _, c := range r.byPass() {
		for i := range c.tenants {
			at := (c.turn + i) % len(c.tenants)
			t := c.tenants[at]
			j, stuck := t.take(fits)
			if stuck {
				return nil
			}
			if j == nil {
				continue
			}
			r.count--
			c.pass += 1 / c.weight()
			c.turn = at + 1
			if len(t.jobs) == 0 {
				c.tenants = slices.Delete(c.tenants, at, at+1)
				c.turn = at
			}
			if len(c.tenants) == 0 {
				r.classes = slices.DeleteFunc(r.classes, func(o *class) bool { return o == c })
			} else {
				c.turn %= len(c.tenants)
			}
			return j
		}
	}
	return nil
}

// take returns the first job of the tenant that fits. stuck says that the
// oldest one does not fit and may not be passed any more.
func (t *tenant) take(fits func(*job) bool) (j *job, stuck bool) {
	for i, j := range t.jobs[:min(len(t.jobs), lookAhead)] {
		if !fits(j) {
			if i == 0 && j.passed >= maxPassed {
				return nil, true
			}
			continue
		}
		if i > 0 {
			t.jobs[0].passed++
		}
		t.jobs = slices.Delete(t.jobs, i, i+1)
		return j, false
	}
	return nil, false
}

// byPass returns the classes in the order in which they are to be served.
func (r *ready) byPass() []*class {
	if len(r.classes) < 2 {
		return r.classes
	}
	order := slices.Clone(r.classes)
	slices.SortStableFunc(order, func(a, b *class) int { return cmp.Compare(a.pass, b.pass) })
	return order
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
	for _, c := range r.classes {
		for _, t := range c.tenants {
			t.jobs = keep(t.jobs)
		}
		c.tenants = slices.DeleteFunc(c.tenants, func(t *tenant) bool { return len(t.jobs) == 0 })
		c.turn = 0
	}
	r.classes = slices.DeleteFunc(r.classes, func(c *class) bool { return len(c.tenants) == 0 })
	r.count -= len(removed)
	return removed
}

// drop removes and returns everything.
func (r *ready) drop() []*job {
	all := r.first
	for _, c := range r.classes {
		for _, t := range c.tenants {
			all = append(all, t.jobs...)
		}
	}
	*r = ready{}
	return all
}
