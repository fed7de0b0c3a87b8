package smtpd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/ingress/internal/commit"
	"github.com/postrider/postrider/services/ingress/internal/spool"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // refusals are what most tests are about
	// The caches of an access.Keeper end when they are garbage.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/maypok86/otter/v2.periodicCleanUp[...]"))
}

const hour = retry.Duration(time.Hour)

var errDown = errors.New("the store is down")

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// fakeStore keeps what it accepts. It stands in for Postgres where a test is
// about the dialogue; ingress_test.go has the real one.
type fakeStore struct {
	mu      sync.Mutex
	failure error
	kept    []*mail.Submission
	gate    chan struct{} // Accept waits until it is closed, if there is one
}

func (s *fakeStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure = err
}

func (s *fakeStore) hold() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gate := make(chan struct{})
	s.gate = gate
	return sync.OnceFunc(func() { close(gate) })
}

func (s *fakeStore) wait(ctx context.Context) error {
	s.mu.Lock()
	gate := s.gate
	s.mu.Unlock()
	if gate == nil {
		return nil
	}
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *fakeStore) Accept(ctx context.Context, group []*mail.Submission) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		return s.failure
	}
	for _, sub := range group {
		s.keep(sub, bytes.Clone(sub.Content))
	}
	return nil
}

func (s *fakeStore) AcceptStream(ctx context.Context, sub *mail.Submission, content io.Reader) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	all, err := io.ReadAll(content)
	if err != nil {
		return fmt.Errorf("accept %s: %w", sub.ID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		return s.failure
	}
	sub.SizeBytes = int64(len(all))
	s.keep(sub, all)
	return nil
}

func (s *fakeStore) keep(sub *mail.Submission, content []byte) {
	kept := *sub
	kept.Content = content
	kept.Recipients = append([]mail.Recipient(nil), sub.Recipients...)
	s.kept = append(s.kept, &kept)
}

func (s *fakeStore) submissions() []*mail.Submission {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*mail.Submission(nil), s.kept...)
}

func (s *fakeStore) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = nil
}

// silentBus takes hints that nobody looks at.
type silentBus struct{}

func (silentBus) PublishQueued(context.Context, []mail.QueuedMessage) error { return nil }

// openSpool returns room for what a test sends.
func openSpool(t testing.TB) *spool.Spool {
	t.Helper()
	s, err := spool.Open(spool.Config{Directory: t.TempDir(), Bytes: 256 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// empty reports whether no session holds anything.
func (r *running) empty() bool { return r.memory.Used() == 0 && r.spool.Used() == 0 }

// running is a server with its committer.
type running struct {
	*Server
	address string
	stop    context.CancelFunc // begins the drain
	ended   chan error         // gets the end of Serve
}

func startServer(t *testing.T, cfg Config, store *fakeStore) *running {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startOn(t, cfg, store, listener)
}

func startOn(t *testing.T, cfg Config, store *fakeStore, listener net.Listener) *running {
	t.Helper()
	return startDoor(t, cfg, store, Door{Listener: listener}, Deps{})
}

// startDoor serves at one door. The committer is added to deps.
func startDoor(t *testing.T, cfg Config, store *fakeStore, door Door, deps Deps) *running {
	t.Helper()
	committer := commit.New(store, silentBus{}, cfg.CommitTimeout, 2)
	serving, stop := context.WithCancel(t.Context())
	committing, stopCommitting := context.WithCancel(context.Background())
	deps.Committer = committer
	if deps.Spool == nil {
		deps.Spool = openSpool(t)
	}
	r := &running{Server: New(cfg, deps), address: door.Listener.Addr().String(), stop: stop, ended: make(chan error, 1)}
	committed := make(chan error, 1)
	go func() { committed <- committer.Run(committing) }()
	over := make(chan struct{})
	go func() {
		r.ended <- r.Serve(serving, []Door{door})
		close(over)
	}()
	t.Cleanup(func() {
		stop()
		<-over
		stopCommitting()
		if err := <-committed; err != nil {
			t.Errorf("committer: %v", err)
		}
	})
	return r
}

func (r *running) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// client talks to the server line by line.
type client struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func (r *running) client(t *testing.T) *client {
	t.Helper()
	conn := r.dial(t)
	return &client{t: t, conn: conn, in: bufio.NewReader(conn)}
}

// send writes text as it is.
func (c *client) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, text); err != nil {
		c.t.Fatalf("sending %.60q: %v", text, err)
	}
}

// expect reads a reply and compares its beginning.
func (c *client) expect(want string) mail.Reply {
	c.t.Helper()
	reply, err := smtp.ReadReply(c.in)
	if err != nil {
		c.t.Fatalf("waiting for %q: %v", want, err)
	}
	if !strings.HasPrefix(reply.String(), want) {
		c.t.Fatalf("got %q, want %q", reply, want)
	}
	return reply
}

func (c *client) closed() {
	c.t.Helper()
	if reply, err := smtp.ReadReply(c.in); !errors.Is(err, io.EOF) {
		c.t.Fatalf("not closed: %q, %v", reply, err)
	}
}

// envelope brings a new session up to the 354.
func (c *client) envelope() {
	c.t.Helper()
	c.expect("220")
	c.send("EHLO client.example\r\n")
	c.expect("250")
	c.transaction()
}

func (c *client) transaction() {
	c.t.Helper()
	c.send("MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n")
	c.expect("250 2.1.0")
	c.expect("250 2.1.5")
	c.expect("354")
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

// countingListener counts the writes on its connections.
type countingListener struct {
	net.Listener
	mu     sync.Mutex
	writes []string
}

type countingConn struct {
	net.Conn
	l *countingListener
}

func (l *countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countingConn{conn, l}, nil
}

func (c countingConn) Write(p []byte) (int, error) {
	c.l.mu.Lock()
	c.l.writes = append(c.l.writes, string(p))
	c.l.mu.Unlock()
	return c.Conn.Write(p)
}

// RFC 2920 §3.2: the replies of a group leave together.
func TestPipelinedRepliesLeaveInOneWrite(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener := &countingListener{Listener: inner}
	c := startOn(t, testConfig(), &fakeStore{}, listener).client(t)
	c.expect("220")
	c.send("EHLO client.example\r\n")
	c.expect("250")
	group := "MAIL FROM:<a@example.com>\r\n" + strings.Repeat("RCPT TO:<b@example.net>\r\n", 50) + "DATA\r\n"
	c.send(group)
	for range 51 {
		c.expect("250")
	}
	c.expect("354")
	c.send("text\r\n.\r\nQUIT\r\n")
	c.expect("250 2.0.0")
	c.expect("221")
	c.closed()
	listener.mu.Lock()
	defer listener.mu.Unlock()
	if len(listener.writes) != 4 {
		t.Errorf("%d writes, want greeting, EHLO, the group, and the rest: %q", len(listener.writes), listener.writes)
	}
}

// RFC 5321 §4.1.1.10: nothing is done behind QUIT.
func TestAfterQuit(t *testing.T) {
	store := &fakeStore{}
	c := startServer(t, testConfig(), store).client(t)
	c.expect("220")
	c.send("HELO client.example\r\nQUIT\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n.\r\n")
	c.expect("250 mx.example")
	c.expect("221 2.0.0")
	c.closed()
	if n := len(store.submissions()); n != 0 {
		t.Errorf("%d messages, want none", n)
	}
}

// RFC 5321 §3.8 and DESIGN.md §3.1: on shutdown content that is under way is
// finished, everything else hears 421.
func TestDrain(t *testing.T) {
	store := &fakeStore{}
	server := startServer(t, testConfig(), store)
	busy, speaking, silent := server.client(t), server.client(t), server.client(t)
	busy.envelope()
	busy.send("first half\r\n")
	for _, c := range []*client{speaking, silent} {
		c.expect("220")
		c.send("EHLO client.example\r\n")
		c.expect("250")
	}
	server.stop()
	eventually(t, "drain begins", func() bool {
		server.mu.Lock()
		defer server.mu.Unlock()
		return !server.drainAt.IsZero()
	})
	speaking.send("MAIL FROM:<a@example.com>\r\n")
	speaking.expect("421 4.3.2")
	speaking.closed()
	silent.expect("421 4.3.2") // without a command, after the grace
	silent.closed()
	busy.send("second half\r\n.\r\n")
	busy.expect("250 2.0.0 queued as")
	busy.expect("421 4.3.2")
	busy.closed()
	if err := <-server.ended; err != nil {
		t.Errorf("Serve = %v", err)
	}
	if n := len(store.submissions()); n != 1 {
		t.Errorf("%d messages, want 1", n)
	}
	if conn, err := net.Dial("tcp", server.address); err == nil {
		conn.Close()
		t.Error("still listening")
	}
}

// Content that never ends does not hold the process.
func TestDrainIsBounded(t *testing.T) {
	cfg := testConfig()
	cfg.DrainTimeout = 100 * time.Millisecond
	store := &fakeStore{}
	server := startServer(t, cfg, store)
	c := server.client(t)
	c.envelope()
	c.send("first half\r\n")
	server.stop()
	if err := <-server.ended; err != nil {
		t.Errorf("Serve = %v", err)
	}
	if _, err := c.in.ReadByte(); err == nil {
		t.Error("a reply to half a message")
	}
	if n := len(store.submissions()); n != 0 {
		t.Errorf("%d messages, want none", n)
	}
}

// RFC 5321 §4.5.3.2.7.
func TestIdleTimeout(t *testing.T) {
	cfg := testConfig()
	cfg.IdleTimeout = 50 * time.Millisecond
	store := &fakeStore{}
	server := startServer(t, cfg, store)
	c := server.client(t)
	c.expect("220")
	c.expect("421 4.4.2")
	c.closed()

	c = server.client(t)
	c.envelope()
	c.send("half a message\r\n")
	c.expect("421 4.4.2")
	c.closed()
	if n := len(store.submissions()); n != 0 {
		t.Errorf("%d messages, want none", n)
	}
}

// A client that drips is cut off although it is never silent.
func TestMinDataRate(t *testing.T) {
	cfg := testConfig()
	cfg.IdleTimeout = 300 * time.Millisecond
	cfg.MinDataRate = 1 << 30
	server := startServer(t, cfg, &fakeStore{})
	c := server.client(t)
	c.envelope()
	stop := make(chan struct{})
	dripped := make(chan struct{})
	go func() {
		defer close(dripped)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if _, err := io.WriteString(c.conn, "x"); err != nil {
					return
				}
			}
		}
	}()
	c.expect("421 4.4.2")
	close(stop)
	<-dripped
}

func TestConnectionLimits(t *testing.T) {
	cfg := testConfig()
	cfg.MaxConnections, cfg.MaxConnectionsPerIP = 3, 2
	server := startServer(t, cfg, &fakeStore{})
	first, second := server.client(t), server.client(t)
	first.expect("220")
	second.expect("220")
	third := server.client(t)
	third.expect("421 4.7.0")
	third.closed()

	from := func(ip string) *client {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		conn, err := d.DialContext(t.Context(), "tcp", server.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return &client{t: t, conn: conn, in: bufio.NewReader(conn)}
	}
	from("127.0.0.2").expect("220")
	fifth := from("127.0.0.3")
	fifth.expect("421 4.3.2")
	fifth.closed()

	first.send("QUIT\r\n")
	first.expect("221")
	first.closed()
	eventually(t, "the place is free again", func() bool { return server.count() == 2 })
	server.client(t).expect("220")
}

// Promise: nobody outside the networks names a recipient, by whatever path.
func TestNeverAnOpenRelay(t *testing.T) {
	cfg := testConfig()
	cfg.RelayNetworks = prefixes("127.0.0.9/32", "::1/128")
	cfg.MaxErrors = 1000
	store := &fakeStore{}
	server := startServer(t, cfg, store)
	c := server.client(t)
	c.expect("220")
	c.send("EHLO client.example\r\nMAIL FROM:<postmaster@mx.example>\r\n")
	c.expect("250")
	c.expect("250")
	for _, path := range []string{
		"<a@example.com>", "<a@mx.example>", "<postmaster>", "<postmaster@mx.example>", "<a@[127.0.0.1]>", "<a@localhost>",
		"<@mx.example:a@example.com>", `<"a@example.com"@mx.example>`, "<a%example.com@mx.example>", "<a@[IPv6:::1]>",
	} {
		c.send("RCPT TO:" + path + "\r\n")
		c.expect("550 5.7.1")
	}
	c.send("DATA\r\n")
	c.expect("554 5.5.1")
	if n := len(store.submissions()); n != 0 {
		t.Errorf("%d messages, want none", n)
	}
}
