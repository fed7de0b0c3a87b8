package httpd

import (
	"bytes"
	"errors"
	"flag"
	"io"
	netmail "net/mail"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"
	"time"

	"github.com/postrider/postrider/services/ingress/internal/compose"
	law "github.com/postrider/postrider/services/ingress/internal/submission"
)

var update = flag.Bool("update", false, "write docs/openapi.json")

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestDocument keeps docs/openapi.json, which others generate clients from,
// equal to what the server publishes.
func TestDocument(t *testing.T) {
	doc, err := describe()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("..", "..", "..", "..", "docs", "openapi.json")
	if *update {
		write(t, file, string(doc.json))
	}
	committed, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(committed, doc.json) {
		t.Error("docs/openapi.json is out of date: go generate ./services/ingress/internal/httpd")
	}
}

// Whatever JSON comes, it is refused, or it becomes messages whose header
// sections have no field but ours and those asked for.
func FuzzJSON(f *testing.F) {
	f.Add([]byte(minimal))
	f.Add([]byte(`{"from":{"address":"a@example.com","name":"\u00fc"},"recipients":[{"address":"b@example.org","substitutions":{"n":"v"}}],"subject":"{{n}}","text":"{{n}}","html":"{{n}}","headers":[{"name":"X-A","value":"{{n}}"}],"attachments":[{"content":"eA==","content_type":"text/plain","filename":"a","content_id":"b"}],"notify":["delay"],"ret":"full","envid":"e","priority":1,"send_at":"2026-11-22T04:00:00Z","reply_to":[{"address":"c@example.com"}],"sender":{"address":"d@example.com"},"reverse_path":""}`))
	doc, err := describe()
	if err != nil {
		f.Fatal(err)
	}
	s := &Server{doc: doc, budget: newBudget(1 << 30)}
	now := time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := s.parse(text, roomy(s))
		if err != nil {
			wantProblem(t, err)
			return
		}
		c := &checker{ctx: t.Context(), m: m, now: now, maxRecipients: 10, memory: roomy(s)}
		drafts, err := c.check()
		if err != nil {
			wantProblem(t, err)
			return
		}
		for i := range drafts {
			d := &drafts[i]
			d.message.Date = now
			d.fill()
			ready := compose.Prepare(&d.message)
			content := ready.Append(nil)
			if len(content) > ready.Size() {
				t.Errorf("%d octets, at most %d were foretold: %q", len(content), ready.Size(), content)
			}
			parsed, err := netmail.ReadMessage(bytes.NewReader(content))
			if err != nil {
				t.Fatalf("%v: %q", err, content)
			}
			fields := 0
			for _, values := range parsed.Header {
				fields += len(values)
			}
			if most := 11 + len(d.message.Fields); fields > most {
				t.Errorf("%d fields, at most %d: %q", fields, most, content)
			}
			for line := range bytes.SplitSeq(content, []byte("\r\n")) {
				if len(line) > maxLine || bytes.ContainsAny(line, "\r\n\x00") {
					t.Errorf("malformed line %q", line)
				}
			}
			if from, err := parsed.Header.AddressList("From"); err != nil || len(from) != 1 {
				t.Errorf("From %v, %v in %q", from, err, content)
			}
		}
	})
}

func wantProblem(t *testing.T, err error) {
	t.Helper()
	var p *Problem
	if !errors.As(err, &p) || p.Status != 400 || len(p.Errors) == 0 {
		t.Errorf("got %v, want a problem with its place", err)
	}
}

// Whatever whole message comes, however it is cut, what passes has only CRLF
// and short lines, and nothing of it is lost.
func FuzzWholeMessage(f *testing.F) {
	f.Add([]byte("From: a@example.com\r\nBcc: b@c\r\n\r\nhello\r\n"))
	f.Add([]byte("From: a@example.com\r\n\r\nno end"))
	f.Add([]byte("Subject: x\r\n folded\r\nfrom : \"a b\"@example.com\r\nSender: b@example.com"))
	f.Fuzz(func(t *testing.T, text []byte) {
		in := &wholeMessage{in: bytes.NewReader(text)}
		all, err := io.ReadAll(in)
		slow, slowErr := io.ReadAll(&wholeMessage{in: iotest.OneByteReader(bytes.NewReader(text))})
		if (err == nil) != (slowErr == nil) || err == nil && !bytes.Equal(all, slow) {
			t.Fatalf("%q, %v in one go; %q, %v by octets", all, err, slow, slowErr)
		}
		if err != nil {
			wantProblem(t, err)
			return
		}
		if !bytes.Equal(all, text) && !bytes.Equal(all, append(bytes.Clone(text), "\r\n"...)) {
			t.Errorf("%q became %q", text, all)
		}
		h, err := law.Read(all, law.Rules{Authors: true, Complete: true})
		if err != nil {
			return
		}
		whole := append(h.AppendKept([]byte("X: y\r\n"), all), all[h.End:]...)
		if _, err := netmail.ReadMessage(bytes.NewReader(whole)); err != nil {
			t.Errorf("%v: %q", err, whole)
		}
	})
}

// roomy returns a share of the budget of a server.
func roomy(s *Server) *share {
	memory := s.budget.share(netip.Addr{})
	return &memory
}
