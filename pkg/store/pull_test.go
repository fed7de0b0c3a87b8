package store_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// whole is where a site is parked that is not divided.
func whole(site mail.Site) store.ParkedSite { return store.ParkedSite{Site: site, Slot: site.Slot()} }

// pull claims up to so many parked recipients of each flow of a site.
func (f *fixture) pull(t *testing.T, worker mail.WorkerID, site mail.Site, each int) []*mail.DeliveryRequest {
	t.Helper()
	of := whole(site)
	flows, err := f.ParkedFlows(t.Context(), of, nil, 100)
	if err != nil {
		t.Fatal(err)
	}
	var shares []store.Share
	for _, flow := range flows {
		shares = append(shares, store.Share{Flow: flow, Recipients: each})
	}
	requests, err := f.Pull(t.Context(), worker, of, shares)
	if err != nil {
		t.Fatal(err)
	}
	return requests
}

// Each flow is found once, in the order of priority, from any place on, and
// gives its oldest.
func TestFlowsArePulledByTheirShares(t *testing.T) {
	f := setup(t)
	r := route("mx.example.org")
	pooled := *r
	pooled.Rule, pooled.Pool = 1, "bulk"
	var want []store.Flow
	var reqs []*mail.DeliveryRequest
	for _, priority := range []int16{7, 0, -3} {
		for _, pool := range []string{"bulk", ""} {
			for _, tenant := range []string{"b", "a", ""} {
				for _, campaign := range []string{"two", "one", ""} {
					want = append(want, store.Flow{Priority: priority, Pool: pool, Tenant: tenant, Campaign: campaign})
					for range 3 {
						sub := submission(1)
						sub.Priority, sub.Tenant, sub.Campaign = priority, tenant, campaign
						f.accept(t, sub)
						rt := r
						if pool != "" {
							rt = &pooled
						}
						reqs = append(reqs, request(sub, rt))
					}
				}
			}
		}
	}
	if err := f.Park(t.Context(), 0, reqs); err != nil {
		t.Fatal(err)
	}
	got, err := f.ParkedFlows(t.Context(), whole(r.Site), nil, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for i := range want {
		got, err := f.ParkedFlows(t.Context(), whole(r.Site), &want[i], 2)
		if err != nil || !slices.Equal(got, want[i+1:min(i+3, len(want))]) {
			t.Errorf("behind flow %d: %+v, %v", i, got, err)
		}
	}
	w := f.worker(t)
	for round := 1; round <= 3; round++ {
		seen := map[string]bool{}
		for _, req := range f.pull(t, w, r.Site, 1) {
			m := req.Message
			key := fmt.Sprint(m.Priority, req.Route.Pool, m.Tenant, m.Campaign)
			if seen[key] {
				t.Errorf("flow %s gives two, its share is one", key)
			}
			seen[key] = true
		}
		if len(seen) != len(want) {
			t.Errorf("round %d: %d flows give, want %d", round, len(seen), len(want))
		}
	}
	if got := f.pull(t, w, r.Site, 10); len(got) != 0 {
		t.Errorf("%d more than were parked", len(got))
	}
}

// A pull whose commit a crash of Postgres forgot is settled as if it were
// there; what another worker has pulled since is that worker's.
func TestSettleOfAForgottenPull(t *testing.T) {
	f := setup(t)
	forgotten, taken := submission(1), submission(1)
	f.accept(t, forgotten, taken)
	r := route("mx.example.org")
	if err := f.Park(t.Context(), 0, []*mail.DeliveryRequest{request(forgotten, r), request(taken, r)}); err != nil {
		t.Fatal(err)
	}
	w, other := f.worker(t), f.worker(t)
	mine := f.pull(t, w, r.Site, 2)
	if len(mine) != 2 {
		t.Fatalf("pulled %d messages, want 2", len(mine))
	}
	const forget = "UPDATE recipients SET attempt = attempt - 1, worker_id = NULL, slot = $1 WHERE queue_id = $2"
	f.exec(t, forget, r.Site.Slot(), taken.ID)
	if again := f.pull(t, other, r.Site, 2); len(again) != 1 {
		t.Fatalf("pulled %d messages again, want 1", len(again))
	}
	f.exec(t, forget, r.Site.Slot(), forgotten.ID)
	if lost := f.settle(t, w, settlement(mine[0], relayed), settlement(mine[1], relayed)); lost != 1 {
		t.Errorf("lost %d outcomes, want only that of the recipient that was pulled anew", lost)
	}
	if n := one[int](t, f, "SELECT count(*) FROM recipients WHERE queue_id = $1 AND state = 'relayed' AND slot IS NULL", forgotten.ID); n != 1 {
		t.Errorf("%d recipients relayed, want 1", n)
	}
}
