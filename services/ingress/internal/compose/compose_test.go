package compose

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	message "github.com/emersion/go-message/mail"
)

var date = time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)

// leaf is a part as a reader sees it.
type leaf struct {
	mediaType string
	header    map[string][]string
	content   string
}

// read parses content with the standard library and returns the leaves and
// the shape of the tree.
func read(t *testing.T, content []byte) (*mail.Message, []leaf, string) {
	t.Helper()
	for line := range bytes.SplitSeq(content, []byte("\r\n")) {
		if len(line) > maxLine || bytes.ContainsAny(line, "\r\n\x00") {
			t.Errorf("line of %d octets: %.100q", len(line), line)
		}
	}
	if !bytes.HasSuffix(content, []byte("\r\n")) {
		t.Errorf("no CRLF at the end: %.100q", content[max(0, len(content)-100):])
	}
	m, err := mail.ReadMessage(bytes.NewReader(content))
	if err != nil {
		t.Fatalf("%v in %.500q", err, content)
	}
	var leaves []leaf
	shape := walk(t, m.Header, m.Body, &leaves)
	return m, leaves, shape
}

func walk(t *testing.T, header map[string][]string, body io.Reader, leaves *[]leaf) string {
	t.Helper()
	mediaType, parameters, err := mime.ParseMediaType(header["Content-Type"][0])
	if err != nil {
		t.Fatal(err)
	}
	if kind, is := strings.CutPrefix(mediaType, "multipart/"); is {
		var inside []string
		r := multipart.NewReader(body, parameters["boundary"])
		for {
			p, err := r.NextRawPart()
			if errors.Is(err, io.EOF) {
				return kind + "(" + strings.Join(inside, " ") + ")"
			}
			if err != nil {
				t.Fatal(err)
			}
			inside = append(inside, walk(t, p.Header, p, leaves))
		}
	}
	switch header["Content-Transfer-Encoding"][0] {
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	}
	all, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	*leaves = append(*leaves, leaf{mediaType, header, string(all)})
	return mediaType
}

func ptr(s string) *string { return &s }

func TestShape(t *testing.T) {
	png := File{Name: "a.png", MediaType: "image/png", ContentID: "1@x", Content: []byte("png")}
	pdf := File{Name: "r\u00e9sum\u00e9 \"1\".pdf", MediaType: "application/pdf", Content: bytes.Repeat([]byte{0, 255, '\n'}, 1000)}
	for _, c := range []struct {
		name  string
		m     Message
		shape string
	}{
		{"empty", Message{}, "text/plain"},
		{"text", Message{Text: ptr("x")}, "text/plain"},
		{"html", Message{HTML: ptr("x")}, "text/html"},
		{"both", Message{Text: ptr("x"), HTML: ptr("y")}, "alternative(text/plain text/html)"},
		{"inline", Message{HTML: ptr("y"), Files: []File{png}}, "related(text/html image/png)"},
		{"inline without html", Message{Text: ptr("y"), Files: []File{png}}, "mixed(text/plain image/png)"},
		{"all", Message{Text: ptr("x"), HTML: ptr("y"), Files: []File{pdf, png, pdf}},
			"mixed(alternative(text/plain related(text/html image/png)) application/pdf application/pdf)"},
		{"file only", Message{Files: []File{pdf}}, "mixed(text/plain application/pdf)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.m.From, c.m.Date = Mailbox{Address: "a@example.com"}, date
			content := Prepare(&c.m).Append(nil)
			_, leaves, shape := read(t, content)
			if shape != c.shape {
				t.Errorf("got %s, want %s", shape, c.shape)
			}
			for _, l := range leaves {
				if l.mediaType != "application/pdf" {
					continue
				}
				_, parameters, err := mime.ParseMediaType(l.header["Content-Disposition"][0])
				if err != nil || parameters["filename"] != pdf.Name || l.content != string(pdf.Content) {
					t.Errorf("file %v, %v, %d octets", parameters, err, len(l.content))
				}
			}
			// A second reader, which is not of the standard library.
			r, err := message.CreateReader(bytes.NewReader(content))
			if err != nil {
				t.Fatal(err)
			}
			parts := 0
			for {
				p, err := r.NextPart()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, p.Body); err != nil {
					t.Fatal(err)
				}
				parts++
			}
			if parts != len(leaves) {
				t.Errorf("go-message sees %d parts, want %d", parts, len(leaves))
			}
		})
	}
}

func TestTexts(t *testing.T) {
	for _, c := range []struct{ name, text, encoding, want string }{
		{"ascii", "a\nb\r\nc\rd", "7bit", "a\r\nb\r\nc\r\nd\r\n"},
		{"dots", ".\n..\nFrom x", "7bit", ".\r\n..\r\nFrom x\r\n"},
		{"empty", "", "7bit", "\r\n"},
		{"accents", "Gr\u00fc\u00dfe aus K\u00f6ln, und trailing \n", "quoted-printable", "Gr\u00fc\u00dfe aus K\u00f6ln, und trailing \r\n"},
		{"long line", strings.Repeat("a b", 700), "quoted-printable", strings.Repeat("a b", 700) + "\r\n"},
		{"japanese", "\u3053\u3093\u306b\u3061\u306f\n", "base64", "\u3053\u3093\u306b\u3061\u306f\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, leaves, _ := read(t, Prepare(&Message{From: Mailbox{Address: "a@example.com"}, Date: date, Text: &c.text}).Append(nil))
			if l := leaves[0]; l.content != c.want || l.header["Content-Transfer-Encoding"][0] != c.encoding {
				t.Errorf("got %q in %v, want %q in %s", l.content, l.header["Content-Transfer-Encoding"], c.want, c.encoding)
			}
		})
	}
}

func TestHeader(t *testing.T) {
	to := make([]Mailbox, 50)
	for i := range to {
		to[i] = Mailbox{Name: "Doe, J\u00fcrgen \u201cthe man\u201d", Address: "j.doe@example.org"}
	}
	m := &Message{
		Date: date, MessageID: "<1@example.com>",
		From:    Mailbox{Name: `Ann "A" B\C`, Address: "ann@example.com"},
		Sender:  &Mailbox{Name: "Robot One", Address: `"a b"@example.com`},
		ReplyTo: []Mailbox{{Address: "j\u00fcrgen@example.com"}},
		To:      to,
		Subject: "Pr\u00fcfung " + strings.Repeat("\U0001f680", 60) + " =?end",
		Fields: []Field{
			{"X-Long", strings.Repeat("word ", 100) + "end"},
			{"List-Unsubscribe", "<https://example.com/?a=?b>, <mailto:u@example.com>"},
			{"X-Spaces", "a   b  " + strings.Repeat("c", 80) + "  d"},
		},
	}
	content := Prepare(m).Append(nil)
	parsed, _, _ := read(t, content)
	decode := func(name string) string {
		text, err := new(mime.WordDecoder).DecodeHeader(parsed.Header.Get(name))
		if err != nil {
			t.Error(err)
		}
		return text
	}
	for name, want := range map[string]string{
		"Subject": m.Subject, "X-Long": m.Fields[0].Value, "List-Unsubscribe": m.Fields[1].Value, "X-Spaces": m.Fields[2].Value,
		"Message-ID": "<1@example.com>", "Date": "Sun, 22 Nov 2026 04:00:00 +0000",
	} {
		if got := decode(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	from, err := parsed.Header.AddressList("From")
	if err != nil || len(from) != 1 || from[0].Name != m.From.Name || from[0].Address != m.From.Address {
		t.Errorf("From: %v, %v", from, err)
	}
	if box, err := parsed.Header.AddressList("Reply-To"); err != nil || box[0].Address != m.ReplyTo[0].Address {
		t.Errorf("Reply-To: %v, %v", box, err)
	}
	boxes, err := parsed.Header.AddressList("To")
	if err != nil || len(boxes) != len(to) {
		t.Fatalf("%d in To, %v", len(boxes), err)
	}
	for _, b := range boxes {
		if b.Name != to[0].Name {
			t.Fatalf("name %q", b.Name)
		}
	}
	header, _, _ := bytes.Cut(content, []byte("\r\n\r\n"))
	for line := range bytes.SplitSeq(header, []byte("\r\n")) {
		if len(line) > foldAt+60 || len(bytes.TrimSpace(line)) == 0 {
			t.Errorf("line of %d octets: %q", len(line), line)
		}
	}
}

var lineEnds = strings.NewReplacer("\r\n", "\r\n", "\r", "\r\n", "\n", "\r\n")

// Whatever the texts are, a reader gets them back, and no line is malformed.
func FuzzCompose(f *testing.F) {
	f.Add("Subject", "Ann", "text", "<p>html</p>", "file.txt", "value")
	f.Add("=?utf-8?q?a?=", "\u00fc \"", "a\r\n.\r\n\rb", "\u3042", "\u00fc;.txt", strings.Repeat("x ", 500))
	f.Fuzz(func(t *testing.T, subject, name, text, html, file, value string) {
		for _, s := range []string{subject, name, file, value} {
			// The caller refuses these.
			if !utf8.ValidString(s) || len(s) > 900 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) || strings.TrimSpace(s) != s || s == "" {
				return
			}
		}
		if !utf8.ValidString(text+html) || strings.ContainsRune(text+html, 0) {
			return
		}
		m := &Message{
			Date: date, From: Mailbox{Name: name, Address: "a@example.com"}, Subject: subject, Fields: []Field{{"X-F", value}},
			Text: &text, HTML: &html, Files: []File{{Name: file, MediaType: "text/x", Content: []byte(text)}},
		}
		ready := Prepare(m)
		content := ready.Append(nil)
		if size := ready.Size(); len(content) > size || size > 4*len(content)+4096 {
			t.Errorf("%d octets, and %d were foretold", len(content), size)
		}
		parsed, leaves, _ := read(t, content)
		if got, err := new(mime.WordDecoder).DecodeHeader(parsed.Header.Get("Subject")); err != nil || got != subject {
			t.Errorf("Subject %q, %v, want %q", got, err, subject)
		}
		if from, err := parsed.Header.AddressList("From"); err != nil || from[0].Name != name {
			t.Errorf("From %v, %v, want %q", from, err, name)
		}
		for i, want := range []string{text, html} {
			want = lineEnds.Replace(want)
			if !strings.HasSuffix(want, "\r\n") && leaves[i].content != want {
				want += "\r\n"
			}
			if leaves[i].content != want {
				t.Errorf("part %d: %q, want %q", i, leaves[i].content, want)
			}
		}
		if leaves[2].content != text {
			t.Errorf("file %q, want %q", leaves[2].content, text)
		}
	})
}
