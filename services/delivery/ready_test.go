package delivery

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/postrider/postrider/pkg/mail"
)

func newJob(priority int16, tenant string, route *mail.Route) *job {
	return &job{request: &mail.DeliveryRequest{Message: mail.Message{Priority: priority, Tenant: tenant}, Route: route}}
}

func TestTenantsTakeTurns(t *testing.T) {
	var r ready
	route := &mail.Route{}
	for range 100 {
		r.add(newJob(0, "campaign", route))
	}
	r.add(newJob(0, "reset", route))
	for i := range 2 {
		if j := r.take(anyConnection); j.request.Message.Tenant == "reset" {
			return
		} else if i == 1 {
			t.Errorf("the second job is of tenant %q, behind which %d more wait", j.request.Message.Tenant, r.len())
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
