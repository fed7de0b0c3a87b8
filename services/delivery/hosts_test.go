package delivery

import (
	"encoding/json"
	"errors"
	"net/netip"
	"testing"
	"time"

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
		if opened := b.unreached(now, time.Hour); opened != (i == failuresToOpen-1) {
			t.Fatalf("failure %d: opened %v", i+1, opened)
		}
	}
	if b.unreached(now, time.Hour) {
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
	b.unreached(now, time.Hour)
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
		b.unreached(now, time.Second)
	}
	if _, at := b.mayTry(now); at.Sub(now) != time.Second {
		t.Errorf("probe after %v, want the second after which mail would be tried anyway", at.Sub(now))
	}
}

func TestOutageIsSavedAndRestored(t *testing.T) {
	now := time.Now()
	dead := &site{failures: failures{}, longest: time.Hour}
	for range failuresToOpen {
		dead.breaker.unreached(now, time.Hour)
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
