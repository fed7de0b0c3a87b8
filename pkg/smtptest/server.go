package smtptest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// maxViolations bounds the log of a client that does everything wrong.
const maxViolations = 100

// Server is a scripted mail exchanger. All methods may be called at any time
// from any goroutine.
type Server struct {
	script   Script
	listener net.Listener
	closing  chan struct{} // closed by Close
	once     sync.Once
	group    errgroup.Group

	mu           sync.Mutex // guards all below
	book         *rulebook
	open         map[int]net.Conn // by Connection.ID; TCP, not TLS
	connections  []*Connection
	transactions []Transaction
	taken        int
	highWater    int
	violations   []string
	changed      chan struct{} // closed and replaced when anything above changes
}

// Start listens and serves until the test ends. The test fails for each
// violation of the protocol by the client.
func Start(tb testing.TB, script Script) *Server {
	tb.Helper()
	s, err := Listen(script)
	if err != nil {
		tb.Fatalf("smtptest: %v", err)
	}
	tb.Cleanup(func() {
		s.Close()
		for _, v := range s.Violations() {
			tb.Errorf("smtptest: the client broke the protocol: %s", v)
		}
	})
	return s
}

// Listen is Start without a test: the caller closes the server and looks at
// Violations.
func Listen(script Script) (*Server, error) {
	if script.Address == "" {
		script.Address = "127.0.0.1:0"
	}
	if script.Hostname == "" {
		script.Hostname = "mx.example"
	}
	if script.Extensions == nil {
		script.Extensions = DefaultExtensions
	}
	l, err := net.Listen("tcp", script.Address)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	s := &Server{
		script:   script,
		listener: l,
		closing:  make(chan struct{}),
		book:     newRulebook(script.Rules),
		open:     map[int]net.Conn{},
		changed:  make(chan struct{}),
	}
	s.group.Go(s.accept)
	return s, nil
}

// Addr is where the server listens.
func (s *Server) Addr() netip.AddrPort { return addrPort(s.listener.Addr()) }

// SetRules replaces the rules, for the sessions that are open too. Counters
// start at zero.
func (s *Server) SetRules(rules ...Rule) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.book = newRulebook(rules)
}

// Close stops listening, drops all connections and waits for their sessions
// to end. The log stays.
func (s *Server) Close() {
	s.once.Do(func() {
		close(s.closing)
		s.note(s.listener.Close())
		s.mu.Lock()
		for _, c := range s.open {
			c.Close()
		}
		s.mu.Unlock()
	})
	s.note(s.group.Wait())
}

// Wait returns when done reports true, which is asked again after each change
// of the log, or with the context's error.
func (s *Server) Wait(ctx context.Context, done func() bool) error {
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if done() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// WaitMessages waits until n messages were taken and fails the test after
// the given time.
func (s *Server) WaitMessages(tb testing.TB, n int, within time.Duration) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), within)
	defer cancel()
	if err := s.Wait(ctx, func() bool { return s.Count() >= n }); err != nil {
		tb.Fatalf("smtptest: %d of %d messages after %v: %v", s.Count(), n, within, err)
	}
}

func (s *Server) accept() error {
	for {
		c, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if log := s.opened(c); log != nil {
			s.group.Go(func() error {
				defer s.closed(log, c)
				ss := &session{server: s, tcp: c, conn: c, log: log}
				ss.r, ss.w = bufio.NewReaderSize(c, 16<<10), bufio.NewWriter(c)
				ss.run()
				return nil
			})
		}
	}
}

// opened logs a new connection; it returns nil if the server is closing.
func (s *Server) opened(c net.Conn) *Connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closing:
		c.Close()
		return nil
	default:
	}
	log := &Connection{ID: len(s.connections) + 1, Remote: addrPort(c.RemoteAddr()), OpenedAt: time.Now()}
	s.connections = append(s.connections, log)
	if len(s.open) >= s.highWater {
		s.forgetClosed()
	}
	s.open[log.ID] = c
	s.highWater = max(s.highWater, len(s.open))
	s.notify()
	return log
}

func (s *Server) closed(log *Connection, c net.Conn) {
	c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, log.ID)
	log.ClosedAt = time.Now()
	s.notify()
}

// forgetClosed takes connections out of the count whose client has closed
// its side though we have not read that far yet. Caller holds mu.
func (s *Server) forgetClosed() {
	for id, c := range s.open {
		if peerClosed(c) {
			delete(s.open, id)
		}
	}
}

// update changes the log.
func (s *Server) update(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	s.notify()
}

// notify wakes those who wait for a change. Caller holds mu.
func (s *Server) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) violation(format string, args ...any) {
	s.update(func() {
		if len(s.violations) < maxViolations {
			s.violations = append(s.violations, fmt.Sprintf(format, args...))
		}
	})
}

// note records an error of the server itself: a test must not pass on a
// judge that failed.
func (s *Server) note(err error) {
	if err != nil {
		s.violation("server: %v", err)
	}
}

func (s *Server) rules() *rulebook {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.book
}

// pause waits and reports whether the server is still open.
func (s *Server) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.closing:
		return false
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
