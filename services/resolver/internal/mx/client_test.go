package mx

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/postrider/postrider/pkg/dnstest"
)

func newTestClient(t *testing.T, timeout time.Duration, servers ...string) *client {
	t.Helper()
	c, err := newClient(Config{Servers: servers, Timeout: timeout, Concurrency: 64})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// addressOf asks for the A record of a name.
func addressOf(t *testing.T, c *client, name string) (string, error) {
	t.Helper()
	reply, err := c.exchange(t.Context(), name, dns.TypeA)
	if err != nil {
		return "", err
	}
	a, _ := interpret(name, dns.TypeA, reply, usualTTL)
	return fmt.Sprint(a.addrs), nil
}

var oneAddress = dnstest.Zone{A: map[string][]string{"a.test": {"192.0.2.1"}}}

const wantAddress = "[192.0.2.1]"

func TestServersTakeTurns(t *testing.T) {
	one, two := dnstest.Start(t, oneAddress), dnstest.Start(t, oneAddress)
	c := newTestClient(t, time.Second, one.Addr(), two.Addr())
	for range 10 {
		if got, err := addressOf(t, c, "a.test"); got != wantAddress {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	if n, m := one.Queries("a.test"), two.Queries("a.test"); n != 5 || m != 5 {
		t.Errorf("queries: %d and %d, want 5 and 5", n, m)
	}
}

func TestFailingServersAreReplaced(t *testing.T) {
	for _, c := range []struct {
		fault string
		zone  dnstest.Zone
		asked int // of the failing server, in 6 questions
	}{
		{"silence", dnstest.Zone{Timeout: []string{"a.test"}}, 2}, // one try, sent twice; then it is asked last
		{"SERVFAIL", dnstest.Zone{ServFail: []string{"a.test"}}, 3},
		{"REFUSED", dnstest.Zone{Refused: []string{"a.test"}}, 3},
	} {
		t.Run(c.fault, func(t *testing.T) {
			bad, good := dnstest.Start(t, c.zone), dnstest.Start(t, oneAddress)
			cl := newTestClient(t, 100*time.Millisecond, bad.Addr(), good.Addr())
			for range 6 {
				if got, err := addressOf(t, cl, "a.test"); got != wantAddress {
					t.Fatalf("got %q, %v", got, err)
				}
			}
			if n := bad.Queries("a.test"); n != c.asked {
				t.Errorf("the failing server was asked %d times, want %d", n, c.asked)
			}
		})
	}
}

func TestEveryServerFails(t *testing.T) {
	one := dnstest.Start(t, dnstest.Zone{ServFail: []string{"a.test"}, Timeout: []string{"b.test"}})
	two := dnstest.Start(t, dnstest.Zone{ServFail: []string{"a.test"}, Timeout: []string{"b.test"}})
	c := newTestClient(t, 50*time.Millisecond, one.Addr(), two.Addr())
	_, err := addressOf(t, c, "a.test")
	if err == nil || !strings.Contains(err.Error(), "SERVFAIL") {
		t.Errorf("error %v, want SERVFAIL", err)
	}
	if n := one.Queries("a.test") + two.Queries("a.test"); n != 2 {
		t.Errorf("%d queries, want one for each server: SERVFAIL is not asked again", n)
	}
	begin := time.Now()
	_, err = addressOf(t, c, "b.test")
	if err == nil || strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("error %v, want one without our servers' addresses", err)
	}
	if n := one.Queries("b.test") + two.Queries("b.test"); n < 6 || n > 8 {
		t.Errorf("%d queries, want each server asked again after silence, and each try sent twice", n)
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("gave up after %v, want 3 timeouts of 50 ms", d)
	}
}

// A port with nobody behind it answers at once with ICMP.
func TestNoServerListens(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := conn.LocalAddr().String()
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := addressOf(t, newTestClient(t, 100*time.Millisecond, addr), "a.test"); err == nil {
		t.Errorf("got %q without a server", got)
	}
}

// RFC 7766 §5: a truncated reply is asked for again over TCP.
func TestTruncatedReplyOverTCP(t *testing.T) {
	zone := dnstest.Zone{A: map[string][]string{"a.test": {"192.0.2.1"}}, Truncate: []string{"a.test"}}
	s := dnstest.Start(t, zone)
	if got, err := addressOf(t, newTestClient(t, time.Second, s.Addr()), "a.test"); got != wantAddress {
		t.Errorf("got %q, %v", got, err)
	}
	if s.QueriesTCP() != 1 || s.Queries("a.test") != 2 {
		t.Errorf("%d queries, %d over TCP: want 2, 1", s.Queries("a.test"), s.QueriesTCP())
	}
	zone.Forge = func(reply *dns.Msg) { reply.Truncated = true }
	if err := s.Set(zone); err != nil {
		t.Fatal(err)
	}
	if got, err := addressOf(t, newTestClient(t, time.Second, s.Addr()), "a.test"); err == nil {
		t.Errorf("truncated over TCP too: got %q", got)
	}
}

// RFC 6891 §7: a server that does not know EDNS.
func TestServerWithoutEDNS(t *testing.T) {
	zone := oneAddress
	var plain, sized atomic.Int32
	zone.Forge = func(reply *dns.Msg) {
		if reply.IsEdns0() == nil {
			plain.Add(1)
			return
		}
		if reply.IsEdns0().UDPSize() == udpSize {
			sized.Add(1)
		}
		reply.Rcode, reply.Answer, reply.Extra = dns.RcodeFormatError, nil, nil
	}
	s := dnstest.Start(t, zone)
	if got, err := addressOf(t, newTestClient(t, time.Second, s.Addr()), "a.test"); got != wantAddress {
		t.Errorf("got %q, %v", got, err)
	}
	if plain.Load() != 1 || sized.Load() != 1 {
		t.Errorf("%d queries with EDNS of 1232, %d without; want 1 and 1", sized.Load(), plain.Load())
	}
}

// What drops queries with EDNS, as some routers do, costs the first look-up a
// part of its time and no more.
func TestEDNSDropped(t *testing.T) {
	zone := oneAddress
	var sized atomic.Int32
	zone.Forge = func(reply *dns.Msg) {
		if reply.IsEdns0() != nil {
			sized.Add(1)
			reply.Id++ // nobody hears it
		}
	}
	s := dnstest.Start(t, zone)
	c := newTestClient(t, time.Second, s.Addr())
	for range 3 {
		if got, err := addressOf(t, c, "a.test"); got != wantAddress {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if sized.Load() != 1 {
		t.Errorf("%d queries with EDNS, want 1", sized.Load())
	}
}

// RFC 5452 §9.1: a reply counts only with the right id and question.
func TestForgedReplies(t *testing.T) {
	for _, c := range []struct {
		forgery string
		forge   func(*dns.Msg)
	}{
		{"another id", func(m *dns.Msg) { m.Id++ }},
		{"another name", func(m *dns.Msg) { m.Question[0].Name = "b.test." }},
		{"another type", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }},
		{"another class", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }},
		{"no question", func(m *dns.Msg) { m.Question = nil }},
		{"two questions", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }},
		{"a query", func(m *dns.Msg) { m.Response = false }},
		{"another opcode", func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }},
	} {
		for _, truncate := range []bool{false, true} { // over UDP, and over TCP
			zone := oneAddress
			zone.Forge = func(m *dns.Msg) {
				if truncate && !m.Truncated || !truncate {
					c.forge(m)
				}
			}
			if truncate {
				zone.Truncate = []string{"a.test"}
			}
			s := dnstest.Start(t, zone)
			if got, err := addressOf(t, newTestClient(t, 50*time.Millisecond, s.Addr()), "a.test"); err == nil {
				t.Errorf("%s (TCP %v) was believed: %q", c.forgery, truncate, got)
			}
		}
	}
}

// Forged datagrams that arrive before the true reply do not hinder it.
// A datagram that is lost does not cost the whole time of a try, and an answer
// to the first one is still heard after the second was sent.
func TestSentOnceMore(t *testing.T) {
	for name, answered := range map[string]int{"lost": 2, "slow": 1} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var serving sync.WaitGroup
			t.Cleanup(func() {
				if err := conn.Close(); err != nil {
					t.Error(err)
				}
				serving.Wait()
			})
			serving.Go(func() {
				buf := make([]byte, 4096)
				var queries [2]*dns.Msg
				for i := range queries {
					n, client, err := conn.ReadFrom(buf)
					queries[i] = new(dns.Msg)
					if err != nil || queries[i].Unpack(buf[:n]) != nil {
						return
					}
					if i == 0 {
						continue
					}
					m := new(dns.Msg)
					m.SetReply(queries[answered-1])
					rr, err := dns.NewRR("a.test. 60 IN A 192.0.2.1")
					if err != nil {
						panic(err)
					}
					m.Answer = []dns.RR{rr}
					b, err := m.Pack()
					if err != nil {
						panic(err)
					}
					_, _ = conn.WriteTo(b, client)
				}
			})
			// One try is all there is: its time is the whole look-up's.
			got, err := addressOf(t, newTestClient(t, 2*time.Second, conn.LocalAddr().String()), "a.test")
			if got != wantAddress {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestTrueReplyAfterForgedOnes(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		serving.Wait()
	})
	serving.Go(func() {
		buf := make([]byte, 4096)
		n, client, err := conn.ReadFrom(buf)
		query := new(dns.Msg)
		if err != nil || query.Unpack(buf[:n]) != nil {
			return
		}
		answer := func(id uint16, addr string) []byte {
			m := new(dns.Msg)
			m.SetReply(query)
			m.Id = id
			rr, err := dns.NewRR("a.test. 60 IN A " + addr)
			if err != nil {
				panic(err)
			}
			m.Answer = []dns.RR{rr}
			b, err := m.Pack()
			if err != nil {
				panic(err)
			}
			return b
		}
		for _, datagram := range [][]byte{
			{}, {1}, []byte("garbage that is longer than a header"),
			answer(query.Id+1, "192.0.2.66"), answer(query.Id, "192.0.2.1"),
		} {
			if _, err := conn.WriteTo(datagram, client); err != nil {
				return
			}
		}
	})
	got, err := addressOf(t, newTestClient(t, 5*time.Second, conn.LocalAddr().String()), "a.test")
	if got != wantAddress {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestQuestionsOpenAreBounded(t *testing.T) {
	var open, most atomic.Int32
	zone := oneAddress
	entered, release := make(chan struct{}, 10), make(chan struct{})
	zone.Forge = func(*dns.Msg) {
		n := open.Add(1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		entered <- struct{}{}
		<-release
		open.Add(-1)
	}
	s := dnstest.Start(t, zone)
	c := newTestClient(t, 5*time.Second, s.Addr())
	c.asking = make(chan struct{}, 3)
	var asking sync.WaitGroup
	for range 10 {
		asking.Go(func() {
			if got, err := addressOf(t, c, "a.test"); got != wantAddress {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	for range 3 {
		<-entered
	}
	close(release)
	asking.Wait()
	if n := most.Load(); n > 3 {
		t.Errorf("%d questions were open at once, want at most 3", n)
	}
}

func TestParseServer(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"192.0.2.1", "192.0.2.1:53"},
		{" 192.0.2.1:5353 ", "192.0.2.1:5353"},
		{"2001:db8::1", "[2001:db8::1]:53"},
		{"[2001:db8::1]", "[2001:db8::1]:53"},
		{"[2001:db8::1]:5353", "[2001:db8::1]:5353"},
		{"localhost", ""}, {"", ""}, {"192.0.2.1:dns", ""}, {"192.0.2.1:99999", ""},
	} {
		got, err := ParseServer(c.text)
		if (err == nil) != (c.want != "") || got != c.want && err == nil {
			t.Errorf("%q: got %q, %v; want %q", c.text, got, err, c.want)
		}
	}
}
