package mx

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postrider/postrider/pkg/dnstest"
	"github.com/postrider/postrider/pkg/inside"
	"github.com/postrider/postrider/pkg/mail"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAnswersAreKept(t *testing.T) {
	s := dnstest.Start(t, dnstest.Zone{
		MX:       map[string][]string{"a.test": {"10 mx.test"}},
		A:        map[string][]string{"mx.test": {"192.0.2.1"}},
		ServFail: []string{"broken.test"},
	})
	r := resolverFor(t, s, Config{})
	if _, ok := r.Known("a.test"); ok {
		t.Error("known before the first look-up")
	}
	for range 3 {
		lookup(t, r, "a.test")
		lookup(t, r, "gone.test")
		lookup(t, r, "broken.test")
	}
	if res, ok := r.Known("a.test"); !ok || res.Plan == nil {
		t.Errorf("after the look-up: known %v, %+v", ok, res)
	}
	for name, want := range map[string]int{"a.test": 1, "mx.test": 2, "gone.test": 1, "broken.test": 1} {
		if got := s.Queries(name); got != want {
			t.Errorf("%s was asked %d times, want %d", name, got, want)
		}
	}
}

func TestAnswersAreForgotten(t *testing.T) {
	zone := dnstest.Zone{A: map[string][]string{"a.test": {"192.0.2.1"}}, ServFail: []string{"broken.test"}}
	s := dnstest.Start(t, zone)
	r := resolverFor(t, s, Config{})
	r.ttl = ttlBounds{min: 20 * time.Millisecond, max: 20 * time.Millisecond, negative: 20 * time.Millisecond, failure: 20 * time.Millisecond}
	for domain, want := range map[mail.Domain]string{"a.test": "a.test: 0 a.test:25[192.0.2.1]", "gone.test": "5.1.2", "broken.test": "4.4.3"} {
		if got := text(lookup(t, r, domain)); got != want {
			t.Errorf("%s: got %s, want %s", domain, got, want)
		}
	}
	if err := s.Set(dnstest.Zone{A: map[string][]string{"a.test": {"192.0.2.2"}, "gone.test": {"192.0.2.3"}, "broken.test": {"192.0.2.4"}}}); err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[mail.Domain]string{
		"a.test": "a.test: 0 a.test:25[192.0.2.2]", "gone.test": "gone.test: 0 gone.test:25[192.0.2.3]", "broken.test": "broken.test: 0 broken.test:25[192.0.2.4]",
	} {
		deadline := time.Now().Add(5 * time.Second)
		for text(lookup(t, r, domain)) != want {
			if time.Now().After(deadline) {
				t.Fatalf("%s: still %s, want %s", domain, text(lookup(t, r, domain)), want)
			}
		}
	}
}

// Of a plan made of several answers the shortest TTL counts, but not that of
// what is not part of it: here, no AAAA for a minute.
func TestPlanExpiresWithItsShortestAnswer(t *testing.T) {
	s := dnstest.Start(t, dnstest.Zone{Records: []string{
		"a.test. 3000 IN MX 10 mx.test.", "mx.test. 90 IN A 192.0.2.1", "mx.test. 2000 IN AAAA 2001:db8::1",
		"b.test. 99999 IN MX 10 mx2.test.", "mx2.test. 99999 IN A 192.0.2.1", "mx2.test. 99999 IN AAAA 2001:db8::1",
		"d.test. 600 IN MX 10 mx4.test.", "mx4.test. 600 IN A 192.0.2.1",
		"c.test. 1 IN MX 10 mx3.test.", "mx3.test. 1 IN A 192.0.2.1", "mx3.test. 1 IN AAAA 2001:db8::1",
	}})
	r := resolverFor(t, s, Config{})
	for domain, want := range map[mail.Domain]time.Duration{"a.test": 90 * time.Second, "b.test": time.Hour, "c.test": 30 * time.Second, "d.test": 10 * time.Minute} {
		got := time.Until(lookup(t, r, domain).Plan.Route(Demands{TLS: mail.TLSMay}).ExpiresAt)
		if got > want || got < want-5*time.Second {
			t.Errorf("%s: the route expires in %v, want %v", domain, got, want)
		}
	}
}

func TestLookupsInFlightAreShared(t *testing.T) {
	s := dnstest.Start(t, dnstest.Zone{
		A:     map[string][]string{"a.test": {"192.0.2.1"}},
		Delay: map[string]time.Duration{"a.test": 100 * time.Millisecond},
	})
	r := resolverFor(t, s, Config{Timeout: 5 * time.Second})
	var looking sync.WaitGroup
	for range 50 {
		looking.Go(func() {
			if res, err := r.Lookup(t.Context(), "a.test"); err != nil || res.Plan == nil {
				t.Errorf("got %+v, %v", res, err)
			}
		})
	}
	looking.Wait()
	if n := s.Queries("a.test"); n != 3 {
		t.Errorf("50 look-ups at once made %d queries, want MX, A and AAAA", n)
	}
}

// One who gives up does not take the answer from the others.
func TestGivingUpLeavesTheLookupToOthers(t *testing.T) {
	s := dnstest.Start(t, dnstest.Zone{
		A:     map[string][]string{"a.test": {"192.0.2.1"}},
		Delay: map[string]time.Duration{"MX a.test": 200 * time.Millisecond},
	})
	r := resolverFor(t, s, Config{Timeout: 5 * time.Second})
	hasty, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := r.Lookup(hasty, "a.test"); err == nil {
		t.Fatal("the hasty look-up did not give up")
	}
	if got := text(lookup(t, r, "a.test")); got != "a.test: 0 a.test:25[192.0.2.1]" {
		t.Errorf("got %s", got)
	}
	if n := s.Queries("MX a.test"); n != 1 {
		t.Errorf("MX was asked %d times, want 1", n)
	}
}

// A look-up that Close ended is no outcome: it must not delay a recipient.
func TestCloseIsAnError(t *testing.T) {
	s := dnstest.Start(t, dnstest.Zone{Timeout: []string{"a.test"}})
	r := resolverFor(t, s, Config{Timeout: time.Minute})
	done := make(chan error)
	go func() {
		_, err := r.Lookup(context.Background(), "a.test")
		done <- err
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); s.Queries("a.test") == 0; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("no query came")
		}
	}
	r.Close()
	if err := <-done; err == nil {
		t.Error("a look-up that was cut off gave a result")
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{Servers: []string{"dns.example"}}); err == nil {
		t.Error("a server that is a name was taken")
	}
}

func TestRefuses(t *testing.T) {
	allow := []netip.Prefix{netip.MustParsePrefix("127.1.0.0/16"), netip.MustParsePrefix("fd00:1::/32")}
	for text, want := range map[string]bool{
		"127.0.0.1": true, "127.255.255.255": true, "127.1.0.1": false, "0.0.0.0": true, "0.1.2.3": true,
		"10.0.0.1": true, "172.16.0.1": true, "172.31.255.255": true, "172.32.0.1": false, "192.168.0.1": true,
		"169.254.169.254": true, "100.100.100.200": true, "100.63.0.1": false, "192.0.0.192": true, "198.18.0.1": true,
		"224.0.0.1": true, "255.255.255.255": true, "240.0.0.1": true, "192.0.2.1": false, "8.8.8.8": false,
		"::": true, "::1": true, "::127.0.0.1": true, "::ffff:127.0.0.1": true, "::ffff:127.1.0.1": false, "::ffff:8.8.8.8": false,
		"64:ff9b::7f00:1": true, "64:ff9b::808:808": false, "64:ff9b::7f01:1": false, "64:ff9b:1::1": true,
		"2002:7f00:1::": true, "2002:a00:1::1": true, "2002:808:808::1": false, "2001::1": true,
		"fc00::1": true, "fd00:ec2::254": true, "fd00:1::5": false, "fe80::1": true, "fe80::1%eth0": true, "fec0::1": true, "ff02::1": true,
		"2001:db8::1": false, "2606:4700::1": false,
	} {
		if got := inside.Refuses(netip.MustParseAddr(text), allow); got != want {
			t.Errorf("%s: refused %v, want %v", text, got, want)
		}
	}
}
