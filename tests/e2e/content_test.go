package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/submit"
)

// text returns about n bytes of lines, some of which begin with dots.
func text(n int) []byte {
	r := rand.New(rand.NewPCG(uint64(n), 1))
	b := bytes.NewBuffer(content(fmt.Sprintf("%d bytes", n)))
	for b.Len() < n {
		b.WriteString(strings.Repeat(".", r.IntN(20)/17))
		for range r.IntN(70) {
			b.WriteByte(byte(' ' + r.IntN(95)))
		}
		b.WriteString("\r\n")
	}
	return b.Bytes()
}

// TestContentIntact: what the client sent arrives byte for byte.
func TestContentIntact(t *testing.T) {
	w := shared.Get(t)
	for i, tc := range []struct {
		name    string
		params  string
		content []byte
	}{
		{"5 KB", "", text(5 << 10)},
		{"5 MB", "", text(5 << 20)},
		{"25 MB", "", text(25_000_000)},
		{"dots", "", []byte(string(content("dots")) + ".\r\n..\r\n...\r\n. \r\n.a\r\n\r\n.\r\n")},
		{"8-bit", "BODY=8BITMIME", []byte(string(content("8-bit")) + "Gr\xc3\xbc\xc3\x9fe, and no UTF-8: \xff\xfe\x80\r\n")},
		{"no final newline", "", []byte(string(content("no final newline")) + "the last line")},
		{"only a body", "", []byte("\r\nno header section\r\n")},
		{"empty lines at the end", "", []byte(string(content("empty lines")) + "\r\n\r\n\r\n")},
		{"longest line", "", []byte(string(content("longest line")) + strings.Repeat("x", 998) + "\r\n")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			domain := fmt.Sprintf("content%d.test", i)
			host := w.Host(t, "mx."+domain, smtptest.Script{})
			w.MX(t, domain, "10 mx."+domain)
			send(t, w, i%2, submit.Message{From: "sender@sender.test", To: []string{"a@" + domain}, Params: tc.params, Content: tc.content})
			host.WaitMessages(t, 1, deadline)
			got := only(t, host)
			want := tc.content
			if !bytes.HasSuffix(want, []byte("\r\n")) {
				want = append(bytes.Clone(want), "\r\n"...) // RFC 5321 §4.1.1.4: the CRLF before the dot is part of the content
			}
			wantIntact(t, got, want)
			if got.ReversePath != "sender@sender.test" || len(got.Recipients) != 1 || got.Recipients[0].Path != "a@"+domain {
				t.Errorf("the envelope is %s %v", got.ReversePath, got.Recipients)
			}
			if got.EightBit && !strings.Contains(got.Params, "BODY=8BITMIME") {
				t.Errorf("8-bit content, but the parameters of MAIL are %q", got.Params)
			}
		})
	}
}

// TestContentsOfManyRecipientsIntact: messages that many transactions relay at
// the same time, to several sites and with several recipients at each, do not
// mix.
func TestContentsOfManyRecipientsIntact(t *testing.T) {
	const messages, sites, perSite = 40, 4, 3
	w := shared.Get(t)
	var to []string
	var hosts []*smtptest.Server
	for i := range sites {
		domain := fmt.Sprintf("crowd%d.test", i)
		hosts = append(hosts, w.Host(t, "mx."+domain, smtptest.Script{Label: subject}))
		w.MX(t, domain, "10 mx."+domain)
		for n := range perSite {
			to = append(to, fmt.Sprintf("u%d@%s", n, domain))
		}
	}
	sent := map[string][]byte{}
	var g errgroup.Group
	g.SetLimit(20)
	for i := range messages {
		m := submit.Message{From: "sender@sender.test", To: to, Content: text(2000 + 100*i)}
		sent[subject(m.Content)] = m.Content
		g.Go(func() error {
			_, err := submit.Send(t.Context(), w.SMTP(i%2), m)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, host := range hosts {
		host.WaitMessages(t, messages*perSite, deadline)
		seen := map[string]int{}
		for _, got := range host.Messages() {
			wantIntact(t, got, sent[got.Label])
			seen[got.Label]++
		}
		for label := range sent {
			if seen[label] != perSite {
				t.Errorf("%q arrived %d times, want %d", label, seen[label], perSite)
			}
		}
	}
}

// subject returns the subject of a message.
func subject(content []byte) string {
	_, rest, _ := strings.Cut(string(content), "Subject: ")
	line, _, _ := strings.Cut(rest, "\r\n")
	return line
}
