package smtptest

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/smtp"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peer is a raw client.
type peer struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

// listen is Start for tests that want the violations themselves.
func listen(t *testing.T, script Script) *Server {
	t.Helper()
	s, err := Listen(script)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func dial(t *testing.T, s *Server) *peer {
	t.Helper()
	c, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &peer{t, c, bufio.NewReader(c)}
}

// say sends text and expects a reply that begins so, for each of want.
func (p *peer) say(text string, want ...string) {
	p.t.Helper()
	if _, err := io.WriteString(p.Conn, text); err != nil {
		p.t.Fatalf("say %q: %v", text, err)
	}
	for _, w := range want {
		for {
			line, err := p.r.ReadString('\n')
			if err != nil {
				p.t.Fatalf("after %q: %v, want %q", text, err, w)
			}
			if len(line) > 3 && line[3] == '-' {
				continue
			}
			if !strings.HasPrefix(line, w) {
				p.t.Fatalf("after %q: %q, want %q", text, line, w)
			}
			break
		}
	}
}

// end expects the end of the connection.
func (p *peer) end() error {
	p.t.Helper()
	_, err := p.r.ReadByte()
	if err == nil {
		p.t.Fatal("the connection goes on")
	}
	return err
}

// violations waits for the server to end the session and returns what it
// complained of.
func violations(s *Server) string {
	s.Close()
	return strings.Join(s.Violations(), "\n")
}

func TestTakesMailOfAnIndependentClient(t *testing.T) {
	s := Start(t, Script{})
	content := "Subject: a\r\n\r\n.dot\r\n..\r\nend\r\n"
	for range 3 {
		// net/smtp never pipelines, and adds BODY=8BITMIME when offered.
		if err := smtp.SendMail(s.Addr().String(), nil, "a@b.example", []string{"c@d.example", "e@f.example"}, []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	s.WaitMessages(t, 3, 5*time.Second)
	m := s.Messages()[2]
	if string(m.Content) != content || m.SHA256 != sha256.Sum256([]byte(content)) || m.Size != int64(len(content)) {
		t.Errorf("content %q, size %d", m.Content, m.Size)
	}
	if m.ReversePath != "a@b.example" || strings.Join(m.Accepted(), " ") != "c@d.example e@f.example" {
		t.Errorf("envelope %+v", m)
	}
	if m.Connection != 3 || s.HighWater() != 1 {
		t.Errorf("connection %d, high water %d: a client that closes before it opens has one", m.Connection, s.HighWater())
	}
	if c := s.Connections()[0]; m.MailAt.Before(c.OpenedAt) || m.DotAt.Before(m.MailAt) || !c.Extended {
		t.Errorf("log %+v of %+v", m, c)
	}
}

func TestTLSIsRecorded(t *testing.T) {
	ca, err := NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	config, err := ca.Server("mx.example")
	if err != nil {
		t.Fatal(err)
	}
	s := Start(t, Script{TLS: config})
	c, err := smtp.Dial(s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.StartTLS(&tls.Config{RootCAs: ca.Pool(), ServerName: "mx.example"}); err != nil {
		t.Fatal(err)
	}
	if ok, _ := c.Extension("STARTTLS"); ok {
		t.Error("STARTTLS is offered inside TLS")
	}
	if err := c.Quit(); err != nil {
		t.Fatal(err)
	}
	if got := s.Connections()[0].TLS; !strings.HasPrefix(got, "TLS1.3 TLS_") {
		t.Errorf("TLS %q", got)
	}
}

// TestSeesViolations has one row for each rule that the server watches.
func TestSeesViolations(t *testing.T) {
	const hello = "EHLO c.example\r\n"
	tests := []struct {
		name, say, want string
		extensions      []string
	}{
		{"bare LF in a command", "EHLO c.example\n", "bare CR", nil},
		{"bare CR in a command", "EHLO c\r.example\r\n", "bare CR", nil},
		{"NUL in a command", "EHLO c\x00.example\r\n", "NUL", nil},
		{"too long a command", "NOOP " + strings.Repeat("x", 3000) + "\r\n", "command line of", nil},
		{"unknown command", "FROB\r\n", "unknown command", nil},
		{"no argument", "EHLO\r\n", "one argument", nil},
		{"MAIL before EHLO", "MAIL FROM:<a@b.example>\r\n", "before EHLO", nil},
		{"space behind the colon", hello + "MAIL FROM: <a@b.example>\r\n", "malformed MAIL", nil},
		{"no angle brackets", hello + "MAIL FROM:a@b.example\r\n", "malformed MAIL", nil},
		{"two MAIL", hello + "MAIL FROM:<>\r\nMAIL FROM:<>\r\n", "inside a transaction", nil},
		{"null forward-path", hello + "MAIL FROM:<>\r\nRCPT TO:<>\r\n", "malformed RCPT", nil},
		{"unoffered parameter", hello + "MAIL FROM:<> SIZE=1\r\n", "SIZE was not offered", nil},
		{"unknown parameter", hello + "MAIL FROM:<>\r\nRCPT TO:<a@b.example> X=1\r\n", "X was not offered", nil},
		{"UTF-8 without SMTPUTF8", hello + "MAIL FROM:<ä@b.example>\r\n", "without SMTPUTF8", nil},
		{"pipelining", "EHLO c.example\r\nMAIL FROM:<>\r\n", "ahead of the reply", NoPipelining},
		{"talk behind EHLO", hello + "NOOP\r\n", "ahead of the reply", nil},
		{"RCPT without MAIL", hello + "RCPT TO:<a@b.example>\r\n", "without MAIL", NoPipelining},
		{"DATA without RCPT", "HELO c\r\nMAIL FROM:<>\r\nDATA\r\n", "without an accepted", nil},
		{"STARTTLS not offered", hello + "STARTTLS\r\n", "not offered", nil},
		{"half a command", hello + "MAIL FR", "inside a command", nil},
		{"bare LF in content", hello + "MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\na\nb\r\n.\r\n", "bare CR or LF after \"a\"", nil},
		{"bare CR in content", hello + "MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\na\rb\r\n.\r\n", "bare CR or LF after \"a\"", nil},
		{"smuggled end", hello + "MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\na\n.\r\nb\r\n.\r\n", "bare CR or LF", nil},
		{"8-bit undeclared", hello + "MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\nä\r\n.\r\n", "without BODY=8BITMIME", nil},
		{"content ahead of 354", hello + "MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\na\r\n.\r\n", "ahead of the reply", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := listen(t, Script{Extensions: tt.extensions})
			p := dial(t, s)
			p.say("", "220")
			p.say(tt.say)
			if err := p.Conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, p.r); err != nil {
				t.Fatal(err)
			}
			if got := violations(s); !strings.Contains(got, tt.want) {
				t.Errorf("violations %q, want %q", got, tt.want)
			}
		})
	}
}

func TestPipeliningWhenOfferedIsNoViolation(t *testing.T) {
	s := Start(t, Script{})
	p := dial(t, s)
	p.say("", "220")
	p.say("EHLO c.example\r\n", "250")
	for range 3 {
		p.say("RSET\r\nMAIL FROM:<\"a> b\"@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n", "250", "250", "250", "354")
		p.say("x\r\n..\r\n.\r\n", "250")
	}
	p.say("QUIT\r\n", "221")
	if got := s.Messages(); len(got) != 3 || string(got[0].Content) != "x\r\n.\r\n" || got[0].ReversePath != `"a> b"@b.example` {
		t.Errorf("messages %+v", got)
	}
}

func TestRules(t *testing.T) {
	s := Start(t, Script{Rules: []Rule{
		{At: Rcpt, Match: "gone@", Do: Reply(550, "5.1.1 no", "such user")},
		{At: Rcpt, Match: "grey", Times: 1, Each: PerPath, Do: Reply(450, "4.2.0 later")},
		{At: Rcpt, Skip: 2, Each: PerTransaction, Do: Reply(452, "4.5.3 enough")},
		{At: Mail, Skip: 2, Each: PerConnection, Do: Then(Reply(421, "4.3.2 bye"), Drop())},
	}})
	p := dial(t, s)
	p.say("", "220")
	p.say("EHLO c.example\r\n", "250")
	p.say("MAIL FROM:<>\r\n", "250")
	p.say("RCPT TO:<gone@d.example>\r\n", "550 such user")
	p.say("RCPT TO:<grey1@d.example>\r\n", "450")
	p.say("RCPT TO:<grey2@d.example>\r\n", "450")
	p.say("RCPT TO:<grey1@d.example>\r\n", "250")
	p.say("RCPT TO:<a@d.example>\r\n", "250")
	p.say("RCPT TO:<b@d.example>\r\n", "452")
	p.say("RSET\r\n", "250")
	p.say("MAIL FROM:<>\r\n", "250")
	p.say("RCPT TO:<a@d.example>\r\n", "250")
	p.say("RSET\r\n", "250")
	p.say("MAIL FROM:<>\r\n", "421")
	if err := p.end(); !errors.Is(err, io.EOF) {
		t.Errorf("end of connection: %v", err)
	}
	s.SetRules(Rule{At: Banner, Do: Reply(554, "5.3.2 closed")})
	dial(t, s).say("", "554")
}

func TestActs(t *testing.T) {
	const start = "MAIL FROM:<>\r\nRCPT TO:<a@d.example>\r\nDATA\r\n"
	tests := []struct {
		name  string
		rule  Rule
		check func(p *peer)
	}{
		{"garbage", Rule{At: Data, Do: Raw("what?\r\n")}, func(p *peer) { p.say(start, "250", "250", "what?") }},
		{"RST", Rule{At: Data, Do: Reset()}, func(p *peer) {
			p.say(start, "250", "250")
			if err := p.end(); !errors.Is(err, syscall.ECONNRESET) {
				p.t.Errorf("end: %v", err)
			}
		}},
		{"stall", Rule{At: Data, Do: Stall()}, func(p *peer) {
			p.say(start, "250", "250")
			if err := p.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
				p.t.Fatal(err)
			}
			if err := p.end(); !errors.Is(err, os.ErrDeadlineExceeded) {
				p.t.Errorf("end: %v", err)
			}
		}},
		{"freeze", Rule{At: Body, Do: Freeze()}, func(p *peer) {
			p.say(start, "250", "250", "354")
			if err := p.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
				p.t.Fatal(err)
			}
			if _, err := p.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
				p.t.Errorf("write: %v", err)
			}
		}},
		{"endless", Rule{At: Data, Do: Endless("354-go\r\n")}, func(p *peer) {
			p.say(start, "250", "250")
			if n, err := io.CopyN(io.Discard, p.r, 1<<20); n != 1<<20 {
				p.t.Errorf("%d octets: %v", n, err)
			}
		}},
		{"bytewise", Rule{At: Data, Do: Bytewise(Reply(354, "go"))}, func(p *peer) { p.say(start, "250", "250", "354 go") }},
		{"drip", Rule{At: Data, Do: Drip(time.Millisecond, Reply(354, "go"))}, func(p *peer) {
			before := time.Now()
			p.say(start, "250", "250", "354 go")
			if took := time.Since(before); took < 7*time.Millisecond {
				p.t.Errorf("8 octets in %v", took)
			}
		}},
		{"later", Rule{At: Dot, Do: Later(20*time.Millisecond, Reply(451, "no"))}, func(p *peer) {
			p.say(start, "250", "250", "354")
			before := time.Now()
			p.say(".\r\n", "451")
			if took := time.Since(before); took < 20*time.Millisecond {
				p.t.Errorf("reply after %v", took)
			}
		}},
		{"drop inside the content", Rule{At: Body, Do: AfterBytes(3, Drop())}, func(p *peer) {
			p.say(start, "250", "250", "354")
			p.say("abc")
			p.end()
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := Start(t, Script{Rules: []Rule{tt.rule}})
			p := dial(t, s)
			p.say("", "220")
			p.say("EHLO c.example\r\n", "250")
			tt.check(p)
			p.Close()
			s.Close()
			if n := s.Count(); n != 0 {
				t.Errorf("%d messages taken", n)
			}
		})
	}
}

func TestAwaitHoldsUntilReleased(t *testing.T) {
	release := make(chan struct{})
	s := Start(t, Script{Rules: []Rule{{At: Dot, Do: Await(release, Reply(250, "ok"))}}})
	p := dial(t, s)
	p.say("", "220")
	p.say("EHLO c.example\r\n", "250")
	p.say("MAIL FROM:<>\r\nRCPT TO:<a@d.example>\r\nDATA\r\n", "250", "250", "354")
	p.say("a\r\n.\r\n")
	if s.Count() != 0 {
		t.Error("taken before the release")
	}
	close(release)
	p.say("", "250")
	s.WaitMessages(t, 1, 5*time.Second)
}

func TestSizeLimitIsEnforced(t *testing.T) {
	s := Start(t, Script{MaxSize: 10})
	p := dial(t, s)
	p.say("", "220")
	p.say("EHLO c.example\r\n", "250")
	p.say("MAIL FROM:<> SIZE=11\r\n", "552")
	p.say("MAIL FROM:<>\r\nRCPT TO:<a@d.example>\r\nDATA\r\n", "250", "250", "354")
	p.say("12345678901\r\n.\r\n", "552")
	if got := s.Transactions(); len(got) != 2 || got[1].Code != 552 {
		t.Errorf("log %+v", got)
	}
}

// TestManyMessages keeps the server fit for load tests.
func TestManyMessages(t *testing.T) {
	const sessions, each = 10, 1000
	s := Start(t, Script{Discard: true, Label: func(c []byte) string { return string(c[:min(8, len(c))]) }})
	var wg sync.WaitGroup
	for i := range sessions {
		wg.Go(func() {
			p := dial(t, s)
			p.say("", "220")
			p.say("EHLO c.example\r\n", "250")
			for j := range each {
				p.say("MAIL FROM:<>\r\nRCPT TO:<a@d.example>\r\nDATA\r\n", "250", "250", "354")
				p.say(fmt.Sprintf("%02d-%05d\r\n.\r\n", i, j), "250")
			}
		})
	}
	wg.Wait()
	labels := map[string]bool{}
	for _, m := range s.Messages() {
		labels[m.Label] = true
	}
	if len(labels) != sessions*each || s.HighWater() != sessions {
		t.Errorf("%d labels, high water %d", len(labels), s.HighWater())
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	s := Start(t, Script{})
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, errors.New("too late"))
	defer cancel()
	if err := s.Wait(ctx, func() bool { return false }); err == nil || err.Error() != "too late" {
		t.Errorf("error %v", err)
	}
}
