package mail_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/mail"
)

func TestParseSmartHosts(t *testing.T) {
	for entries, want := range map[string]string{
		"smart.example.net:587":                       "smart.example.net:587*1",
		"Smart.Example.NET.:587 b.example":            "smart.example.net:587*1 | b.example*1",
		"a.example:25*3+b.example":                    "a.example:25*3 b.example*1",
		"smtps://a.example*3+b.example c.example:443": "smtps://a.example*3 smtps://b.example*1 | smtps://c.example:443*1",
		"smtps://a.example smtps://b.example":         "smtps://a.example*1 | smtps://b.example*1",
		"LMTP://[2001:db8::1]:24":                     "lmtp://[2001:db8::1]:24*1",
		"2001:db8::1":                                 "[2001:db8::1]*1",
		"[::ffff:192.0.2.1]:25":                       "192.0.2.1:25*1",
		"[smart.example.net]:587":                     "smart.example.net:587*1",
		"192.0.2.1:2525":                              "192.0.2.1:2525*1",
		"bücher.example:25":                           "xn--bcher-kva.example:25*1",
	} {
		got, err := mail.ParseSmartHosts(strings.Fields(entries))
		if err != nil {
			t.Errorf("%s: %v", entries, err)
			continue
		}
		var words []string
		for i, entry := range got {
			if i > 0 {
				words = append(words, "|")
			}
			for _, h := range entry {
				words = append(words, fmt.Sprintf("%s*%d", h, h.Weight))
			}
		}
		if text := strings.Join(words, " "); text != want {
			t.Errorf("%s: %s, want %s", entries, text, want)
		}
	}
	for _, wrong := range []string{
		"", ":25", "a.example:", "a.example:0", "a.example:65536", "a.example:x", "a.example*0", "a.example*1001", "a.example*",
		"a.example+", "http://a.example", "a.example smtps://b.example", "smtps://a.example lmtp://b.example",
		"a..example", "a example", "user@a.example", "a.example/25",
	} {
		if got, err := mail.ParseSmartHosts([]string{wrong}); err == nil && !strings.Contains(wrong, " ") {
			t.Errorf("%q was read as %v", wrong, got)
		}
	}
	if _, err := mail.ParseSmartHosts([]string{"a.example", "smtps://b.example"}); err == nil {
		t.Error("hosts of one rule speak different protocols")
	}
}

func FuzzParseSmartHosts(f *testing.F) {
	for _, text := range []string{"smart.example.net:587", "smtps://a.example*3+b.example", "lmtp://[2001:db8::1]:24", "[::1]", "a:*", "+", "://"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := mail.ParseSmartHosts([]string{text})
		if err != nil {
			return
		}
		for _, h := range got[0] {
			again, err := mail.ParseSmartHosts([]string{h.String()})
			if h.Weight = 1; err != nil || again[0][0] != h {
				t.Errorf("%q: %+v is written %q and read as %+v, %v", text, h, h, again, err)
			}
		}
	})
}
