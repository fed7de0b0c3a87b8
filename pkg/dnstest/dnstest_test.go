package dnstest_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/postrider/postrider/pkg/dnstest"
)

// ask sends one query without retries and fails the test on silence.
func ask(t *testing.T, s *dnstest.Server, network, name string, qtype uint16) *dns.Msg {
	t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), qtype)
	q.SetEdns0(1232, false)
	client := dns.Client{Net: network, Timeout: 5 * time.Second}
	reply, _, err := client.Exchange(q, s.Addr())
	if err != nil {
		t.Fatalf("%s %s %s: %v", network, name, dns.TypeToString[qtype], err)
	}
	return reply
}

func TestAnswers(t *testing.T) {
	s := dnstest.Start(t, dnstest.Zone{
		MX:       map[string][]string{"Example.com": {"10 mx1.example.com", "20 mx2.example.com"}, "null.test": {"0 ."}},
		A:        map[string][]string{"mx1.example.com": {"127.0.0.2"}, "deep.sub.example.org": {"127.0.0.3"}},
		AAAA:     map[string][]string{"mx1.example.com": {"::1"}},
		CNAME:    map[string]string{"alias.test": "example.com", "dangling.test": "nowhere.test", "loop.test": "loop.test"},
		TXT:      map[string][]string{"txt.test": {strings.Repeat("x", 300)}},
		Records:  []string{"srv.test. 60 IN SRV 1 1 25 mx1.example.com."},
		ServFail: []string{"broken.test", "AAAA half.test"},
		Refused:  []string{"refused.test"},
	})
	for _, c := range []struct {
		name    string
		qtype   uint16
		rcode   int
		answers int
		soa     bool
	}{
		{"example.com", dns.TypeMX, dns.RcodeSuccess, 2, false},
		{"EXAMPLE.com", dns.TypeMX, dns.RcodeSuccess, 2, false},
		{"null.test", dns.TypeMX, dns.RcodeSuccess, 1, false},
		{"mx1.example.com", dns.TypeA, dns.RcodeSuccess, 1, false},
		{"mx1.example.com", dns.TypeAAAA, dns.RcodeSuccess, 1, false},
		{"mx1.example.com", dns.TypeMX, dns.RcodeSuccess, 0, true},
		{"sub.example.org", dns.TypeA, dns.RcodeSuccess, 0, true}, // an empty non-terminal exists
		{"nowhere.test", dns.TypeA, dns.RcodeNameError, 0, true},
		{"alias.test", dns.TypeMX, dns.RcodeSuccess, 3, false},
		{"dangling.test", dns.TypeMX, dns.RcodeNameError, 1, true},
		{"txt.test", dns.TypeTXT, dns.RcodeSuccess, 1, false},
		{"srv.test", dns.TypeSRV, dns.RcodeSuccess, 1, false},
		{"broken.test", dns.TypeMX, dns.RcodeServerFailure, 0, false},
		{"half.test", dns.TypeAAAA, dns.RcodeServerFailure, 0, false},
		{"half.test", dns.TypeA, dns.RcodeNameError, 0, true},
		{"refused.test", dns.TypeA, dns.RcodeRefused, 0, false},
	} {
		for _, network := range []string{"udp", "tcp"} {
			r := ask(t, s, network, c.name, c.qtype)
			if r.Rcode != c.rcode || len(r.Answer) != c.answers || (len(r.Ns) > 0) != c.soa {
				t.Errorf("%s %s %s: rcode %d, %d answers, SOA %v; want %d, %d, %v",
					network, c.name, dns.TypeToString[c.qtype], r.Rcode, len(r.Answer), len(r.Ns) > 0, c.rcode, c.answers, c.soa)
			}
		}
	}
	if r := ask(t, s, "udp", "loop.test", dns.TypeA); len(r.Answer) == 0 || len(r.Answer) > 16 {
		t.Errorf("alias loop: %d answers, want a bounded chain", len(r.Answer))
	}
}

func TestMisbehaviour(t *testing.T) {
	zone := dnstest.Zone{
		A:        map[string][]string{"big.test": {"127.0.0.2"}, "late.test": {"127.0.0.2"}, "silent.test": {"127.0.0.2"}},
		Truncate: []string{"big.test"},
		Timeout:  []string{"silent.test"},
		Delay:    map[string]time.Duration{"late.test": 50 * time.Millisecond},
	}
	s := dnstest.Start(t, zone)
	if r := ask(t, s, "udp", "big.test", dns.TypeA); !r.Truncated || len(r.Answer) != 0 {
		t.Errorf("truncated answer over UDP: TC %v, %d answers", r.Truncated, len(r.Answer))
	}
	if r := ask(t, s, "tcp", "big.test", dns.TypeA); r.Truncated || len(r.Answer) != 1 {
		t.Errorf("the same over TCP: TC %v, %d answers", r.Truncated, len(r.Answer))
	}
	begin := time.Now()
	ask(t, s, "udp", "late.test", dns.TypeA)
	if d := time.Since(begin); d < 50*time.Millisecond {
		t.Errorf("late answer came after %v", d)
	}
	q := new(dns.Msg)
	q.SetQuestion("silent.test.", dns.TypeA)
	client := dns.Client{Timeout: 100 * time.Millisecond}
	if _, _, err := client.Exchange(q, s.Addr()); err == nil {
		t.Error("a silent name was answered")
	}
	zone.Timeout = nil
	zone.Forge = func(reply *dns.Msg) { reply.Rcode = dns.RcodeNotImplemented }
	if err := s.Set(zone); err != nil {
		t.Fatal(err)
	}
	if r := ask(t, s, "udp", "silent.test", dns.TypeA); r.Rcode != dns.RcodeNotImplemented {
		t.Errorf("forged reply has rcode %d", r.Rcode)
	}
	if got := s.Queries("silent.test"); got != 2 {
		t.Errorf("silent.test was asked %d times, want 2", got)
	}
	if got := s.Queries("MX silent.test"); got != 0 {
		t.Errorf("MX of silent.test was asked %d times, want 0", got)
	}
	if got := s.QueriesTCP(); got != 1 {
		t.Errorf("%d queries over TCP, want 1", got)
	}
}

func TestTruncatesByEDNSSize(t *testing.T) {
	var addrs []string
	for a := netip.MustParseAddr("127.0.1.1"); len(addrs) < 200; a = a.Next() {
		addrs = append(addrs, a.String())
	}
	s := dnstest.Start(t, dnstest.Zone{A: map[string][]string{"many.test": addrs}})
	if r := ask(t, s, "udp", "many.test", dns.TypeA); !r.Truncated {
		t.Error("200 addresses fitted in 1232 octets")
	}
	if r := ask(t, s, "tcp", "many.test", dns.TypeA); r.Truncated || len(r.Answer) != 200 {
		t.Errorf("over TCP: TC %v, %d answers", r.Truncated, len(r.Answer))
	}
}

func TestBadZone(t *testing.T) {
	for _, zone := range []dnstest.Zone{
		{MX: map[string][]string{"a.test": {"mx.a.test"}}},
		{MX: map[string][]string{"a.test": {"ten mx.a.test"}}},
		{A: map[string][]string{"a.test": {"::1"}}},
		{AAAA: map[string][]string{"a.test": {"x"}}},
		{Records: []string{"nonsense"}},
		{Records: []string{""}},
		{ServFail: []string{"NOTYPE a.test"}},
		{Delay: map[string]time.Duration{"NOTYPE a.test": 1}},
	} {
		if s, err := dnstest.New(zone); err == nil {
			t.Errorf("zone %+v was taken", zone)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
