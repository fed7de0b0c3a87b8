package mx

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/dnstest"
	"github.com/postrider/postrider/pkg/mail"
)

// resolverFor asks a test server with short timeouts.
func resolverFor(t *testing.T, s *dnstest.Server, cfg Config) *Resolver {
	t.Helper()
	cfg.Servers = append(cfg.Servers, s.Addr())
	cfg.OwnNames = append(cfg.OwnNames, "relay.postrider.test")
	cfg.Timeout = or(cfg.Timeout, 100*time.Millisecond)
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func lookup(t *testing.T, r *Resolver, domain mail.Domain) Result {
	t.Helper()
	res, err := r.Lookup(t.Context(), domain)
	if err != nil {
		t.Fatalf("%s: %v", domain, err)
	}
	if (res.Plan == nil) == (res.Trouble == nil) {
		t.Fatalf("%s: plan %v, trouble %v: want exactly one", domain, res.Plan, res.Trouble)
	}
	return res
}

// text writes a result on one line: "site: pref host:port[addrs] ..." or
// "5.1.2".
func text(res Result) string {
	if res.Trouble != nil {
		if res.Trouble.Permanent != (res.Trouble.Status.Class == 5) {
			return "status and permanence disagree"
		}
		return res.Trouble.Status.String()
	}
	words := []string{string(res.Plan.Site) + ":"}
	for _, h := range res.Plan.hosts {
		addrs := fmt.Sprint(slices.Concat(h.v4, h.v6))
		words = append(words, fmt.Sprintf("%d %s:%d%s", h.preference, h.name, h.port, addrs))
	}
	return strings.Join(words, " ")
}

func TestLookup(t *testing.T) {
	s := dnstest.Start(t, dnstest.Zone{
		MX: map[string][]string{
			"order.test":         {"20 mx2.hosts.test", "10 mx1.hosts.test"},
			"twice.test":         {"20 mx1.hosts.test", "10 MX1.hosts.test"},
			"null.test":          {"0 ."},
			"nullpref.test":      {"10 ."},
			"nullmixed.test":     {"0 .", "10 mx1.hosts.test"},
			"deadhost.test":      {"10 gone.hosts.test"},
			"noaddr.test":        {"10 empty.hosts.test"},
			"partly.test":        {"10 gone.hosts.test", "20 mx1.hosts.test"},
			"literal.test":       {"10 192.0.2.9", "20 mx1.hosts.test"},
			"literals.test":      {"10 192.0.2.9"},
			"literalinside.test": {"10 127.0.0.1", "20 mx1.hosts.test"},
			"zero.test":          {"10 0.0.0.0"},
			"nonumber.test":      {"10 300.0.2.9", "20 mx1.hosts.test"},
			"badname.test":       {`10 a\032b.hosts.test`, "20 mx1.hosts.test"},
			"slow.test":          {"10 slow.hosts.test"},
			"slowfirst.test":     {"10 slow.hosts.test", "20 mx1.hosts.test"},
			"broken.test":        {"10 broken.hosts.test", "20 gone.hosts.test"},
			"half.test":          {"10 half.hosts.test"},
			"v6broken.test":      {"10 v6broken.hosts.test"},
			"mxalias.test":       {"10 cname.hosts.test"},
			"real.test":          {"10 mx1.hosts.test"},
			"own.test":           {"10 mx1.hosts.test", "20 Relay.Postrider.test", "20 mx2.hosts.test", "30 mx3.hosts.test"},
			"ownbest.test":       {"10 relay.postrider.test", "20 mx1.hosts.test"},
			"ownonly.test":       {"10 relay.postrider.test"},
			"inside.test":        {"10 inside.hosts.test"},
			"insidetoo.test":     {"10 inside.hosts.test", "20 mx1.hosts.test"},
			"insideslow.test":    {"10 inside.hosts.test", "20 slow.hosts.test"},
			"allowed.test":       {"10 allowed.hosts.test"},
			"xn--bcher-kva.test": {"10 mx1.hosts.test"},
			"_under.test":        {"10 _mx.hosts.test"},
		},
		A: map[string][]string{
			"mx1.hosts.test": {"192.0.2.1"}, "mx2.hosts.test": {"192.0.2.2"}, "mx3.hosts.test": {"192.0.2.3"},
			"implicit.test": {"192.0.2.4"}, "half.hosts.test": {"192.0.2.5"}, "target.hosts.test": {"192.0.2.6"},
			"inside.hosts.test":    {"127.0.0.1", "10.0.0.1", "169.254.169.254"},
			"allowed.hosts.test":   {"127.0.0.1", "127.9.0.2", "192.0.2.7"},
			"relay.postrider.test": {"192.0.2.8"},
			"insideimplicit.test":  {"0.0.0.0"},
			"mxfails.test":         {"192.0.2.1"},
			"mxsilent.test":        {"192.0.2.1"},
			"_mx.hosts.test":       {"192.0.2.9"},
		},
		AAAA: map[string][]string{"mx2.hosts.test": {"2001:db8::2"}, "v6only.test": {"2001:db8::3"}, "inside.hosts.test": {"::1", "::ffff:127.0.0.1", "fd00:ec2::254"}},
		CNAME: map[string]string{
			"alias.test": "real.test", "aliasimplicit.test": "implicit.test", "aliasnowhere.test": "nowhere.test",
			"cname.hosts.test": "target.hosts.test", "loop.test": "loop2.test", "loop2.test": "loop.test",
		},
		TXT:      map[string][]string{"empty.hosts.test": {"no address"}, "mailless.test": {"no mail"}},
		ServFail: []string{"servfail.test", "MX mxfails.test", "broken.hosts.test", "AAAA half.hosts.test", "AAAA v6broken.hosts.test", "A v6broken.hosts.test"},
		Refused:  []string{"refused.test"},
		Timeout:  []string{"silent.test", "MX mxsilent.test", "slow.hosts.test"},
	})
	r := resolverFor(t, s, Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.9.0.0/16")}})
	const mx1 = "mx1.hosts.test:25[192.0.2.1]"
	for _, c := range []struct {
		rule   string
		domain mail.Domain
		want   string
	}{
		{"RFC 5321 §5.1: MX by preference", "order.test", "(mx1|mx2).hosts.test: 10 " + mx1 + " 20 mx2.hosts.test:25[192.0.2.2 2001:db8::2]"},
		{"a host counts once, with its best preference", "twice.test", "mx1.hosts.test: 10 " + mx1},
		{"RFC 5321 §5.1: implicit MX", "implicit.test", "implicit.test: 0 implicit.test:25[192.0.2.4]"},
		{"RFC 5321 §5.2: implicit MX by AAAA", "v6only.test", "v6only.test: 0 v6only.test:25[2001:db8::3]"},
		{"RFC 7505 §3: null MX", "null.test", "5.1.10"},
		{"RFC 7505 §3: null MX of another preference", "nullpref.test", "5.1.10"},
		{"RFC 7505 §3: not a null MX beside others", "nullmixed.test", "mx1.hosts.test: 10 " + mx1},
		{"RFC 5321 §5.1: the domain does not exist", "nowhere.test", "5.1.2"},
		{"neither MX nor address", "mailless.test", "5.4.4"},
		{"RFC 5321 §5.1: MX that do not exist; no implicit MX then", "deadhost.test", "5.4.4"},
		{"MX without an address", "noaddr.test", "5.4.4"},
		{"an MX that does not exist is skipped", "partly.test", "(gone|mx1).hosts.test: 20 " + mx1},
		{"an address as MX is tolerated", "literal.test", "192.0.2.9,mx1.hosts.test: 10 192.0.2.9:25[192.0.2.9] 20 " + mx1},
		{"only addresses as MX", "literals.test", "192.0.2.9: 10 192.0.2.9:25[192.0.2.9]"},
		{"an address as MX that is refused", "literalinside.test", "127.0.0.1,mx1.hosts.test: 20 " + mx1},
		{"an address as MX that is nowhere", "zero.test", "5.4.4"},
		{"numbers as MX that are no address", "nonumber.test", "300.0.2.9,mx1.hosts.test: 20 " + mx1},
		{"a target that is no host name is skipped", "badname.test", "mx1.hosts.test: 20 " + mx1},
		{"RFC 5321 §5.1: SERVFAIL is transient", "servfail.test", "4.4.3"},
		{"SERVFAIL of MX: no implicit MX", "mxfails.test", "4.4.3"},
		{"REFUSED is transient", "refused.test", "4.4.3"},
		{"a timeout is transient", "silent.test", "4.4.3"},
		{"a timeout of MX: no implicit MX", "mxsilent.test", "4.4.3"},
		{"a timeout of the only host is transient", "slow.test", "4.4.3"},
		{"a host that cannot be looked up is skipped", "slowfirst.test", "(mx1|slow).hosts.test: 20 " + mx1},
		{"no host, one of them unknown: transient", "broken.test", "4.4.3"},
		{"AAAA fails, A is used", "half.test", "half.hosts.test: 10 half.hosts.test:25[192.0.2.5]"},
		{"both fail", "v6broken.test", "4.4.3"},
		{"RFC 5321 §5.1: MX behind an alias", "alias.test", "mx1.hosts.test: 10 " + mx1},
		{"implicit MX behind an alias", "aliasimplicit.test", "implicit.test: 0 implicit.test:25[192.0.2.4]"},
		{"RFC 6604 §3: alias to nothing", "aliasnowhere.test", "5.1.2"},
		{"an MX that is an alias is tolerated", "mxalias.test", "cname.hosts.test: 10 cname.hosts.test:25[192.0.2.6]"},
		{"an alias loop is transient", "loop.test", "4.4.3"},
		{"RFC 5321 §5.1: we are an MX: better ones only", "own.test", "(mx1|mx2|mx3).hosts.test,relay.postrider.test: 10 " + mx1},
		{"we are the best MX", "ownbest.test", "5.4.6"},
		{"we are the only MX", "ownonly.test", "5.4.6"},
		{"we are the implicit MX", "relay.postrider.test", "5.4.6"},
		{"all addresses refused", "inside.test", "5.4.4"},
		{"all addresses refused, implicit MX", "insideimplicit.test", "5.4.4"},
		{"a refused host is skipped", "insidetoo.test", "(inside|mx1).hosts.test: 20 " + mx1},
		{"refused beside unknown is transient", "insideslow.test", "4.4.3"},
		{"allowed networks", "allowed.test", "allowed.hosts.test: 10 allowed.hosts.test:25[127.9.0.2 192.0.2.7]"},
		{"RFC 5890: A-labels", "xn--bcher-kva.test", "mx1.hosts.test: 10 " + mx1},
		{"underscores in names", "_under.test", "_mx.hosts.test: 10 _mx.hosts.test:25[192.0.2.9]"},
		{"address literals are off", "[192.0.2.1]", "5.1.2"},
		{"no domain name", `a"b.test`, "5.1.2"},
		{"no domain name", "a..test", "5.1.2"},
	} {
		t.Run(strings.ReplaceAll(c.rule, "/", "-")+" "+string(c.domain), func(t *testing.T) {
			res := lookup(t, r, c.domain)
			if got := text(res); got != c.want {
				t.Errorf("got %s, want %s (%+v)", got, c.want, res.Trouble)
			}
		})
	}
}

func TestAddressLiterals(t *testing.T) {
	s := dnstest.Start(t, dnstest.Zone{})
	r := resolverFor(t, s, Config{AddressLiterals: true, Port: 2525})
	for _, c := range []struct {
		domain mail.Domain
		want   string
	}{
		{"[192.0.2.1]", "[192.0.2.1]: 0 [192.0.2.1]:2525[192.0.2.1]"},
		{"[ipv6:2001:db8::1]", "[ipv6:2001:db8::1]: 0 [ipv6:2001:db8::1]:2525[2001:db8::1]"},
		{"[2001:db8::1]", "5.1.2"}, // RFC 5321 §4.1.3: the tag is required
		{"[ipv6:192.0.2.1]", "5.1.2"},
		{"[ipv6:fe80::1%eth0]", "5.1.2"},
		{"[x]", "5.1.2"},
		{"[127.0.0.1]", "5.4.4"},
		{"[ipv6:::ffff:127.0.0.1]", "5.4.4"},
	} {
		if got := text(lookup(t, r, c.domain)); got != c.want {
			t.Errorf("%s: got %s, want %s", c.domain, got, c.want)
		}
	}
}

func TestSmartHosts(t *testing.T) {
	s := dnstest.Start(t, dnstest.Zone{
		MX:       map[string][]string{"smart.test": {"10 elsewhere.test"}},
		A:        map[string][]string{"smart.test": {"192.0.2.1"}, "two.test": {"192.0.2.2"}, "inside.test": {"10.0.0.1"}},
		ServFail: []string{"broken.test"},
	})
	r := resolverFor(t, s, Config{Port: 2525, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	for _, c := range []struct {
		rule  string
		hosts []string
		want  string
	}{
		{"MX records of a smart host do not count", []string{"smart.test:587"}, "smart.test:587: 0 smart.test:587[192.0.2.1]"},
		{"brackets as Postfix writes them", []string{"[smart.test]:587"}, "smart.test:587: 0 smart.test:587[192.0.2.1]"},
		{"without a port", []string{"smart.test"}, "smart.test:2525: 0 smart.test:2525[192.0.2.1]"},
		{"in the order given", []string{"two.test:25", "smart.test:26"}, "smart.test:26,two.test:25: 0 two.test:25[192.0.2.2] 1 smart.test:26[192.0.2.1]"},
		{"balanced, then another", []string{"smart.test*3+two.test:26", "127.0.0.1:1"}, "127.0.0.1:1,smart.test:2525,two.test:26: 0 smart.test:2525[192.0.2.1] 0 two.test:26[192.0.2.2] 1 127.0.0.1:1[127.0.0.1]"},
		{"implicit TLS", []string{"smtps://smart.test"}, "smart.test:465: 0 smart.test:465[192.0.2.1]"},
		{"LMTP", []string{"lmtp://smart.test"}, "smart.test:24: 0 smart.test:24[192.0.2.1]"},
		{"an address", []string{"127.0.0.1:2526"}, "127.0.0.1:2526: 0 127.0.0.1:2526[127.0.0.1]"},
		{"an IPv6 address", []string{"[2001:db8::1]:25"}, "[2001:db8::1]:25: 0 2001:db8::1:25[2001:db8::1]"},
		{"the first cannot be looked up", []string{"broken.test:25", "two.test:25"}, "broken.test:25,two.test:25: 1 two.test:25[192.0.2.2]"},
		{"SERVFAIL is transient", []string{"broken.test:25"}, "4.4.4"},
		{"a slip of the operator is transient: no such name", []string{"gone.test:25"}, "4.4.4"},
		{"a slip of the operator is transient: inside", []string{"inside.test:25"}, "4.4.4"},
		{"a slip of the operator is transient: syntax", []string{"smart.test:mail"}, "4.4.4"},
		{"a slip of the operator is transient: name", []string{"sm art.test:25"}, "4.4.4"},
		{"a slip of the operator is transient: none", nil, "4.4.4"},
	} {
		res, err := r.SmartHosts(t.Context(), c.hosts)
		if err != nil {
			t.Fatal(err)
		}
		if got := text(res); got != c.want {
			t.Errorf("%s: got %s, want %s (%+v)", c.rule, got, c.want, res.Trouble)
		}
		if res.Plan != nil && !res.Plan.Route(Demands{TLS: mail.TLSVerify}).SmartHost {
			t.Errorf("%s: the route does not say that it is a smart host's", c.rule)
		}
	}
}

func TestBalancedSmartHosts(t *testing.T) {
	s := dnstest.Start(t, dnstest.Zone{A: map[string][]string{"a.test": {"192.0.2.1"}, "b.test": {"192.0.2.2"}, "c.test": {"192.0.2.3"}}})
	res, err := resolverFor(t, s, Config{}).SmartHosts(t.Context(), []string{"smtps://a.test*3+b.test", "c.test"})
	if err != nil || res.Plan == nil {
		t.Fatal(res.Trouble, err)
	}
	first := map[string]int{}
	for range 2000 {
		route := res.Plan.Route(Demands{TLS: mail.TLSVerify})
		if len(route.Hosts) != 3 || route.Hosts[2].Name != "c.test" || !route.ImplicitTLS || route.LMTP {
			t.Fatalf("route %+v", route)
		}
		first[route.Hosts[0].Name]++
	}
	// Of 2,000 draws with a chance of 3/4 fewer than 1,380 are a chance of
	// less than one in a million.
	if first["a.test"] < 1380 || first["b.test"] < 380 {
		t.Errorf("first hosts %v: want three of four to be a.test", first)
	}
}

// RFC 5321 §5.1: the client "MUST randomize" equal preferences.
func TestRouteSpreadsLoad(t *testing.T) {
	s := dnstest.Start(t, dnstest.Zone{
		MX:   map[string][]string{"spread.test": {"10 a.test", "10 b.test", "20 c.test"}},
		A:    map[string][]string{"a.test": {"192.0.2.1", "192.0.2.2", "192.0.2.3"}, "b.test": {"192.0.2.4"}, "c.test": {"192.0.2.5"}},
		AAAA: map[string][]string{"a.test": {"2001:db8::1"}},
	})
	plan := lookup(t, resolverFor(t, s, Config{}), "spread.test").Plan
	first, firstAddr := map[string]int{}, map[string]int{}
	for range 1000 {
		route := plan.Route(Demands{TLS: mail.TLSMay})
		if len(route.Hosts) != 3 || route.Hosts[2].Name != "c.test" {
			t.Fatalf("hosts %+v: want c.test third", route.Hosts)
		}
		first[route.Hosts[0].Name]++
		for _, h := range route.Hosts {
			if h.Name != "a.test" {
				continue
			}
			firstAddr[h.Addresses[0].String()]++
			if len(h.Addresses) != 4 || !h.Addresses[0].Is4() || !h.Addresses[1].Is6() {
				t.Fatalf("addresses %v: want four, the families taking turns", h.Addresses)
			}
		}
	}
	// Of 1,000 fair draws fewer than 400 (of 2) or 250 (of 3) are a chance of
	// less than one in a million.
	if len(first) != 2 || min(first["a.test"], first["b.test"]) < 400 {
		t.Errorf("first hosts %v: want about equal shares", first)
	}
	if len(firstAddr) != 3 {
		t.Errorf("first addresses %v: want each of three", firstAddr)
	}
	for addr, n := range firstAddr {
		if n < 250 {
			t.Errorf("address %s first %d times of 1000, want about 333", addr, n)
		}
	}
}

func TestDomainsWithEqualHostsShareKeyAndSite(t *testing.T) {
	s := dnstest.Start(t, dnstest.Zone{
		MX: map[string][]string{
			"one.test":   {"10 mx1.test", "20 mx2.test"},
			"two.test":   {"20 mx2.test", "10 mx1.test"},
			"three.test": {"10 mx2.test", "20 mx1.test"}, // another order of preference, the same site
			"four.test":  {"10 mx1.test"},
		},
		A: map[string][]string{"mx1.test": {"192.0.2.1"}, "mx2.test": {"192.0.2.2"}},
	})
	r := resolverFor(t, s, Config{})
	one, two := lookup(t, r, "one.test").Plan, lookup(t, r, "two.test").Plan
	three, four := lookup(t, r, "three.test").Plan, lookup(t, r, "four.test").Plan
	if one.Key != two.Key {
		t.Errorf("keys %q and %q differ", one.Key, two.Key)
	}
	if one.Site != three.Site || one.Key == three.Key {
		t.Errorf("another order: sites %q, %q; keys %q, %q", one.Site, three.Site, one.Key, three.Key)
	}
	if one.Site == four.Site {
		t.Errorf("different sets share site %q", one.Site)
	}
	if n := s.Queries("A mx1.test"); n != 1 {
		t.Errorf("A of a host of four domains was asked %d times, want 1", n)
	}
}

func TestManyExchangers(t *testing.T) {
	zone := dnstest.Zone{MX: map[string][]string{}, A: map[string][]string{}}
	for i := range 200 {
		host := fmt.Sprintf("mx%03d.test", i)
		zone.MX["many.test"] = append(zone.MX["many.test"], fmt.Sprintf("%d %s", i, host))
		zone.A[host] = []string{"192.0.2.1"}
	}
	for i := range 100 {
		zone.A["mx000.test"] = append(zone.A["mx000.test"], fmt.Sprintf("192.0.2.%d", i+2))
	}
	plan := lookup(t, resolverFor(t, dnstest.Start(t, zone), Config{Timeout: 2 * time.Second}), "many.test").Plan
	if plan == nil || len(plan.hosts) != maxExchangers || plan.hosts[0].name != "mx000.test" || len(plan.hosts[0].v4) != maxAddresses {
		t.Fatalf("plan %+v: want the best %d hosts with at most %d addresses", plan, maxExchangers, maxAddresses)
	}
	if len(plan.Site) > maxSite {
		t.Errorf("site of %d octets", len(plan.Site))
	}
}
