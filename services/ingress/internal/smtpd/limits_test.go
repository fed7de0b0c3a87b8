package smtpd

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/ingress/internal/commit"
)

// greeted is a client behind its EHLO.
func (r *running) greeted(t *testing.T) *client {
	t.Helper()
	c := r.client(t)
	c.expect("220")
	c.send("EHLO client.example\r\n")
	c.expect("250")
	return c
}

// until sends a command again and again, and returns how often that was
// answered before the session was ended by 421.
func (c *client) until(command string, most int) (times int) {
	c.t.Helper()
	for ; times < most; times++ {
		c.send(command)
		reply, err := smtp.ReadReply(c.in)
		if err != nil {
			c.t.Fatalf("%q, the %d. time: %v", command, times+1, err)
		}
		if reply.Code == 421 {
			return times
		}
	}
	return times
}

// A connection that brings messages lasts, whatever bad addresses are among
// them; one that brings none is ended.
func TestErrorsSinceTheLastMessage(t *testing.T) {
	server := startServer(t, testConfig(), &fakeStore{})
	c := server.greeted(t)
	for i := range 3 * testConfig().MaxErrors {
		c.send("MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nRCPT TO:<bad address@example.net>\r\nDATA\r\n")
		for _, want := range []string{"250 2.1.0", "250 2.1.5", "501 5.1.3", "354"} {
			c.expect(want)
		}
		c.send(fmt.Sprintf("message %d\r\n.\r\n", i))
		c.expect("250 2.0.0 queued")
	}
	if n := c.until("RCPT TO:<nobody\r\n", 100); n != testConfig().MaxErrors {
		t.Errorf("%d errors without a message, want the end after %d", n, testConfig().MaxErrors)
	}
}

// smtpd_junk_command_limit and smtpd_recipient_overshoot_limit of Postfix.
func TestCommandsWithoutUse(t *testing.T) {
	cfg := testConfig()
	cfg.MaxRecipients = 100
	server := startServer(t, cfg, &fakeStore{})
	for _, command := range []string{"NOOP", "RSET", "VRFY x", "HELP", "EHLO x", "HELO x"} {
		if n := server.greeted(t).until(command+"\r\n", 1000); n < junkLimit || n > junkLimit+cfg.MaxErrors {
			t.Errorf("%s: ended after %d", command, n)
		}
	}
	c := server.greeted(t)
	for range 4 { // a message starts the count anew
		if n := c.until("NOOP\r\n", junkLimit-1); n != junkLimit-1 {
			t.Fatalf("ended after %d", n)
		}
		c.transaction()
		c.send("text\r\n.\r\n")
		c.expect("250 2.0.0 queued")
	}
	c.send("MAIL FROM:<a@example.com>\r\n")
	c.expect("250")
	for i := range cfg.MaxRecipients {
		c.send(fmt.Sprintf("RCPT TO:<b%d@example.net>\r\n", i))
		c.expect("250")
	}
	if n := c.until("RCPT TO:<more@example.net>\r\n", 2000); n < overshootLimit || n > overshootLimit+cfg.MaxErrors {
		t.Errorf("recipients over the limit: ended after %d", n)
	}
}

// Recipients take of the memory. Who has no more of it hears so, and keeps
// those that it has.
func TestRecipientsTakeMemory(t *testing.T) {
	cfg := testConfig()
	cfg.MemoryBytes = 1 << 20
	store := &fakeStore{}
	server := startServer(t, cfg, store)
	long := strings.Repeat("d", 60) + "." + strings.Repeat("d", 60) + "." + strings.Repeat("e", 50) + ".example"
	c := server.greeted(t)
	taken := 0
	for full := false; !full && taken < 1000; {
		c.send("MAIL FROM:<a@example.com>\r\n")
		c.expect("250")
		for taken = 0; taken < 1000; taken++ {
			c.send(fmt.Sprintf("RCPT TO:<%d@%s> ORCPT=rfc822;%s\r\n", taken, long, strings.Repeat("o", 480)))
			reply, err := smtp.ReadReply(c.in)
			if err != nil {
				t.Fatal(err)
			}
			if full = reply.Code == 452; full {
				if got := reply.String(); !strings.HasPrefix(got, "452 4.3.1") {
					t.Errorf("refused with %q", got)
				}
				break
			}
		}
	}
	if bytes := taken * 1000; bytes < 200<<10 || bytes > 600<<10 {
		t.Errorf("%d recipients of about a kilobyte fit half of %d", taken, cfg.MemoryBytes)
	}
	c.send("RSET\r\n")
	c.expect("250")
	if !server.empty() {
		t.Errorf("%d bytes are held after RSET", server.memory.Used())
	}
	c.transaction()
	c.send("text\r\n.\r\n")
	c.expect("250 2.0.0 queued")
	c.send("MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\n")
	c.expect("250")
	c.expect("250")
	c.conn.Close()
	eventually(t, "memory is given back", server.empty)
}

// The whole of a command has to come within the time that a client may be
// silent: one octet after the other buys no more.
func TestCommandInDrips(t *testing.T) {
	room := openSpool(t)
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.IdleTimeout = 5 * time.Minute
		server := New(cfg, Deps{Committer: commit.New(&fakeStore{}, silentBus{}, time.Minute, 1), Spool: room})
		defer server.metrics.unregister()
		ours, theirs := net.Pipe()
		over := make(chan struct{})
		go func() {
			defer close(over)
			newSession(server, theirs, &Door{}).serve()
		}()
		var heard bytes.Buffer
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = io.Copy(&heard, ours) // the end of the session ends it
		}()
		began := time.Now()
		for i := 0; ; i++ {
			if _, err := ours.Write([]byte("N")); err != nil || i > 100 {
				break
			}
			<-time.After(4 * time.Minute) // on the clock of synctest
		}
		<-over
		if lasted := time.Since(began); lasted > 10*time.Minute {
			t.Errorf("the command lasted %s", lasted)
		}
		ours.Close()
		<-read
		if !strings.Contains(heard.String(), "421 4.4.2") {
			t.Errorf("the client heard %q", heard.String())
		}
	})
}

// Content of exactly the largest size is taken, and one octet more is not, by
// each command and as each says so beforehand.
func TestSizeLimitExactlyMet(t *testing.T) {
	cfg := testConfig()
	cfg.MaxMessageBytes = 100_000
	store := &fakeStore{}
	server := startServer(t, cfg, store)
	for _, tt := range []struct {
		size int
		want string
	}{{100_000, "250 2.0.0 queued"}, {100_001, "552 5.3.4"}} {
		content := "Subject: limit\r\n\r\n" + strings.Repeat(strings.Repeat("x", 98)+"\r\n", 999)
		content += strings.Repeat("y", tt.size-len(content)-2) + "\r\n"
		c := server.client(t)
		c.envelope()
		c.send(content + ".\r\n")
		c.expect(tt.want)
		c.send("MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\n")
		c.expect("250")
		c.expect("250")
		c.send(fmt.Sprintf("BDAT %d LAST\r\n%s", len(content), content))
		c.expect(tt.want)
		c.send(fmt.Sprintf("MAIL FROM:<a@example.com> SIZE=%d\r\n", tt.size))
		c.expect(map[bool]string{true: "250 2.1.0", false: "552 5.3.4"}[tt.size <= 100_000])
	}
	for _, sub := range store.submissions() {
		if _, got, _ := cutReceived(sub.Content); len(got) != 100_000 {
			t.Errorf("%d octets were stored", len(got))
		}
	}
	if n := len(store.submissions()); n != 2 {
		t.Errorf("%d messages, want 2", n)
	}
}

// What computers are called is no reason to refuse their mail. What stands in
// the trace field is one word, and has nothing in it that means anything there.
func TestNamesOfClients(t *testing.T) {
	store := &fakeStore{}
	server := startServer(t, testConfig(), store)
	for said, stands := range map[string]string{
		"host.example.com.": "host.example.com.", "[::1]": "[::1]", "::1": "::1", "[fe80::1%eth0]": "[fe80::1%eth0]", "x-.y": "x-.y", "-": "-",
		"John's-iPhone": "John's-iPhone", "host#1": "host#1", "büro-pc": "b?ro-pc", "b\xfcro-pc": "b?ro-pc", "ПК": "??", "WIN_PC": "WIN_PC",
		"(evil)": "?evil?", "x;y": "x?y", `a"b\c<d>@e,f`: "a?b?c?d??e?f", strings.Repeat("n", 300): strings.Repeat("n", 255),
	} {
		for _, verb := range []string{"EHLO", "HELO"} {
			store.forget()
			c := server.client(t)
			c.expect("220")
			c.send(verb + " " + said + "\r\n")
			c.expect("250")
			c.transaction()
			c.send("text\r\n.\r\n")
			c.expect("250 2.0.0 queued")
			field, _, _ := cutReceived(store.submissions()[0].Content)
			if want := "Received: from " + stands + " ([127.0.0.1])\r\n"; !strings.HasPrefix(field, want) {
				t.Errorf("%s %q: %q, want %q", verb, said, field, want)
			}
		}
	}
	for _, name := range []string{"", "a b", "a (evil [192.0.2.1])", "x by y; z", "x\ty", "x\x00", "a\u0085b", "a\u00a0b\u0001"} {
		c := server.client(t)
		c.expect("220")
		c.send("EHLO " + name + "\r\n")
		c.expect("50")
	}
}

// While the store is away the log has a line at the beginning and one at the
// end, however many messages are refused.
func TestOutageInTheLog(t *testing.T) {
	log := &logged{}
	before := slog.Default()
	defer slog.SetDefault(before)
	slog.SetDefault(slog.New(slog.NewTextHandler(log, nil)))
	store := &fakeStore{}
	store.fail(errDown)
	c := startServer(t, testConfig(), store).greeted(t)
	for range 30 {
		c.transaction()
		c.send("text\r\n.\r\n")
		c.expect("451 4.3.0")
	}
	store.fail(nil)
	eventually(t, "the end of the outage is in the log", func() bool {
		c.transaction()
		c.send("text\r\n.\r\n")
		c.expect("250 2.0.0 queued")
		return log.count("accepted again") > 0
	})
	if n := log.count("level=ERROR"); n != 1 {
		t.Errorf("%d errors in the log, want 1", n)
	}
	if n := log.count("failures=30"); n != 1 {
		t.Errorf("%d lines with the number of failures, want 1", n)
	}
}

// logged is what was logged.
type logged struct {
	mu  sync.Mutex
	all []string
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(p))
	return len(p), nil
}

func (l *logged) count(with string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.all {
		if strings.Contains(line, with) {
			n++
		}
	}
	return n
}
