package sevenbit

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// convert scans and converts.
func convert(t interface{ Fatal(...any) }, content string) (string, *Plan) {
	plan, err := Scan(strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := plan.Convert(&out, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	return out.String(), plan
}

// leaves reads a message with Go's own MIME readers: each body with its type.
func leaves(content string) ([]string, error) {
	m, err := mail.ReadMessage(strings.NewReader(content))
	if err != nil {
		return nil, err
	}
	return leavesOf(m.Header.Get("Content-Type"), m.Header.Get("Content-Transfer-Encoding"), m.Body)
}

func leavesOf(contentType, encoding string, body io.Reader) ([]string, error) {
	types, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		types = "text/plain"
	}
	switch {
	case strings.HasPrefix(types, "multipart/"):
		r := multipart.NewReader(body, params["boundary"])
		var all []string
		for {
			p, err := r.NextRawPart()
			if errors.Is(err, io.EOF) {
				return all, nil
			}
			if err != nil {
				return nil, err
			}
			part, err := leavesOf(p.Header.Get("Content-Type"), p.Header.Get("Content-Transfer-Encoding"), p)
			if err != nil {
				return nil, err
			}
			all = append(all, part...)
		}
	case types == "message/rfc822":
		content, err := io.ReadAll(body)
		if err != nil {
			return nil, err
		}
		return leaves(string(content))
	}
	switch strings.ToLower(encoding) {
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	}
	content, err := io.ReadAll(body)
	return []string{types + " " + string(content)}, err
}

// check7Bit complains of what a host without 8BITMIME may not be sent.
func check7Bit(t interface{ Errorf(string, ...any) }, content string) {
	if high([]byte(content)) > 0 {
		t.Errorf("octets over 127 in %q", content)
	}
	for line := range strings.SplitSeq(content, "\r\n") {
		if len(line) > maxLineOctets || strings.ContainsAny(line, "\r\n\x00") {
			t.Errorf("line of %d octets, or with a bare CR, LF or NUL: %.200q", len(line), line)
		}
	}
}

func lines(l ...string) string { return strings.Join(l, "\r\n") + "\r\n" }

func TestConvert(t *testing.T) {
	for name, c := range map[string]struct{ content, want string }{
		"text, labelled 8bit": {
			lines("MIME-Version: 1.0", "Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: 8bit", "Subject: x", "", "Grüße", "a = b ", "--", "."),
			lines("MIME-Version: 1.0", "Content-Type: text/plain; charset=utf-8", "Subject: x", "Content-Transfer-Encoding: quoted-printable", "",
				"Gr=C3=BC=C3=9Fe", "a =3D b=20", "=2D-", "."),
		},
		"no MIME at all, UTF-8": {
			lines("Subject: x", "", "Grüße, und noch viel mehr Text"),
			lines("Subject: x", "MIME-Version: 1.0", "Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: quoted-printable", "",
				"Gr=C3=BC=C3=9Fe, und noch viel mehr Text"),
		},
		"no MIME at all, Latin-1": {
			lines("Subject: x", "", "Gr\xfc\xdfe, und noch viel mehr Text"),
			lines("Subject: x", "MIME-Version: 1.0", "Content-Type: text/plain; charset=unknown-8bit", "Content-Transfer-Encoding: quoted-printable", "",
				"Gr=FC=DFe, und noch viel mehr Text"),
		},
		"mostly not ASCII": {
			lines("MIME-Version: 1.0", "Content-Type: text/plain; charset=utf-8", "", "日本語日本語"),
			lines("MIME-Version: 1.0", "Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: base64", "", "5pel5pys6Kqe5pel5pys6KqeDQo="),
		},
		"a field over several lines goes as a whole": {
			lines("MIME-Version: 1.0", "Content-Transfer-Encoding:", " (as it is)", "\t8bit", "Content-Type: text/plain", "", "ä b c d e f g h"),
			lines("MIME-Version: 1.0", "Content-Type: text/plain", "Content-Transfer-Encoding: quoted-printable", "", "=C3=A4 b c d e f g h"),
		},
		"ASCII, labelled 8bit": {
			lines("MIME-Version: 1.0", "Content-Transfer-Encoding: 8BIT", "", "abc"),
			lines("MIME-Version: 1.0", "Content-Transfer-Encoding: 7bit", "", "abc"),
		},
		"parts": {
			lines("MIME-Version: 1.0", "Content-Type: multipart/mixed; boundary=\"b b\"", "Content-Transfer-Encoding: 8bit", "", "préamble",
				"--b b", "", "plain", "--b b", "Content-Type: text/html", "Content-Transfer-Encoding: 8bit", "", "<p>naïve and some more</p>",
				"--b b", "Content-Type: image/x; name=a", "Content-Transfer-Encoding: binary", "", "\x00\xff\r\n\n",
				"--b b--", "épilogue"),
			lines("MIME-Version: 1.0", "Content-Type: multipart/mixed; boundary=\"b b\"", "Content-Transfer-Encoding: 7bit", "", "pr??amble",
				"--b b", "", "plain", "--b b", "Content-Type: text/html", "Content-Transfer-Encoding: quoted-printable", "", "<p>na=C3=AFve and some more</p>",
				"--b b", "Content-Type: image/x; name=a", "Content-Transfer-Encoding: base64", "", "AP8NCgo=",
				"--b b--", "??pilogue"),
		},
		"a message in a message": {
			lines("MIME-Version: 1.0", "Content-Type: multipart/mixed; boundary=o", "", "--o", "Content-Type: message/rfc822", "Content-Transfer-Encoding: 8bit", "",
				"Subject: inner", "Content-Type: multipart/alternative; boundary=i", "", "--i", "Content-Type: text/plain; charset=utf-8", "", "crème brûlée, please", "--i--", "--o--"),
			lines("MIME-Version: 1.0", "Content-Type: multipart/mixed; boundary=o", "", "--o", "Content-Type: message/rfc822", "Content-Transfer-Encoding: 7bit", "",
				"Subject: inner", "Content-Type: multipart/alternative; boundary=i", "", "--i", "Content-Type: text/plain; charset=utf-8",
				"Content-Transfer-Encoding: quoted-printable", "", "cr=C3=A8me br=C3=BBl=C3=A9e, please", "--i--", "--o--"),
		},
		"octets that have no place in quoted-printable and base64": {
			lines("MIME-Version: 1.0", "Content-Type: multipart/mixed; boundary=o", "", "--o", "Content-Transfer-Encoding: quoted-printable", "", "a=20\xe9=", "b",
				"--o", "Content-Transfer-Encoding: BASE64", "", "YW\xffJj", "--o--"),
			lines("MIME-Version: 1.0", "Content-Type: multipart/mixed; boundary=o", "", "--o", "Content-Transfer-Encoding: quoted-printable", "", "a=20=E9=", "b",
				"--o", "Content-Transfer-Encoding: BASE64", "", "YWJj", "--o--"),
		},
		"an inner multipart that is never closed": {
			lines("MIME-Version: 1.0", "Content-Type: multipart/mixed; boundary=o", "", "--o", "Content-Type: multipart/mixed; boundary=i", "", "--i", "", "é and so on and so on", "--o--"),
			lines("MIME-Version: 1.0", "Content-Type: multipart/mixed; boundary=o", "", "--o", "Content-Type: multipart/mixed; boundary=i", "", "--i",
				"Content-Transfer-Encoding: quoted-printable", "", "=C3=A9 and so on and so on", "--o--"),
		},
		"no final line end": {
			"MIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\né and so on",
			"MIME-Version: 1.0\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=C3=A9 and so on=\r\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, _ := convert(t, c.content)
			if got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			check7Bit(t, got)
		})
	}
}

func TestPlan(t *testing.T) {
	mime := "MIME-Version: 1.0\r\n"
	for name, c := range map[string]struct {
		content                     string
		eight, long, fields, signed bool
		hopeless                    bool
	}{
		"7-bit":                         {content: mime + "\r\nabc\r\n"},
		"8-bit":                         {content: mime + "\r\nä\r\n", eight: true},
		"8-bit in a field":              {content: "Subject: ä\r\n\r\nabc\r\n", fields: true, hopeless: true},
		"8-bit in a field of a part":    {content: mime + "Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nX: ä\r\n\r\nabc\r\n--x--\r\n", fields: true, hopeless: true},
		"8-bit in an enclosed field":    {content: mime + "Content-Type: message/rfc822\r\n\r\nSubject: ä\r\n\r\nabc\r\n", fields: true, hopeless: true},
		"a long line":                   {content: mime + "\r\n" + strings.Repeat("a", 999) + "\r\n", long: true},
		"a line that is long enough":    {content: mime + "\r\n" + strings.Repeat("a", 998) + "\r\n"},
		"a bare LF":                     {content: mime + "\r\na\nb\r\n", long: true},
		"a bare CR":                     {content: mime + "\r\na\rb\r\n", long: true},
		"a CR at the end":               {content: mime + "\r\na\r", long: true},
		"NUL":                           {content: mime + "\r\na\x00\r\n", long: true},
		"DKIM":                          {content: "DKIM-Signature: v=1\r\n\r\nabc\r\n", signed: true},
		"ARC":                           {content: "ARC-Message-Signature: i=1\r\n\r\nabc\r\n", signed: true},
		"DKIM of an enclosed message":   {content: mime + "Content-Type: message/rfc822\r\n\r\nDKIM-Signature: v=1\r\n\r\nabc\r\n"},
		"multipart/signed":              {content: mime + "Content-Type: multipart/signed; boundary=x\r\n\r\n--x\r\n\r\nabc\r\n--x--\r\n", signed: true},
		"a part of a message":           {content: mime + "Content-Type: message/partial\r\n\r\nä\r\n", eight: true, hopeless: true},
		"an encoding that nobody knows": {content: mime + "Content-Transfer-Encoding: x-uue\r\n\r\nä\r\n", eight: true, hopeless: true},
		"a multipart without boundary":  {content: mime + "Content-Type: multipart/mixed\r\n\r\nä\r\n", eight: true, hopeless: true},
		"nothing":                       {content: ""},
		"no body":                       {content: "Subject: x\r\n"},
	} {
		p, err := Scan(strings.NewReader(c.content))
		if err != nil {
			t.Fatal(err)
		}
		if p.EightBit != c.eight || p.LongLines != c.long || p.EightFields != c.fields || p.Signed != c.signed || p.Convertible() == c.hopeless {
			t.Errorf("%s: %+v", name, p)
		}
		if err := p.Convert(io.Discard, strings.NewReader(c.content)); (err != nil) != c.hopeless {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseContentType(t *testing.T) {
	for value, want := range map[string]string{
		" text/plain": "text/plain", "TEXT/HTML; charset=x": "text/html", "": "text/plain", "text": "text/plain", ";": "text/plain",
		"multipart/mixed; boundary=abc":                        "multipart/mixed abc",
		"multipart/mixed;\r\n\tBOUNDARY = \"a;b \\\"c\" ; x=y": `multipart/mixed a;b "c`,
		"multipart (really) / mixed; (no) boundary=(x)abc(y)":  "multipart/mixed abc",
		"multipart/mixed; boundary=\"a(b)c  \"":                "multipart/mixed a(b)c",
		"multipart/mixed; x=\"boundary=no\"; boundary=yes":     "multipart/mixed yes",
		"multipart/mixed; boundary=":                           "multipart/mixed",
	} {
		types, boundary := parseContentType(value)
		if got := strings.TrimSpace(types + " " + boundary); got != want {
			t.Errorf("%q: %q, want %q", value, got, want)
		}
	}
}

// Hostile structure costs bounded memory, and is not looked into for ever.
func TestHostileStructure(t *testing.T) {
	var deep strings.Builder
	for i := range 3 * maxDepth {
		fmt.Fprintf(&deep, "Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n", i, i)
	}
	deep.WriteString("\r\nä\r\n")
	many := "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n" + strings.Repeat("--x\r\n\r\na\r\n", 2*maxEntities)
	nested := strings.Repeat("Content-Type: message/rfc822\r\n\r\n", 2*maxEntities)
	for name, content := range map[string]string{"deep": deep.String(), "many": many, "nested": nested} {
		p, err := Scan(strings.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(p.entities); n > 2*maxEntities+1 {
			t.Errorf("%s: %d entities", name, n)
		}
		if name == "deep" && p.Convertible() {
			t.Error("what was not looked into is converted")
		}
	}
}

func TestErrorsOfBothSides(t *testing.T) {
	content := lines("MIME-Version: 1.0", "", strings.Repeat("ä", 10000))
	if _, err := Scan(iotest.ErrReader(io.ErrUnexpectedEOF)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	p, err := Scan(strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Convert(io.Discard, iotest.ErrReader(io.ErrUnexpectedEOF)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if err := p.Convert(full{}, strings.NewReader(content)); !errors.Is(err, io.ErrShortWrite) {
		t.Error(err)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

// What Go's MIME readers find in a message before and after the conversion is
// the same, octet for octet, whatever the message and however it is read.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		content := "MIME-Version: 1.0\r\n" + drawEntity(t, 0)
		before, err := leaves(content)
		if err != nil {
			t.Fatalf("%v in %q", err, content)
		}
		got, _ := convert(t, content)
		check7Bit(t, got)
		after, err := leaves(got)
		if err != nil || !slices.Equal(before, after) {
			t.Fatalf("before %q\nafter  %q, %v\nfrom %q\nto   %q", before, after, err, content, got)
		}
		if again, _ := convert(t, got); again != got {
			t.Fatalf("a second conversion changes %q to %q", got, again)
		}
		plan, err := Scan(iotest.OneByteReader(strings.NewReader(content)))
		if err != nil {
			t.Fatal(err)
		}
		var slow bytes.Buffer
		if err := plan.Convert(&slow, iotest.OneByteReader(strings.NewReader(content))); err != nil || slow.String() != got {
			t.Fatalf("read octet by octet: %q, %v, want %q", slow.String(), err, got)
		}
	})
}

// drawEntity draws a header section, an empty line and a body that ends in
// CRLF.
func drawEntity(t *rapid.T, depth int) string {
	choices := []string{"text", "image"}
	if depth < 3 {
		choices = append(choices, "multipart", "message")
	}
	label := rapid.SampledFrom([]string{"", "Content-Transfer-Encoding: 8bit\r\n", "content-transfer-encoding:\r\n BINARY\r\n"}).Draw(t, "label")
	switch rapid.SampledFrom(choices).Draw(t, "kind") {
	case "multipart":
		boundary := fmt.Sprintf("=_b%d", depth)
		var b strings.Builder
		fmt.Fprintf(&b, "Content-Type: multipart/mixed;\r\n boundary=%q\r\n%s\r\n", boundary, label)
		for range rapid.IntRange(1, 3).Draw(t, "parts") {
			b.WriteString("--" + boundary + "\r\n" + drawEntity(t, depth+1))
		}
		return b.String() + "--" + boundary + "--\r\n"
	case "message":
		return "Content-Type: message/rfc822\r\n" + label + "\r\nSubject: inner\r\n" + drawEntity(t, depth+1)
	case "image":
		return "Content-Type: image/x\r\n" + label + "\r\n" + drawText(t) + "\r\n"
	}
	return "Content-Type: text/plain; charset=utf-8\r\n" + label + "\r\n" + drawText(t) + "\r\n"
}

// drawText draws lines that no multipart reader takes for a boundary.
func drawText(t *rapid.T) string {
	words := rapid.SliceOfN(rapid.SampledFrom([]string{
		"a", "é", "=", " ", "\t", "\r\n", ".", "-", "--x", "日本", strings.Repeat("long ", 30), strings.Repeat("a", 1200), "\xff", "From ", "=3D",
	}), 0, 30).Draw(t, "words")
	return strings.Join(words, "")
}

func FuzzConvert(f *testing.F) {
	for _, s := range []string{
		"", "Subject: x\r\n\r\nä\r\n", "\r\nä", "\xff\r\n\r\n",
		lines("Content-Type: multipart/mixed; boundary=b", "Content-Transfer-Encoding: 8bit", "", "--b", "", "ä", "--b", "Content-Transfer-Encoding: base64", "", "\xffaa", "--b--", "é"),
		lines("Content-Type: message/rfc822", "", "Content-Type: multipart/digest; boundary=b", "", "--b", "", "Subject: x", "", "ä\n\r", "--b--"),
		lines("Content-Transfer-Encoding: quoted-printable", "", "=C3=\x00", "\r", strings.Repeat("=C3", 500)),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		p, err := Scan(bytes.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err = p.Convert(&out, bytes.NewReader(content))
		if !p.Convertible() {
			if !errors.Is(err, ErrNoConversion) || out.Len() > 0 {
				t.Fatalf("%v, %q", err, out.String())
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		after, err := Scan(bytes.NewReader(out.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		if after.EightBit || after.EightFields || after.LongLines || high(out.Bytes()) > 0 {
			t.Fatalf("%+v of %q", after, out.String())
		}
	})
}
