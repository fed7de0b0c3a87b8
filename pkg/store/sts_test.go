package store_test

import (
	"errors"
	"net/netip"
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
	if all, err := f.STSPolicies(t.Context(), 10); err != nil || len(all) != 2 || all[0].Domain != "a.test" || all[1].Domain != "idle.test" {
		t.Errorf("kept: %+v, %v", all, err)
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

func TestBrokenTLS(t *testing.T) {
	f := setup(t)
	at := netip.MustParseAddrPort("192.0.2.1:25")
	other := netip.MustParseAddrPort("[2001:db8::1]:2525")
	for _, b := range []store.BrokenTLS{
		{Address: at, Host: "MX.a.test", Fault: "large hello", Evidence: "EOF"},
		{Address: at, Host: "MX.a.test", Fault: "starttls", Evidence: "handshake failure"},
		{Address: other, Host: "mx.b.test", Fault: "starttls", Evidence: "EOF"},
	} {
		if err := f.RememberBrokenTLS(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	all, err := f.BrokenTLS(t.Context())
	if err != nil || len(all) != 2 || all[0].Address != other {
		t.Fatalf("%+v, %v", all, err)
	}
	if b := all[1]; b.Address != at || b.Host != "mx.a.test" || b.Fault != "starttls" || b.Evidence != "handshake failure" || b.Times != 2 || time.Until(b.Until) < 71*time.Hour {
		t.Errorf("%+v", b)
	}
	if n, err := f.ForgetBrokenTLS(t.Context(), "mx.A.test"); err != nil || n != 1 {
		t.Errorf("forgot %d, %v", n, err)
	}
	f.exec(t, `UPDATE postrider.broken_tls SET until = now()`)
	if all, err := f.BrokenTLS(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("after 3 days: %+v, %v", all, err)
	}
	if n, err := f.ForgetBrokenTLS(t.Context(), ""); err != nil || n != 1 {
		t.Errorf("forgot %d of all, %v", n, err)
	}
	for _, a := range []netip.AddrPort{at, other} {
		if err := f.RememberBrokenTLS(t.Context(), store.BrokenTLS{Address: a, Host: "mx.a.test", Fault: "starttls", Evidence: "EOF"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.ForgetBrokenTLSAt(t.Context(), at); err != nil {
		t.Error(err)
	}
	if all, err := f.BrokenTLS(t.Context()); err != nil || len(all) != 1 || all[0].Address != other {
		t.Errorf("after one address was forgotten: %+v, %v", all, err)
	}
}
