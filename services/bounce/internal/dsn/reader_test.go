package dsn

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	netmail "net/mail"
	"net/textproto"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset"

	"github.com/postrider/postrider/pkg/mail"
)

// readPart is a body part as a reader that is not ours sees it.
type readPart struct {
	contentType string
	body        []byte // decoded
}

// read reads a report with net/mail and mime/multipart, and again with
// go-message, and demands that both see the same.
func read(t testing.TB, content []byte) (netmail.Header, []readPart) {
	t.Helper()
	m, err := netmail.ReadMessage(bytes.NewReader(content))
	if err != nil {
		t.Fatalf("net/mail: %v", err)
	}
	typ, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || typ != "multipart/report" || params["report-type"] != "delivery-status" {
		t.Fatalf("Content-Type is %s %v (%v), want multipart/report; report-type=delivery-status", typ, params, err)
	}
	var parts []readPart
	reader := multipart.NewReader(m.Body, params["boundary"])
	for {
		p, err := reader.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("mime/multipart: %v", err)
		}
		var body io.Reader = p
		if p.Header.Get("Content-Transfer-Encoding") == "quoted-printable" {
			body = quotedprintable.NewReader(p)
		}
		decoded, err := io.ReadAll(body)
		if err != nil {
			t.Fatalf("part %d: %v", len(parts), err)
		}
		typ, _, err := mime.ParseMediaType(p.Header.Get("Content-Type"))
		if err != nil {
			t.Fatalf("part %d: %v", len(parts), err)
		}
		parts = append(parts, readPart{typ, decoded})
	}

	entity, err := message.Read(bytes.NewReader(content))
	if err != nil {
		t.Fatalf("go-message: %v", err)
	}
	other := entity.MultipartReader()
	for i, want := range parts {
		p, err := other.NextPart()
		if err != nil {
			t.Fatalf("go-message, part %d: %v", i, err)
		}
		if typ, _, err := p.Header.ContentType(); err != nil || typ != want.contentType {
			t.Fatalf("go-message, part %d: type %s (%v), want %s", i, typ, err, want.contentType)
		}
		body, err := io.ReadAll(p.Body)
		if err != nil {
			t.Fatalf("go-message, part %d: %v", i, err)
		}
		if !bytes.Equal(body, want.body) {
			t.Fatalf("go-message, part %d:\n%q\nwant\n%q", i, body, want.body)
		}
	}
	if _, err := other.NextPart(); !errors.Is(err, io.EOF) {
		t.Fatalf("go-message sees more than %d parts (%v)", len(parts), err)
	}
	return m.Header, parts
}

// headerFields are all fields that a report may have.
var headerFields = map[string]bool{
	"Date": true, "From": true, "To": true, "Subject": true, "Message-Id": true, "In-Reply-To": true, "References": true,
	"Auto-Submitted": true, "Mime-Version": true, "Content-Type": true, "Content-Transfer-Encoding": true,
}

// check reads a report back and compares all that a machine can see in it
// with what it was made from.
func check(t testing.TB, r *Report, c Composed) {
	t.Helper()
	wire(t, c)
	header, parts := read(t, c.Content)
	for name, values := range header {
		if !headerFields[name] || len(values) != 1 {
			t.Errorf("field %s: %d times %q", name, len(values), values)
		}
	}
	from, err := header.AddressList("From")
	if err != nil || from[0].Address != "MAILER-DAEMON@"+r.Hostname {
		t.Errorf("From: %v (%v)", from, err)
	}
	if got := header.Get("Auto-Submitted"); got != "auto-replied" {
		t.Errorf("Auto-Submitted: %q", got)
	}
	if got := header.Get("Message-Id"); got != c.HeaderID {
		t.Errorf("Message-ID: %q, want %q", got, c.HeaderID)
	}
	if at, err := header.Date(); err != nil || !at.Equal(r.Date) {
		t.Errorf("Date: %v (%v), want %v", at, err, r.Date)
	}
	if header.Get("In-Reply-To") != header.Get("References") {
		t.Errorf("In-Reply-To %q, References %q", header.Get("In-Reply-To"), header.Get("References"))
	}

	if len(parts) < 2 || len(parts) > 3 {
		t.Fatalf("%d parts, want 2 or 3", len(parts))
	}
	if parts[0].contentType != "text/plain" || !utf8.Valid(parts[0].body) {
		t.Errorf("text part: %s, valid UTF-8 %t", parts[0].contentType, utf8.Valid(parts[0].body))
	}
	checkStatus(t, r, parts[1])
	if len(parts) == 2 {
		if len(headerSection(r.Content)) > 0 && !r.Original.Envelope.RequireTLS { // RFC 8689 §5
			t.Error("the original header section is missing")
		}
		return
	}
	if r.Original.Envelope.RequireTLS {
		t.Error("RFC 8689 §5: something of the original is returned")
	}
	returned := parts[2].body
	if len(lines(returned)) > MaxReturned {
		t.Errorf("%d bytes of the original are returned, want at most %d", len(returned), MaxReturned)
	}
	// A lone CR or LF becomes a line ending: no other difference is allowed.
	if !bytes.HasPrefix(lines(r.Content), lines(returned)) {
		t.Errorf("what is returned is not the beginning of the original:\n%q", returned)
	}
}

func lines(b []byte) []byte {
	b = bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	return bytes.ReplaceAll(b, []byte("\r"), []byte("\n"))
}

// wire checks what RFC 5321 and the envelope demand of the whole.
func wire(t testing.TB, c Composed) {
	t.Helper()
	if w := widthOf(c.Content); w == binary || (w == eightBit && c.Body != mail.Body8BitMIME) {
		t.Errorf("content of width %d is sent as %s", w, c.Body)
	}
	head, _, _ := bytes.Cut(c.Content, []byte("\r\n\r\n"))
	if !c.SMTPUTF8 && widthOf(head) != sevenBit {
		t.Errorf("UTF-8 in a header section without SMTPUTF8:\n%s", head)
	}
}

// checkStatus reads message/delivery-status with net/textproto.
func checkStatus(t testing.TB, r *Report, p readPart) {
	t.Helper()
	want := "message/delivery-status"
	if r.international() {
		want = "message/global-delivery-status"
	}
	if p.contentType != want {
		t.Errorf("status part: %s, want %s", p.contentType, want)
	}
	reader := textproto.NewReader(bufio.NewReader(bytes.NewReader(append(p.body, "\r\n"...))))
	next := func() textproto.MIMEHeader {
		fields, err := reader.ReadMIMEHeader()
		if err != nil {
			t.Fatalf("status part: %v\n%s", err, p.body)
		}
		for name, values := range fields {
			if len(values) != 1 {
				t.Errorf("status part: %s stands %d times", name, len(values))
			}
		}
		return fields
	}
	equal := func(fields textproto.MIMEHeader, name, want string) {
		t.Helper()
		if got := fields.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}

	whole := next()
	equal(whole, "Reporting-Mta", "dns; "+r.Hostname)
	equal(whole, "Arrival-Date", date(r.Original.AcceptedAt))
	for i := range r.Recipients {
		rcpt := &r.Recipients[i]
		fields := next()
		for name := range fields {
			switch name {
			case "Original-Recipient", "Final-Recipient", "Action", "Status", "Remote-Mta", "Diagnostic-Code", "Last-Attempt-Date", "Will-Retry-Until":
			default:
				t.Errorf("recipient %d: unknown field %s", i, name)
			}
		}
		typ, address, _ := strings.Cut(fields.Get("Final-Recipient"), ";")
		if (typ == "utf-8") == isASCII(address) || (typ != "utf-8" && typ != "rfc822") {
			t.Errorf("Final-Recipient: type %s of %q", typ, address)
		}
		equal(fields, "Action", rcpt.action())
		equal(fields, "Status", r.writer().statusOf(rcpt).String())
		if (fields.Get("Will-Retry-Until") != "") != (rcpt.Action == mail.Delayed && !rcpt.ExpiresAt.IsZero()) {
			t.Errorf("action %s with Will-Retry-Until %q", rcpt.Action, fields.Get("Will-Retry-Until"))
		}
		if diagnostic := fields.Get("Diagnostic-Code"); diagnostic != "" && (rcpt.Reply.Code != 0) != strings.HasPrefix(diagnostic, "smtp; ") {
			t.Errorf("reply %d with Diagnostic-Code %q", rcpt.Reply.Code, diagnostic)
		}
	}
	if rest, err := io.ReadAll(reader.R); err != nil || len(rest) > 0 {
		t.Errorf("status part: %q follows the last recipient (%v)", rest, err)
	}
}

// The text a person reads holds the remote host's own words, whatever their
// script; the status part has them back when its encoded-words are decoded.
func TestRemoteWordsSurvive(t *testing.T) {
	words := "Benutzer unbekannt: kein Empfänger dieses Namens"
	r := plain(t)
	r.Recipients[0].Reply = reply(550, "5.1.1", words)
	_, parts := read(t, r.Compose().Content)
	if text := strings.Join(strings.Fields(string(parts[0].body)), " "); !strings.Contains(text, words) {
		t.Errorf("text part lacks %q:\n%s", words, text)
	}
	fields, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(parts[1].body[bytes.Index(parts[1].body, []byte("Final-")):]))).ReadMIMEHeader()
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	got, err := new(mime.WordDecoder).DecodeHeader(fields.Get("Diagnostic-Code"))
	if want := "smtp; 550 5.1.1 " + words + " (in reply to RCPT command)"; err != nil || got != want {
		t.Errorf("Diagnostic-Code decodes to %q (%v), want %q", got, err, want)
	}
}

func FuzzOutsideText(f *testing.F) {
	f.Add("No such user", "mx1.remote.example", "Subject: hi\r\n\r\nbody", "<a@b.example>", "order 17", "rfc822;bob@x.example", "bob@x.example", "alice@y.example", uint8(0))
	f.Add("no\r\n\r\n--x\x00\xff", "a\r\nb", "S: \xfc\r\n"+strings.Repeat("y", 1200), "<a@b>\r\nBcc: x", "\r\n", "x;\r\n\r\n.", "用户@例子.example", "発信者@例え.example", uint8(7))
	f.Fuzz(func(t *testing.T, said, host, content, headerID, envID, orcpt, forwardPath, reversePath string, mix uint8) {
		// A real id is fresh, so that no input can hold the boundary.
		id := mail.NewQueueID()
		actions := []mail.Action{mail.Failed, mail.Delayed, mail.Relayed, mail.Expired}
		r := &Report{
			ID: id, Hostname: "mx.postrider.example", Date: attempted, HeaderID: headerID, Content: []byte(content),
			Original: mail.Message{ID: id, AcceptedAt: accepted, SizeBytes: int64(len(content)), Envelope: mail.Envelope{
				ReversePath: mail.ReversePath(reversePath), EnvID: envID, SMTPUTF8: mix&4 != 0,
			}},
		}
		if mix&8 != 0 {
			r.Original.Envelope.Ret = mail.RetFull
		}
		code := 0
		if mix&16 != 0 {
			code = 550
		}
		for i := range 2 {
			r.Recipients = append(r.Recipients, Recipient{
				Recipient: mail.Recipient{No: int32(i + 1), ForwardPath: mail.ForwardPath(forwardPath), ORCPT: orcpt, ExpiresAt: expires},
				Action:    actions[(int(mix)+i)%len(actions)],
				Reply:     mail.Reply{Code: code, Lines: strings.Split(said, "\n")},
				Host:      host, LastAttemptAt: time.Unix(int64(mix), 0),
			})
		}
		check(t, r, r.Compose())
	})
}
