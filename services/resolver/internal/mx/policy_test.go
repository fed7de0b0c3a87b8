package mx

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/postrider/postrider/pkg/dnstest"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/services/resolver/internal/mtasts"
)

// validated makes a zone answer as a validating resolver does: with the AD
// bit, but for names that end in one of insecure.
func validated(z dnstest.Zone, insecure ...string) dnstest.Zone {
	z.Forge = func(reply *dns.Msg) {
		names := []string{reply.Question[0].Name}
		for _, rr := range reply.Answer {
			names = append(names, rr.Header().Name)
			if c, is := rr.(*dns.CNAME); is && reply.Question[0].Qtype != dns.TypeCNAME {
				names = append(names, c.Target)
			}
		}
		reply.AuthenticatedData = !slices.ContainsFunc(names, func(n string) bool {
			return slices.ContainsFunc(insecure, func(i string) bool { return strings.HasSuffix(n, i+".") })
		})
	}
	return z
}

const digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestDANE(t *testing.T) {
	long := strings.Repeat(digest, 2)
	ca, err := smtptest.SelfSigned("ca.test")
	if err != nil {
		t.Fatal(err)
	}
	certificate := fmt.Sprintf("%x", ca.Certificates[0].Certificate[0])
	zone := dnstest.Zone{
		MX: map[string][]string{
			"ee.test": {"10 mx.ee.test"}, "ta.test": {"10 mx.ta.test"}, "none.test": {"10 mx.none.test"},
			"pkix.test": {"10 mx.pkix.test"}, "malformed.test": {"10 mx.malformed.test"}, "some.test": {"10 mx.some.test"},
			"agile.test": {"10 mx.agile.test"}, "broken.test": {"10 mx.broken.test"}, "full.test": {"10 mx.full.test"},
			"mx.insecure": {"10 mx.ee.test"}, "host.test": {"10 mx.insecure2.insecure"}, "foreign.test": {"10 mx.foreign.insecure"},
			"alias.test": {"10 alias.alias.test"}, "alias2.test": {"10 alias.alias2.test"}, "alias3.test": {"10 alias.alias3.test"},
		},
		A: map[string][]string{
			"mx.ee.test": {"192.0.2.1"}, "mx.ta.test": {"192.0.2.1"}, "mx.none.test": {"192.0.2.1"}, "mx.pkix.test": {"192.0.2.1"},
			"mx.malformed.test": {"192.0.2.1"}, "mx.some.test": {"192.0.2.1"}, "mx.agile.test": {"192.0.2.1"}, "mx.broken.test": {"192.0.2.1"},
			"mx.full.test": {"192.0.2.1"}, "mx.insecure2.insecure": {"192.0.2.1"}, "mx.foreign.insecure": {"192.0.2.1"},
			"real.alias.test": {"192.0.2.1"}, "real.alias3.test": {"192.0.2.1"}, "real.insecure": {"192.0.2.1"}, "implicit.test": {"192.0.2.1"},
		},
		CNAME: map[string]string{
			"alias.alias.test": "real.alias.test", "alias.alias2.test": "real.insecure", "alias.alias3.test": "real.alias3.test",
			"_25._tcp.mx.some.test": "tlsa.some.test",
		},
		Records: []string{
			"_25._tcp.mx.ee.test. 60 IN TLSA 3 1 1 " + digest,
			"_25._tcp.implicit.test. 60 IN TLSA 3 1 1 " + digest,
			"_25._tcp.mx.ta.test. 60 IN TLSA 2 0 1 " + digest,
			"_25._tcp.mx.pkix.test. 60 IN TLSA 1 1 1 " + digest,
			"_25._tcp.mx.pkix.test. 60 IN TLSA 0 0 1 " + digest,
			"_25._tcp.mx.malformed.test. 60 IN TLSA 3 1 1 0123",
			"_25._tcp.mx.malformed.test. 60 IN TLSA 3 2 1 " + digest,
			"_25._tcp.mx.malformed.test. 60 IN TLSA 3 1 9 " + digest,
			"_25._tcp.mx.malformed.test. 60 IN TLSA 3 0 0 " + digest,
			"_25._tcp.mx.malformed.test. 60 IN TLSA 3 1 0 " + digest,
			"tlsa.some.test. 60 IN TLSA 1 1 1 " + digest,
			"tlsa.some.test. 60 IN TLSA 3 0 1 " + digest,
			"_25._tcp.mx.agile.test. 60 IN TLSA 3 1 1 " + digest,
			"_25._tcp.mx.agile.test. 60 IN TLSA 3 1 2 " + long,
			"_25._tcp.mx.agile.test. 60 IN TLSA 3 0 1 " + digest,
			"_25._tcp.mx.full.test. 60 IN TLSA 2 0 0 " + certificate,
			"_25._tcp.mx.insecure2.insecure. 60 IN TLSA 3 1 1 " + digest,
			"_25._tcp.real.alias.test. 60 IN TLSA 2 1 1 " + digest,
			"_25._tcp.alias.alias2.test. 60 IN TLSA 2 1 1 " + digest,
			"_25._tcp.real.insecure. 60 IN TLSA 3 1 1 " + long,
			"_25._tcp.alias.alias3.test. 60 IN TLSA 3 1 1 " + digest,
		},
		ServFail: []string{"TLSA _25._tcp.mx.broken.test", "TLSA _25._tcp.mx.foreign.insecure"},
	}
	tests := []struct{ name, domain, want string }{
		{"DANE-EE", "ee.test", "usable [3 1 1] []"},
		{"DANE-TA, with the names that a certificate may have", "ta.test", "usable [2 0 1] [mx.ta.test ta.test]"},
		{"secure denial", "none.test", " [] []"},
		{"PKIX usages cannot be used", "pkix.test", "unusable [] []"},
		{"malformed records cannot be used", "malformed.test", "unusable [] []"},
		{"usable and others, behind an alias", "some.test", "usable [3 0 1] []"},
		{"the strongest digest of each kind counts", "agile.test", "usable [3 1 2 3 0 1] []"},
		{"a whole certificate", "full.test", "usable [2 0 0] [mx.full.test full.test]"},
		{"a failed look-up is no denial", "broken.test", "unknown [] []"},
		{"insecure MX", "mx.insecure", " [] []"},
		{"insecure host", "host.test", " [] []"},
		{"an insecure host is not even asked", "foreign.test", " [] []"},
		{"no MX, DNSSEC says so", "implicit.test", "usable [3 1 1] []"},
		{"alias: the name behind it", "alias.test", "usable [2 1 1] [real.alias.test alias.alias.test alias.test]"},
		{"alias into an insecure zone: the alias", "alias2.test", "usable [2 1 1] [alias.alias2.test alias2.test]"},
		{"alias without records behind it", "alias3.test", "usable [3 1 1] []"},
	}
	s := dnstest.Start(t, validated(zone, "insecure"))
	for _, trust := range []bool{true, false} {
		r := resolverFor(t, s, Config{TrustAD: trust})
		for _, tt := range tests {
			plan := lookup(t, r, mail.Domain(tt.domain)).Plan
			if plan == nil {
				t.Errorf("%s: no plan", tt.name)
				continue
			}
			want := tt.want
			if !trust {
				want = " [] []"
			}
			route := plan.Route(Demands{})
			if got := daneText(route.Hosts[0]); got != want {
				t.Errorf("%s (AD trusted: %v): got %q, want %q", tt.name, trust, got, want)
			}
			if route.SecureMX != (trust && tt.domain != "mx.insecure") {
				t.Errorf("%s: secure MX %v", tt.name, route.SecureMX)
			}
			if got := daneText(plan.Route(Demands{IgnoreDANE: true}).Hosts[0]); got != " [] []" {
				t.Errorf("%s: switched off, got %q", tt.name, got)
			}
		}
	}
	r := resolverFor(t, s, Config{TrustAD: true})
	res, err := r.SmartHosts(t.Context(), []string{"mx.ee.test:25"})
	if err != nil || res.Plan == nil || daneText(res.Plan.Route(Demands{}).Hosts[0]) != "usable [3 1 1] []" {
		t.Errorf("smart host: %+v, %v", res, err)
	}
	if n := s.Queries("TLSA _25._tcp.mx.foreign.insecure"); n != 0 {
		t.Errorf("TLSA of a host in an insecure zone was asked %d times", n)
	}
}

func daneText(h mail.Host) string {
	var kinds []string
	for _, r := range h.TLSA {
		kinds = append(kinds, fmt.Sprintf("%d %d %d", r.Usage, r.Selector, r.Matching))
	}
	return fmt.Sprintf("%s %v %v", h.DANE, kinds, h.Names)
}

// FuzzUsableTLSA: what comes out is well-formed, whatever goes in.
func FuzzUsableTLSA(f *testing.F) {
	f.Add([]byte{3, 1, 1}, []byte{2, 0, 0})
	f.Add(append([]byte{3, 1, 1}, bytes.Repeat([]byte{1}, 32)...), append([]byte{3, 1, 2}, bytes.Repeat([]byte{2}, 64)...))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var in []mail.TLSA
		for _, r := range [][]byte{a, b} {
			if len(r) > 3 {
				in = append(in, mail.TLSA{Usage: r[0], Selector: r[1], Matching: r[2], Data: r[3:]})
			}
		}
		for _, r := range usableTLSA(in) {
			if r.Usage < 2 || r.Usage > 3 || r.Selector > 1 || r.Matching > 2 {
				t.Errorf("usable: %v", r)
			}
			if _, err := x509.ParseCertificate(r.Data); r.Selector == 0 && r.Matching == 0 && err != nil {
				t.Errorf("usable: %v: %v", r, err)
			}
		}
	})
}

// policies is an MTA-STS policy for each domain.
type policies map[string]mtasts.Finding

func (p policies) Policy(_ context.Context, domain, id string) (mtasts.Finding, error) {
	if domain == "trouble.test" {
		return mtasts.Finding{}, errors.New("Postgres is away")
	}
	if id == "" {
		return mtasts.Finding{}, nil
	}
	return p[domain], nil
}

// TestPolicyIsOfTheDomain: two domains with the same hosts and different
// policies never share a route (KumoMTA#484: the broken policy of one domain
// stopped all that shared its hosts).
func TestPolicyIsOfTheDomain(t *testing.T) {
	mxs, txt := map[string][]string{}, map[string][]string{}
	domains := []string{"enforce.test", "testing.test", "fault.test", "none.test", "plain.test", "trouble.test"}
	for _, d := range domains {
		mxs[d] = []string{"10 mx1.provider.test", "20 mx2.provider.test"}
		if d != "plain.test" {
			txt["_mta-sts."+d] = []string{"v=STSv1; id=1;", "another record"}
		}
	}
	s := dnstest.Start(t, dnstest.Zone{MX: mxs, TXT: txt, A: map[string][]string{"mx1.provider.test": {"192.0.2.1"}, "mx2.provider.test": {"192.0.2.2"}}})
	r := resolverFor(t, s, Config{STS: policies{
		"enforce.test": {Policy: mtasts.Policy{Mode: mtasts.ModeEnforce, MX: []string{"mx1.provider.test"}}},
		"testing.test": {Policy: mtasts.Policy{Mode: mtasts.ModeTesting, MX: []string{"*.provider.test"}}},
		"none.test":    {Policy: mtasts.Policy{Mode: mtasts.ModeNone}},
		"fault.test":   {Fault: "sts-policy-fetch-error"},
	}})
	keys := map[string][]string{}
	for _, d := range domains {
		res := lookup(t, r, mail.Domain(d))
		if d == "trouble.test" {
			if got := text(res); got != "4.3.0" {
				t.Errorf("policy not known: got %s, want 4.3.0: to go on without it would be a downgrade", got)
			}
			continue
		}
		route := res.Plan.Route(Demands{})
		got := fmt.Sprintf("%s %v %v", route.STS, route.Hosts[0].OutsideSTS, route.Hosts[1].OutsideSTS)
		want := map[string]string{"enforce.test": "enforce false true", "testing.test": "testing false false"}[d]
		if want == "" {
			want = " false false"
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", d, got, want)
		}
		keys[res.Plan.Key] = append(keys[res.Plan.Key], d)
		if off := res.Plan.Route(Demands{IgnoreSTS: true}); off.STS != "" || off.Hosts[1].OutsideSTS {
			t.Errorf("%s: switched off, got %+v", d, off)
		}
	}
	if len(keys) != 3 {
		t.Errorf("domains share keys as %v; only those without a policy may", keys)
	}
}

// TestReportsAreOfTheDomain: a route that is to be reported on is of one
// domain, and who cannot be asked wants no reports.
func TestReportsAreOfTheDomain(t *testing.T) {
	mxs := map[string][]string{}
	for _, d := range []string{"a.test", "b.test", "c.test", "slow.test", "broken.test"} {
		mxs[d] = []string{"10 mx.provider.test"}
	}
	record := []string{"v=TLSRPTv1; rua=mailto:tls@provider.test"}
	s := dnstest.Start(t, dnstest.Zone{
		MX: mxs, A: map[string][]string{"mx.provider.test": {"192.0.2.1"}},
		TXT:      map[string][]string{"_smtp._tls.a.test": record, "_smtp._tls.b.test": record, "_mta-sts.a.test": {"v=STSv1; id=1;"}},
		ServFail: []string{"_smtp._tls.broken.test"}, Timeout: []string{"_smtp._tls.slow.test"},
	})
	text := []string{"version: STSv1", "mode: testing", "mx: mx.provider.test", "x: " + strings.Repeat("y", maxReportText)}
	r := resolverFor(t, s, Config{TLSReports: true, STS: policies{
		"a.test": {Policy: mtasts.Policy{Mode: mtasts.ModeTesting, MX: []string{"mx.provider.test"}, Text: text}, Fault: "sts-webpki-invalid"},
	}})
	keys := map[string]bool{}
	for d := range mxs {
		plan := lookup(t, r, mail.Domain(d)).Plan
		report := plan.Route(Demands{}).Report
		asked := d == "a.test" || d == "b.test"
		if (report != nil) != asked || asked && (string(report.Domain) != d || !slices.Equal(report.RUA, []string{"mailto:tls@provider.test"})) {
			t.Errorf("%s: reports as %+v, want them %v", d, report, asked)
		}
		keys[plan.Key] = true
		if d != "a.test" {
			continue
		}
		if !slices.Equal(report.STSPolicy, text[:3]) || report.Fault != "sts-webpki-invalid" {
			t.Errorf("%+v, want the lines that are not too many, and the fault", report)
		}
		if off := plan.Route(Demands{IgnoreSTS: true}).Report; off.STSPolicy != nil || off.Fault != "" {
			t.Errorf("MTA-STS switched off: %+v", off)
		}
	}
	if len(keys) != 3 {
		t.Errorf("%d keys, want one for each domain that asks and one for the rest", len(keys))
	}
}

func TestLoops(t *testing.T) {
	s := dnstest.Start(t, dnstest.Zone{
		MX: map[string][]string{
			"name.test":    {"10 relay.postrider.test", "20 mx.other.test"},
			"second.test":  {"10 mx.other.test", "20 other.name.test"},
			"equal.test":   {"10 mx.other.test", "10 balancer.test"},
			"address.test": {"5 balancer.test", "10 mx.other.test"},
			"backup.test":  {"5 mx.other.test", "10 balancer.test", "20 mx.third.test"},
			"inside.test":  {"5 hidden.test", "10 mx.other.test"},
			"literal.test": {"5 mx.other.test", "10 192.0.2.101"},
		},
		A: map[string][]string{
			"relay.postrider.test": {"192.0.2.9"}, "other.name.test": {"192.0.2.8"}, "mx.other.test": {"192.0.2.1"}, "mx.third.test": {"192.0.2.3"},
			"balancer.test": {"192.0.2.100"}, "hidden.test": {"10.1.2.3"}, "implicit.test": {"192.0.2.101"},
		},
	})
	r := resolverFor(t, s, Config{OwnNames: []string{"other.name.test."}, OwnAddresses: []netip.Prefix{
		netip.MustParsePrefix("192.0.2.100/31"), netip.MustParsePrefix("10.1.2.3/32"),
	}})
	for domain, want := range map[mail.Domain]string{
		"name.test":     "5.4.6",
		"second.test":   "mx.other.test,other.name.test: 10 mx.other.test:25[192.0.2.1]",
		"equal.test":    "5.4.6",
		"address.test":  "5.4.6",
		"backup.test":   "balancer.test,mx.other.test,mx.third.test: 5 mx.other.test:25[192.0.2.1]",
		"inside.test":   "5.4.6",
		"literal.test":  "192.0.2.101,mx.other.test: 5 mx.other.test:25[192.0.2.1]",
		"implicit.test": "5.4.6",
	} {
		if got := text(lookup(t, r, domain)); got != want {
			t.Errorf("%s: got %s, want %s", domain, got, want)
		}
	}
}

// Each family of addresses is judged by its own answer. If the failure of one
// counted as insecure, whoever spoils it would turn DANE off.
func TestDANEWithOneFamilyUnknown(t *testing.T) {
	zone := dnstest.Zone{
		MX: map[string][]string{"four.test": {"10 mx.four.test"}, "six.test": {"10 mx.six.test"}, "open.test": {"10 mx.open.insecure"}, "none.test": {"10 mx.none.test"},
			"next.test": {"10 mx.none.test", "20 mx.four.test"}},
		A:       map[string][]string{"mx.four.test": {"192.0.2.1"}, "mx.open.insecure": {"192.0.2.1"}},
		AAAA:    map[string][]string{"mx.six.test": {"2001:db8::1"}},
		Records: []string{"_25._tcp.mx.four.test. 60 IN TLSA 3 1 1 " + digest, "_25._tcp.mx.six.test. 60 IN TLSA 3 1 1 " + digest, "_25._tcp.mx.open.insecure. 60 IN TLSA 3 1 1 " + digest},
	}
	broken := []string{"AAAA mx.four.test", "A mx.six.test", "AAAA mx.open.insecure", "mx.none.test"}
	for how, spoil := range map[string]func(*dnstest.Zone){
		"SERVFAIL": func(z *dnstest.Zone) { z.ServFail = broken },
		"silence":  func(z *dnstest.Zone) { z.Timeout = broken },
		"REFUSED":  func(z *dnstest.Zone) { z.Refused = broken },
	} {
		t.Run(how, func(t *testing.T) {
			spoiled := zone
			spoil(&spoiled)
			r := resolverFor(t, dnstest.Start(t, validated(spoiled, "insecure")), Config{TrustAD: true})
			for domain, want := range map[mail.Domain]string{
				"four.test": "usable [3 1 1] []",
				"six.test":  "usable [3 1 1] []",
				"open.test": " [] []",
				"none.test": "4.4.3",
				"next.test": "usable [3 1 1] []",
			} {
				res := lookup(t, r, domain)
				got := text(res)
				if res.Plan != nil {
					got = daneText(res.Plan.Route(Demands{}).Hosts[0])
				}
				if got != want {
					t.Errorf("%s: got %s, want %s", domain, got, want)
				}
			}
		})
	}
}

// Where nobody is trusted to vouch for anything, nothing is asked for DANE:
// an answer that is not there would hold the mail up.
func TestNoDANEWithoutTrust(t *testing.T) {
	s := dnstest.Start(t, dnstest.Zone{
		MX:       map[string][]string{"a.test": {"10 alias.test"}},
		CNAME:    map[string]string{"alias.test": "mx.test"},
		A:        map[string][]string{"mx.test": {"192.0.2.1"}},
		ServFail: []string{"CNAME alias.test", "_25._tcp.alias.test", "_25._tcp.mx.test"},
	})
	r := resolverFor(t, s, Config{})
	for name, find := range map[string]func() (Result, error){
		"MX":         func() (Result, error) { return r.Lookup(t.Context(), "a.test") },
		"smart host": func() (Result, error) { return r.SmartHosts(t.Context(), []string{"alias.test"}) },
	} {
		res, err := find()
		if err != nil || res.Plan == nil {
			t.Fatalf("%s: %+v, %v", name, res.Trouble, err)
		}
		if got := daneText(res.Plan.Route(Demands{}).Hosts[0]); got != " [] []" {
			t.Errorf("%s: got %s", name, got)
		}
	}
	if n := s.Queries("CNAME alias.test") + s.Queries("TLSA _25._tcp.alias.test") + s.Queries("TLSA _25._tcp.mx.test"); n != 0 {
		t.Errorf("%d questions", n)
	}
}

// An address needs no DNS, whether its answers would be trusted or not.
func TestSmartHostAddressWithoutDNS(t *testing.T) {
	for _, trust := range []bool{false, true} {
		r, err := New(Config{Servers: []string{"127.0.0.1:1"}, Timeout: 50 * time.Millisecond, TrustAD: trust, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		res, err := r.SmartHosts(t.Context(), []string{"127.0.0.1:2526", "[2001:db8::1]:26"})
		if err != nil || res.Plan == nil {
			t.Fatalf("AD trusted: %v: %+v, %v", trust, res.Trouble, err)
		}
		for _, h := range res.Plan.Route(Demands{}).Hosts {
			if got := daneText(h); got != " [] []" {
				t.Errorf("AD trusted: %v: %s: got %s", trust, h.Name, got)
			}
		}
	}
}

func TestDialRefusesInside(t *testing.T) {
	s := dnstest.Start(t, dnstest.Zone{A: map[string][]string{"mta-sts.evil.test": {"169.254.169.254"}, "mta-sts.evil2.test": {"127.0.0.1"}}})
	r := resolverFor(t, s, Config{})
	for _, address := range []string{"mta-sts.evil.test:443", "mta-sts.evil2.test:443", "127.0.0.1:443", "[::1]:443", "gone.test:443", "bad name:443"} {
		if conn, err := r.Dial(t.Context(), "tcp", address); err == nil {
			_ = conn.Close()
			t.Errorf("%s: connected", address)
		}
	}
	allowed := resolverFor(t, s, Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	_, port, _ := strings.Cut(s.Addr(), ":")
	conn, err := allowed.Dial(t.Context(), "tcp", "mta-sts.evil2.test:"+port)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}

// TestSmartHostsHaveNoPolicy: what a domain publishes is about its own mail
// exchangers; a smart host that an operator chose is not measured by it
// (ZoneMTA#410), nor reported on.
func TestSmartHostsHaveNoPolicy(t *testing.T) {
	s := dnstest.Start(t, dnstest.Zone{
		A: map[string][]string{"smart.test": {"192.0.2.1"}},
		TXT: map[string][]string{
			"_mta-sts.smart.test": {"v=STSv1; id=1;"}, "_smtp._tls.smart.test": {"v=TLSRPTv1; rua=mailto:tls@smart.test"},
		},
	})
	r := resolverFor(t, s, Config{TLSReports: true, STS: policies{
		"smart.test": {Policy: mtasts.Policy{Mode: mtasts.ModeEnforce, MX: []string{"mx.elsewhere.test"}}},
	}})
	res, err := r.SmartHosts(t.Context(), []string{"smart.test:25"})
	if err != nil || res.Plan == nil {
		t.Fatalf("%+v, %v", res, err)
	}
	if route := res.Plan.Route(Demands{}); route.STS != "" || route.Hosts[0].OutsideSTS || route.Report != nil {
		t.Errorf("%+v", route)
	}
}
