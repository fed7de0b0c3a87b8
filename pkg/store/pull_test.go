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
