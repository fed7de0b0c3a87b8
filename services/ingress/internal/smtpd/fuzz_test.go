package smtpd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/ingress/internal/access"
	"github.com/postrider/postrider/services/ingress/internal/commit"
	"github.com/postrider/postrider/services/ingress/internal/spool"
	"github.com/postrider/postrider/services/ingress/internal/submission"
)

// scriptConn is a connection whose client sends fixed octets, cut into blocks
// of a size, and then leaves.
type scriptConn struct {
	in  []byte
	cut int
	out bytes.Buffer
}

func (c *scriptConn) Read(p []byte) (int, error) {
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.in[:min(c.cut, len(c.in))])
	c.in = c.in[n:]
	return n, nil
}

func (c *scriptConn) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *scriptConn) Close() error                     { return nil }
func (c *scriptConn) LocalAddr() net.Addr              { return nil }
func (c *scriptConn) RemoteAddr() net.Addr             { return loopback }
func (c *scriptConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptConn) SetWriteDeadline(time.Time) error { return nil }

var loopback = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}

// fuzzed is a server for many sessions, one at a time.
type fuzzed struct {
	*Server
	store *fakeStore
	door  Door
}

func newFuzzed(f *testing.F, cfg Config, keeper gatekeeper) *fuzzed {
	f.Helper()
	store := &fakeStore{}
	committer := commit.New(store, silentBus{}, time.Minute, 2)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- committer.Run(ctx) }()
	server := New(cfg, Deps{Committer: committer, Access: keeper, Spool: openSpool(f)})
	f.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			f.Error(err)
		}
		server.metrics.unregister()
	})
	return &fuzzed{Server: server, store: store}
}

var (
	times = regexp.MustCompile(`20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ`)
	// received is our trace field: RFC 5321 §4.4.
	received = regexp.MustCompile(`^Received: from [^\r\n]+\r\n(\t[^\r\n]+\r\n)+$`)
	ids      = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`)
)

// talk has a session in which the client sends in blocks of cut octets, and
// returns the codes of the replies, and the replies as they were sent.
func (s *fuzzed) talk(t *testing.T, in []byte, cut int) (codes []int, out string) {
	t.Helper()
	s.store.forget()
	conn := &scriptConn{in: in, cut: cut}
	newSession(s.Server, conn, &s.door).serve()
	out = conn.out.String()
	replies := bufio.NewReader(strings.NewReader(out))
	for {
		reply, err := smtp.ReadReply(replies)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%q: reply %v in %q", in, err, out)
		}
		codes = append(codes, reply.Code)
	}
	if used := s.memory.Used(); used != 0 {
		t.Fatalf("%q: %d bytes are still held", in, used)
	}
	return codes, out
}

// Any content, by DATA and by BDAT, however it is cut: it is stored byte for
// byte or refused for a reason that it has, what follows it is understood, and
// no octet of it is taken for a command.
func FuzzContent(f *testing.F) {
	for _, seed := range []string{
		"", "Subject: x\r\n\r\n.dots\r\n..\r\n...\r\n", "a\n.\nMAIL FROM:<a@b>\r\n", "a\r\n.\rQUIT\r\n", "a\r.\r\nb\r\n", "no end", "end\r", "\r\n\r\n",
		strings.Repeat("Received: x\r\n", 100), strings.Repeat("x", 999) + "\r\n", "X-Traceparent: 00\r\nA: b\r\n\r\n\x00\xff\r\n",
	} {
		f.Add([]byte(seed), uint16(3), uint16(5), byte(0))
	}
	f.Add([]byte("end of a large one\r\n"), uint16(4096), uint16(60000), byte(1))
	f.Add([]byte("end of a stream\r\n"), uint16(4096), uint16(60000), byte(2))
	cfg := testConfig()
	cfg.MaxErrors = 1000
	server := newFuzzed(f, cfg, nil)
	filler := []byte(strings.Repeat("."+strings.Repeat("x", 70)+"\r\n", spool.Large/73+1))

	f.Fuzz(func(t *testing.T, text []byte, cut, chunk uint16, pad byte) {
		switch pad % 64 { // rarely, for it takes long
		case 1:
			text = slices.Concat(filler[:spool.Small/73*73], text)
		case 2:
			text = slices.Concat(filler, text)
		}
		const hello = "EHLO client.example\r\nMAIL FROM:<a@example.com> BODY=8BITMIME\r\nRCPT TO:<b@example.net>\r\n"
		const rest = "NOOP\r\nQUIT\r\n"

		// RFC 5321 §4.5.2, as a client does it that sends line ends of any kind.
		wire := bytes.ReplaceAll(append([]byte("\r\n"), text...), []byte("\r\n."), []byte("\r\n.."))[2:]
		if len(text) > 0 && !bytes.HasSuffix(text, []byte("\r\n")) {
			wire = append(wire, "\r\n"...)
		}
		content := text
		if len(text) > 0 && !bytes.HasSuffix(text, []byte("\r\n")) {
			content = append(bytes.Clone(text), "\r\n"...)
		}
		in := slices.Concat([]byte(hello+"DATA\r\n"), wire, []byte(".\r\n"+rest))
		codes, out := server.talk(t, in, int(cut)+1)
		if want := []int{220, 250, 250, 250, 354, verdict(content), 250, 221}; !slices.Equal(codes, want) {
			t.Fatalf("DATA %q: %v, want %v: %q", text, codes, want, out)
		}
		server.kept(t, content)

		in = []byte(hello)
		want := []int{220, 250, 250, 250}
		for left, last := text, false; !last; {
			n := min(int(chunk)+1+len(text)/100, len(left))
			last = n == len(left)
			mark := ""
			if last {
				mark = " LAST"
			}
			in = fmt.Appendf(in, "BDAT %d%s\r\n%s", n, mark, left[:n])
			left = left[n:]
			want = append(want, 250)
		}
		want[len(want)-1] = verdict(content)
		want = append(want, 250, 221)
		codes, out = server.talk(t, append(in, rest...), int(cut)+1)
		if !slices.Equal(codes, want) {
			t.Fatalf("BDAT %q: %v, want %v: %q", text, codes, want, out)
		}
		if verdict(content) == 250 {
			content = text // RFC 3030 §2: the last line need not end
		}
		server.kept(t, content)
	})
}

// verdict is the code that content deserves.
func verdict(content []byte) int {
	_, err := submission.Read(content[:min(len(content), spool.Large-spool.Headroom)], submission.Rules{})
	var refusal *submission.Refusal
	long := false
	for line := range bytes.SplitSeq(content, []byte("\n")) {
		long = long || len(line) > len("\r")+998
	}
	switch {
	case strings.ContainsAny(strings.ReplaceAll(string(content), "\r\n", ""), "\r\n"), long:
		return 550
	case errors.As(err, &refusal):
		return replyContent(refusal).Code
	}
	return 250
}

// kept compares what was stored with what was sent.
func (s *fuzzed) kept(t *testing.T, content []byte) {
	t.Helper()
	kept := s.store.submissions()
	if verdict(content) != 250 {
		if len(kept) != 0 {
			t.Fatalf("%q is stored", content)
		}
		return
	}
	if len(kept) != 1 {
		t.Fatalf("%q: %d messages", content, len(kept))
	}
	h, err := submission.Read(content[:min(len(content), spool.Large-spool.Headroom)], submission.Rules{})
	if err != nil {
		t.Fatal(err)
	}
	content = append(h.AppendKept(nil, content), content[h.End:]...)
	field, same := bytes.CutSuffix(kept[0].Content, content)
	if !same || !received.Match(field) {
		t.Fatalf("%.2000q is stored as %.2000q", content, kept[0].Content)
	}
}

// Whatever a client sends, whether line ends are normalised and long lines
// mended or not: every reply is well-formed, the replies do not depend on how
// the octets are cut, there is one 250 for each message in the store and no
// other, all memory is given back, and what is in the store has clean line
// ends and no long line.
func FuzzSession(f *testing.F) {
	files, err := filepath.Glob("testdata/*.smtp")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		if client := readTranscript(f, file).client(); len(client) < 3000 {
			for kind := range byte(4) {
				f.Add(client, uint16(7), kind)
			}
		}
	}
	var servers []*fuzzed
	for kind := range 4 {
		cfg := testConfig()
		cfg.MaxMessageBytes = 3 << 10
		cfg.MaxRecipients = 3
		cfg.XClientNetworks = prefixes("127.0.0.0/8")
		cfg.NormalizeNewlines, cfg.MendLines = kind&1 != 0, kind&2 != 0
		servers = append(servers, newFuzzed(f, cfg, nil))
	}

	f.Fuzz(func(t *testing.T, in []byte, cut uint16, kind byte) {
		server := servers[int(kind)%len(servers)]
		var said []string
		for _, cut := range []int{len(in) + 1, int(cut%1000) + 1} {
			_, out := server.talk(t, in, cut)
			said = append(said, times.ReplaceAllString(ids.ReplaceAllString(out, "id"), "time"))
			queued := strings.Count("\r\n"+out, "\r\n250 2.0.0 queued as ")
			kept := server.store.submissions()
			if queued != len(kept) {
				t.Fatalf("%q: %d messages and %d times 250: %q", in, len(kept), queued, out)
			}
			for _, sub := range kept {
				if strings.ContainsAny(strings.ReplaceAll(string(sub.Content), "\r\n", ""), "\r\n") || len(sub.Recipients) == 0 {
					t.Fatalf("%q: stored %q", in, sub.Content)
				}
				for line := range bytes.SplitSeq(sub.Content, []byte("\r\n")) {
					if len(line) > 998 {
						t.Fatalf("%q: stored a line of %d octets: %q", in, len(line), line)
					}
				}
			}
		}
		if said[0] != said[1] {
			t.Fatalf("%q: in one write %q, in blocks of %d %q", in, said[0], cut, said[1])
		}
	})
}

// quickAccess has a credential for every name, with the password "secret" and
// a hash that costs nothing, and refuses without a delay.
type quickAccess struct {
	*fakeAccess
	grant store.Grant
}

func (q *quickAccess) Grant(_ context.Context, name string) (store.Grant, error) {
	g := q.grant
	g.Credential.Name = name
	return g, nil
}

func (q *quickAccess) AuthFailed(context.Context, []string) ([]float64, error) {
	return nil, access.ErrRefused
}

var (
	longChallenge = regexp.MustCompile(`(?m)^334 [A-Za-z0-9+/=]{30,}`)
	token         = regexp.MustCompile(`[A-Za-z0-9+/]+=*`)
)

// Whatever a client sends to authenticate itself: the replies are well-formed
// and do not depend on how it is cut, and nobody gets in who does not know the
// password.
func FuzzAuth(f *testing.F) {
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, seed := range []string{
		"AUTH PLAIN " + b64("\x00user\x00secret") + "\r\nMAIL FROM:<a@example.com>\r\n",
		"AUTH PLAIN\r\n" + b64("user\x00user\x00secret") + "\r\nAUTH LOGIN\r\n",
		"AUTH PLAIN " + b64("\x00user\x00wrong") + "\r\nAUTH PLAIN =\r\nAUTH PLAIN *\r\n",
		"AUTH LOGIN\r\n" + b64("user") + "\r\n" + b64("secret") + "\r\nNOOP\r\n",
		"AUTH LOGIN " + b64("user") + "\r\n" + b64("wrong") + "\r\nAUTH login\r\n*\r\nAUTH LOGIN\r\n\r\n\r\n",
		"AUTH SCRAM-SHA-256 " + b64("n,,n=user,r=abcdef") + "\r\n" + b64("c=biws,r=abcdef,p=AAAA") + "\r\n",
		"AUTH SCRAM-SHA-256\r\n" + b64("y,a=user,n=user,r=x") + "\r\n*\r\n",
		"AUTH SCRAM-SHA-256-PLUS " + b64("p=tls-exporter,,n=user,r=x") + "\r\n", "AUTH\r\nAUTH X\r\nAUTH PLAIN !\r\nAUTH PLAIN AA\nNOOP\r\n",
		"AUTH PLAIN " + strings.Repeat("A", 12288) + "\r\n", "AUTH LOGIN\r\n" + strings.Repeat("A", 13000) + "\r\nNOOP\r\n",
	} {
		f.Add([]byte(seed), uint16(2))
	}
	salt := []byte("0123456789abcdef")
	raw := base64.RawStdEncoding
	hash := fmt.Sprintf("$argon2id$v=19$m=8,t=1,p=1$%s$%s", raw.EncodeToString(salt),
		raw.EncodeToString(argon2.IDKey([]byte("secret"), salt, 1, 8, 1, 32)))
	grant := store.Grant{
		Credential: store.Credential{Tenant: "acme", Kind: store.PasswordCredential, Password: hash},
		Tenant:     store.Tenant{Name: "acme"}, Domains: []string{"example.com"},
	}
	keeper, err := access.New(&quickAccess{&fakeAccess{}, grant}, access.Config{MaxFailures: 10, Parallel: 2})
	if err != nil {
		f.Fatal(err)
	}
	cfg := testConfig()
	cfg.PlaintextAuth = true
	server := newFuzzed(f, cfg, keeper)
	server.door.Submission = true

	f.Fuzz(func(t *testing.T, in []byte, cut uint16) {
		in = append([]byte("EHLO client.example\r\n"), in...)
		var said []string
		for _, cut := range []int{len(in) + 1, int(cut%1000) + 1} {
			codes, out := server.talk(t, in, cut)
			said = append(said, longChallenge.ReplaceAllString(times.ReplaceAllString(ids.ReplaceAllString(out, "id"), "time"), "334 challenge"))
			if slices.Contains(codes, 235) && !knows(in, "secret") {
				t.Fatalf("%q: in without the password: %q", in, out)
			}
			if len(server.store.submissions()) > 0 && !slices.Contains(codes, 235) {
				t.Fatalf("%q: a message of nobody: %q", in, out)
			}
		}
		if said[0] != said[1] {
			t.Fatalf("%q: in one write %q, in blocks of %d %q", in, said[0], cut, said[1])
		}
	})
}

// knows reports whether anything in the octets is base64 of the secret.
func knows(in []byte, secret string) bool {
	for _, text := range token.FindAll(in, -1) {
		if decoded, err := base64.StdEncoding.DecodeString(string(text)); err == nil && bytes.Contains(decoded, []byte(secret)) {
			return true
		}
	}
	return false
}
