package store_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/store"
)

func TestSTSPolicies(t *testing.T) {
	f := setup(t)
	if _, err := f.STSPolicy(t.Context(), "a.test"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("before it was kept: %v", err)
	}
	for _, p := range []store.STSPolicy{
		{Domain: "a.test", ID: "1", Mode: "enforce", MX: []string{"mx.a.test"}, Text: []string{"version: STSv1"}, MaxAge: time.Hour},
		{Domain: "a.test", ID: "2", Mode: "testing", MX: []string{"*.a.test"}, Text: []string{"version: STSv1"}, MaxAge: 24 * time.Hour},
		{Domain: "idle.test", ID: "1", Mode: "none", Text: []string{"version: STSv1"}, MaxAge: time.Hour},
		{Domain: "ended.test", ID: "1", Mode: "enforce", MX: []string{"mx"}, Text: []string{"version: STSv1"}},
	} {
		expires, err := f.SaveSTSPolicy(t.Context(), p)
		if err != nil || time.Until(expires) > p.MaxAge+time.Minute || time.Until(expires) < p.MaxAge-time.Minute {
			t.Fatalf("%s ends at %v: %v", p.Domain, expires, err)
		}
	}
	p, err := f.STSPolicy(t.Context(), "a.test")
	if err != nil || p.ID != "2" || p.Mode != "testing" || !slices.Equal(p.MX, []string{"*.a.test"}) || p.MaxAge != 24*time.Hour {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := f.STSPolicy(t.Context(), "ended.test"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("one that has ended: %v", err)
	}
	stale, err := f.StaleSTSPolicies(t.Context(), 10)
	if err != nil || len(stale) != 0 {
		t.Errorf("stale at once: %v, %v", stale, err)
	}
	f.exec(t, `UPDATE postrider.sts_policies SET refresh_at = now() - interval '1 s', used_at = now() - CASE WHEN domain = 'idle.test' THEN interval '40 days' ELSE interval '2 days' END`)
	if stale, err = f.StaleSTSPolicies(t.Context(), 10); err != nil || len(stale) != 1 || stale[0].Domain != "a.test" {
		t.Errorf("stale a day later: %v, %v; want the one that is in use", stale, err)
	}
	if stale, err = f.StaleSTSPolicies(t.Context(), 10); err != nil || len(stale) != 0 {
		t.Errorf("taken twice: %v, %v", stale, err)
	}
}
