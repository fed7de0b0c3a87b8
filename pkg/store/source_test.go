package store_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/postrider/postrider/pkg/store"
)

func TestSources(t *testing.T) {
	f := setup(t)
	one := store.Source{Name: "one", IPv4: netip.MustParseAddr("192.0.2.1"), Hello: "one.example.com"}
	two := store.Source{
		Name: "two", IPv4: netip.MustParseAddr("192.0.2.2"), IPv6: netip.MustParseAddr("2001:db8::2"), Egress: "socks5://me:secret@proxy.example.com:1080",
		WarmUp: "default", WarmUpFrom: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC),
	}
	for _, s := range []store.Source{two, one} {
		if err := f.SetSource(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	members := []store.Member{{Pool: "default", Source: "one", Weight: 3}, {Pool: "default", Source: "two", Weight: 1}}
	if err := f.SetPool(t.Context(), "default", members); err != nil {
		t.Fatal(err)
	}
	if err := f.CreateTenant(t.Context(), store.Tenant{Name: "acme"}); err != nil {
		t.Fatal(err)
	}
	if err := f.SetTenantPool(t.Context(), "acme", "bulk"); err != nil {
		t.Fatal(err)
	}
	block := store.SourceBlock{Source: "one", Site: "provider:big", Until: time.Now().Add(time.Hour).Truncate(time.Millisecond), Reason: "550 5.7.1 blocked"}
	if err := f.BlockSource(t.Context(), block); err != nil {
		t.Fatal(err)
	}
	if err := f.BlockSource(t.Context(), store.SourceBlock{Source: "gone", Site: "x", Until: block.Until}); err != nil {
		t.Errorf("a block of a source that is gone: %v, want nothing done", err)
	}
	worker := f.worker(t)
	listener := store.Listener{Worker: worker, Address: "worker.example.com:1080", Key: "key", Addresses: []netip.Addr{one.IPv4}}
	if err := f.Advertise(t.Context(), listener); err != nil {
		t.Fatal(err)
	}
	all, err := f.Sources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := store.Sources{
		Sources: []store.Source{one, two}, Members: members, Tenants: map[string]string{"acme": "bulk"},
		Blocks: []store.SourceBlock{block}, Listeners: []store.Listener{listener},
	}
	if diff := cmp.Diff(want, all, cmpopts.IgnoreFields(store.Sources{}, "WarmUps"), cmpopts.IgnoreFields(store.SourceBlock{}, "At"),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateApproxTime(time.Second)); diff != "" {
		t.Error(diff)
	}
	if len(all.WarmUps) == 0 || all.WarmUps[0].Schedule != "default" || all.WarmUps[0].Day != 1 {
		t.Errorf("warm-ups %+v, want those of the schedule default", all.WarmUps)
	}
	if got, err := f.Source(t.Context(), "one"); err != nil || got != one {
		t.Errorf("source %+v, %v", got, err)
	}
	if _, err := f.Source(t.Context(), "three"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a source that is not there: %v", err)
	}
	if err := f.RemoveSource(t.Context(), "one"); !errors.Is(err, store.ErrInUse) {
		t.Errorf("a source of a pool is removed: %v", err)
	}
	if err := f.SetPool(t.Context(), "default", members[1:]); err != nil {
		t.Fatal(err)
	}
	if err := f.UnblockSource(t.Context(), "one", "provider:big"); err != nil {
		t.Error(err)
	}
	if err := f.UnblockSource(t.Context(), "one", "provider:big"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unblocked twice: %v", err)
	}
	if err := f.RemoveSource(t.Context(), "one"); err != nil {
		t.Error(err)
	}
	if err := f.SetPool(t.Context(), "default", []store.Member{{Source: "three", Weight: 1}}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a pool of a source that is not there: %v", err)
	}
}

func TestSourcesThatMakeNoSense(t *testing.T) {
	f := setup(t)
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for name, s := range map[string]store.Source{
		"no address":          {Name: "a"},
		"IPv6 for IPv4":       {Name: "a", IPv4: six},
		"IPv4 for IPv6":       {Name: "a", IPv6: four},
		"a name with a space": {Name: "a b", IPv4: four},
		"EHLO with a space":   {Name: "a", IPv4: four, Hello: "x y"},
		"EHLO of one label":   {Name: "a", IPv4: four, Hello: "localhost"},
		"an unknown proxy":    {Name: "a", IPv4: four, Egress: "http://proxy:80"},
		"a proxy, no port":    {Name: "a", IPv4: four, Egress: "socks5://proxy"},
	} {
		if err := f.SetSource(t.Context(), s); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
