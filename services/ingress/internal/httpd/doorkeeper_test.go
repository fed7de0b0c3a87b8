package httpd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// doorstep is a server behind a doorkeeper, that nobody has a key of.
func doorstep(t *testing.T, change func(*Config, *Server)) (*Doorkeeper, func() net.Conn) {
	t.Helper()
	cfg := testConfig()
	cfg.MaxConnectionsPerIP, cfg.MaxConnectionsPerNetwork = 50, 100
	s, err := New(cfg, nil, everybody{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	change(&s.cfg, s)
	door := NewDoorkeeper(s.cfg)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var serving errgroup.Group
	serving.Go(func() error { return s.Serve(ctx, []net.Listener{door.Listen(l, false)}) })
	t.Cleanup(func() {
		stop()
		if err := serving.Wait(); err != nil {
			t.Error(err)
		}
		if len(door.open) != 0 || door.headers.Load() != 0 {
			t.Errorf("at the end %v are open, and %d octets held", door.open, door.headers.Load())
		}
	})
	return door, func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return c
	}
}

const ask = "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"

// answered asks on a connection and returns the status, 0 if it is closed.
func answered(t *testing.T, c net.Conn, text string) int {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		return 0
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	defer r.Body.Close()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return 0
	}
	return r.StatusCode
}

// Whoever asks and reads nothing is left, whatever is asked for; others are
// served meanwhile and after.
func TestSlowReaders(t *testing.T) {
	_, dial := doorstep(t, func(_ *Config, s *Server) { s.writeTimeout = 300 * time.Millisecond })
	for _, request := range []string{ask, "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", "PUT /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"} {
		c := dial()
		all := strings.Repeat(request, 1000)
		for { // until the server stops reading, as it cannot write, and closes
			if _, err := io.WriteString(c, all); err != nil {
				break
			}
		}
	}
	if status := answered(t, dial(), ask); status != http.StatusOK {
		t.Errorf("another client: %d", status)
	}
}

func TestConnectionsOfOneAddress(t *testing.T) {
	_, dial := doorstep(t, func(c *Config, _ *Server) { c.MaxConnectionsPerIP = 2 })
	first, second := dial(), dial()
	for i, c := range []net.Conn{first, second} {
		if status := answered(t, c, ask); status != http.StatusOK {
			t.Errorf("connection %d: %d", i+1, status)
		}
	}
	third := dial()
	if status := answered(t, third, ask); status != http.StatusTooManyRequests {
		t.Errorf("one too many: %d", status)
	}
	if status := answered(t, first, ask); status != http.StatusOK {
		t.Errorf("the first one then: %d", status)
	}
	second.Close()
	for deadline := time.Now().Add(10 * time.Second); answered(t, dial(), ask) != http.StatusOK; <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the place is not free again")
		}
	}
}

// Header sections that never end take no more memory than there is for them,
// and leave those of ordinary length alone.
func TestHeadersWithoutAnEnd(t *testing.T) {
	door, dial := doorstep(t, func(c *Config, _ *Server) { c.MemoryBytes = 4 << 20 })
	var long strings.Builder
	for i := 0; long.Len() < 200<<10; i++ {
		fmt.Fprintf(&long, "X-%d: %s\r\n", i, strings.Repeat("v", 60))
	}
	for range 6 {
		// Some are turned away before they have said it all.
		_, _ = io.WriteString(dial(), strings.TrimSuffix(ask, "\r\n")+long.String())
	}
	for deadline := time.Now().Add(10 * time.Second); door.headers.Load() < 256<<10; <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is charged")
		}
	}
	if held := door.headers.Load(); held > 1<<20 {
		t.Errorf("%d octets held", held)
	}
	if status := answered(t, dial(), ask); status != http.StatusOK {
		t.Errorf("a request of ordinary length: %d", status)
	}
}

// A long header section that does end is served, and costs nothing then.
func TestLongHeader(t *testing.T) {
	door, dial := doorstep(t, func(*Config, *Server) {})
	c := dial()
	for range 3 {
		if status := answered(t, c, "GET /openapi.json?"+strings.Repeat("to=b@example.org&", 9000)+" HTTP/1.1\r\nHost: x\r\n\r\n"); status != http.StatusOK {
			t.Errorf("got %d", status)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); door.headers.Load() != 0; <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the memory is not given back")
		}
	}
}
