package smtpd

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/ingress/internal/access"
	"github.com/postrider/postrider/services/ingress/internal/commit"
	"github.com/postrider/postrider/services/ingress/internal/spool"
	"github.com/postrider/postrider/services/ingress/internal/submission"
)

// text returns about size octets of lines with leading dots, 8-bit octets and
// empty lines.
func text(size int) []byte {
	random := rand.New(rand.NewPCG(7, uint64(size)))
	b := []byte("Subject: test\r\nMessage-ID: <1@example.com>\r\n\r\n")
	for len(b) < size {
		if random.IntN(4) == 0 {
			b = append(b, '.')
		}
		for range random.IntN(90) {
			c := byte(random.Uint32())
			if c == '\r' || c == '\n' {
				c = '.'
			}
			b = append(b, c)
		}
		b = append(b, '\r', '\n')
	}
	return b
}

func stuffed(t *testing.T, content []byte) string {
	t.Helper()
	var b bytes.Buffer
	w := smtp.NewDotWriter(&b)
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Content passes byte for byte, with our trace field before it, through
// every size of buffer and as a stream.
func TestContentByteForByte(t *testing.T) {
	for _, size := range []int{
		0, 100, spool.Small - spool.Headroom, spool.Small, spool.Small*spool.Growth - spool.Headroom, spool.Large - spool.Headroom - 200, spool.Large - spool.Headroom,
		spool.Large, 3 << 20,
	} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			store := &fakeStore{}
			server := startServer(t, testConfig(), store)
			c := server.client(t)
			c.envelope()
			content := text(size)
			c.send(stuffed(t, content))
			c.expect("250 2.0.0 queued as")
			c.send("QUIT\r\n")
			c.expect("221")
			sub := store.submissions()[0]
			field, got, ok := cutReceived(sub.Content)
			if !ok || !bytes.Equal(got, content) {
				t.Errorf("%d octets came as %d", len(content), len(got))
			}
			if sub.SizeBytes != int64(len(sub.Content)) || sub.HeaderID != "<1@example.com>" {
				t.Errorf("size %d of %d, id %q", sub.SizeBytes, len(sub.Content), sub.HeaderID)
			}
			checkReceived(t, field, sub)
			eventually(t, "memory is given back", server.empty)
		})
	}
}

// A large message with long lines is not streamed as it is: who decodes it
// finds what was there.
func TestLargeContentIsMended(t *testing.T) {
	attachment := bytes.Repeat([]byte("attached"), 400_000)
	header := "From: <a@example.com>\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: base64\r\n\r\n"
	line := base64.StdEncoding.EncodeToString(attachment) + "\r\n"
	for _, c := range []struct{ name, content, reply string }{
		{"one line", header + line, "250 2.0.0 queued as"},
		{"too large", header + line + line, "550 5.6.0"},
		{"the long line comes late", header + string(text(2<<20)) + line, "550 5.6.0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			store, cfg := &fakeStore{}, testConfig()
			cfg.MendLines = true
			server := startServer(t, cfg, store)
			client := server.client(t)
			client.envelope()
			client.send(stuffed(t, []byte(c.content)))
			client.expect(c.reply)
			client.send("QUIT\r\n")
			client.expect("221")
			if subs := store.submissions(); c.reply[0] != '2' {
				if len(subs) > 0 {
					t.Error("stored, although it was refused")
				}
			} else if _, got, _ := cutReceived(subs[0].Content); !bytes.HasPrefix(got, []byte(header)) {
				t.Errorf("the header section came as %.200q", got)
			} else if decoded, err := base64.StdEncoding.DecodeString(string(got[len(header):])); err != nil || !bytes.Equal(decoded, attachment) {
				t.Errorf("the attachment came as %d octets, %v", len(decoded), err)
			}
			eventually(t, "memory is given back", server.empty)
		})
	}
}

// RFC 5321 §4.4.
func checkReceived(t *testing.T, field string, sub *mail.Submission) {
	t.Helper()
	want := fmt.Sprintf("Received: from client.example ([127.0.0.1])\r\n\tby mx.example with ESMTP id %s\r\n\tfor <b@example.net>;\r\n\t%s\r\n",
		sub.ID, sub.AcceptedAt.Format(time.RFC1123Z))
	if field != want {
		t.Errorf("trace field %q, want %q", field, want)
	}
}

// RFC 3030: the same content in chunks of any size, through every buffer.
func TestChunksByteForByte(t *testing.T) {
	for _, size := range []int{100, spool.Small, 3 << 20} {
		for _, chunk := range []int{77, 100_000, 4 << 20} {
			if size/chunk > 1000 {
				continue
			}
			store := &fakeStore{}
			server := startServer(t, testConfig(), store)
			c := server.client(t)
			c.expect("220")
			c.send("EHLO client.example\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\n")
			for range 3 {
				c.expect("250")
			}
			content := text(size)
			for rest := content; len(rest) > 0; {
				n, last := min(chunk, len(rest)), ""
				if n == len(rest) {
					last = " LAST"
				}
				c.send(fmt.Sprintf("BDAT %d%s\r\n%s", n, last, rest[:n]))
				rest = rest[n:]
				c.expect("250 2.0.0")
			}
			sub := store.submissions()[0]
			if _, got, ok := cutReceived(sub.Content); !ok || !bytes.Equal(got, content) {
				t.Errorf("%d octets in chunks of %d came as %d", len(content), chunk, len(got))
			}
			eventually(t, "memory is given back", server.empty)
		}
	}
}

// A large message in chunks that is given up half-way leaves nothing.
func TestLargeChunksGivenUp(t *testing.T) {
	store := &fakeStore{}
	server := startServer(t, testConfig(), store)
	c := server.client(t)
	c.expect("220")
	c.send("EHLO client.example\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\n")
	for range 3 {
		c.expect("250")
	}
	content := text(2 << 20)
	c.send(fmt.Sprintf("BDAT %d\r\n%sRSET\r\nNOOP\r\n", len(content), content))
	c.expect("250 2.0.0 ")
	c.expect("250 2.0.0 OK")
	c.expect("250 2.0.0 OK")
	if n := len(store.submissions()); n != 0 {
		t.Errorf("%d messages, want none", n)
	}
	eventually(t, "memory is given back", server.empty)
}

// A stream that is refused is read to its end: nothing in it is a command.
func TestLargeMessageRefused(t *testing.T) {
	big := text(2 << 20)
	tests := []struct {
		name  string
		wire  func(*testing.T) string
		set   func(*Config, *fakeStore)
		reply string
	}{
		{name: "bare LF at the end", reply: "550 5.6.0", wire: func(t *testing.T) string {
			return strings.TrimSuffix(stuffed(t, big), ".\r\n") + "x\n.\r\nMAIL FROM:<evil@example.com>\r\n.\r\n"
		}},
		{name: "too large", reply: "552 5.3.4", set: func(c *Config, _ *fakeStore) { c.MaxMessageBytes = 3 << 19 }},
		{name: "store down", reply: "451 4.3.0", set: func(_ *Config, s *fakeStore) { s.fail(errDown) }},
		{name: "loop", reply: "554 5.4.6", wire: func(t *testing.T) string {
			return strings.Repeat("Received: x\r\n", submission.MaxHops) + stuffed(t, big)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, store := testConfig(), &fakeStore{}
			if tt.set != nil {
				tt.set(&cfg, store)
			}
			server := startServer(t, cfg, store)
			c := server.client(t)
			c.envelope()
			if tt.wire == nil {
				tt.wire = func(t *testing.T) string { return stuffed(t, big) }
			}
			c.send(tt.wire(t) + "NOOP\r\nQUIT\r\n")
			c.expect(tt.reply)
			c.expect("250 2.0.0 OK")
			c.expect("221")
			c.closed()
			if n := len(store.submissions()); n != 0 {
				t.Errorf("%d messages, want none", n)
			}
			eventually(t, "memory is given back", server.empty)
		})
	}
}

// Content without an end does not hold a session for ever.
func TestEndlessContent(t *testing.T) {
	cfg := testConfig()
	cfg.MaxMessageBytes = 64 << 10
	c := startServer(t, cfg, &fakeStore{}).client(t)
	c.envelope()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		line := strings.Repeat(strings.Repeat("x", 78)+"\r\n", 100)
		for {
			if _, err := io.WriteString(c.conn, line); err != nil {
				return
			}
		}
	}()
	c.expect("552 5.3.4")
	c.conn.Close()
	<-sent
}

// A client that leaves in the middle of its message leaves nothing behind.
func TestDisconnectInData(t *testing.T) {
	for _, size := range []int{10, 3 << 19} {
		store := &fakeStore{}
		server := startServer(t, testConfig(), store)
		c := server.client(t)
		c.envelope()
		c.send(strings.TrimSuffix(stuffed(t, text(size)), ".\r\n"))
		c.conn.Close()
		eventually(t, "the session ends", func() bool { return server.count() == 0 && server.empty() })
		if n := len(store.submissions()); n != 0 {
			t.Errorf("%d messages, want none", n)
		}
	}
}

// The budget holds over all sessions, and one client never has all of it.
func TestMemoryBudget(t *testing.T) {
	cfg := testConfig()
	cfg.MemoryBytes = 4*(spool.Small+memoryStep) + 100
	cfg.XClientNetworks, cfg.RelayNetworks = prefixes("127.0.0.0/8"), prefixes("127.0.0.0/8", "192.0.2.0/24")
	server := startServer(t, cfg, &fakeStore{})
	greedy := []*client{server.client(t), server.client(t), server.client(t)}
	for _, c := range greedy[:2] {
		c.envelope()
	}
	greedy[2].expect("220")
	greedy[2].send("EHLO client.example\r\nMAIL FROM:<>\r\nRCPT TO:<b@example.net>\r\n")
	greedy[2].expect("250")
	greedy[2].expect("250")
	greedy[2].expect("452 4.3.1")
	other := server.client(t)
	other.expect("220")
	other.send("XCLIENT ADDR=192.0.2.1\r\n")
	other.envelope()
	other.send(strings.Repeat("a line of text\r\n", 200_000) + ".\r\n") // goes to disk
	other.expect("250 2.0.0 queued")
	greedy[0].send(".\r\n")
	greedy[0].expect("250 2.0.0 queued")
	greedy[2].send("RCPT TO:<b@example.net>\r\nDATA\r\n") // there is room again
	greedy[2].expect("250")
	greedy[2].expect("354")
	greedy[2].send(".\r\n")
	greedy[2].expect("250 2.0.0 queued")
	greedy[1].send(".\r\n")
	greedy[1].expect("250 2.0.0 queued")
	eventually(t, "memory is given back", server.empty)
}

// Content that has no room on disk either is refused at its end, and so is
// what cannot be written.
func TestNoRoomForContent(t *testing.T) {
	full, err := spool.Open(spool.Config{Directory: t.TempDir(), Bytes: 3 << 20})
	if err != nil {
		t.Fatal(err)
	}
	gone := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(gone, 0o700); err != nil {
		t.Fatal(err)
	}
	lost, err := spool.Open(spool.Config{Directory: gone, Bytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	for name, room := range map[string]*spool.Spool{"full": full, "lost": lost} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			store := &fakeStore{}
			server := startDoor(t, testConfig(), store, Door{Listener: listener}, Deps{Spool: room})
			c := server.client(t)
			c.envelope()
			c.send(stuffed(t, text(3<<20)) + "NOOP\r\n")
			c.expect("452 4.3.1")
			c.expect("250")
			c.transaction()
			c.send("small\r\n.\r\n")
			c.expect("250 2.0.0 queued")
			if n := len(store.submissions()); n != 1 {
				t.Errorf("%d messages, want one", n)
			}
			eventually(t, "memory is given back", server.empty)
		})
	}
}

// However many clients send large messages slowly, others do not wait for
// them, in memory or for a turn.
func TestSlowLargeMessages(t *testing.T) {
	cfg := testConfig()
	cfg.MemoryBytes = 4 << 20
	store := &fakeStore{}
	server := startServer(t, cfg, store)
	content := stuffed(t, text(2<<20))
	slow := make([]*client, 20)
	for i := range slow {
		slow[i] = server.client(t)
		slow[i].envelope()
		slow[i].send(content[:len(content)-5000])
	}
	fast := server.client(t)
	fast.envelope()
	fast.send(content)
	fast.expect("250 2.0.0 queued")
	if used := server.memory.Used(); used > 20*(spool.Small+memoryStep) {
		t.Errorf("%d bytes of memory are held for 20 slow clients", used)
	}
	for _, c := range slow {
		c.send(content[len(content)-5000:])
	}
	for _, c := range slow {
		c.expect("250 2.0.0 queued")
	}
	if n := len(store.submissions()); n != 21 {
		t.Errorf("%d messages, want 21", n)
	}
	eventually(t, "all is given back", server.empty)
}

// RFC 5321 §4.5.3.2.5 lets a client pause for three minutes. One that keeps a
// session by an octet now and then is cut off, whatever it sent before.
func TestLeastRate(t *testing.T) {
	const rate = 1 << 10
	for _, tt := range []struct {
		name  string
		first int // octets at once
		block int // octets then, again and again
		pause time.Duration
		lasts time.Duration
		ends  bool
	}{
		{"a dripping tap", 0, 1, 30 * time.Second, 6 * time.Minute, true},
		{"after a fast beginning", 1 << 20, 1, 4 * time.Minute, 11 * time.Minute, true},
		{"with long pauses", 0, 4 * 60 * rate, 4 * time.Minute, time.Hour, false},
		{"slow and steady", 0, rate + 20, time.Second, time.Hour, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			room := openSpool(t)
			synctest.Test(t, func(t *testing.T) {
				cfg := testConfig()
				cfg.IdleTimeout, cfg.MinDataRate, cfg.MaxMessageBytes = 5*time.Minute, rate, 1<<30
				committer := commit.New(&fakeStore{}, silentBus{}, time.Minute, 1)
				server := New(cfg, Deps{Committer: committer, Spool: room})
				defer server.metrics.unregister()
				ours, theirs := net.Pipe()
				over := make(chan struct{})
				go func() {
					defer close(over)
					session := newSession(server, theirs, &Door{})
					session.id = access.Network()
					session.client.Hello = "client.example"
					session.mail.open = true
					session.mail.recipients = make([]mail.Recipient, 1)
					session.doData("")
					session.wire.hangUp()
				}()
				go func() { _, _ = io.Copy(io.Discard, ours) }()
				send := func(n int) bool {
					_, err := ours.Write(bytes.Repeat([]byte("x"), n))
					return err == nil
				}
				ended := !send(tt.first)
				for began := time.Now(); !ended && time.Since(began) < tt.lasts; {
					<-time.After(tt.pause) // on the clock of synctest
					ended = !send(tt.block)
				}
				if ended != tt.ends {
					t.Errorf("cut off: %v, want %v", ended, tt.ends)
				}
				ours.Close()
				<-over
			})
		})
	}
}

// The replies to a commit that hangs come within the commit timeout.
func TestCommitTimeout(t *testing.T) {
	for _, size := range []int{10, 3 << 19} {
		cfg := testConfig()
		cfg.CommitTimeout = 50 * time.Millisecond
		store := &fakeStore{}
		release := store.hold()
		c := startServer(t, cfg, store).client(t)
		c.envelope()
		c.send(stuffed(t, text(size)))
		c.expect("451 4.3.0")
		release()
		c.transaction()
		c.send("next\r\n.\r\n")
		c.expect("250 2.0.0 queued")
	}
}

// X-Traceparent makes the submitter's span the parent, and is taken out.
func TestTraceparent(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, size := range []int{100, 3 << 19} {
		store := &fakeStore{}
		c := startServer(t, testConfig(), store).client(t)
		c.envelope()
		content := text(size)
		c.send("X-Other: 1\r\nX-Traceparent:\r\n " + parent + "\r\n" + stuffed(t, content))
		c.expect("250 2.0.0")
		sub := store.submissions()[0]
		if sub.Traceparent[:35] != parent[:35] {
			t.Errorf("traceparent %q, want the trace of %q", sub.Traceparent, parent)
		}
		_, got, _ := cutReceived(sub.Content)
		if !bytes.Equal(got, append([]byte("X-Other: 1\r\n"), content...)) {
			t.Errorf("content is %.200q", got)
		}
	}
}

// RFC 5321 §4.5.4.1: days for mail, and a day for reports.
func TestLifetime(t *testing.T) {
	cfg, store := testConfig(), &fakeStore{}
	cfg.Lifetime = func(d mail.Domain) time.Duration {
		if d == "short.example" {
			return time.Hour
		}
		return 120 * time.Hour
	}
	c := startServer(t, cfg, store).client(t)
	c.expect("220")
	c.send("EHLO client.example\r\n" +
		"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nRCPT TO:<b@SHORT.example>\r\nDATA\r\n.\r\n" +
		"MAIL FROM:<>\r\nRCPT TO:<b@example.net>\r\nRCPT TO:<b@short.example>\r\nDATA\r\n.\r\nQUIT\r\n")
	for {
		reply, err := smtp.ReadReply(c.in)
		if err != nil {
			t.Fatal(err)
		}
		if reply.Code == 221 {
			break
		}
	}
	subs := store.submissions()
	for i, want := range [][]time.Duration{{120 * time.Hour, time.Hour}, {24 * time.Hour, time.Hour}} {
		for j, r := range subs[i].Recipients {
			if got := r.ExpiresAt.Sub(subs[i].AcceptedAt); got != want[j] {
				t.Errorf("message %d, recipient %s: %s, want %s", i, r.ForwardPath, got, want[j])
			}
		}
	}
}

// Cutting and inserting leaves the rest as it was.
func FuzzEdit(f *testing.F) {
	f.Add([]byte("Received: a\r\n b\r\nMessage-ID: <x\xff>\r\nX-Traceparent: 1\r\nBcc: x\r\n\r\nbody"))
	f.Add([]byte("From a Mon\r\nBcc: x\r\nbody"))
	room := openSpool(f)
	f.Fuzz(func(t *testing.T, content []byte) {
		h, err := submission.Read(content, submission.Rules{Complete: true})
		if err != nil {
			return
		}
		b, ok := room.Buffer(spool.NewBudget(1<<30), netip.Addr{}, 0)
		if !ok || !b.Replace(content) {
			return
		}
		defer b.Close()
		b.Insert(h.Gap, h.End)
		b.Cut(spans(h.Cuts))
		if want := append(h.AppendKept(nil, content), content[h.End:]...); !bytes.Equal(b.Content(), want) {
			t.Fatalf("%q is %q, want %q", content, b.Content(), want)
		}
	})
}
