package mx

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/postrider/postrider/pkg/mail"
)

// The status codes of RFC 3463 that a look-up can end in.
var (
	badDestination = mail.EnhancedCode{Class: 5, Subject: 1, Detail: 2}  // the domain does not exist
	nullMX         = mail.EnhancedCode{Class: 5, Subject: 1, Detail: 10} // RFC 7505 §4.2
	unableToRoute  = mail.EnhancedCode{Class: 5, Subject: 4, Detail: 4}
	routingLoop    = mail.EnhancedCode{Class: 5, Subject: 4, Detail: 6}
	directoryDown  = mail.EnhancedCode{Class: 4, Subject: 4, Detail: 3} // DNS gave no definite answer
	cannotRouteNow = mail.EnhancedCode{Class: 4, Subject: 4, Detail: 4}
	ourTrouble     = mail.EnhancedCode{Class: 4, Subject: 3, Detail: 0}
)

func permanent(status mail.EnhancedCode, text string) Result {
	return Result{Trouble: &Trouble{Permanent: true, Status: status, Text: text}}
}

func transient(status mail.EnhancedCode, text string) Result {
	return Result{Trouble: &Trouble{Status: status, Text: text}}
}

// find applies RFC 5321 §5.1 to one domain.
func (r *Resolver) find(ctx context.Context, domain mail.Domain) (Result, time.Time) {
	if domain.IsLiteral() {
		expires := time.Now().Add(r.ttl.max)
		return r.literal(string(domain), expires), expires
	}
	name, ok := hostName(string(domain))
	if !ok {
		return permanent(badDestination, fmt.Sprintf("%s is not a domain name", domain)), time.Now().Add(r.ttl.max)
	}
	policy := r.beginPolicy(ctx, name)
	defer policy.asking.Wait()
	a := r.ask(ctx, name, dns.TypeMX)
	switch {
	case a.verdict == unknown:
		return transient(directoryDown, fmt.Sprintf("looking up the MX of %s: %s", domain, a.why)), a.expires
	case a.verdict == noDomain:
		return permanent(badDestination, fmt.Sprintf("the domain %s does not exist", domain)), a.expires
	case a.nullMX:
		return permanent(nullMX, fmt.Sprintf("%s takes no mail: it has a null MX (556, RFC 7505)", domain)), a.expires
	default:
		return r.findHosts(ctx, domain, a, policy)
	}
}

// findHosts turns the exchangers of a domain into a plan.
func (r *Resolver) findHosts(ctx context.Context, domain mail.Domain, a answer, policy *policy) (Result, time.Time) {
	list := byPreference(a.mx)
	if a.verdict == noData {
		// RFC 5321 §5.1: without MX the domain itself is the host, preference
		// 0; behind an alias, "the resulting name is processed as if it were
		// the initial name".
		list = []exchanger{{a.name, 0}}
	}
	if len(list) == 0 {
		return permanent(unableToRoute, fmt.Sprintf("no MX of %s names a host", domain)), a.expires
	}
	names := make([]string, len(list))
	for i, x := range list {
		names[i] = x.host
	}
	site := rollup(names)
	found := r.lookupHosts(ctx, names)
	// RFC 5321 §5.1: when we are an MX ourselves, only those with a better
	// preference lead on; the rest would hand the mail back to us.
	for i, x := range list {
		if !r.self.is(x.host, found[i]) {
			continue
		}
		better := slices.IndexFunc(list, func(o exchanger) bool { return o.preference >= x.preference }) // list is sorted
		if list, found = list[:better], found[:better]; len(list) == 0 {
			return permanent(routingLoop, fmt.Sprintf("mail for %s loops back to us: %s is this mail system", domain, x.host)), a.expires
		}
		break
	}
	var hosts []target
	var usable []addresses
	expires, valid := a.expires, a.expires
	for i, x := range list {
		expires = earlier(expires, found[i].expires)
		if found[i].usable() {
			valid = earlier(valid, found[i].valid)
			hosts = append(hosts, target{name: x.host, preference: x.preference, port: r.cfg.Port, v4: found[i].v4, v6: found[i].v6})
			usable = append(usable, found[i])
		}
	}
	if a.secure {
		r.lookupDANE(ctx, hosts, usable, []string{string(domain), a.name})
		for _, h := range hosts {
			expires, valid = earlier(expires, h.dane.expires), earlier(valid, h.dane.expires)
		}
	}
	policy.asking.Wait()
	if policy.trouble != "" && len(hosts) > 0 {
		return transient(ourTrouble, policy.trouble), time.Now().Add(r.ttl.failure)
	}
	expires = earlier(expires, policy.expires)
	// However old the answers are, the result lives long enough to be used.
	least := time.Now().Add(min(r.ttl.min, r.ttl.failure))
	expires, valid = later(expires, least), later(valid, least)
	if len(hosts) > 0 {
		policy.secureMX = a.secure
		return Result{Plan: newPlan(site, hosts, policy, valid)}, expires
	}
	return noHost(domain, found, a.verdict == noData), expires
}

// noHost says why no host of a domain can be connected to. It is permanent
// only if DNS was definite about every one of them. That all their addresses
// are refused is permanent too, as KumoMTA's prohibited_hosts: no retry
// changes what the domain's owner published.
func noHost(domain mail.Domain, found []addresses, implicit bool) Result {
	refused := false
	for _, a := range found {
		if a.unknown != "" {
			return transient(directoryDown, fmt.Sprintf("looking up the addresses of the mail hosts of %s: %s", domain, a.unknown))
		}
		refused = refused || a.refused > 0
	}
	switch {
	case refused:
		return permanent(unableToRoute, fmt.Sprintf("the mail hosts of %s have only loopback, private or reserved addresses", domain))
	case implicit:
		return permanent(unableToRoute, fmt.Sprintf("%s has no MX and no address", domain))
	default:
		return permanent(unableToRoute, fmt.Sprintf("no MX of %s has an address", domain))
	}
}

// byPreference sorts exchangers by preference and name, each host once with
// its best preference, and keeps the best of too many.
func byPreference(list []exchanger) []exchanger {
	list = slices.SortedFunc(slices.Values(list), func(a, b exchanger) int {
		if a.preference != b.preference {
			return int(a.preference) - int(b.preference)
		}
		return strings.Compare(a.host, b.host)
	})
	seen := map[string]bool{}
	list = slices.DeleteFunc(list, func(x exchanger) bool {
		again := seen[x.host]
		seen[x.host] = true
		return again
	})
	return list[:min(len(list), maxExchangers)]
}

// literal handles a domain such as "[192.0.2.1]" or "[IPv6:2001:db8::1]":
// RFC 5321 §4.1.3.
func (r *Resolver) literal(domain string, expires time.Time) Result {
	if !r.cfg.AddressLiterals {
		return permanent(badDestination, "mail to address literals is not relayed")
	}
	text := strings.TrimSuffix(strings.TrimPrefix(domain, "["), "]")
	v6, isV6 := strings.CutPrefix(strings.ToLower(text), "ipv6:")
	addr, err := netip.ParseAddr(v6)
	if err != nil || addr.Is4() == isV6 || addr.Zone() != "" {
		return permanent(badDestination, fmt.Sprintf("%s is not an address literal", domain))
	}
	var a addresses
	if a.take(addr, r.cfg.Allow); !a.usable() {
		return permanent(unableToRoute, fmt.Sprintf("%s is a loopback, private or reserved address", domain))
	}
	return Result{Plan: newPlan(mail.Site(domain), []target{{name: domain, port: r.cfg.Port, v4: a.v4, v6: a.v6}}, &policy{}, expires)}
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
