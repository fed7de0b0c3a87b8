package egress_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/services/delivery/internal/egress"
)

// target is a server that says from where it was reached, then echoes.
func target(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	g.Go(func() error {
		for {
			c, err := l.Accept()
			if err != nil {
				return nil
			}
			g.Go(func() error {
				defer func() { _ = c.Close() }()
				_, err := io.WriteString(c, c.RemoteAddr().String()+"\n")
				_, _ = io.Copy(c, c)
				return err
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// listener starts a SOCKS5 listener for the source "one", 127.0.0.7.
func listener(t *testing.T, ports ...uint16) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	serving := &egress.Listener{Key: "key", Max: 10,
		Source: func(name string, _ netip.Addr) (netip.Addr, bool) {
			return netip.MustParseAddr("127.0.0.7"), name == "one"
		},
		MayReach: func(target netip.AddrPort) bool {
			for _, p := range ports {
				if p == target.Port() {
					return true
				}
			}
			return false
		}}
	var g errgroup.Group
	g.Go(func() error { return serving.Serve(ctx, l) })
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestTheTargetSeesTheSource(t *testing.T) {
	to := target(t)
	ways := map[string]egress.Way{
		"direct":  {Local: netip.MustParseAddr("127.0.0.7")},
		"through": {Kind: egress.SOCKS5, Local: netip.MustParseAddr("127.0.0.7"), Proxy: listener(t, to.Port()), User: "one", Password: "key"},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			c, err := way.Dial(within(t), to)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			r := bufio.NewReader(c)
			seen, err := r.ReadString('\n')
			if err != nil || seen != c.LocalAddr().String()+"\n" || !bytes.HasPrefix([]byte(seen), []byte("127.0.0.7:")) {
				t.Errorf("the target sees %q, %v; our end is %v", seen, err, c.LocalAddr())
			}
			big := bytes.Repeat([]byte("0123456789"), 100_000)
			var g errgroup.Group
			g.Go(func() error { _, err := c.Write(big); return err })
			got := make([]byte, len(big))
			if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, big) {
				t.Errorf("a megabyte does not come back: %v", err)
			}
			if err := g.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Trouble of the target is told apart from trouble of the way.
func TestWhoIsToBlame(t *testing.T) {
	to := target(t)
	closed := netip.MustParseAddrPort("127.0.0.1:1")
	at := listener(t, to.Port(), closed.Port())
	socks := func(user, password string) egress.Way {
		return egress.Way{Kind: egress.SOCKS5, Proxy: at, User: user, Password: password}
	}
	for _, c := range []struct {
		name string
		way  egress.Way
		to   netip.AddrPort
		ours bool
	}{
		{"the target refuses", socks("one", "key"), closed, false},
		{"the target refuses us directly", egress.Way{Local: netip.MustParseAddr("127.0.0.7")}, closed, false},
		{"an address that is not here", egress.Way{Local: netip.MustParseAddr("192.0.2.1")}, to, true},
		{"wrong key", socks("one", "no"), to, true},
		{"no key", socks("", ""), to, true},
		{"a source that is not registered", socks("two", "key"), to, true},
		{"a port that is not allowed", socks("one", "key"), netip.MustParseAddrPort("127.0.0.1:22"), true},
		{"no proxy there", egress.Way{Kind: egress.SOCKS5, Proxy: closed.String()}, to, true},
		{"no SOCKS5 there", egress.Way{Kind: egress.SOCKS5, Proxy: to.String()}, to, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := c.way.Dial(within(t), c.to)
			if err == nil {
				_ = conn.Close()
				t.Fatal("connected")
			}
			if errors.Is(err, egress.ErrEgress) != c.ours {
				t.Errorf("%v: trouble of the way is %v, want %v", err, !c.ours, c.ours)
			}
			if !c.ours && !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%v, want connection refused", err)
			}
		})
	}
}

// A proxy that says nothing is left when the context ends.
func TestSilentProxy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := (egress.Way{Kind: egress.SOCKS5, Proxy: l.Addr().String()}).Dial(ctx, netip.MustParseAddrPort("127.0.0.1:25")); err == nil {
		t.Error("connected through a proxy that says nothing")
	}
}

// HAProxy gets the source and the target: proxy-protocol.txt §2.2.
func TestHAProxyHeader(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	var g errgroup.Group
	got := make([]byte, 28)
	g.Go(func() error {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_, err = io.ReadFull(c, got)
		return err
	})
	way := egress.Way{Kind: egress.HAProxy, Proxy: l.Addr().String(), Local: netip.MustParseAddr("192.0.2.7")}
	c, err := way.Dial(within(t), netip.MustParseAddrPort("198.51.100.9:25"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	want := append([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c"), 192, 0, 2, 7, 198, 51, 100, 9, 0, 0, 0, 25)
	if !bytes.Equal(got, want) {
		t.Errorf("header % x, want % x", got, want)
	}
	if c.LocalAddr().String() != "192.0.2.7:0" {
		t.Errorf("our end is %v, want that of the source", c.LocalAddr())
	}
}

// Clients that say nothing keep nobody with the key out, however many they are;
// those of one address make room for each other.
func TestSilentClients(t *testing.T) {
	to := target(t)
	at := listener(t, to.Port()) // ten with the key
	silent := func(from string, n int) {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		for range n {
			c, err := d.DialContext(t.Context(), "tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
		}
	}
	way := egress.Way{Kind: egress.SOCKS5, Local: netip.MustParseAddr("127.0.0.7"), Proxy: at, User: "one", Password: "key"}
	var open []net.Conn
	for _, n := range []int{10, 600, 600} {
		silent("127.0.0.9", n)
		c, err := way.Dial(within(t), to)
		if err != nil {
			t.Fatalf("behind %d silent clients: %v", n, err)
		}
		open = append(open, c)
	}
	for len(open) < 10 {
		c, err := way.Dial(within(t), to)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	if c, err := way.Dial(within(t), to); err == nil {
		_ = c.Close()
		t.Error("an eleventh client with the key has a place")
	}
	for _, c := range open {
		_ = c.Close()
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		text string
		want egress.Way
		ok   bool
	}{
		{"socks5://proxy.test:1080", egress.Way{Kind: egress.SOCKS5, Proxy: "proxy.test:1080"}, true},
		{"socks5://me:s%3Acret@[::1]:1080", egress.Way{Kind: egress.SOCKS5, Proxy: "[::1]:1080", User: "me", Password: "s:cret"}, true},
		{"haproxy://192.0.2.1:25", egress.Way{Kind: egress.HAProxy, Proxy: "192.0.2.1:25"}, true},
		{"haproxy://me:secret@192.0.2.1:25", egress.Way{}, false},
		{"http://proxy.test:80", egress.Way{}, false},
		{"socks5://proxy.test", egress.Way{}, false},
		{"socks5://proxy.test:1080/path", egress.Way{}, false},
		{"socks5://me:secret@proxy.test:port", egress.Way{}, false},
		{"", egress.Way{}, false},
	} {
		got, err := egress.Parse(c.text)
		if (err == nil) != c.ok || c.ok && got != c.want || err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("Parse(%q) = %+v, %v", c.text, got, err)
		}
	}
}

// What a client may say, in any order and cut anywhere, opens no connection
// and ends.
func FuzzListener(f *testing.F) {
	f.Add([]byte{5, 1, 2, 1, 3, 'o', 'n', 'e', 3, 'k', 'e', 'y', 5, 1, 0, 1, 127, 0, 0, 1, 0, 25})
	f.Add([]byte{5, 1, 0})
	f.Add([]byte{5, 2, 0, 2, 1, 0, 3, 'k', 'e', 'y', 5, 1, 0, 3, 1, 'x', 0, 25})
	f.Add([]byte{4, 1, 0, 25})
	f.Fuzz(func(t *testing.T, said []byte) {
		client, server := net.Pipe()
		l := &egress.Listener{Key: "key", Max: 1, MayReach: func(netip.AddrPort) bool { return false },
			Source: func(string, netip.Addr) (netip.Addr, bool) {
				t.Error("a source is asked for though the port is not allowed")
				return netip.Addr{}, false
			}}
		once := &single{c: server}
		var g errgroup.Group
		ctx, cancel := context.WithCancel(t.Context())
		g.Go(func() error { _, _ = io.Copy(io.Discard, client); cancel(); return nil })
		g.Go(func() error { _, _ = client.Write(said); return client.Close() })
		if err := l.Serve(ctx, once); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		_ = g.Wait()
	})
}

// single is a listener that accepts one connection.
type single struct {
	c net.Conn
}

func (s *single) Accept() (net.Conn, error) {
	if c := s.c; c != nil {
		s.c = nil
		return c, nil
	}
	return nil, net.ErrClosed
}
func (s *single) Close() error   { return nil }
func (s *single) Addr() net.Addr { return &net.TCPAddr{} }
