package smtpd

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/services/ingress/internal/submission"
)

// transcript is one file of testdata. Its lines:
//
//	# comment, such as the rule that it shows
//	= setting value
//	C: what the client sends, with CRLF
//	C= "what the client sends", a Go string without anything added
//	S: what the server says; * stands for any text
//	T: the client makes a TLS handshake, once it has heard what is above
//	A: an accepted message, as summary prints it, in order
type transcript struct {
	turns    []turn
	accepted []string
	set      func(*scene)
	doors    []string
}

// turn is what is said up to a handshake, or to the end.
type turn struct {
	client []byte
	server []string
}

// client is all that the client sends, without handshakes.
func (s *transcript) client() []byte {
	var all []byte
	for _, turn := range s.turns {
		all = append(all, turn.client...)
	}
	return all
}

// scene is what a transcript is played on.
type scene struct {
	cfg   Config
	store *fakeStore
	door  Door
	deps  Deps
	t     testing.TB
	proxy string // the header that the client sends
}

// doors are the ways in which a client may come. The dialogue is the same.
var doors = map[string]func(*scene){
	"plain": func(*scene) {},
	"TLS": func(s *scene) {
		s.door.ImplicitTLS = true
		s.deps.TLS = newCertificates(s.t)
	},
	"PROXY": func(s *scene) {
		s.cfg.ProxyNetworks = prefixes("127.0.0.0/8")
		s.proxy = "PROXY TCP4 127.0.0.1 127.0.0.2 1234 25\r\n"
	},
	"PROXY 2": func(s *scene) {
		s.cfg.ProxyNetworks = prefixes("127.0.0.0/8")
		s.proxy = "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x02\x04\xd2\x00\x19"
	},
}

// A session says the same through every door, and whether the dialogue comes
// in one write, byte by byte, or cut anywhere.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.smtp")
	if err != nil || len(files) < 400 {
		t.Fatalf("%d transcripts, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".smtp"), func(t *testing.T) {
			t.Parallel()
			script := readTranscript(t, file)
			random := rand.New(rand.NewPCG(1, uint64(len(script.client()))))
			for _, door := range script.doors {
				for name, next := range map[string]func() int{
					"one write":     func() int { return 1 << 30 },
					"byte by byte":  func() int { return 1 },
					"random splits": func() int { return 1 + random.IntN(24) },
				} {
					t.Run(door+", "+name, func(t *testing.T) { script.run(t, doors[door], next) })
				}
			}
		})
	}
}

func (s *transcript) run(t *testing.T, through func(*scene), next func() int) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	on := &scene{cfg: testConfig(), store: &fakeStore{}, door: Door{Listener: listener}, t: t}
	s.set(on)
	through(on)
	server := startDoor(t, on.cfg, on.store, on.door, on.deps)
	conn := server.dial(t)
	if _, err := io.WriteString(conn, on.proxy); err != nil {
		t.Fatal(err)
	}
	secure := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // who the server is is another test's matter
	if on.door.ImplicitTLS {
		conn = tls.Client(conn, secure)
	}
	in := bufio.NewReader(conn)
	heard := []string{readLine(t, in)}
	var want []string
	for i, turn := range s.turns {
		for rest := turn.client; len(rest) > 0; {
			n := min(next(), len(rest))
			if _, err := conn.Write(rest[:n]); err != nil {
				break // the server may have closed, as the transcript says
			}
			rest = rest[n:]
		}
		want = append(want, turn.server...)
		if i == len(s.turns)-1 {
			break
		}
		for len(heard) < len(want) {
			heard = append(heard, readLine(t, in))
		}
		conn = tls.Client(conn, secure)
		in.Reset(conn)
	}
	// The server may have closed already.
	_ = conn.(interface{ CloseWrite() error }).CloseWrite()
	rest, err := io.ReadAll(in)
	if err != nil {
		t.Fatalf("reading replies: %v, after %q %q", err, heard, rest)
	}
	heard = append(heard, lines(string(rest))...)
	if on.door.ImplicitTLS && len(s.doors) > 1 { // a transcript has what it would be in the clear
		heard = slices.DeleteFunc(heard, func(line string) bool { return line == "250-REQUIRETLS" })
	}
	compare(t, heard, want)
	var accepted []string
	for _, sub := range on.store.submissions() {
		accepted = append(accepted, summary(sub, on.door.ImplicitTLS))
	}
	compare(t, accepted, s.accepted)
}

func readLine(t *testing.T, in *bufio.Reader) string {
	t.Helper()
	line, err := in.ReadString('\n')
	if err != nil {
		t.Fatalf("reading a reply: %v, after %q", err, line)
	}
	return lines(line)[0]
}

func lines(text string) []string {
	var all []string
	for line := range strings.Lines(text) {
		if !strings.HasSuffix(line, "\r\n") {
			line += "<no CRLF>"
		}
		all = append(all, strings.TrimSuffix(line, "\r\n"))
	}
	return all
}

func compare(t *testing.T, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		g, w := "(nothing)", "(nothing)"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(w), `\*`, ".*") + "$"
		if !regexp.MustCompile(pattern).MatchString(g) {
			t.Errorf("line %d is  %s\n\t\twant %s", i+1, g, w)
		}
	}
}

// summary prints what a transcript may claim of a message. The content is
// that behind our trace field, which must be there.
func summary(sub *mail.Submission, implicit bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", sub.Envelope.ReversePath)
	for _, r := range sub.Recipients {
		fmt.Fprintf(&b, " %d%s", r.No, r.ForwardPath)
		if r.Notify != 0 {
			fmt.Fprintf(&b, " NOTIFY=%s", r.Notify)
		}
		if r.ORCPT != "" {
			fmt.Fprintf(&b, " ORCPT=%s", r.ORCPT)
		}
	}
	protocol := sub.Client.Protocol
	if implicit { // a transcript has what it would be in the clear
		protocol = strings.Replace(protocol, "SMTPS", "SMTP", 1)
	}
	fmt.Fprintf(&b, " %s", protocol)
	e := sub.Envelope
	for _, part := range []struct{ name, value string }{{"BODY", string(e.Body)}, {"RET", string(e.Ret)}, {"ENVID", e.EnvID}, {"ID", sub.HeaderID}} {
		if part.value != "" {
			fmt.Fprintf(&b, " %s=%s", part.name, part.value)
		}
	}
	if e.SMTPUTF8 {
		b.WriteString(" SMTPUTF8")
	}
	if sub.Tenant != "" {
		fmt.Fprintf(&b, " TENANT=%s", sub.Tenant)
	}
	if sub.Priority != 0 {
		fmt.Fprintf(&b, " PRIORITY=%d", sub.Priority)
	}
	if sub.Held() {
		fmt.Fprintf(&b, " HELD=%s", sub.ReleaseAt.Sub(sub.AcceptedAt).Round(time.Second))
	}
	if life := sub.Recipients[0].ExpiresAt.Sub(sub.AcceptedAt); life < 24*time.Hour {
		fmt.Fprintf(&b, " LIFE=%s", life)
	}
	if by := e.DeliverBy; !by.At.IsZero() {
		fmt.Fprintf(&b, " BY=%s", by.At.Sub(sub.AcceptedAt))
		mode := ";N"
		if by.Return {
			mode = ";R"
		}
		b.WriteString(mode)
		if by.Trace {
			b.WriteString("T")
		}
	}
	if e.RequireTLS {
		b.WriteString(" REQUIRETLS")
	}
	if sub.TLSOptional {
		b.WriteString(" TLS-OPTIONAL")
	}
	if sub.Campaign != "" {
		fmt.Fprintf(&b, " CAMPAIGN=%s", sub.Campaign)
	}
	if sub.IdempotencyKey != "" {
		fmt.Fprintf(&b, " KEY=%s", sub.IdempotencyKey)
	}
	field, content, ok := cutReceived(sub.Content)
	if !ok {
		return "no trace field: " + strconv.Quote(string(sub.Content))
	}
	if strings.Contains(field, "\tfor ") {
		b.WriteString(" for")
	}
	fmt.Fprintf(&b, " %q", content)
	return b.String()
}

func cutReceived(content []byte) (field string, rest []byte, ok bool) {
	end := submission.FieldEnd(content, 0)
	return string(content[:end]), content[end:], bytes.HasPrefix(content, []byte("Received: from "))
}

func readTranscript(t testing.TB, file string) *transcript {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := &transcript{turns: []turn{{server: []string{"220 mx.example ESMTP postrider"}}}, doors: []string{"plain", "TLS", "PROXY", "PROXY 2"}}
	var sets []func(*scene)
	scanner := bufio.NewScanner(bytes.NewReader(text))
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		line := scanner.Text()
		mark, rest, _ := strings.Cut(line, " ")
		now := &s.turns[len(s.turns)-1]
		switch mark {
		case "#", "":
		case "C:":
			now.client = append(now.client, rest+"\r\n"...)
		case "C=":
			raw, err := strconv.Unquote(rest)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			now.client = append(now.client, raw...)
		case "S:":
			now.server = append(now.server, rest)
		case "T:":
			s.turns = append(s.turns, turn{})
		case "A:":
			s.accepted = append(s.accepted, rest)
		case "=":
			sets = append(sets, s.setting(t, rest))
		default:
			t.Fatalf("%s: what is %q?", file, line)
		}
	}
	if err := scanner.Err(); err != nil {
		t.Fatal(err)
	}
	s.set = func(on *scene) {
		for _, set := range sets {
			set(on)
		}
	}
	return s
}

func (s *transcript) setting(t testing.TB, text string) func(*scene) {
	t.Helper()
	name, value, _ := strings.Cut(text, " ")
	limit := func(set func(*Config, int)) func(*scene) {
		n, err := strconv.Atoi(value)
		if err != nil {
			t.Fatalf("setting %q", text)
		}
		return func(on *scene) { set(&on.cfg, n) }
	}
	switch name {
	case "doors": // the dialogue is about one of them
		s.doors = strings.Split(value, ",")
		return func(*scene) {}
	case "certificate":
		s.doors = []string{"plain", "PROXY"}
		return func(on *scene) { on.deps.TLS = newCertificates(t) }
	case "access":
		return func(on *scene) { on.deps.Access, _ = newAccess(t) }
	case "submission":
		return func(on *scene) { on.door.Submission = true }
	case "outside":
		return func(on *scene) { on.cfg.RelayNetworks = nil }
	case "store-down":
		return func(on *scene) { on.store.fail(errDown) }
	case "plaintext-auth":
		return func(on *scene) { on.cfg.PlaintextAuth = true }
	case "normalize-newlines":
		return func(on *scene) { on.cfg.NormalizeNewlines = true }
	case "keep-bcc":
		return func(on *scene) { on.cfg.KeepBcc = true }
	case "add-missing":
		return func(on *scene) { on.cfg.AddMissing = true }
	case "mend-lines":
		return func(on *scene) { on.cfg.MendLines = true }
	case "need-tls":
		return func(on *scene) { on.door.NeedTLS = true }
	case "no-tls":
		return func(on *scene) { on.door.NoTLS = true }
	case "no-auth":
		return func(on *scene) { on.door.NoAuth = true }
	case "binarymime":
		return func(on *scene) { on.cfg.BinaryMIME = true }
	case "xclient":
		return func(on *scene) { on.cfg.XClientNetworks = prefixes("127.0.0.0/8") }
	case "relay-domains":
		return func(on *scene) { on.cfg.RelayDomains = strings.Split(value, ",") }
	case "proxy":
		s.doors = []string{"plain"}
		header, err := strconv.Unquote(value)
		if err != nil {
			t.Fatalf("setting %q", text)
		}
		return func(on *scene) { on.cfg.ProxyNetworks, on.proxy = prefixes("127.0.0.0/8"), header }
	case "max-recipients":
		return limit(func(c *Config, n int) { c.MaxRecipients = n })
	case "max-session-recipients":
		return limit(func(c *Config, n int) { c.MaxSessionRcpts = n })
	case "max-messages":
		return limit(func(c *Config, n int) { c.MaxMessages = n })
	case "max-errors":
		return limit(func(c *Config, n int) { c.MaxErrors = n })
	case "max-line":
		return limit(func(c *Config, n int) { c.MaxLine = n })
	case "message-rate":
		return limit(func(c *Config, n int) { c.MessageRate = n })
	case "max-message-bytes":
		return limit(func(c *Config, n int) { c.MaxMessageBytes = int64(n) })
	}
	t.Fatalf("setting %q", text)
	return nil
}

func testConfig() Config {
	return Config{
		RelayNetworks:       prefixes("127.0.0.0/8"),
		AuthSCRAM:           true,
		MaxMessageBytes:     25 << 20,
		MaxRecipients:       1000,
		MaxMessages:         1000,
		MaxErrors:           20,
		MaxSessionRcpts:     1000,
		MaxLine:             998,
		MaxConnections:      100,
		MaxConnectionsPerIP: 100,
		IdleTimeout:         10 * time.Second,
		MinDataRate:         1024,
		MemoryBytes:         64 << 20,
		Streams:             2,
		CommitTimeout:       5 * time.Second,
		DrainTimeout:        5 * time.Second,
		ReportLifetime:      24 * hour,
		Hostname:            "mx.example",
		Lifetime:            func(mail.Domain) time.Duration { return 120 * time.Hour },
	}
}
