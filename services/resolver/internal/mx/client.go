package mx

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// udpSize is the EDNS payload size that passes every path without
// fragments: the value of DNS Flag Day 2020.
const udpSize = 1232

// slowFor is how long a server that did not answer is asked after the others.
const slowFor = 30 * time.Second

// plainFor is how long a server that seems to drop queries with EDNS is asked
// without it. It may only have lost one: then long answers cost TCP meanwhile.
const plainFor = time.Minute

// client asks recursive name servers.
type client struct {
	servers []*server
	timeout time.Duration // of one try
	trusted bool          // what the servers say of DNSSEC counts
	next    atomic.Uint32 // the server that the next question starts with
	asking  chan struct{} // bounds the open sockets
}

type server struct {
	addr       string
	slowUntil  atomic.Int64 // Unix nanoseconds
	plainUntil atomic.Int64 // the same
}

// newClient takes servers as "ip" or "ip:port"; none means those of
// /etc/resolv.conf.
func newClient(cfg Config) (*client, error) {
	c := &client{timeout: cfg.Timeout, trusted: cfg.TrustAD, asking: make(chan struct{}, cfg.Concurrency)}
	addrs := cfg.Servers
	if len(addrs) == 0 {
		system, err := dns.ClientConfigFromFile("/etc/resolv.conf")
		if err != nil {
			return nil, fmt.Errorf("DNS servers of the system: %w", err)
		}
		for _, s := range system.Servers {
			addrs = append(addrs, net.JoinHostPort(s, system.Port))
		}
	}
	for _, text := range addrs {
		addr, err := ParseServer(text)
		if err != nil {
			return nil, err
		}
		c.servers = append(c.servers, &server{addr: addr})
	}
	if len(c.servers) == 0 {
		return nil, errors.New("DNS servers: none configured and none in /etc/resolv.conf")
	}
	return c, nil
}

// ParseServer returns text, "ip" or "ip:port", as ip:port.
func ParseServer(text string) (string, error) {
	text = strings.TrimSpace(text)
	if ap, err := netip.ParseAddrPort(text); err == nil {
		return ap.String(), nil
	}
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	if err != nil {
		return "", fmt.Errorf("DNS server %q: want an IP address with an optional port", text)
	}
	return netip.AddrPortFrom(addr, 53).String(), nil
}

// exchange returns the first definite reply (NOERROR or NXDOMAIN) of any
// server. The error says, in words fit for a report to a sender, why there
// was none; it is never a statement about the domain.
func (c *client) exchange(ctx context.Context, name string, qtype uint16) (*dns.Msg, error) {
	select {
	case c.asking <- struct{}{}:
		defer func() { <-c.asking }()
	case <-ctx.Done():
		return nil, errors.New("no DNS server was asked in time")
	}
	ctx, cancel := context.WithTimeout(ctx, 3*c.timeout)
	defer cancel()

	failed := errors.New("no DNS server answered in time")
	order := c.order()
	answered := make(map[*server]bool, len(order))
	for try := range max(3, 2*len(order)) {
		s := order[try%len(order)]
		if answered[s] {
			continue // it said what it knows
		}
		if ctx.Err() != nil {
			break
		}
		reply, err := c.ask(ctx, s, question(name, qtype))
		if err != nil {
			s.slowUntil.Store(time.Now().Add(slowFor).UnixNano())
			continue
		}
		if reply.Rcode == dns.RcodeSuccess || reply.Rcode == dns.RcodeNameError {
			s.slowUntil.Store(0)
			// RFC 4035 §4.9.3: the AD bit of anyone else is a wish.
			reply.AuthenticatedData = reply.AuthenticatedData && c.trusted
			return reply, nil
		}
		answered[s] = true
		failed = fmt.Errorf("the DNS server answered %s", rcodeText(reply.Rcode))
	}
	return nil, failed
}

// order returns the servers, starting with another one each time, and those
// that were slow lately behind the others.
func (c *client) order() []*server {
	n := len(c.servers)
	first := int(c.next.Add(1)-1) % n
	order := make([]*server, 0, n)
	for i := range n {
		order = append(order, c.servers[(first+i)%n])
	}
	now := time.Now().UnixNano()
	slices.SortStableFunc(order, func(a, b *server) int {
		slow := func(s *server) int {
			if s.slowUntil.Load() > now {
				return 1
			}
			return 0
		}
		return slow(a) - slow(b)
	})
	return order
}

// ask makes one try at one server: UDP, and TCP if the reply was truncated.
func (c *client) ask(ctx context.Context, s *server, query *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	plain := query.Copy()
	plain.Extra = nil
	if s.plainUntil.Load() > time.Now().UnixNano() {
		query = plain
	}
	reply, repeated, err := roundTrip(ctx, "udp", s.addr, query, plain)
	switch {
	case err != nil || query == plain:
	case reply.Rcode == dns.RcodeFormatError || reply.Rcode == dns.RcodeNotImplemented:
		// RFC 6891 §7: a server that does not know EDNS answers FORMERR (and some
		// NOTIMP) and is asked again without it.
		query = plain
		reply, _, err = roundTrip(ctx, "udp", s.addr, plain, plain)
	case repeated && reply.IsEdns0() == nil:
		s.plainUntil.Store(time.Now().Add(plainFor).UnixNano())
	}
	// RFC 7766 §5: what a truncated reply holds is not used; TCP has it all.
	if err == nil && reply.Truncated {
		reply, _, err = roundTrip(ctx, "tcp", s.addr, query, nil)
		if err == nil && reply.Truncated {
			err = errors.New("reply truncated over TCP")
		}
	}
	return reply, err
}

// roundTrip sends one query and waits for the reply to it. Over UDP,
// datagrams with another id or question are forged or late, and are passed
// over: RFC 5452 §9.1. Each query has a socket, and so a port, of its own.
//
// A datagram that is lost costs less than the whole time: after two fifths of
// it a second one is sent, and an answer to the first is still heard (RFC 1035
// §4.2.1). The second has the id of the first and no EDNS, as there are routers
// and firewalls that drop queries with it. repeated tells that it was sent.
func roundTrip(ctx context.Context, network, addr string, query, plain *dns.Msg) (reply *dns.Msg, repeated bool, err error) {
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, false, err
	}
	conn := &dns.Conn{Conn: raw, UDPSize: udpSize}
	defer conn.Close()
	deadline, _ := ctx.Deadline() // always set by ask
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, false, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	packed, err := query.Pack()
	if err != nil {
		return nil, false, err
	}
	if _, err := conn.Write(packed); err != nil {
		return nil, false, err
	}
	if network == "udp" {
		second, err := plain.Pack()
		if err != nil {
			return nil, false, err
		}
		again := time.AfterFunc(time.Until(deadline)*2/5, func() { _, _ = conn.Write(second) })
		defer func() { repeated = !again.Stop() }()
	}
	for {
		reply, err := conn.ReadMsg()
		switch {
		case reply == nil && (network == "tcp" || !errors.Is(err, dns.ErrShortRead)):
			return nil, false, err
		case reply != nil && answers(query, reply):
			return reply, false, err // err: the reply is ours and malformed
		case network == "tcp":
			return nil, false, errors.New("reply to another question")
		}
	}
}

// answers reports whether reply belongs to query: id, QR and question.
func answers(query, reply *dns.Msg) bool {
	if reply.Id != query.Id || !reply.Response || reply.Opcode != dns.OpcodeQuery {
		return false
	}
	if len(reply.Question) == 0 {
		return reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError // an error may leave the question out
	}
	asked, got := query.Question[0], reply.Question[0]
	return len(reply.Question) == 1 && got.Qtype == asked.Qtype && got.Qclass == asked.Qclass && strings.EqualFold(got.Name, asked.Name)
}

func question(name string, qtype uint16) *dns.Msg {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), qtype)
	q.SetEdns0(udpSize, false)
	q.AuthenticatedData = true // RFC 6840 §5.7: we want to know, and need no signatures
	return q
}

func rcodeText(rcode int) string {
	if text, ok := dns.RcodeToString[rcode]; ok {
		return text
	}
	return fmt.Sprintf("rcode %d", rcode)
}
