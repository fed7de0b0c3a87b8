package dnstest

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Zone is all that the server knows. Names are written without the final
// dot, in any case. A name that is in no map does not exist (NXDOMAIN) unless
// a name below it does (RFC 8020).
//
// The lists of misbehaviour hold names, "mx.example.com" for all queries of
// that name or "AAAA mx.example.com" for one type.
type Zone struct {
	MX    map[string][]string // "10 mx1.example.com"; "0 ." is the null MX
	A     map[string][]string
	AAAA  map[string][]string
	CNAME map[string]string
	TXT   map[string][]string

	Records []string // further records in presentation form: "example.com. 60 IN MX 10 mx.example.com."

	TTL         time.Duration // of the records in the maps; 0 is 5 minutes
	NegativeTTL time.Duration // of the SOA in negative answers; 0 is 1 minute, below 0 leaves the SOA out

	ServFail []string                 // answered with SERVFAIL
	Refused  []string                 // answered with REFUSED
	Timeout  []string                 // never answered
	Truncate []string                 // answered empty with TC over UDP, whole over TCP
	Delay    map[string]time.Duration // answered this much later

	// Forge, if set, changes each reply before it is sent. It may be called
	// by several goroutines at once.
	Forge func(reply *dns.Msg)
}

// question is a name with the final dot in lower case, and a type;
// dns.TypeANY stands for all types.
type question struct {
	name  string
	qtype uint16
}

// compiled is a Zone made ready for look-ups.
type compiled struct {
	records  map[question][]dns.RR
	exists   map[string]bool // names with records, and all their ancestors
	servFail map[question]bool
	refused  map[question]bool
	timeout  map[question]bool
	truncate map[question]bool
	delay    map[question]time.Duration
	soa      dns.RR // nil if negative answers carry none
	forge    func(*dns.Msg)
}

func compile(z Zone) (*compiled, error) {
	c := &compiled{
		records: map[question][]dns.RR{},
		exists:  map[string]bool{".": true},
		delay:   map[question]time.Duration{},
		forge:   z.Forge,
	}
	if err := c.addRecords(z); err != nil {
		return nil, err
	}
	for _, list := range []struct {
		set   *map[question]bool
		names []string
	}{{&c.servFail, z.ServFail}, {&c.refused, z.Refused}, {&c.timeout, z.Timeout}, {&c.truncate, z.Truncate}} {
		*list.set = map[question]bool{}
		for _, text := range list.names {
			q, err := parseQuestion(text)
			if err != nil {
				return nil, err
			}
			(*list.set)[q] = true
		}
	}
	for text, d := range z.Delay {
		q, err := parseQuestion(text)
		if err != nil {
			return nil, err
		}
		c.delay[q] = d
	}
	if z.NegativeTTL >= 0 {
		seconds := ttlSeconds(z.NegativeTTL, time.Minute)
		c.soa = &dns.SOA{
			Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: seconds},
			Ns:  "ns.test.", Mbox: "hostmaster.test.", Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: seconds,
		}
	}
	return c, nil
}

// addRecords turns the maps of z into records.
func (c *compiled) addRecords(z Zone) error {
	ttl := ttlSeconds(z.TTL, 5*time.Minute)
	for name, values := range z.MX {
		for _, v := range values {
			pref, host, ok := strings.Cut(v, " ")
			if !ok {
				return fmt.Errorf("dnstest: MX of %s: %q, want \"preference host\"", name, v)
			}
			if err := c.parse(fmt.Sprintf("%s %d IN MX %s %s", dns.Fqdn(name), ttl, pref, dns.Fqdn(strings.TrimSpace(host)))); err != nil {
				return err
			}
		}
	}
	for name, values := range z.A {
		for _, v := range values {
			if addr, err := netip.ParseAddr(v); err != nil || !addr.Is4() {
				return fmt.Errorf("dnstest: A of %s: %q is not an IPv4 address", name, v)
			}
			if err := c.parse(fmt.Sprintf("%s %d IN A %s", dns.Fqdn(name), ttl, v)); err != nil {
				return err
			}
		}
	}
	for name, values := range z.AAAA {
		for _, v := range values {
			if err := c.parse(fmt.Sprintf("%s %d IN AAAA %s", dns.Fqdn(name), ttl, v)); err != nil {
				return err
			}
		}
	}
	for name, target := range z.CNAME {
		if err := c.parse(fmt.Sprintf("%s %d IN CNAME %s", dns.Fqdn(name), ttl, dns.Fqdn(target))); err != nil {
			return err
		}
	}
	for name, values := range z.TXT {
		for _, v := range values {
			c.add(&dns.TXT{
				Hdr: dns.RR_Header{Name: dns.Fqdn(strings.ToLower(name)), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: ttl},
				Txt: chunks(v),
			})
		}
	}
	for _, line := range z.Records {
		if err := c.parse(line); err != nil {
			return err
		}
	}
	return nil
}

func (c *compiled) parse(line string) error {
	rr, err := dns.NewRR(line)
	if err != nil {
		return fmt.Errorf("dnstest: record %q: %w", line, err)
	}
	if rr == nil {
		return fmt.Errorf("dnstest: record %q is empty", line)
	}
	c.add(rr)
	return nil
}

func (c *compiled) add(rr dns.RR) {
	name := strings.ToLower(rr.Header().Name)
	q := question{name, rr.Header().Rrtype}
	c.records[q] = append(c.records[q], rr)
	for off, end := 0, false; !end; off, end = dns.NextLabel(name, off) {
		c.exists[name[off:]] = true
	}
}

// lookup fills the answer and authority of reply and returns its rcode. It
// follows aliases as a recursive server does.
func (c *compiled) lookup(q question, reply *dns.Msg) {
	const maxAliases = 16
	for range maxAliases {
		if rrs := c.records[q]; len(rrs) > 0 {
			reply.Answer = append(reply.Answer, rrs...)
			return
		}
		alias := c.records[question{q.name, dns.TypeCNAME}]
		if len(alias) == 0 {
			break
		}
		reply.Answer = append(reply.Answer, alias[0])
		q.name = strings.ToLower(alias[0].(*dns.CNAME).Target)
	}
	if !c.exists[q.name] {
		reply.Rcode = dns.RcodeNameError
	}
	if c.soa != nil {
		reply.Ns = append(reply.Ns, c.soa)
	}
}

// has reports whether the set names q, for its type or for all types.
func has[V any](set map[question]V, q question) (V, bool) {
	if v, ok := set[q]; ok {
		return v, true
	}
	v, ok := set[question{q.name, dns.TypeANY}]
	return v, ok
}

func parseQuestion(text string) (question, error) {
	kind, name, ok := strings.Cut(text, " ")
	if !ok {
		return question{dns.Fqdn(strings.ToLower(text)), dns.TypeANY}, nil
	}
	qtype, known := dns.StringToType[kind]
	if !known {
		return question{}, fmt.Errorf("dnstest: %q: unknown type %q", text, kind)
	}
	return question{dns.Fqdn(strings.ToLower(name)), qtype}, nil
}

func ttlSeconds(d, unset time.Duration) uint32 {
	if d == 0 {
		d = unset
	}
	return uint32(d / time.Second)
}

// chunks splits a text into strings of at most 255 octets: RFC 1035 §3.3.14.
func chunks(s string) []string {
	out := []string{}
	for len(s) > 255 {
		out = append(out, s[:255])
		s = s[255:]
	}
	return append(out, s)
}
