package mx

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

// Result is what is known of the way to a domain: exactly one of Plan and
// Trouble is set.
type Result struct {
	Plan    *Plan
	Trouble *Trouble
}

// Trouble is why there is no way to a domain.
type Trouble struct {
	Permanent bool
	Status    mail.EnhancedCode
	Text      string // one line, fit for a report to the sender
}

// Plan is the way to a domain, from which routes are drawn. It never changes.
type Plan struct {
	Site      mail.Site
	ExpiresAt time.Time // until then the MX and addresses hold
	// Key is equal for plans that differ in nothing but addresses learned at
	// different times: their domains can share a route.
	Key string
	// Hosts are those of every route, by preference, then name, without
	// their addresses.
	Hosts []mail.Host

	hosts     []target // as Hosts
	policy    *policy
	smartHost bool
	speaks    mail.HostProtocol // of smart hosts
}

// target is one host with its addresses by family.
type target struct {
	name       string
	preference uint16
	port       uint16
	weight     uint16 // of a smart host: its share among those of its preference; 0 is 1
	v4, v6     []netip.Addr
	dane       dane
}

func newPlan(site mail.Site, hosts []target, policy *policy, expires time.Time) *Plan {
	names := make([]mail.Host, len(hosts))
	var key strings.Builder
	key.WriteString(string(site))
	for i, h := range hosts {
		names[i] = mail.Host{Name: h.name, Preference: h.preference, Port: h.port}
		key.WriteByte(' ')
		key.WriteString(strconv.Itoa(int(h.preference)))
		key.WriteByte(' ')
		key.WriteString(h.name)
		key.WriteByte(':')
		key.WriteString(strconv.Itoa(int(h.port)))
		if h.dane.state != mail.DANENone {
			fmt.Fprintf(&key, " %s %s %v", h.dane.state, h.dane.records, h.dane.names)
		}
	}
	policy.appendKey(&key)
	return &Plan{Site: site, Key: key.String(), Hosts: names, hosts: hosts, policy: policy, ExpiresAt: expires}
}

// Demands are what is known of TLS beside the policy that the domain
// publishes.
type Demands struct {
	TLS        mail.TLSLevel
	IgnoreDANE bool // operators do not want the domain's records to count
	IgnoreSTS  bool
}

// Route draws a route: hosts by preference, in random order within one, so
// that load spreads over them (RFC 5321 §5.1: "MUST randomize"), as their
// weights say if they have some; addresses of a host rotated at random within
// a family, the families taking turns, IPv4 first.
func (p *Plan) Route(d Demands) *mail.Route {
	r := &mail.Route{Site: p.Site, Hosts: slices.Clone(p.Hosts), TLS: d.TLS, SmartHost: p.smartHost, ExpiresAt: p.ExpiresAt,
		LMTP: p.speaks == mail.SpeaksLMTP, ImplicitTLS: p.speaks == mail.SpeaksSMTPS}
	for i, h := range p.hosts {
		r.Hosts[i].Addresses = interleave(h.v4, h.v6)
		if !d.IgnoreDANE {
			r.Hosts[i].DANE, r.Hosts[i].TLSA, r.Hosts[i].Names = h.dane.state, h.dane.records, h.dane.names
		}
	}
	r.SecureMX = p.policy.secureMX
	if !d.IgnoreSTS {
		p.policy.apply(r)
	}
	p.policy.reportOn(r, d)
	for from := 0; from < len(r.Hosts); {
		to := from + 1
		for to < len(r.Hosts) && r.Hosts[to].Preference == r.Hosts[from].Preference {
			to++
		}
		shuffle(r.Hosts[from:to], p.hosts[from:to])
		from = to
	}
	return r
}

// shuffle draws an order of hosts. Each time the next one is drawn among
// those that are left, by weight.
func shuffle(hosts []mail.Host, targets []target) {
	total := 0
	weights := make([]int, len(hosts))
	for i := range weights {
		weights[i] = max(int(targets[i].weight), 1)
		total += weights[i]
	}
	for i := range hosts {
		at := i
		for n := rand.IntN(total); n >= weights[at]; at++ {
			n -= weights[at]
		}
		total -= weights[at]
		hosts[i], hosts[at] = hosts[at], hosts[i]
		weights[i], weights[at] = weights[at], weights[i]
	}
}

func interleave(v4, v6 []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, 0, len(v4)+len(v6))
	first4, first6 := start(v4), start(v6)
	for i := range max(len(v4), len(v6)) {
		if i < len(v4) {
			out = append(out, v4[(first4+i)%len(v4)])
		}
		if i < len(v6) {
			out = append(out, v6[(first6+i)%len(v6)])
		}
	}
	return out
}

// start is where to begin in a list of addresses: a random rotation costs no
// copy and spreads first choices as a shuffle does.
func start(addrs []netip.Addr) int {
	if len(addrs) < 2 {
		return 0
	}
	return rand.IntN(len(addrs))
}
