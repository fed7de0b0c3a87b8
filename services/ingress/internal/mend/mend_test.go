package mend

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"runtime"
	"strings"
	"testing"
)

var x = strings.Repeat("x", 1200)

// leaves decodes a message: the content of each part that has no parts.
func leaves(t testing.TB, content []byte) (all []string) {
	t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(content))
	if err != nil {
		t.Fatalf("%v in %q", err, content)
	}
	var walk func(contentType, encoding string, body io.Reader)
	walk = func(contentType, encoding string, body io.Reader) {
		kind, parameters, _ := mime.ParseMediaType(contentType)
		if strings.HasPrefix(kind, "multipart/") {
			parts := multipart.NewReader(body, parameters["boundary"])
			for {
				p, err := parts.NextRawPart()
				if err != nil {
					return
				}
				walk(p.Header.Get("Content-Type"), p.Header.Get("Content-Transfer-Encoding"), p)
			}
		}
		switch strings.ToLower(encoding) {
		case "quoted-printable":
			body = quotedprintable.NewReader(body)
		case "base64":
			body = base64.NewDecoder(base64.StdEncoding, body)
		}
		text, err := io.ReadAll(body)
		if err != nil {
			t.Errorf("%v in %q", err, content)
		}
		all = append(all, string(text))
	}
	walk(m.Header.Get("Content-Type"), m.Header.Get("Content-Transfer-Encoding"), m.Body)
	return all
}

func TestLines(t *testing.T) {
	two := "Content-Type: multipart/mixed; boundary=b\r\n\r\npreamble\r\n--b\r\nContent-Type: text/plain\r\n\r\nuntouched =3D\r\n--b\r\n"
	for name, c := range map[string]struct {
		in   string
		want []string // what must be in the result
		err  error
	}{
		"nothing to do":          {in: "Subject: a\r\n\r\nb\r\n"},
		"no MIME":                {in: "Subject: a\r\n\r\n" + x + "\r\n", want: []string{"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\nContent-Transfer-Encoding: quoted-printable\r\n"}},
		"no MIME, UTF-8":         {in: "Subject: a\r\n\r\n\xc3\xa9" + x + "\r\n", want: []string{"charset=utf-8", "=C3=A9"}},
		"no MIME, other":         {in: "Subject: a\r\n\r\n\xe9" + x + "\r\n", want: []string{"charset=unknown-8bit", "=E9"}},
		"8bit":                   {in: "MIME-Version: 1.0\r\nContent-Transfer-Encoding: 8bit\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p>\xc3\xa9" + x + "\r\n", want: []string{"MIME-Version: 1.0\r\nContent-Transfer-Encoding: quoted-printable\r\nContent-Type: text/html"}},
		"no text":                {in: "MIME-Version: 1.0\r\nContent-Type: application/json\r\n\r\n" + x + "\r\n", want: []string{"Content-Transfer-Encoding: base64\r\n"}},
		"quoted already":         {in: "MIME-Version: 1.0\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" + strings.Repeat("=3D", 400) + "\r\n"},
		"base64 already":         {in: "MIME-Version: 1.0\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\n" + strings.Repeat("AAAA", 300) + "\r\n"},
		"base64 with blanks":     {in: "MIME-Version: 1.0\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\n" + strings.Repeat("AAAA \t", 300) + "\r\n", want: []string{"\r\n\r\nAAAAAAAA"}},
		"no base64":              {in: "MIME-Version: 1.0\r\nContent-Transfer-Encoding: base64\r\n\r\n!" + x + "\r\n", err: ErrShape},
		"uuencode":               {in: "MIME-Version: 1.0\r\nContent-Transfer-Encoding: x-uuencode\r\n\r\n" + x + "\r\n", err: ErrShape},
		"one part of two":        {in: two + "Content-Type: text/html\r\n\r\n" + x + "\r\n\r\n--b--\r\nepilogue\r\n", want: []string{"preamble", "untouched =3D\r\n--b\r\n", "\r\n--b--\r\nepilogue\r\n"}},
		"a part without fields":  {in: two + "\r\n" + x + "\r\n--b--\r\n"},
		"a file":                 {in: two + "Content-Type: text/csv-x\r\nContent-Disposition: attachment\r\n\r\n" + x + "\r\n--b--"},
		"a delimiter in a line":  {in: two + "\r\n" + strings.Repeat(strings.Repeat("y", 75)+"--b", 20) + "\r\n--b--\r\n"},
		"nested":                 {in: two + "Content-Type: multipart/alternative; boundary=\"b2\"\r\n\r\n--b2\r\n\r\n" + x + "\r\n--b2--\r\n\r\n--b--\r\n"},
		"message":                {in: two + "Content-Type: message/rfc822\r\n\r\nSubject: y\r\n\r\n" + x + "\r\n--b--\r\n"},
		"signed":                 {in: "DKIM-Signature: v=1\r\n\r\n" + x + "\r\n", err: ErrSigned},
		"signed, fits":           {in: "DKIM-Signature: v=1\r\n\r\nx\r\n"},
		"sealed":                 {in: "arc-message-signature: i=1\r\n\r\n" + x + "\r\n", err: ErrSigned},
		"signed message inside":  {in: two + "Content-Type: message/rfc822\r\n\r\nDKIM-Signature: v=1\r\n\r\n" + x + "\r\n--b--\r\n", err: ErrSigned},
		"signed part":            {in: "Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n" + x + "\r\n--b--\r\n", err: ErrSigned},
		"beside a signed part":   {in: two + "Content-Type: multipart/signed; boundary=s\r\n\r\n--s\r\n\r\nx\r\n--s--\r\n\r\n--b\r\n\r\n" + x + "\r\n--b--\r\n", want: []string{"--s\r\n\r\nx\r\n--s--\r\n"}},
		"digest":                 {in: "Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n\r\n" + x + "\r\n--b--\r\n", err: ErrShape},
		"preamble":               {in: "Content-Type: multipart/mixed; boundary=b\r\n\r\n" + x + "\r\n--b\r\n\r\nx\r\n--b--\r\n"},
		"preamble that delimits": {in: "Content-Type: multipart/mixed; boundary=b\r\n\r\n" + strings.Repeat("--b ", 400) + "\r\n--b\r\n\r\nx\r\n--b--\r\n", err: ErrShape},
		"epilogue":               {in: "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n" + x + "\r\n"},
		"no boundary":            {in: "Content-Type: multipart/mixed\r\n\r\n" + x + "\r\n", err: ErrShape},
		"no media type":          {in: "Content-Type: ;\r\n\r\n" + x + "\r\n", want: []string{"Content-Transfer-Encoding: quoted-printable\r\n"}},
		"two boundaries":         {in: "Content-Type: multipart/mixed; boundary=b; boundary=c\r\n\r\n--b\r\n\r\n" + x + "\r\n--b--\r\n", err: ErrShape},
		"a field":                {in: "References: " + strings.Repeat("<1@example.com> ", 100) + "\r\n\r\nx\r\n", want: []string{"\r\n <1@"}},
		"a field of one word":    {in: "Subject: " + x + "\r\n\r\nx\r\n", want: []string{"Subject: =?utf-8?B?", "\r\n =?utf-8?B?"}},
		"a field for programs":   {in: "Content-ID: <" + x + "@x>\r\n\r\nx\r\n", err: ErrShape},
		"a signed field":         {in: "DKIM-Signature: v=1\r\nReferences: " + strings.Repeat("<1@example.com> ", 100) + "\r\n\r\nx\r\n", err: ErrSigned},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Lines([]byte(c.in))
			if !errors.Is(err, c.err) {
				t.Fatalf("%v, want %v", err, c.err)
			}
			if err != nil {
				return
			}
			if long(got) {
				t.Errorf("a long line is left in %q", got)
			}
			if !long([]byte(c.in)) && string(got) != c.in {
				t.Errorf("changed without need: %q", got)
			}
			for _, want := range c.want {
				if !bytes.Contains(got, []byte(want)) {
					t.Errorf("no %q in %q", want, got)
				}
			}
			if name == "message" || name == "base64 with blanks" { // which readers decode, and this one does not
				return
			}
			before, after := leaves(t, []byte(c.in)), leaves(t, got)
			if len(before) == 0 || strings.Join(before, "\x00") != strings.Join(after, "\x00") {
				t.Errorf("%q became %q", before, after)
			}
		})
	}
}

// Types and encodings as programs write them.
func TestSloppyTypes(t *testing.T) {
	const body = "<p>"
	long := body + strings.Repeat("word ", 300) + "</p>\r\n"
	for _, fields := range []string{
		"Content-Type: text/html; charset=utf-8 (comment)", "Content-Type: text/html charset=utf-8", "Content-Type: text/html;; charset=utf-8", "Content-Type: text/html; charset=",
		"Content-Type: text/html; charset=iso-8859-1; name=my file.html", "Content-Type: text/html; charset=\"utf-8", "Content-Type:", "Content-Type: html", "Content-Type: text/html (a \\) b (c)); charset=utf-8;",
		"Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: 8-bit", "Content-Type: text/html\r\nContent-Transfer-Encoding: 7bit;", "Content-Type: text/html\r\nContent-Transfer-Encoding: utf-8",
		"Content-Type: text/html\r\nContent-Transfer-Encoding: \"8bit\"", "Content-Type: text/html\r\nContent-Transfer-Encoding: 7bit (really)",
	} {
		in := "MIME-Version: 1.0\r\n" + fields + "\r\n\r\n" + long
		got, err := Lines([]byte(in))
		if err != nil {
			t.Errorf("%q: %v", fields, err)
			continue
		}
		// The type stays as it was written, for the reader to make of it what it does.
		if kind, _, _ := strings.Cut(fields, "\r\n"); !bytes.Contains(got, []byte("\r\n"+kind+"\r\n")) {
			t.Errorf("%q: %.300q", fields, got)
		}
		if n := bytes.Count(got, []byte("Content-Transfer-Encoding: ")); n != 1 || leaves(t, got)[0] != long {
			t.Errorf("%q became %q", fields, got)
		}
	}
	for _, c := range []struct{ field, boundary string }{
		{"boundary=\"----=_Part_1\"", "----=_Part_1"}, {"boundary=----=_Part_1", "----=_Part_1"}, {"boundary=a:b", "a:b"}, {"boundary=\"a\"; type=\"text/html\"; boundary=\"a\"", "a"},
		{"boundary=\"a b\"", "a b"}, {"type=x; boundary=\"a", "a"}, {"charset=; BOUNDARY = a (comment)", "a"},
	} {
		in := "Content-Type: multipart/alternative; " + c.field + "\r\n\r\n--" + c.boundary + "\r\nContent-Type: text/html\r\n\r\n" + long + "--" + c.boundary + "--\r\n"
		got, err := Lines([]byte(in))
		if err != nil || !bytes.HasPrefix(got, []byte("Content-Type: multipart/alternative; "+c.field+"\r\n\r\n--"+c.boundary+"\r\nContent-Type: text/html\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n<p>word")) {
			t.Errorf("%q: %v, %.300q", c.field, err, got)
		}
	}
}

// Fields that have no white space say the same behind it.
func TestFold(t *testing.T) {
	list := strings.Repeat("\"a, b\" <a@acme.example>,b@acme.example (c, d),", 60) + "end@acme.example"
	for field, want := range map[string]string{ // want: how it reads, without white space and decoded
		"To: " + list: list,
		"Reply-To: " + strings.Repeat("a@acme.example;", 100) + "b@acme.example":        strings.Repeat("a@acme.example;", 100) + "b@acme.example",
		"List-Unsubscribe: <mailto:u@acme.example>,<https://acme.example/?t=" + x + ">": "<mailto:u@acme.example>,<https://acme.example/?t=" + x + ">",
		"Thread-Index: " + x: x,
		"Cc: " + strings.Repeat("a@acme.example,", 100) + "b@acme.example": strings.Repeat("a@acme.example,", 100) + "b@acme.example",
		"References: " + strings.Repeat("<1@acme.example>", 100):           strings.Repeat("<1@acme.example>", 100),
		"Subject: " + x: x,
		"Subject: a " + strings.Repeat("\u00e9", 700):                "a" + strings.Repeat("\u00e9", 700),
		"Subject: =?utf-8?Q?" + strings.Repeat("=C3=A9", 300) + "?=": strings.Repeat("\u00e9", 300),
		"X-Token: " + x: x,
	} {
		got := fold([]byte(field + "\r\n"))
		if long(got) {
			t.Errorf("%.60q is %.200q", field, got)
		}
		_, value, _ := strings.Cut(strings.ReplaceAll(strings.TrimSuffix(string(got), "\r\n"), "\r\n", ""), ":")
		if !strings.Contains(value, "acme.example") {
			var err error
			if value, err = new(mime.WordDecoder).DecodeHeader(value); err != nil {
				t.Error(err)
			}
		}
		blank := func(s string) string { return strings.Join(strings.Fields(s), "") }
		if blank(value) != blank(want) {
			t.Errorf("%.60q is %.300q", field, value)
		}
	}
	for _, field := range []string{"To: " + x + "@acme.example", "To: \"" + strings.Repeat("a,", 600) + "\" <a@acme.example>", "Received: " + x, "Subject: =?gb2312?B?" + strings.Repeat("zfXO", 300) + "?=", "X-Google-DKIM-Signature: " + x} {
		if got := fold([]byte(field + "\r\n")); !long(got) {
			t.Errorf("%.60q is %.200q", field, got)
		}
	}
}

// FuzzLines: what comes out has no long line, and is not touched again.
func FuzzLines(f *testing.F) {
	f.Add("MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b", "--b\r\n\r\nZ\r\n--b\r\nContent-Type: a/b\r\n\r\nZ\r\n--b--\r\n")
	f.Add("Subject: Z", "Z\r\n")
	f.Add("Content-Transfer-Encoding: quoted-printable", "=3DZ=3DZ\r\n")
	f.Add("Content-Type: message/rfc822", "Subject: x\r\n\r\nZ")
	f.Add("Content-Type: multipart/mixed; x=;; boundary=\"b", "--b\r\n\r\nZZ\r\n--b--\r\n")
	f.Add("To: Z,Z,Z (,Z)\r\nSubject: ZZ\r\nX-A: =?utf-8?q?ZZ?=\r\nReferences: <Z><Z>", "x\r\n")
	f.Fuzz(func(t *testing.T, header, body string) {
		// Lines of a length that matters are more than a fuzzer comes to write.
		in := strings.ReplaceAll(header+"\r\n\r\n"+body, "Z", strings.Repeat("z", 600))
		if strings.ContainsAny(strings.ReplaceAll(in, "\r\n", ""), "\r\n") {
			return
		}
		got, err := Lines([]byte(in))
		if err != nil {
			return
		}
		if long(got) || strings.ContainsAny(strings.ReplaceAll(string(got), "\r\n", ""), "\r\n") {
			t.Fatalf("%q became %q", in, got)
		}
		if !long([]byte(in)) && string(got) != in {
			t.Fatalf("%q was changed without need: %q", in, got)
		}
		if again, err := Lines(got); err != nil || !bytes.Equal(again, got) {
			t.Fatalf("%q became %q, then %q (%v)", in, got, again, err)
		}
	})
}

// What mending costs grows with the message, and not with its square: of
// memory no more than some copies of it.
func TestCostIsLinear(t *testing.T) {
	const size = 4 << 20
	late := strings.Repeat("y", 3000) + "\r\n"
	for name, content := range map[string]string{
		"addresses":        "To: " + strings.Repeat("a@b,", size/4) + "\r\n\r\n" + late,
		"identifiers":      "References: " + strings.Repeat("<a@b>", size/5) + "\r\n\r\n" + late,
		"words":            "Subject: " + strings.Repeat("a ", size/2) + "\r\n\r\n" + late,
		"addresses inside": "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nTo: " + strings.Repeat("a@b,", size/4) + "\r\n\r\nx\r\n--b--\r\n",
		"parts":            "Content-Type: multipart/mixed; boundary=b\r\n\r\n" + strings.Repeat("--b\r\n\r\n", size/7) + "--b\r\n\r\n" + late + "--b--\r\n",
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _ = Lines([]byte(content)) // it may be one that is refused
		runtime.ReadMemStats(&after)
		if copies := (after.TotalAlloc - before.TotalAlloc) / size; copies > 30 {
			t.Errorf("%s: %d times the size of the message was allocated", name, copies)
		}
	}
}

// long is as it is defined, whatever stands around.
func TestLong(t *testing.T) {
	for n := 990; n < 1005; n++ {
		for _, before := range []string{"", "a\r\n", strings.Repeat("b", 997) + "\r\n", strings.Repeat("c\r\n", 333)} {
			for _, after := range []string{"", "\r\n", "\r\nd", "\r\n" + strings.Repeat("e\r\n", 400)} {
				content := []byte(before + strings.Repeat("x", n) + after)
				if got := long(content); got != (n > maxLine) {
					t.Errorf("%d octets behind %d and before %d: %v", n, len(before), len(after), got)
				}
			}
		}
	}
}
