package delivery

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/postrider/postrider/pkg/mail"
)

func newJob(priority int16, tenant string, route *mail.Route) *job {
	return &job{
		flow:    flow{priority: priority, pool: defaultPool, tenant: tenant},
		request: &mail.DeliveryRequest{Message: mail.Message{Priority: priority, Tenant: tenant}, Route: route},
	}
}

func TestTenantsTakeTurns(t *testing.T) {
	var r ready
	route := &mail.Route{}
	for range 100 {
		r.add(newJob(0, "campaign", route))
	}
	r.add(newJob(0, "reset", route))
	for i := range 2 {
		if j := r.take(anyConnection); j.flow.tenant == "reset" {
			return
		} else if i == 1 {
			t.Errorf("the second job is of tenant %q, behind which %d more wait", j.flow.tenant, r.len())
		}
	}
}

func TestPrioritiesShareByWeight(t *testing.T) {
	var r ready
	route := &mail.Route{}
	for range 300 {
		r.add(newJob(0, "", route))
		r.add(newJob(1, "", route))
	}
	high := 0
	for range 300 {
		if r.take(anyConnection).request.Message.Priority == 1 {
			high++
		}
	}
	if high < 195 || high > 205 {
		t.Errorf("%d of 300 jobs are of the higher priority, want two thirds", high)
	}
}

func TestOldestFirstWithinATenant(t *testing.T) {
	var r ready
	var jobs []*job
	for range 5 {
		j := newJob(0, "", &mail.Route{})
		jobs = append(jobs, j)
		r.add(j)
	}
	back := jobs[0]
	for i := range jobs {
		if got := r.take(anyConnection); got != jobs[i] {
			t.Fatalf("job %d comes out of turn", i)
		}
	}
	r.add(jobs[1])
	r.again(back)
	if r.take(anyConnection) != back {
		t.Error("a job that is to be tried again at once is not the first")
	}
}

// A connection to one host takes what fits it, but cannot keep a job that
// does not fit waiting for ever.
func TestAJobIsNotPassedForEver(t *testing.T) {
	var r ready
	mine, other := &mail.Route{Site: "mine"}, &mail.Route{Site: "other"}
	r.add(newJob(0, "", other))
	fits := func(j *job) bool { return j.request.Route == mine }
	for i := range 2 * maxPassed {
		r.add(newJob(0, "", mine))
		if r.take(fits) == nil {
			if i < maxPassed {
				t.Errorf("the job was passed %d times, want %d", i, maxPassed)
			}
			return
		}
	}
	t.Error("the job is passed for ever")
}

// Whatever is added comes out once, and the count is right.
func TestReadyLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r ready
		routes := []*mail.Route{{Site: "a"}, {Site: "b"}, {Site: "c"}}
		held := map[*job]bool{}
		take := func(fits func(*job) bool) {
			j := r.take(fits)
			if j == nil {
				return
			}
			if !held[j] {
				t.Fatal("a job came out twice, or was never added")
			}
			if !fits(j) {
				t.Fatal("a job came out that does not fit")
			}
			delete(held, j)
		}
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0, 1:
				j := newJob(rapid.Int16Range(-20, 40).Draw(t, "priority"),
					fmt.Sprint(rapid.IntRange(0, 3).Draw(t, "tenant")), rapid.SampledFrom(routes).Draw(t, "route"))
				held[j] = true
				if rapid.Bool().Draw(t, "again") {
					r.again(j)
				} else {
					r.add(j)
				}
			case 2:
				if r.len() > 0 && len(held) > 0 {
					before := len(held)
					take(anyConnection)
					if len(held) != before-1 {
						t.Fatal("there are jobs, and none comes out that any connection may take")
					}
				}
			case 3:
				wanted := rapid.SampledFrom(routes).Draw(t, "wanted")
				take(func(j *job) bool { return j.request.Route == wanted })
			case 4:
				if rapid.IntRange(0, 20).Draw(t, "drop") == 0 {
					for _, j := range r.drop() {
						if !held[j] {
							t.Fatal("dropped a job that was not there")
						}
						delete(held, j)
					}
					if len(held) != 0 {
						t.Fatalf("%d jobs were not dropped", len(held))
					}
				}
			}
			if r.len() != len(held) {
				t.Fatalf("count %d, want %d", r.len(), len(held))
			}
		}
	})
}

func TestCampaignsOfATenantTakeTurns(t *testing.T) {
	var r ready
	add := func(campaign string, n int) {
		for range n {
			j := newJob(0, "acme", &mail.Route{})
			j.flow.campaign = campaign
			r.add(j)
		}
	}
	add("spring", 100)
	add("summer", 100)
	add("", 1)
	took := map[string]int{}
	for range 21 {
		took[r.take(anyConnection).flow.campaign]++
	}
	if took[""] != 1 || took["spring"] != 10 || took["summer"] != 10 {
		t.Errorf("of the first 21 jobs %v, want the one without a campaign, and 10 of each campaign", took)
	}
}

// Mail of a pool whose sources are all busy does not hold up another pool,
// also where it is to be tried again at once.
func TestPoolsDoNotWaitForEachOther(t *testing.T) {
	var r ready
	add := func(pool string, put func(*job)) {
		j := newJob(0, "", &mail.Route{})
		j.flow.pool = pool
		put(j)
	}
	for range 100 {
		add("busy", r.add)
	}
	add("busy", r.again)
	add("free", r.add)
	free := func(j *job) bool { return j.flow.pool == "free" }
	if j := r.take(free); j == nil {
		t.Error("a job of another pool waits behind those of a busy one")
	}
	if r.len() != 101 || r.heldOf["busy"] != 100 || r.heldOf["free"] != 0 {
		t.Errorf("%d jobs, held %v", r.len(), r.heldOf)
	}
}

// However flows are sized, what is pulled keeps to the bound, gives a new flow
// something while there is room, and asks for nothing where enough is held.
func TestPullsAreDividedFairly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bound := rapid.IntRange(1, 2000).Draw(t, "bound")
		s := &site{}
		var flows []portion
		for i := range rapid.IntRange(1, 60).Draw(t, "flows") {
			f := flow{rapid.Int16Range(-2, 2).Draw(t, "priority"), "p", fmt.Sprint(rapid.IntRange(0, 5).Draw(t, "tenant")), fmt.Sprint(i)}
			flows = append(flows, portion{flow: f})
			if held := rapid.IntRange(0, bound/10).Draw(t, "held"); rapid.Bool().Draw(t, "known") && s.ready.heldOf["p"]+held <= bound && held > 0 {
				s.ready.reserve(f, held)
			}
		}
		got := s.divide(flows, bound)
		sum, fresh, served := s.ready.heldOf["p"], 0, 0
		for _, f := range flows {
			if s.ready.held[f.flow] == 0 {
				fresh++
			}
		}
		for _, p := range got {
			sum += p.n
			if p.n < 1 {
				t.Fatalf("%+v is to be pulled", p)
			}
			if s.ready.held[p.flow] == 0 {
				served++
			}
		}
		if sum > bound {
			t.Fatalf("%d held after the pull, bound %d", sum, bound)
		}
		if served < fresh && sum < bound-bound/spare {
			t.Fatalf("%d of %d new flows get something, though %d of %d is all that is held", served, fresh, sum, bound)
		}
	})
}
