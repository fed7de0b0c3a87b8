package httpd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	netmail "net/mail"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/services/ingress/internal/access"
	"github.com/postrider/postrider/services/ingress/internal/commit"
)

// shelf keeps what it is given. It stands in for Postgres, which is too slow
// to be asked a million times; take_test.go has the real one.
type shelf struct {
	mu   sync.Mutex
	kept []*mail.Submission // guarded by mu
}

func (s *shelf) Accept(_ context.Context, group []*mail.Submission) error {
	for _, sub := range group {
		s.put(sub, sub.Content)
		for _, with := range sub.With {
			s.put(with, with.Content)
		}
	}
	return nil
}

func (s *shelf) AcceptStream(_ context.Context, sub *mail.Submission, content io.Reader) error {
	all, err := io.ReadAll(content)
	if err != nil {
		return fmt.Errorf("accept %s: %w", sub.ID, err)
	}
	s.put(sub, all)
	return nil
}

func (s *shelf) put(sub *mail.Submission, content []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := *sub
	kept.Content = bytes.Clone(content)
	s.kept = append(s.kept, &kept)
}

func (s *shelf) clear() []*mail.Submission {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.kept
	s.kept = nil
	return kept
}

func (s *shelf) PublishQueued(context.Context, []mail.QueuedMessage) error { return nil }

// everybody may send what they like.
type everybody struct{}

func (everybody) APIKey(context.Context, netip.Addr, string) (access.Identity, error) {
	id := access.Network()
	id.Tenant = "acme"
	return id, nil
}
func (everybody) Take(context.Context, access.Identity, int, int64) error { return nil }
func (everybody) GiveBack(access.Identity, int, int64)                    {}

// patient is a recorder whose connection never times out.
type patient struct{ *httptest.ResponseRecorder }

func (patient) SetReadDeadline(time.Time) error  { return nil }
func (patient) SetWriteDeadline(time.Time) error { return nil }

// Whatever body and query come to POST /v1/messages: a 202 names exactly the
// messages that are stored, everything else stores nothing and is a problem
// of the client's that says so; what is stored is a valid message for the
// recipients that were given, and has no field that nobody asked for.
func FuzzRequest(f *testing.F) {
	f.Add(minimal, "", false, byte(0))
	f.Add(`{"from":{"address":"a@example.com"},"recipients":[{"address":"b@example.org","substitutions":{"n":"v\r\nBcc: x@y"}},{"address":"c@example.org"}],"subject":"{{n}}","text":"{{n}}"}`, "", false, byte(1))
	f.Add(`{"from":{"address":"a@example.com\r\nX: y"},"recipients":[],"subject":"\u000d\u000aBcc: e@x"}`, "", false, byte(1))
	f.Add("From: a@example.com\r\nSubject: x\r\n\r\n.\r\nhello\r\n", "to=b@example.org&to=c@example.org", true, byte(0))
	f.Add("From: a@example.com\nBcc: z@example.org\n\nbare\n", "to=b@example.org&reverse_path=&notify=never", true, byte(1))
	f.Add("From: a@example.com\r\nBcc: z@example.org\r\n\r\n8 bit \xff", "to=b@example.org%0d%0aX&envid=%0d&priority=9&send_at=x", true, byte(3))
	kept := &shelf{}
	committer := commit.New(kept, kept, time.Minute, 2)
	server, err := New(testConfig(), committer, everybody{}, openSpool(f))
	if err != nil {
		f.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- committer.Run(ctx) }()
	f.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			f.Error(err)
		}
	})
	routes := server.routes()
	filler := strings.Repeat(strings.Repeat("x", 70)+"\r\n", largeContent/72+1)

	f.Fuzz(func(t *testing.T, body, query string, raw bool, how byte) {
		kind := jsonType
		if raw {
			kind = rawType
			if how%64 == 3 { // rarely, for it takes long
				body += filler
			}
		}
		var in io.Reader = strings.NewReader(body)
		if how%2 == 1 && len(body) < 10_000 {
			in = iotest.OneByteReader(in)
		}
		r := httptest.NewRequest(http.MethodPost, path, in)
		r.URL.RawQuery = query
		r.Header.Set("Content-Type", kind)
		r.Header.Set("Authorization", "Bearer x")
		recorder := httptest.NewRecorder()
		routes.ServeHTTP(patient{recorder}, r)
		stored := kept.clear()
		if held := server.budget.Used(); held != 0 {
			t.Fatalf("%d bytes are held", held)
		}
		if recorder.Code != http.StatusAccepted {
			var p Problem
			err := json.Unmarshal(recorder.Body.Bytes(), &p)
			if err != nil || recorder.Code < 400 || recorder.Code > 499 || p.Status != recorder.Code || p.Detail == "" {
				t.Errorf("%d %s: %v", recorder.Code, recorder.Body, err)
			}
			if len(stored) > 0 {
				t.Errorf("%d messages are stored, and the client hears %s", len(stored), recorder.Body)
			}
			return
		}
		var receipt Receipt
		if err := json.Unmarshal(recorder.Body.Bytes(), &receipt); err != nil || len(receipt.Messages) != len(stored) {
			t.Fatalf("%v: %s for %d messages", err, recorder.Body, len(stored))
		}
		for i, sub := range stored {
			var recipients []string
			for _, r := range sub.Recipients {
				recipients = append(recipients, string(r.ForwardPath))
			}
			if is := receipt.Messages[i]; is.ID != sub.ID.String() || is.MessageID != sub.HeaderID || !slices.Equal(is.Recipients, recipients) || len(recipients) == 0 {
				t.Errorf("told %+v, stored %s %s %q", is, sub.ID, sub.HeaderID, recipients)
			}
			wantValid(t, sub)
		}
	})
}

// wantValid looks at a stored message as the next host will.
func wantValid(t *testing.T, sub *mail.Submission) {
	t.Helper()
	parsed, err := netmail.ReadMessage(bytes.NewReader(sub.Content))
	if err != nil {
		t.Errorf("%v: %q", err, sub.Content)
		return
	}
	for line := range bytes.SplitSeq(sub.Content, []byte("\r\n")) {
		if len(line) > maxLine || bytes.ContainsAny(line, "\r\n") {
			t.Errorf("malformed line %.1200q", line)
		}
	}
	if parsed.Header.Get("Bcc") != "" || len(parsed.Header["From"]) != 1 || len(parsed.Header["Message-Id"]) != 1 || len(parsed.Header["Date"]) != 1 {
		t.Errorf("fields %v of %.2000q", parsed.Header, sub.Content)
	}
	if int64(len(sub.Content)) > sub.SizeBytes {
		t.Errorf("%d octets, said to be %d", len(sub.Content), sub.SizeBytes)
	}
	for _, r := range sub.Recipients {
		if strings.ContainsAny(string(r.ForwardPath)+string(sub.Envelope.ReversePath)+sub.Envelope.EnvID+r.ORCPT, "\r\n\x00") {
			t.Errorf("envelope %+v, %+v", sub.Envelope, r)
		}
	}
}
