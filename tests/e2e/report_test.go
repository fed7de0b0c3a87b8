package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"net/textproto"
	"slices"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/smtptest"
)

// report is a DSN, read by the standard library: RFC 3464.
type report struct {
	header     mail.Header
	human      string
	message    textproto.MIMEHeader   // per-message fields
	recipients []textproto.MIMEHeader // per-recipient fields
	returned   string                 // third part
	kind       string                 // its type
}

// parseReport reads a DSN strictly, and checks what all DSNs have in common.
func parseReport(t *testing.T, got smtptest.Transaction, to string) report {
	t.Helper()
	if got.ReversePath != "" {
		t.Errorf("reverse-path of the report is %q, want null: RFC 3464 §2", got.ReversePath)
	}
	if paths := got.Accepted(); len(paths) != 1 || paths[0] != to {
		t.Errorf("the report went to %v, want %s", paths, to)
	}
	m, err := mail.ReadMessage(bytes.NewReader(got.Content))
	if err != nil {
		t.Fatalf("report: %v\n%s", err, got.Content)
	}
	r := report{header: m.Header}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" || params["report-type"] != "delivery-status" {
		t.Fatalf("Content-Type is %q (%v)", m.Header.Get("Content-Type"), err)
	}
	for _, name := range []string{"From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Auto-Submitted"} {
		if m.Header.Get(name) == "" {
			t.Errorf("the report has no %s field", name)
		}
	}
	if to, err := mail.ParseAddress(m.Header.Get("To")); err != nil || to.Address != got.Recipients[0].Path {
		t.Errorf("To is %q (%v)", m.Header.Get("To"), err)
	}
	parts := multipart.NewReader(m.Body, params["boundary"])
	for i := range 3 {
		p, err := parts.NextRawPart()
		if err != nil {
			t.Fatalf("part %d: %v\n%s", i+1, err, got.Content)
		}
		text, err := io.ReadAll(p)
		if err != nil {
			t.Fatalf("part %d: %v\n%s", i+1, err, got.Content)
		}
		kind, _, err := mime.ParseMediaType(p.Header.Get("Content-Type"))
		if err != nil {
			t.Fatalf("part %d: Content-Type %q: %v", i+1, p.Header.Get("Content-Type"), err)
		}
		switch {
		case i == 0 && kind == "text/plain":
			r.human = string(text)
		case i == 1 && kind == "message/delivery-status":
			r.readStatus(t, text)
		case i == 2 && (kind == "text/rfc822-headers" || kind == "message/rfc822"):
			r.returned, r.kind = string(text), kind
		default:
			t.Errorf("part %d is %s", i+1, kind)
		}
	}
	if _, err := parts.NextRawPart(); err != io.EOF {
		t.Errorf("after the third part: %v, want the end", err)
	}
	if !strings.HasPrefix(r.message.Get("Reporting-MTA"), "dns; mta.postrider.test") && r.message.Get("Reporting-MTA") != "dns;mta.postrider.test" {
		t.Errorf("Reporting-MTA is %q", r.message.Get("Reporting-MTA"))
	}
	return r
}

// readStatus reads the groups of fields: RFC 3464 §2.1.
func (r *report) readStatus(t *testing.T, text []byte) {
	t.Helper()
	in := textproto.NewReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		group, err := in.ReadMIMEHeader()
		if len(group) > 0 {
			if r.message == nil {
				r.message = group
			} else {
				r.recipients = append(r.recipients, group)
			}
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("delivery-status: %v\n%s", err, text)
		}
	}
}

// wantRecipients checks that the report is about these recipients, with one
// action, and that its text names them.
func (r report) wantRecipients(t *testing.T, action string, paths ...string) {
	t.Helper()
	var got []string
	for _, f := range r.recipients {
		kind, path, ok := strings.Cut(f.Get("Final-Recipient"), ";")
		if !ok || !strings.EqualFold(strings.TrimSpace(kind), "rfc822") {
			t.Errorf("Final-Recipient is %q", f.Get("Final-Recipient"))
		}
		got = append(got, strings.TrimSpace(path))
		if f.Get("Action") != action {
			t.Errorf("Action for %s is %q, want %s", path, f.Get("Action"), action)
		}
		if s := f.Get("Status"); (action == "failed" && !strings.HasPrefix(s, "5.") && !strings.HasPrefix(s, "4.4.7")) ||
			(action == "delayed" && !strings.HasPrefix(s, "4.")) {
			t.Errorf("Status of %s with action %s is %q", path, action, s)
		}
		if !strings.Contains(r.human, strings.TrimSpace(path)) {
			t.Errorf("the text does not name %s:\n%s", path, r.human)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, slices.Sorted(slices.Values(paths))) {
		t.Errorf("the report is about %v, want %v", got, paths)
	}
}

// wantReturned checks that the header section of the message came back.
func (r report) wantReturned(t *testing.T, subject string) {
	t.Helper()
	m, err := mail.ReadMessage(strings.NewReader(r.returned + "\r\n"))
	if err != nil {
		t.Fatalf("returned header section: %v\n%s", err, r.returned)
	}
	if m.Header.Get("Subject") != subject {
		t.Errorf("the returned Subject is %q, want %q", m.Header.Get("Subject"), subject)
	}
	if r.kind == "text/rfc822-headers" && strings.Contains(r.returned, "leading dots") {
		t.Error("the body came back in text/rfc822-headers")
	}
}
