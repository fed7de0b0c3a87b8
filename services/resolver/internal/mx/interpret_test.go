package mx

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/postrider/postrider/pkg/inside"
)

// message builds a reply from records in presentation form; those behind
// "--" are in the authority section.
func message(t testing.TB, rcode int, records ...string) *dns.Msg {
	t.Helper()
	m := &dns.Msg{MsgHdr: dns.MsgHdr{Response: true, Rcode: rcode}}
	section := &m.Answer
	for _, text := range records {
		if text == "--" {
			section = &m.Ns
			continue
		}
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		*section = append(*section, rr)
	}
	return m
}

func TestInterpret(t *testing.T) {
	const soa = "test. 600 IN SOA ns.test. host.test. 1 2 3 4 120"
	for _, c := range []struct {
		rule    string
		rcode   int
		records []string
		verdict verdict
		name    string
		keep    time.Duration
	}{
		{"the shortest TTL counts", dns.RcodeSuccess, []string{"a.test. 600 IN A 192.0.2.1", "a.test. 60 IN A 192.0.2.2"}, found, "a.test", time.Minute},
		{"TTL of at least 30 s", dns.RcodeSuccess, []string{"a.test. 0 IN A 192.0.2.1"}, found, "a.test", 30 * time.Second},
		{"TTL of at most 1 h", dns.RcodeSuccess, []string{"a.test. 2147483647 IN A 192.0.2.1"}, found, "a.test", time.Hour},
		{"RFC 2181 §8: a TTL with the top bit set", dns.RcodeSuccess, []string{"a.test. 4294967295 IN A 192.0.2.1"}, found, "a.test", time.Hour},
		{"names in any case", dns.RcodeSuccess, []string{"A.TEST. 60 IN A 192.0.2.1"}, found, "a.test", time.Minute},
		{"the TTL of an alias counts", dns.RcodeSuccess, []string{"a.test. 60 IN CNAME b.test.", "b.test. 600 IN A 192.0.2.1"}, found, "b.test", time.Minute},
		{"aliases in any order", dns.RcodeSuccess, []string{"c.test. 60 IN A 192.0.2.1", "b.test. 60 IN CNAME c.test.", "a.test. 60 IN CNAME b.test."}, found, "c.test", time.Minute},
		{"records of another name do not count", dns.RcodeSuccess, []string{"b.test. 60 IN A 192.0.2.1", "--", soa}, noData, "a.test", 2 * time.Minute},
		{"records of another type do not count", dns.RcodeSuccess, []string{"a.test. 60 IN AAAA 2001:db8::1", "--", soa}, noData, "a.test", 2 * time.Minute},
		{"records of another class do not count", dns.RcodeSuccess, []string{`a.test. 60 CH A 192.0.2.1`, "--", soa}, noData, "a.test", 2 * time.Minute},
		{"RFC 2308 §5: the SOA's minimum", dns.RcodeNameError, []string{"--", soa}, noDomain, "a.test", 2 * time.Minute},
		{"RFC 2308 §5: the SOA's TTL", dns.RcodeNameError, []string{"--", "test. 60 IN SOA ns.test. host.test. 1 2 3 4 900"}, noDomain, "a.test", time.Minute},
		{"no SOA: 5 minutes", dns.RcodeNameError, nil, noDomain, "a.test", 5 * time.Minute},
		{"RFC 2308 §2.2: NODATA without SOA", dns.RcodeSuccess, nil, noData, "a.test", 5 * time.Minute},
		{"RFC 2308 §2.2: a referral is no answer", dns.RcodeSuccess, []string{"--", "test. 60 IN NS ns.test."}, unknown, "a.test", 5 * time.Second},
		{"RFC 6604 §3: NXDOMAIN is of the alias's target", dns.RcodeNameError, []string{"a.test. 600 IN CNAME b.test.", "--", soa}, noDomain, "b.test", 2 * time.Minute},
		{"an alias whose target was not chased", dns.RcodeSuccess, []string{"a.test. 60 IN CNAME b.test."}, alias, "b.test", time.Minute},
		{"an alias loop", dns.RcodeSuccess, []string{"a.test. 60 IN CNAME b.test.", "b.test. 60 IN CNAME a.test.", "--", soa}, unknown, "a.test", 5 * time.Second},
		{"an alias to no host name", dns.RcodeSuccess, []string{`a.test. 60 IN CNAME b\000.test.`}, unknown, "a.test", 5 * time.Second},
		{"records and NXDOMAIN contradict", dns.RcodeNameError, []string{"a.test. 60 IN A 192.0.2.1", "--", soa}, unknown, "a.test", 5 * time.Second},
	} {
		a, keep := interpret("a.test", dns.TypeA, message(t, c.rcode, c.records...), usualTTL)
		if a.verdict != c.verdict || a.name != c.name || keep != c.keep {
			t.Errorf("%s: got %s of %s for %v, want %s of %s for %v", c.rule, a.verdict, a.name, keep, c.verdict, c.name, c.keep)
		}
		if (a.verdict == unknown) != (a.why != "") {
			t.Errorf("%s: verdict %s with reason %q", c.rule, a.verdict, a.why)
		}
	}
}

// FuzzInterpret feeds bytes from outside to all that reads them. Whatever
// they are, the answer keeps its promises.
func FuzzInterpret(f *testing.F) {
	for _, m := range []*dns.Msg{
		message(f, dns.RcodeSuccess, "a.test. 60 IN MX 10 mx.test.", "a.test. 60 IN MX 0 ."),
		message(f, dns.RcodeSuccess, "a.test. 60 IN CNAME b.test.", "b.test. 60 IN A 192.0.2.1"),
		message(f, dns.RcodeSuccess, "a.test. 60 IN AAAA ::ffff:127.0.0.1"),
		message(f, dns.RcodeNameError, "--", "test. 60 IN SOA ns.test. host.test. 1 2 3 4 900"),
		message(f, dns.RcodeSuccess, "--", "test. 60 IN NS ns.test."),
	} {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		for _, qtype := range []uint16{dns.TypeMX, dns.TypeA, dns.TypeAAAA} {
			f.Add(b, qtype)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, qtype uint16) {
		m := new(dns.Msg)
		if m.Unpack(b) != nil {
			return
		}
		a, keep := interpret("a.test", qtype, m, usualTTL)
		if keep < usualTTL.failure || keep > usualTTL.max {
			t.Errorf("kept for %v", keep)
		}
		if (a.verdict == unknown) != (a.why != "") {
			t.Errorf("verdict %s with reason %q", a.verdict, a.why)
		}
		if a.verdict == noDomain && m.Rcode != dns.RcodeNameError {
			t.Errorf("%s from rcode %d", a.verdict, m.Rcode)
		}
		if a.verdict != found && len(a.mx)+len(a.addrs) > 0 && a.verdict != unknown {
			t.Errorf("%s with records %v %v", a.verdict, a.mx, a.addrs)
		}
		if a.nullMX && len(a.mx) > 0 {
			t.Errorf("a null MX beside %v", a.mx)
		}
		names := []string{a.name}
		for _, x := range a.mx {
			names = append(names, x.host)
		}
		for _, name := range names {
			again, ok := hostName(name)
			if !ok || again != name || strings.ContainsAny(name, " \r\n\x00,|()?[]:") {
				t.Errorf("host name %q", name)
			}
		}
		if len(a.addrs) > maxAddresses {
			t.Errorf("%d addresses", len(a.addrs))
		}
		for _, addr := range a.addrs {
			if !addr.IsValid() || addr.Zone() != "" {
				t.Errorf("address %v", addr)
			}
			inside.Refuses(addr, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")})
		}
		if len(a.mx) > 0 {
			hosts := make([]string, 0, len(a.mx))
			for _, x := range byPreference(a.mx) {
				hosts = append(hosts, x.host)
			}
			if site := rollup(hosts); site == "" || len(site) > maxSite {
				t.Errorf("site %q", site)
			}
		}
	})
}
