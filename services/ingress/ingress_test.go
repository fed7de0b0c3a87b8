package ingress_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/boot"
	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/bustest"
	"github.com/postrider/postrider/pkg/devpg"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
	"github.com/postrider/postrider/services/ingress"
	"github.com/postrider/postrider/services/ingress/internal/access"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	m.Run()
}

func testConfig() ingress.Config {
	cfg := ingress.Config{
		Listen:   []string{"127.0.0.1:0"},
		Hostname: "mx.example",
		Shaping:  shaping.Config{MessageLifetime: retry.Duration(120 * time.Hour)},
	}
	cfg.SMTP.RelayNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	cfg.SMTP.MaxMessageBytes = 25 << 20
	cfg.SMTP.MaxRecipients = 1000
	cfg.SMTP.MaxMessages = 10000
	cfg.SMTP.MaxErrors = 20
	cfg.SMTP.MaxSessionRcpts = 1 << 30
	cfg.Access = access.Config{MaxFailures: 10, Parallel: 2}
	cfg.SMTP.MaxConnections = 100
	cfg.SMTP.MaxConnectionsPerIP = 100
	cfg.SMTP.IdleTimeout = time.Minute
	cfg.SMTP.MinDataRate = 1024
	cfg.SMTP.MemoryBytes = 64 << 20
	cfg.SMTP.Streams = 2
	cfg.Spool.Bytes = 256 << 20
	cfg.SMTP.CommitTimeout = 3 * time.Second
	cfg.SMTP.DrainTimeout = 5 * time.Second
	cfg.SMTP.ReportLifetime = retry.Duration(24 * time.Hour)
	return cfg
}

// world is an ingress with a real Postgres and a real NATS.
type world struct {
	address string
	store   *store.Store
	bus     *bus.Bus
	nats    *bustest.Server
}

func start(t *testing.T, url string) *world {
	t.Helper()
	cfg := testConfig()
	listener, err := ingress.Listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := serve(t, url, cfg, listener)
	w.address = listener.Addr().String()
	return w
}

// serve runs an ingress until the test ends.
func serve(t *testing.T, url string, cfg ingress.Config, listener *ingress.Listeners) *world {
	t.Helper()
	w := &world{nats: bustest.Start(t)}
	var err error
	if w.store, err = store.Open(t.Context(), store.Config{URL: url, MaxConns: 4}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.store.Close)
	if w.bus, err = bus.Connect(t.Context(), bus.Config{URL: w.nats.URL()}, w.store); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.bus.Close)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- ingress.Run(ctx, cfg, ingress.Deps{Listener: listener, Store: w.store, Bus: w.bus}) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	return w
}

// session is a client of its own: transcripts are tested elsewhere.
type session struct {
	conn net.Conn
	in   *bufio.Reader
}

func (w *world) session(ctx context.Context) (*session, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", w.address)
	if err != nil {
		return nil, err
	}
	s := &session{conn: conn, in: bufio.NewReader(conn)}
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	if _, err := smtp.ReadReply(s.in); err != nil {
		return nil, err
	}
	_, err = s.say("EHLO client.example\r\n", 1)
	return s, err
}

// say sends text and returns the last of n replies.
func (s *session) say(text string, n int) (reply mail.Reply, err error) {
	if _, err := io.WriteString(s.conn, text); err != nil {
		return reply, err
	}
	for range n {
		if reply, err = smtp.ReadReply(s.in); err != nil {
			return reply, err
		}
	}
	return reply, nil
}

// submit sends one message and returns the reply to its content.
func (s *session) submit(content []byte) (mail.Reply, error) {
	const envelope = "MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nRCPT TO:<c@example.org>\r\nDATA\r\n"
	reply, err := s.say(envelope, 4)
	if err != nil || reply.Code != 354 {
		return reply, fmt.Errorf("DATA: %s, %w", reply, err)
	}
	var wire bytes.Buffer
	w := smtp.NewDotWriter(&wire)
	if _, err := w.Write(content); err != nil {
		return reply, err
	}
	if err := w.Close(); err != nil {
		return reply, err
	}
	return s.say(wire.String(), 1)
}

// queued returns the queue id of a 250 reply.
func queued(reply mail.Reply) (mail.QueueID, bool) {
	text, ok := strings.CutPrefix(reply.String(), "250 2.0.0 queued as ")
	if !ok {
		return mail.QueueID{}, false
	}
	id, err := mail.ParseQueueID(text)
	return id, err == nil
}

func body(client, n, size int) []byte {
	b := fmt.Appendf(nil, "Subject: message %d of client %d\r\nMessage-ID: <%d.%d@example.com>\r\n\r\n", n, client, client, n)
	for len(b) < size {
		b = fmt.Appendf(b, ".line \xff at %d of message %d\r\n", len(b), n)
	}
	return b
}

// stored returns the content that the store keeps, without our trace field.
func (w *world) stored(t *testing.T, id mail.QueueID) []byte {
	t.Helper()
	r, err := w.store.OpenContent(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	all, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := bytes.Cut(all, []byte("+0000\r\n"))
	if !ok || !bytes.HasPrefix(all, []byte("Received: from client.example ([127.0.0.1])\r\n\tby mx.example with ESMTP id "+id.String()+";\r\n")) {
		t.Fatalf("no trace field: %.300q", all)
	}
	return rest
}

// Whether anybody stands for the sender is kept with the message: reports go
// to nobody else.
func TestTrustIsStored(t *testing.T) {
	for _, c := range []struct {
		networks []netip.Prefix
		want     string
	}{
		{[]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, "network"},
		{nil, mail.Stranger},
	} {
		cfg := testConfig()
		cfg.SMTP.RelayNetworks, cfg.SMTP.RelayDomains = c.networks, []string{"example.net", "example.org"}
		listener, err := ingress.Listen(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		w := serve(t, storetest.New(t), cfg, listener)
		w.address = listener.Addr().String()
		s, err := w.session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		reply, err := s.submit(body(1, 1, 100))
		id, ok := queued(reply)
		if err != nil || !ok {
			t.Fatalf("%s, %v", reply, err)
		}
		if story, err := w.store.Show(t.Context(), id); err != nil || story.Client.Trust != c.want {
			t.Errorf("trust %q, %v, want %q", story.Client.Trust, err, c.want)
		}
	}
}

// Every 250 is a message in Postgres, byte for byte, and a hint on the bus.
func TestAcceptedIsStoredAndRungFor(t *testing.T) {
	w := start(t, storetest.New(t))
	deadline := time.After(20 * time.Second)
	for !w.bus.Up() {
		select {
		case <-deadline:
			t.Fatal("the bus is not up")
		case <-time.After(5 * time.Millisecond):
		}
	}
	const clients, each = 10, 10
	var mu sync.Mutex
	sent := map[mail.QueueID][]byte{}
	var wg sync.WaitGroup
	for client := range clients {
		wg.Go(func() {
			s, err := w.session(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			defer s.conn.Close()
			for n := range each {
				size := 1000
				if n == each-1 {
					size = 3 << 19 // streamed
				}
				content := body(client, n, size)
				reply, err := s.submit(content)
				id, ok := queued(reply)
				if err != nil || !ok {
					t.Errorf("%s, %v", reply, err)
					return
				}
				mu.Lock()
				sent[id] = content
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(sent) != clients*each {
		t.Fatalf("%d ids of %d messages", len(sent), clients*each)
	}
	for id, content := range sent {
		if got := w.stored(t, id); !bytes.Equal(got, content) {
			t.Errorf("%s: %d octets stored of %d", id, len(got), len(content))
		}
	}
	accounts, err := w.store.Accounting(t.Context())
	if err != nil || accounts.Accepted != 2*clients*each || accounts.Unaccounted != 0 {
		t.Errorf("accounting %+v, %v", accounts, err)
	}

	rung := map[mail.QueueID]mail.QueuedMessage{}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err = w.bus.ConsumeQueued(ctx, func(_ context.Context, messages []mail.QueuedMessage) error {
		for _, m := range messages {
			rung[m.ID] = m
		}
		if len(rung) == len(sent) {
			cancel()
		}
		return nil
	})
	if len(rung) != len(sent) {
		t.Fatalf("%d of %d rung for: %v", len(rung), len(sent), err)
	}
	for id := range sent {
		m := rung[id]
		if len(m.Recipients) != 2 || m.Recipients[1].ForwardPath != "c@example.org" || m.Recipients[1].Domain != "example.org" ||
			m.Envelope.ReversePath != "a@example.com" || m.SizeBytes == 0 || m.Recipients[0].ExpiresAt.Sub(m.AcceptedAt) != 120*time.Hour {
			t.Errorf("hint %+v", m)
		}
	}
}

// Promise 3: with Postgres away clients hear 451 within the commit timeout,
// and nobody hears 250 for a message that is not there afterwards.
func TestPostgresAway(t *testing.T) {
	pg := storetest.NewServer(t, devpg.Options{})
	w := start(t, pg.URL())
	const clients = 8
	var mu sync.Mutex
	sent := map[mail.QueueID][]byte{}
	refused := 0
	var slowest time.Duration
	stop := make(chan struct{})
	progress := make(chan struct{}, 1000)
	var wg sync.WaitGroup
	for client := range clients {
		wg.Go(func() {
			s, err := w.session(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			defer s.conn.Close()
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				content := body(client, n, 2000)
				began := time.Now()
				reply, err := s.submit(content)
				if err != nil {
					t.Error(err)
					return
				}
				id, ok := queued(reply)
				mu.Lock()
				if ok {
					sent[id] = content
				} else {
					refused++
					if reply.Code != 451 || reply.Enhanced.String() != "4.3.0" {
						t.Errorf("with Postgres away: %s", reply)
					}
				}
				slowest = max(slowest, time.Since(began))
				mu.Unlock()
				select {
				case progress <- struct{}{}:
				default:
				}
			}
		})
	}
	wait := func(holds func() bool) {
		t.Helper()
		deadline := time.After(30 * time.Second)
		for {
			mu.Lock()
			done := holds()
			mu.Unlock()
			if done {
				return
			}
			select {
			case <-progress:
			case <-deadline:
				t.Fatal("no progress")
			}
		}
	}
	wait(func() bool { return len(sent) > 50 })
	if err := pg.Kill(); err != nil {
		t.Fatal(err)
	}
	wait(func() bool { return refused > 20 })
	if err := pg.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); w.store.Ping(t.Context()) != nil && time.Now().Before(deadline); { // the pool drops what broke
	}
	mu.Lock()
	before := len(sent)
	mu.Unlock()
	wait(func() bool { return len(sent) > before+50 })
	close(stop)
	wg.Wait()
	for id, content := range sent {
		if got := w.stored(t, id); !bytes.Equal(got, content) {
			t.Errorf("%s: %d octets stored of %d", id, len(got), len(content))
		}
	}
	if limit := testConfig().SMTP.CommitTimeout + 2*time.Second; slowest > limit {
		t.Errorf("a client waited %s", slowest)
	}
	t.Logf("%d accepted, %d refused, slowest %s", len(sent), refused, slowest)
}

// The bus being down changes nothing for a client.
func TestBusAway(t *testing.T) {
	w := start(t, storetest.New(t))
	w.nats.Stop()
	s, err := w.session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.conn.Close()
	for n := range 20 {
		began := time.Now()
		reply, err := s.submit(body(0, n, 1000))
		if _, ok := queued(reply); !ok || err != nil {
			t.Fatalf("%s, %v", reply, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("took %s", took)
		}
	}
}

// Any number of listeners, each with its own rules: docs/listeners.md.
func TestListenersOfTheirOwn(t *testing.T) {
	t.Setenv("POSTRIDER_HOSTNAME", "mx.example")
	t.Setenv("POSTRIDER_HTTP_LISTEN", "")
	t.Setenv("POSTRIDER_SMTP_LISTEN", "")
	t.Setenv("POSTRIDER_RELAY_NETWORKS", "127.0.0.0/8")
	t.Setenv("POSTRIDER_SMTP_LISTENERS", "127.0.0.1:0 max-recipients=100 normalize-newlines=yes; 127.0.0.1:0 networks=none max-message-bytes=70000\n127.0.0.1:0 auth=required plaintext-auth=yes max-connections=1")
	var cfg ingress.Config
	if err := boot.Load(nil, &cfg); err != nil {
		t.Fatal(err)
	}
	listener, err := ingress.Listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := serve(t, storetest.New(t), cfg, listener)
	all := listener.Addrs()
	if len(all) != 3 {
		t.Fatalf("listening at %v", all)
	}
	for _, ask := range []struct {
		at            int
		command, want string
	}{
		{0, "MAIL FROM:<a@example.com>\n", "250 2.1.0"},
		{1, "MAIL FROM:<a@example.com> SIZE=70001\r\n", "552 5.3.4"},
		{1, "MAIL FROM:<a@example.com>\n", "550 5.5.2"},
		{2, "MAIL FROM:<a@example.com>\r\n", "530 5.7.0"},
	} {
		w.address = all[ask.at].String()
		s, err := w.session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if reply, err := s.say(ask.command, 1); err != nil || !strings.HasPrefix(reply.String(), ask.want) {
			t.Errorf("listener %d, %q: %s, %v, want %s", ask.at, ask.command, reply, err, ask.want)
		}
		defer s.conn.Close()
	}
	second, err := net.Dial("tcp", w.address) // of one that is allowed there
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if reply, err := smtp.ReadReply(bufio.NewReader(second)); err != nil || !strings.HasPrefix(reply.String(), "421 4.3.2") {
		t.Errorf("a client too many hears %s, %v", reply, err)
	}
}

// A relay for everybody is not made by a slip.
func TestOpenRelayIsRefused(t *testing.T) {
	for networks, refused := range map[string]bool{
		"0.0.0.0/0": true, "::/0": true, "0.0.0.0/1 128.0.0.0/1": true, "::ffff:0:0/96": true, "10.0.0.0/7": true, "2000::/3": true, "2001::/16": true,
		"10.0.0.0/8 172.16.0.0/12 fc00::/7 fe80::/10 ::1/128 127.0.0.0/8": false, "53.0.0.0/8": false, "2a00:1000::/19": false, "192.0.2.1/32": false,
	} {
		cfg := testConfig()
		cfg.SMTP.RelayNetworks = nil
		for network := range strings.FieldsSeq(networks) {
			cfg.SMTP.RelayNetworks = append(cfg.SMTP.RelayNetworks, netip.MustParsePrefix(network))
		}
		err := cfg.SMTP.Validate()
		if (err != nil) != refused || refused && !strings.Contains(err.Error(), "open relay") {
			t.Errorf("%s: %v", networks, err)
		}
		if cfg.SMTP.OpenRelay = true; cfg.SMTP.Validate() != nil {
			t.Errorf("%s is refused though it is confirmed", networks)
		}
	}
}

func TestValidate(t *testing.T) {
	good := testConfig()
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	if err := good.SMTP.Validate(); err != nil {
		t.Error(err)
	}
	bad := good
	bad.Listen, bad.Hostname = []string{"nowhere"}, "no name"
	if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), "SMTP_LISTEN") || !strings.Contains(err.Error(), "HOSTNAME") {
		t.Errorf("Validate = %v", err)
	}
	bad.SMTP.MaxMessageBytes, bad.SMTP.IdleTimeout = 1, 0
	if err := bad.SMTP.Validate(); err == nil || !strings.Contains(err.Error(), "MAX_MESSAGE_BYTES") || !strings.Contains(err.Error(), "IDLE_TIMEOUT") {
		t.Errorf("Validate = %v", err)
	}
}

func TestRunWithBadShapingFile(t *testing.T) {
	cfg := testConfig()
	cfg.Shaping.File = "/nowhere/shaping.toml"
	listener, err := ingress.Listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := ingress.Run(t.Context(), cfg, ingress.Deps{Listener: listener}); err == nil {
		t.Error("Run = nil")
	}
	if conn, err := net.Dial("tcp", listener.Addr().String()); err == nil {
		conn.Close()
		t.Error("still listening")
	}
}
