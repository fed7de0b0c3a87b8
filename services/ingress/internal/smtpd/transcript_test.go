package smtpd

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

// transcript is one file of testdata. Its lines:
//
//	# comment, such as the rule that it shows
//	= setting value
//	C: what the client sends, with CRLF
//	C= "what the client sends", a Go string without anything added
//	S: what the server says; * stands for any text
//	S: <closed>
//	A: an accepted message, as summary prints it, in order
type transcript struct {
	client   []byte
	server   []string
	accepted []string
	set      func(*Config, *fakeStore)
}

// A session says the same whether the dialogue comes in one write, byte by
// byte, or cut anywhere.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.smtp")
	if err != nil || len(files) < 60 {
		t.Fatalf("%d transcripts, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".smtp"), func(t *testing.T) {
			t.Parallel()
			script := readTranscript(t, file)
			random := rand.New(rand.NewPCG(1, uint64(len(script.client))))
			for name, next := range map[string]func() int{
				"one write":     func() int { return len(script.client) },
				"byte by byte":  func() int { return 1 },
				"random splits": func() int { return 1 + random.IntN(24) },
			} {
				t.Run(name, func(t *testing.T) { script.run(t, next) })
			}
		})
	}
}

func (s *transcript) run(t *testing.T, next func() int) {
	cfg, store := testConfig(), &fakeStore{}
	s.set(&cfg, store)
	server := startServer(t, cfg, store)
	conn := server.dial(t)
	var got []byte
	done := make(chan error, 1)
	go func() {
		var err error
		got, err = io.ReadAll(conn)
		done <- err
	}()
	for rest := s.client; len(rest) > 0; {
		n := min(next(), len(rest))
		if _, err := conn.Write(rest[:n]); err != nil {
			break // the server may have closed, as the transcript says
		}
		rest = rest[n:]
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil && len(s.server) == 0 {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatalf("reading replies: %v, after %q", err, got)
	}
	compare(t, lines(string(got)), s.server)
	var accepted []string
	for _, sub := range store.submissions() {
		accepted = append(accepted, summary(sub))
	}
	compare(t, accepted, s.accepted)
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
func summary(sub *mail.Submission) string {
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
	fmt.Fprintf(&b, " %s", sub.Client.Protocol)
	e := sub.Envelope
	for _, part := range []struct{ name, value string }{{"BODY", string(e.Body)}, {"RET", string(e.Ret)}, {"ENVID", e.EnvID}, {"ID", sub.HeaderID}} {
		if part.value != "" {
			fmt.Fprintf(&b, " %s=%s", part.name, part.value)
		}
	}
	if e.SMTPUTF8 {
		b.WriteString(" SMTPUTF8")
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
	end := fieldEnd(content, 0)
	return string(content[:end]), content[end:], bytes.HasPrefix(content, []byte("Received: from "))
}

func readTranscript(t testing.TB, file string) *transcript {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := &transcript{server: []string{"220 mx.example ESMTP postrider"}}
	var sets []func(*Config, *fakeStore)
	scanner := bufio.NewScanner(bytes.NewReader(text))
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		line := scanner.Text()
		mark, rest, _ := strings.Cut(line, " ")
		switch mark {
		case "#", "":
		case "C:":
			s.client = append(s.client, rest+"\r\n"...)
		case "C=":
			raw, err := strconv.Unquote(rest)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			s.client = append(s.client, raw...)
		case "S:":
			s.server = append(s.server, rest)
		case "A:":
			s.accepted = append(s.accepted, rest)
		case "=":
			sets = append(sets, setting(t, rest))
		default:
			t.Fatalf("%s: what is %q?", file, line)
		}
	}
	if err := scanner.Err(); err != nil {
		t.Fatal(err)
	}
	s.set = func(c *Config, store *fakeStore) {
		for _, set := range sets {
			set(c, store)
		}
	}
	return s
}

func setting(t testing.TB, text string) func(*Config, *fakeStore) {
	t.Helper()
	name, value, _ := strings.Cut(text, " ")
	n, err := strconv.Atoi(value)
	if err != nil && name != "outside" && name != "store-down" {
		t.Fatalf("setting %q", text)
	}
	switch name {
	case "outside":
		return func(c *Config, _ *fakeStore) { c.RelayNetworks = nil }
	case "store-down":
		return func(_ *Config, s *fakeStore) { s.fail(errDown) }
	case "max-recipients":
		return func(c *Config, _ *fakeStore) { c.MaxRecipients = n }
	case "max-messages":
		return func(c *Config, _ *fakeStore) { c.MaxMessages = n }
	case "max-errors":
		return func(c *Config, _ *fakeStore) { c.MaxErrors = n }
	case "max-message-bytes":
		return func(c *Config, _ *fakeStore) { c.MaxMessageBytes = int64(n) }
	}
	t.Fatalf("setting %q", text)
	return nil
}

func testConfig() Config {
	return Config{
		RelayNetworks:       prefixes("127.0.0.0/8"),
		MaxMessageBytes:     25 << 20,
		MaxRecipients:       1000,
		MaxMessages:         1000,
		MaxErrors:           20,
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
