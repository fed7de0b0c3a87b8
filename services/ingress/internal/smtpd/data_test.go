package smtpd

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
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
		0, 100, smallBuffer - headroom, smallBuffer, smallBuffer*growth - headroom, largeBuffer - headroom - 200, largeBuffer - headroom,
		largeBuffer, 3 << 20,
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
			eventually(t, "memory is given back", func() bool { return server.memory.used.Load() == 0 })
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
			eventually(t, "memory is given back", func() bool { return server.memory.used.Load() == 0 })
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
	for _, size := range []int{100, smallBuffer, 3 << 20} {
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
			eventually(t, "memory is given back", func() bool { return server.memory.used.Load() == 0 })
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
	eventually(t, "memory is given back", func() bool { return server.memory.used.Load() == 0 })
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
			return strings.Repeat("Received: x\r\n", maxHops) + stuffed(t, big)
		}},
		{name: "no memory", reply: "452 4.3.1", set: func(c *Config, _ *fakeStore) { c.MemoryBytes = largeBuffer + 10 }},
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
			eventually(t, "memory is given back", func() bool { return server.memory.used.Load() == 0 })
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
		eventually(t, "the session ends", func() bool { return server.count() == 0 && server.memory.used.Load() == 0 })
		if n := len(store.submissions()); n != 0 {
			t.Errorf("%d messages, want none", n)
		}
	}
}

// The budget holds over all sessions; it is no promise to one of them.
func TestMemoryBudget(t *testing.T) {
	cfg := testConfig()
	cfg.MemoryBytes = 2*smallBuffer + 100
	server := startServer(t, cfg, &fakeStore{})
	first, second, third := server.client(t), server.client(t), server.client(t)
	first.envelope()
	second.envelope()
	third.expect("220")
	third.send("EHLO client.example\r\nMAIL FROM:<>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n")
	for range 3 {
		third.expect("250")
	}
	third.expect("452 4.3.1")
	second.send(strings.Repeat("a line of text\r\n", 2000) + ".\r\n") // needs a larger buffer
	second.expect("452 4.3.1")
	third.send("DATA\r\n") // there is room again
	third.expect("354")
	third.send(".\r\n")
	third.expect("250 2.0.0 queued")
	first.send(".\r\n")
	first.expect("250 2.0.0 queued")
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

func TestReadHeader(t *testing.T) {
	tests := []struct {
		content    string
		submission bool
		want       header
	}{
		{"", false, header{ascii: true}},
		{"\r\nReceived: body\r\n", false, header{ascii: true}},
		{"no field\r\nReceived: x\r\n", false, header{ascii: true, broken: true}},
		{"no field\r\n Received: x\r\n", false, header{ascii: true, broken: true}},
		{"Received: a\r\nreceived:b\r\nX: \r\n Received: folded\r\n\r\nReceived: body\r\n", false, header{hops: 2, ascii: true}},
		{"Message-ID: <a@b>\r\nMESSAGE-ID: <c@d>\r\n\r\n", false, header{messageID: "<a@b>", ascii: true}},
		{"Message-ID:\r\n\t<a@b> (comment)\r\n\r\n", false, header{messageID: "<a@b>", ascii: true}},
		{"Message-Id: odd id \r\n\r\n", false, header{messageID: "odd id", ascii: true}},
		{"Message-Id: <a\x00\xff@b>\r\n\r\n", false, header{messageID: "<a?@b>"}},
		{"Subject: ü\r\n\r\n", false, header{}},
		{"Subject: u\r\n\r\nü", false, header{ascii: true}},
		{"A: 1\r\nX-Traceparent: x\r\nB: 2\r\n\r\n", false, header{traceparent: "x", cuts: []span{{6, 24}}, ascii: true}},
		{"X-Idempotency-Key: k 1\r\nBcc: a@b\r\nFrom: c\r\nDate: d\r\n\r\n", false, header{idempotencyKey: "k 1", cuts: []span{{0, 24}}, ascii: true}},
		{"X-Idempotency-Key: \x01\r\n\r\n", false, header{cuts: []span{{0, 22}}, ascii: true}},
		{"X-Idempotency-Key: " + strings.Repeat("k", 256) + "\r\n\r\n", false, header{cuts: []span{{0, 277}}, ascii: true}},
		{"Bcc: a@b\r\nFrom:\r\n c@d\r\nDate: d\r\nFrom: e\r\nresent-bcc:\r\n a\r\n\r\nBcc: body", true,
			header{date: true, from: []string{" c@d", " e"}, cuts: []span{{0, 10}, {41, 58}}, ascii: true}},
		{strings.Repeat("A: 1\r\n", maxHeaderFields) + "\r\n", false, header{ascii: true}},
		{strings.Repeat("A: 1\r\n", maxHeaderFields+1) + "\r\n", false, header{ascii: true, tooLarge: true}},
		{"A: " + strings.Repeat("x", maxHeaderBytes-5) + "\r\n\r\n", false, header{ascii: true}},
		{"A: " + strings.Repeat("x", maxHeaderBytes-4) + "\r\n\r\n", false, header{ascii: true, tooLarge: true}},
	}
	for _, tt := range tests {
		if got := readHeader([]byte(tt.content), tt.submission); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("readHeader(%.80q) = %+v, want %+v", tt.content, got, tt.want)
		}
	}
}

// Whatever the content, looking at it neither fails nor finds what is not
// there, what is kept can be stored as text, and cutting leaves the rest.
func FuzzReadHeader(f *testing.F) {
	f.Add([]byte("Received: a\r\n b\r\nMessage-ID: <x\xff>\r\nX-Traceparent: 1\r\nBcc: x\r\n\r\nbody"))
	f.Add([]byte(":\r\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		h := readHeader(content, true)
		var kept []byte
		at := 0
		for _, cut := range h.cuts {
			if cut.from < at || cut.to <= cut.from || cut.to > len(content) {
				t.Fatalf("%+v of %q", h, content)
			}
			kept = append(kept, content[at:cut.from]...)
			at = cut.to
		}
		kept = append(kept, content[at:]...)
		b := buffer{bytes: append([]byte("room"), content...), start: len("room")}
		if b.cut(h.cuts); !bytes.Equal(b.content(), kept) {
			t.Fatalf("%q without %v is %q", content, h.cuts, b.content())
		}
		if h.hops > bytes.Count(content, []byte("\n"))+1 || strings.ContainsAny(h.messageID, "\x00\r\n") || len(h.messageID) > maxHeaderID {
			t.Fatalf("%+v of %q", h, content)
		}
	})
}
