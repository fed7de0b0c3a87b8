package mx

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/postrider/postrider/pkg/mail"
)

// verdict is what a definite reply says about a name and type.
type verdict uint8

const (
	unknown  verdict = iota // no definite reply: transient
	found                   // records of the type
	noData                  // the name exists, the type does not: RFC 2308 §2.2
	noDomain                // the name does not exist: RFC 2308 §2.1
	alias                   // an alias whose target must be asked for
)

// answer is a checked answer to one question.
type answer struct {
	verdict verdict
	name    string // the name that the records belong to, behind all aliases
	mx      []exchanger
	nullMX  bool // exactly one MX record, and it is ".": RFC 7505 §3
	addrs   []netip.Addr
	texts   []string    // of TXT records, the strings of each joined
	tlsa    []mail.TLSA // of every kind
	secure  bool        // DNSSEC vouches for all of it, aliases and absence too
	why     string      // for unknown
	expires time.Time
}

// exchanger is one usable MX record.
type exchanger struct {
	host       string // a name, or an address
	preference uint16
}

// Bounds on what one answer may bring, so that a hostile zone cannot make a
// route too large to hand on.
const (
	maxExchangers = 32
	maxAddresses  = 8 // per host and family
	maxAliases    = 8
	maxTLSA       = 16
	maxTexts      = 16
)

const tooManyAliases = "DNS has a chain of too many aliases"

// ttlBounds is how long answers are believed.
type ttlBounds struct {
	min, max time.Duration
	negative time.Duration // of a negative answer without SOA
	failure  time.Duration // of no answer
}

var usualTTL = ttlBounds{min: 30 * time.Second, max: time.Hour, negative: 5 * time.Minute, failure: 5 * time.Second}

func (b ttlBounds) clamp(seconds uint32) time.Duration {
	return min(max(time.Duration(seconds)*time.Second, b.min), b.max)
}

// interpret reads a definite reply to a question for name. It believes only
// records whose owner is the name or the end of the alias chain that starts
// there; everything else in the reply is ignored.
func interpret(name string, qtype uint16, reply *dns.Msg, ttl ttlBounds) (answer, time.Duration) {
	a := answer{name: strings.ToLower(strings.TrimSuffix(name, ".")), secure: reply.AuthenticatedData}
	keep := ttl.max
	for hops := 0; ; hops++ {
		target, seconds, ok := aliasOf(a.name, reply.Answer)
		if !ok {
			break
		}
		if hops == maxAliases {
			a.why = tooManyAliases
			return a, ttl.failure
		}
		if target, ok = hostName(target); !ok {
			a.why = "DNS has an alias to a name that is no host name"
			return a, ttl.failure
		}
		a.name = target
		keep = min(keep, ttl.clamp(seconds))
	}
	records := 0
	for _, rr := range reply.Answer {
		if h := rr.Header(); h.Rrtype != qtype || h.Class != dns.ClassINET || !owns(rr, a.name) {
			continue
		}
		records++
		keep = min(keep, ttl.clamp(rr.Header().Ttl))
		a.add(rr)
	}
	switch {
	case records > 0 && reply.Rcode == dns.RcodeSuccess:
		a.verdict = found
		a.nullMX = a.nullMX && records == 1
		return a, keep
	case records > 0:
		a.why = "DNS contradicts itself"
		return a, ttl.failure
	case reply.Rcode == dns.RcodeNameError: // RFC 6604 §3: of the end of the alias chain
		a.verdict = noDomain
	default:
		a.verdict = noData
	}
	soa, delegated := authority(reply.Ns)
	switch {
	case soa != nil: // RFC 2308 §5
		keep = min(keep, ttl.clamp(min(soa.Hdr.Ttl, soa.Minttl)))
	case a.verdict == noData && a.name != strings.ToLower(strings.TrimSuffix(name, ".")):
		a.verdict = alias // the server left the chase to us
	case a.verdict == noData && delegated: // RFC 2308 §2.2: a referral is not NODATA
		a.verdict, a.why = unknown, "the DNS server answered with a referral"
		return a, ttl.failure
	default:
		keep = min(keep, ttl.negative)
	}
	return a, keep
}

// add takes one record of the type that was asked for.
func (a *answer) add(rr dns.RR) {
	switch rr := rr.(type) {
	case *dns.MX:
		if rr.Mx == "." {
			a.nullMX = true
			return
		}
		// RFC 5321 §5.1 asks for a domain name. An address in its place is what
		// its owner means by it; what is neither is skipped.
		if host, ok := hostName(rr.Mx); ok {
			a.mx = append(a.mx, exchanger{host, rr.Preference})
		} else if addr, ok := literal(rr.Mx); ok {
			a.mx = append(a.mx, exchanger{addr.String(), rr.Preference})
		}
	case *dns.A:
		if addr, ok := netip.AddrFromSlice(rr.A.To4()); ok {
			a.addAddress(addr)
		}
	case *dns.AAAA:
		if addr, ok := netip.AddrFromSlice(rr.AAAA.To16()); ok {
			a.addAddress(addr)
		}
	case *dns.TXT:
		if len(a.texts) < maxTexts {
			a.texts = append(a.texts, strings.Join(rr.Txt, ""))
		}
	case *dns.TLSA:
		if data, err := hex.DecodeString(rr.Certificate); err == nil && len(data) > 0 && len(a.tlsa) < maxTLSA {
			a.tlsa = append(a.tlsa, mail.TLSA{Usage: rr.Usage, Selector: rr.Selector, Matching: rr.MatchingType, Data: data})
		}
	}
}

func (a *answer) addAddress(addr netip.Addr) {
	if len(a.addrs) < maxAddresses {
		a.addrs = append(a.addrs, addr)
	}
}

// aliasOf returns the target and TTL of the CNAME of name, if it has one.
func aliasOf(name string, rrs []dns.RR) (target string, ttl uint32, ok bool) {
	for _, rr := range rrs {
		if c, is := rr.(*dns.CNAME); is && c.Hdr.Class == dns.ClassINET && owns(rr, name) {
			return c.Target, c.Hdr.Ttl, true
		}
	}
	return "", 0, false
}

func owns(rr dns.RR, name string) bool {
	return strings.EqualFold(strings.TrimSuffix(rr.Header().Name, "."), name)
}

// authority returns the SOA of a negative reply, and whether it delegates.
func authority(rrs []dns.RR) (soa *dns.SOA, delegated bool) {
	for _, rr := range rrs {
		switch rr := rr.(type) {
		case *dns.SOA:
			soa = rr
		case *dns.NS:
			delegated = true
		}
	}
	return soa, delegated
}

// hostName returns text in lower case without the final dot, if it may name
// a host: letters, digits, hyphens and (seen in the field) underscores in
// labels of 1 to 63, 253 octets in all, and not an IPv4 address.
func hostName(text string) (string, bool) {
	name := strings.ToLower(strings.TrimSuffix(text, "."))
	if name == "" || len(name) > 253 {
		return "", false
	}
	label := 0
	for i := range len(name) {
		switch c := name[i]; {
		case c == '.':
			if label == 0 {
				return "", false
			}
			label = 0
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_':
			if label++; label > 63 {
				return "", false
			}
		default:
			return "", false
		}
	}
	if label == 0 {
		return "", false
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return "", false
	}
	return name, true
}

// literal returns the address that stands where a name should.
func literal(text string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(strings.TrimSuffix(text, "."))
	return addr, err == nil && addr.Zone() == ""
}
