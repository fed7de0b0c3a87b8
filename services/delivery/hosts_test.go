package delivery

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

var (
	first  = netip.MustParseAddrPort("192.0.2.1:25")
	second = netip.MustParseAddrPort("192.0.2.2:25")
	twoMX  = &mail.Route{Hosts: []mail.Host{
		{Name: "mx1", Preference: 10, Port: 25, Addresses: []netip.Addr{first.Addr()}},
		{Name: "mx2", Preference: 20, Port: 25, Addresses: []netip.Addr{second.Addr()}},
	}}
)

func TestAddressThatFailedIsTriedLastAndProbedByOne(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	f := failures{}
	head := func() netip.AddrPort { return f.order(twoMX, now)[0].addr }
	if head() != first {
		t.Fatal("without failures the best preference is not the first")
	}
	f.failed(first, now)
	if head() != second || len(f.order(twoMX, now)) != 2 {
		t.Fatal("an address that failed is not the last, or is gone")
	}
	now = now.Add(firstPause)
	if head() != first {
		t.Error("after the pause nobody finds out whether the address is back")
	}
	if head() != second {
		t.Error("after the pause more than one finds out")
	}
	f.failed(first, now)
	now = now.Add(firstPause)
	if head() != second {
		t.Error("the pause has not doubled with the second failure")
	}
	f.succeeded(first)
	if head() != first {
		t.Error("an address that is back is not in its place")
	}
}

func TestManyFailuresAtOnceAreOne(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	f := failures{}
	for range 20 {
		f.failed(first, now)
	}
	if f[first].pause != firstPause {
		t.Errorf("20 connections that fail together make a pause of %v, want %v", f[first].pause, firstPause)
	}
	for range 20 {
		now = f[first].until
		f.failed(first, now)
	}
	if f[first].pause != maxPause {
		t.Errorf("pause %v, want at most %v", f[first].pause, maxPause)
	}
}

func TestBreaker(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	var b breaker
	may := func() bool {
		ok, _ := b.mayTry(now)
		return ok
	}
	for i := range failuresToOpen {
		if !may() {
			t.Fatalf("closed after %d failures, want %d", i, failuresToOpen)
		}
		b.begin()
		if opened := b.unreached(now, time.Hour, false); opened != (i == failuresToOpen-1) {
			t.Fatalf("failure %d: opened %v", i+1, opened)
		}
	}
	if b.unreached(now, time.Hour, false) {
		t.Error("a failure that was under way opens the breaker once more")
	}
	if may() {
		t.Fatal("an open breaker lets an attempt through")
	}
	now = now.Add(firstPause)
	if !may() {
		t.Fatal("no probe after the pause")
	}
	b.begin()
	if may() {
		t.Fatal("a second probe beside the first")
	}
	b.unreached(now, time.Hour, false)
	now = now.Add(firstPause)
	if may() {
		t.Fatal("the pause has not doubled after a probe that failed")
	}
	now = now.Add(firstPause)
	b.begin()
	if !b.reached() || !may() {
		t.Fatal("a probe that got through has not closed the breaker")
	}
	for range failuresToOpen {
		b.unreached(now, time.Second, false)
	}
	if _, at := b.mayTry(now); at.Sub(now) != time.Second {
		t.Errorf("probe after %v, want the second after which mail would be tried anyway", at.Sub(now))
	}
}

func TestOutageIsSavedAndRestored(t *testing.T) {
	now := time.Now()
	dead := &site{failures: failures{}, longest: time.Hour}
	for range failuresToOpen {
		dead.breaker.unreached(now, time.Hour, false)
	}
	dead.failures.failed(first, now)
	dead.outage = outage{smtpclient.Answer{Phase: mail.PhaseConnect, Err: errors.New("connection refused")}, target{twoMX.Hosts[0], first}, now}
	var state siteState
	state.Outage, state.Failed = dead.saveOutage(now.Add(10 * time.Second))
	text, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	restored := func(ago time.Duration) *site {
		s := &site{failures: failures{}}
		p := predecessor{savedAt: now.Add(-ago)}
		if err := json.Unmarshal(text, &p.state); err != nil {
			t.Fatal(err)
		}
		p.restoreOutage(s)
		return s
	}
	left := firstPause - 10*time.Second
	s := restored(0)
	if may, at := s.breaker.mayTry(now); may || at.Sub(now) != left {
		t.Errorf("the next home may try %v, asks again in %v; want in %v", may, at.Sub(now), left)
	}
	if head := s.failures.order(twoMX, time.Now())[0].addr; head != second {
		t.Errorf("the next home tries %v first, which failed", head)
	}
	if why := explain(s.outage.answer); why != "at phase connect: connection refused" || s.outage.target.addr != first || s.outage.target.host.Name != "mx1" {
		t.Errorf("the next home says %q of %+v", why, s.outage.target)
	}
	s = restored(left + time.Second)
	if may, _ := s.breaker.mayTry(now); !may {
		t.Error("no probe after the time at which it was due")
	}
	s.breaker.begin()
	if may, _ := s.breaker.mayTry(now); may {
		t.Error("more than one probe")
	}
	if head := s.failures.order(twoMX, time.Now())[0].addr; head != first {
		t.Error("an address is tried last for longer than it was to be")
	}
	if restored(left + maxPause + time.Second).breaker.isOpen() {
		t.Error("an outage that nobody has looked at for long is believed")
	}
}

// routeTo returns a route with a host for each of the addresses.
func routeTo(addrs ...string) *mail.Route {
	r := &mail.Route{}
	for i, a := range addrs {
		r.Hosts = append(r.Hosts, mail.Host{Name: a, Preference: uint16(i), Port: 25, Addresses: []netip.Addr{netip.MustParseAddr(a)}})
	}
	return r
}

func namesOfTargets(all []target) (names []string) {
	for _, t := range all {
		names = append(names, t.host.Name)
	}
	return names
}

func TestFamiliesAreBalanced(t *testing.T) {
	for _, c := range []struct {
		name      string
		addrs     string
		most      int
		wantThese string
	}{
		{"no more than may be tried", "::1 ::2 192.0.2.1", 5, "::1 ::2 192.0.2.1"},
		{"six IPv6 before one IPv4", "::1 ::2 ::3 ::4 ::5 ::6 192.0.2.1", 5, "::1 ::2 ::3 ::4 192.0.2.1"},
		{"six IPv4 before two IPv6", "192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4 192.0.2.5 192.0.2.6 ::1 ::2", 5, "192.0.2.1 192.0.2.2 192.0.2.3 ::1 ::2"},
		{"the order stays", "::1 192.0.2.1 ::2 192.0.2.2 ::3 192.0.2.3", 5, "::1 192.0.2.1 ::2 192.0.2.2 ::3"},
		{"many of the second family", "::1 192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4 192.0.2.5", 5, "::1 192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4"},
		{"one family", "192.0.2.1 192.0.2.2 192.0.2.3", 2, "192.0.2.1 192.0.2.2"},
		{"one that is left", "::1 192.0.2.1", 1, "::1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := failures{}.order(routeTo(strings.Fields(c.addrs)...), time.Now())
			if got := strings.Join(namesOfTargets(balance(all, c.most)), " "); got != c.wantThese {
				t.Errorf("%s, want %s", got, c.wantThese)
			}
		})
	}
	rapid.Check(t, func(t *rapid.T) {
		addrs := rapid.SliceOfN(rapid.SampledFrom([]string{"::1", "192.0.2.1"}), 1, 20).Draw(t, "addresses")
		most := rapid.IntRange(1, 8).Draw(t, "most")
		all := failures{}.order(routeTo(addrs...), time.Now())
		got := balance(all, most)
		count := func(of []target, f families) (n int) {
			for _, t := range of {
				if familyOf(t.addr.Addr()) == f {
					n++
				}
			}
			return n
		}
		if len(got) != min(len(all), most) || got[0].addr != all[0].addr {
			t.Fatalf("%d of %d, the first is %v", len(got), len(all), got[0])
		}
		for _, f := range []families{onlyIPv4, onlyIPv6} {
			if n := count(got, f); n < min(count(all, f), most/2) {
				t.Fatalf("%d of %d of one family, of %d in all", n, count(all, f), len(got))
			}
		}
	})
}

// Each attempt comes to addresses that those before have not tried, whatever
// time is between them.
func TestTheNextAttemptTriesOtherAddresses(t *testing.T) {
	for _, every := range []time.Duration{time.Second, time.Minute, 5 * time.Minute, time.Hour} {
		now := time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)
		f := failures{}
		var addrs []string
		for i := range 13 {
			addrs = append(addrs, fmt.Sprintf("192.0.2.%d", i+1))
		}
		tried := map[string]bool{}
		for range 4 {
			for _, at := range balance(f.order(routeTo(addrs...), now), maxAddresses) {
				f.failed(at.addr, now)
				tried[at.host.Name] = true
			}
			now = now.Add(every)
		}
		if len(tried) != len(addrs) {
			t.Errorf("every %v: 4 attempts tried %d of %d addresses: %v", every, len(tried), len(addrs), tried)
		}
		if first := f.order(routeTo(addrs...), now.Add(failedFor+time.Hour))[0].host.Name; first != addrs[0] {
			t.Errorf("a day later %s is tried first", first)
		}
	}
	f := failures{}
	for i := range 2 * maxFailures {
		f.failed(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 25), time.Now())
	}
	if len(f) != maxFailures {
		t.Errorf("%d failures are remembered, want %d", len(f), maxFailures)
	}
}

// What is remembered of a site outlasts the site, within bounds.
func TestAForgottenSiteIsRemembered(t *testing.T) {
	all := memories{}
	s := &site{name: "mx.test", failures: failures{}, greeted: true}
	s.failures.failed(first, time.Now())
	all.keep(s)
	again := &site{name: "mx.test", failures: failures{}}
	if all.restore(again); !again.greeted || len(again.failures) != 1 || len(all) != 0 {
		t.Errorf("%+v is known of it, %d left", again, len(all))
	}
	for i := range maxMemories + 10 {
		all.keep(&site{name: mail.Site(fmt.Sprint(i)), greeted: true})
	}
	all.keep(&site{name: "nothing is known of it"})
	if len(all) > maxMemories {
		t.Errorf("%d sites are remembered", len(all))
	}
}
