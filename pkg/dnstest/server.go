package dnstest

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Server is a running test server. Its methods are safe for concurrent use.
type Server struct {
	addr     string
	zone     atomic.Pointer[compiled]
	udp, tcp *dns.Server
	closed   chan struct{}
	serving  sync.WaitGroup

	mu      sync.Mutex
	queries map[question]int
	overTCP int
}

// Start runs a server for the time of the test. A zone that does not parse
// fails the test.
func Start(tb testing.TB, zone Zone) *Server {
	tb.Helper()
	s, err := New(zone)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Errorf("close dnstest server: %v", err)
		}
	})
	return s
}

// New runs a server on a free port of 127.0.0.1, the same port for UDP and
// TCP. The caller must Close it.
func New(zone Zone) (*Server, error) {
	c, err := compile(zone)
	if err != nil {
		return nil, err
	}
	packet, stream, err := listen()
	if err != nil {
		return nil, fmt.Errorf("dnstest: %w", err)
	}
	s := &Server{addr: packet.LocalAddr().String(), closed: make(chan struct{}), queries: map[question]int{}}
	s.zone.Store(c)
	s.udp = &dns.Server{PacketConn: packet, Handler: dns.HandlerFunc(s.serve)}
	s.tcp = &dns.Server{Listener: stream, Handler: dns.HandlerFunc(s.serve)}
	for _, srv := range []*dns.Server{s.udp, s.tcp} {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		failed := make(chan error, 1)
		s.serving.Go(func() { failed <- srv.ActivateAndServe() })
		select {
		case <-started:
		case err := <-failed:
			return nil, errors.Join(fmt.Errorf("dnstest: %w", err), packet.Close(), stream.Close())
		}
	}
	return s, nil
}

// listen takes a port that is free for both UDP and TCP.
func listen() (net.PacketConn, net.Listener, error) {
	var last error
	for range 20 {
		stream, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, err
		}
		packet, err := net.ListenPacket("udp", stream.Addr().String())
		if err == nil {
			return packet, stream, nil
		}
		last = errors.Join(err, stream.Close())
	}
	return nil, nil, fmt.Errorf("no port free for UDP and TCP: %w", last)
}

// Addr returns the host:port of the server.
func (s *Server) Addr() string { return s.addr }

// Set replaces the zone; queries from now on are answered from the new one.
func (s *Server) Set(zone Zone) error {
	c, err := compile(zone)
	if err != nil {
		return err
	}
	s.zone.Store(c)
	return nil
}

// Queries returns how many queries came for a name, of all types, or of one
// type when written as "MX example.com". Retries count.
func (s *Server) Queries(name string) int {
	q, err := parseQuestion(name)
	if err != nil {
		panic(err) // a mistake in the test
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.qtype != dns.TypeANY {
		return s.queries[q]
	}
	n := 0
	for got, count := range s.queries {
		if got.name == q.name {
			n += count
		}
	}
	return n
}

// QueriesTCP returns how many queries came over TCP.
func (s *Server) QueriesTCP() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.overTCP
}

// Close stops the server and waits until no query is being answered.
func (s *Server) Close() error {
	close(s.closed)
	err := errors.Join(s.udp.Shutdown(), s.tcp.Shutdown())
	s.serving.Wait()
	return err
}

func (s *Server) serve(w dns.ResponseWriter, query *dns.Msg) {
	if len(query.Question) != 1 {
		reply := new(dns.Msg)
		s.send(w, reply.SetRcode(query, dns.RcodeFormatError))
		return
	}
	q := question{strings.ToLower(query.Question[0].Name), query.Question[0].Qtype}
	_, udp := w.RemoteAddr().(*net.UDPAddr)
	s.mu.Lock()
	s.queries[q]++
	if !udp {
		s.overTCP++
	}
	s.mu.Unlock()

	zone := s.zone.Load()
	if _, silent := has(zone.timeout, q); silent {
		return
	}
	if d, late := has(zone.delay, q); late {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.closed:
			return
		}
	}
	s.send(w, zone.answer(q, query, udp))
}

// answer makes the reply to one query.
func (c *compiled) answer(q question, query *dns.Msg, udp bool) *dns.Msg {
	reply := new(dns.Msg)
	reply.SetReply(query)
	reply.Authoritative, reply.RecursionAvailable = true, true
	_, fail := has(c.servFail, q)
	_, refuse := has(c.refused, q)
	_, cut := has(c.truncate, q)
	switch {
	case fail:
		reply.Rcode = dns.RcodeServerFailure
	case refuse:
		reply.Rcode = dns.RcodeRefused
	case cut && udp:
		reply.Truncated = true
	default:
		c.lookup(q, reply)
	}
	size := dns.MinMsgSize
	if opt := query.IsEdns0(); opt != nil {
		reply.SetEdns0(opt.UDPSize(), false)
		size = max(size, int(opt.UDPSize()))
	}
	if udp {
		reply.Truncate(size)
		if cut && !fail && !refuse {
			reply.Truncated = true // Truncate clears it when the message fits
		}
	}
	if c.forge != nil {
		c.forge(reply)
	}
	return reply
}

// send writes the reply. A client that has gone away is its own affair.
func (s *Server) send(w dns.ResponseWriter, reply *dns.Msg) {
	if err := w.WriteMsg(reply); err != nil {
		_ = w.Close()
	}
}
