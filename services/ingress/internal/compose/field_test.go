package compose

import (
	"bytes"
	"mime"
	netmail "net/mail"
	"strings"
	"testing"
)

// Long texts and names come back as they were given, in lines that every host
// takes, and addresses are left alone.
func TestFields(t *testing.T) {
	x := strings.Repeat("x", 1500)
	umlauts := strings.Repeat("\u00e9", 700)
	for _, c := range []struct{ name, value, want string }{ // want: the value, decoded
		{"Subject", x, x},
		{"Subject", "Click https://acme.example/?t=" + x, ""},
		{"Subject", strings.Repeat("y", 8000), ""},
		{"Subject", umlauts, ""},
		{"Subject", strings.Repeat("word  ", 400) + "end", ""},
		{"X-Token", x, ""},
		{"Comments", "caf\u00e9 =?x", ""},
		{"Disposition-Notification-To", "J\u00f6rg M\u00fcller <j@acme.example>, b@acme.example", `=?utf-8?B?SsO2cmcgTcO8bGxlcg==?= <j@acme.example>, b@acme.example`},
		{"Errors-To", strings.Repeat("a@acme.example,", 200) + "b@acme.example", strings.Repeat("a@acme.example, ", 200) + "b@acme.example"},
		{"List-ID", "K\u00f6ln <koeln.acme.example>", "=?utf-8?B?S8O2bG4=?= <koeln.acme.example>"},
		{"List-Unsubscribe", "<https://acme.example/?t=" + x[:800] + ">, <mailto:u@acme.example>", "<https://acme.example/?t=" + x[:800] + ">, <mailto:u@acme.example>"},
		{"References", "<1@acme.example> <2@acme.example>", "<1@acme.example> <2@acme.example>"},
		{"Errors-To", "nobody", "nobody"}, // it is ASCII, and what it means is the client's affair
	} {
		f := Field{c.name, c.value}
		if why := f.Fault(); why != "" {
			t.Errorf("%s: %.60q: %s", c.name, c.value, why)
			continue
		}
		written := f.append(nil)
		for line := range bytes.SplitSeq(written, []byte("\r\n")) {
			if len(line) > maxLine || !ascii(string(line)) {
				t.Errorf("%s: a line of %d octets: %.100q", c.name, len(line), line)
			}
		}
		m, err := netmail.ReadMessage(bytes.NewReader(append(written, "\r\n"...)))
		if err != nil {
			t.Errorf("%s: %v in %.200q", c.name, err, written)
			continue
		}
		got := m.Header.Get(c.name)
		if c.want == "" || c.want == c.value && len(c.value) > 1200 {
			c.want = c.value
			if got, err = new(mime.WordDecoder).DecodeHeader(got); err != nil {
				t.Error(err)
			}
		}
		if got != c.want {
			t.Errorf("%s: %.200q, want %.200q", c.name, got, c.want)
		}
	}
}

func TestFieldFaults(t *testing.T) {
	x := strings.Repeat("x", 1000)
	for _, f := range []Field{
		{"References", "<" + x + "@x>"}, {"References", "\u00fc"}, {"List-Unsubscribe", "<https://acme.example/\u00fc>"}, {"List-Post", "<mailto:" + x + "@x>"},
		{"Errors-To", "J\u00f6rg"}, {"Errors-To", "J\u00f6rg <j\u00f6rg@acme.example>"}, {"Errors-To", x}, {"List-ID", "K\u00f6ln"}, {"List-ID", "K <k\u00f6ln.acme.example>"}, {"Auto-Submitted", "\u00fc"},
	} {
		if f.Fault() == "" {
			t.Errorf("%s: %.60q has no fault", f.Name, f.Value)
		}
	}
}
