package submission

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
)

var (
	network = Rules{}
	known   = Rules{Authors: true, Complete: true}
)

func TestRead(t *testing.T) {
	for _, c := range []struct {
		content string
		rules   Rules
		want    Header
	}{
		{"", network, Header{ASCII: true, Gap: "\r\n"}},
		{"\r\nReceived: body\r\n", network, Header{ASCII: true}},
		{"A: 1\r\n\r\nB: 2\r\n", network, Header{ASCII: true, End: 6}},
		{"A: 1\r\n", network, Header{ASCII: true, End: 6, Gap: "\r\n"}},
		{"A: 1", network, Header{ASCII: true, End: 4, Gap: "\r\n\r\n"}},
		// A line that is no field is text.
		{"no field\r\nReceived: x\r\n", network, Header{ASCII: true, Gap: "\r\n"}},
		{"A: 1\r\nno field: x\r\nReceived: x\r\n", known, Header{ASCII: true, End: 6, Gap: "\r\n"}},
		{" A: 1\r\nReceived: x\r\n", network, Header{ASCII: true, Gap: "\r\n"}},
		{"\t\r\nReceived: x\r\n", network, Header{ASCII: true, Gap: "\r\n"}},
		{"A: 1\r\n: 2\r\n", network, Header{ASCII: true, End: 6, Gap: "\r\n"}},
		{"A: 1\r\nB\x00: 2\r\n", network, Header{ASCII: true, End: 6, Gap: "\r\n"}},
		{"\xef\xbb\xbfA: 1\r\n", network, Header{ASCII: true, Gap: "\r\n"}},
		// Separators of mbox files.
		{"From root Mon Nov 14 23:42:00 2016\r\nA: 1\r\n\r\n", network, Header{ASCII: true, Cuts: []Span{{0, 36}}, End: 42}},
		{">From a\r\nFrom b\r\nA: 1\r\n\r\n", network, Header{ASCII: true, Cuts: []Span{{0, 9}, {9, 17}}, End: 23}},
		{"From a", network, Header{ASCII: true, Cuts: []Span{{0, 6}}, End: 6, Gap: "\r\n\r\n"}},
		{"From : a\r\n\r\n", network, Header{ASCII: true, End: 10}},
		// What is wanted of fields.
		{"Received: a\r\nreceived:b\r\nX: \r\n Received: folded\r\n\r\nReceived: body\r\n", network, Header{Hops: 2, ASCII: true, End: 49}},
		{"Message-ID: <a@b>\r\nMESSAGE-ID: <c@d>\r\n\r\n", network, Header{MessageID: "<a@b>", ASCII: true, End: 38}},
		{"Message-ID:\r\n\t<a@b> (comment)\r\n\r\n", network, Header{MessageID: "<a@b>", ASCII: true, End: 31}},
		{"Message-Id: odd id \r\n\r\n", network, Header{MessageID: "odd id", ASCII: true, End: 21}},
		{"Message-Id: <a\x00\x7f\xff\u0085\u202e\u200b@b>\r\n\r\n", network, Header{MessageID: "<a?@b>", End: 30}},
		{"Message-Id: \r\nDate:\r\nMessage-Id: <>\r\n\r\n", network, Header{ASCII: true, End: 37}},
		{"Message-Id: \r\nDate:\r\nMessage-Id: <>\r\n\r\n", known, Header{ASCII: true, Cuts: []Span{{0, 14}, {14, 21}, {21, 37}}, End: 37}},
		{"Message-Id: \r\nMessage-Id: <a@b>\r\nDate: d\r\n\r\n", known, Header{MessageID: "<a@b>", Date: true, ASCII: true, Cuts: []Span{{0, 14}}, End: 42}},
		{"Subject: ü\r\n\r\n", network, Header{End: 13}},
		{"Subject: u\r\n\r\nü", network, Header{ASCII: true, End: 12}},
		{"Subject: \x1b$B8+\x1b(B\r\n\r\n", known, Header{ASCII: true, End: 19}},
		{"A: 1\r\nX-Traceparent: x\r\nB: 2\r\n\r\n", network, Header{Traceparent: "x", Cuts: []Span{{6, 24}}, ASCII: true, End: 30}},
		{"X-Idempotency-Key: k 1\r\nFrom: c\r\nDate: d\r\n\r\n", network, Header{IdempotencyKey: "k 1", Date: true, Cuts: []Span{{0, 24}}, ASCII: true, End: 42}},
		{"X-Postrider-Campaign:\r\n spring\r\n\r\n", network, Header{Campaign: "spring", Cuts: []Span{{0, 32}}, ASCII: true, End: 32}},
		{"X-Idempotency-Key: \x01\r\n\r\n", network, Header{Cuts: []Span{{0, 22}}, ASCII: true, End: 22}},
		{"X-Idempotency-Key: " + strings.Repeat("k", 256) + "\r\n\r\n", network, Header{Cuts: []Span{{0, 277}}, ASCII: true, End: 277}},
		{"TLS-required:\r\n no\r\n\r\n", network, Header{TLSOptional: true, ASCII: true, End: 20}},
		{"Bcc: a@b\r\nA: 1\r\nresent-bcc :\r\n a\r\n\r\nBcc: body", network, Header{Cuts: []Span{{0, 10}, {16, 34}}, ASCII: true, End: 34}},
		{"Bcc: a@b\r\n\r\n", Rules{KeepBcc: true}, Header{ASCII: true, End: 10}},
		{"From:\r\n c@d\r\nSENDER : e\r\nResent-From:f\r\n\r\n", known, Header{authors: []author{{"From", " c@d"}, {"SENDER", " e"}, {"Resent-From", "f"}}, ASCII: true, End: 40}},
		{strings.Repeat("A: 1\r\n", MaxHeaderFields) + "\r\n", network, Header{ASCII: true, End: 6 * MaxHeaderFields}},
		{"A: " + strings.Repeat("x", MaxHeaderBytes-5) + "\r\n\r\n", network, Header{ASCII: true, End: MaxHeaderBytes}},
	} {
		if got, err := Read([]byte(c.content), c.rules); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("Read(%.80q, %+v) = %+v, %v, want %+v", c.content, c.rules, got, err, c.want)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	for _, c := range []struct {
		content string
		rules   Rules
		want    Kind
	}{
		{strings.Repeat("A: 1\r\n", MaxHeaderFields+1) + "\r\n", network, TooLarge},
		{"A: " + strings.Repeat("x", MaxHeaderBytes-4) + "\r\n\r\n", network, TooLarge},
		{strings.Repeat("Received: x\r\n", MaxHops), network, Looping},
		{strings.Repeat("Received: x\r\n", MaxHops) + "text\r\n", known, Looping},
		// A reader that passes over odd octets finds a field here.
		{"A: 1\r\nFrom\x00: b@c\r\n\r\n", known, Malformed},
		{"A: 1\r\nFr\x00om: b@c\r\n\r\n", known, Malformed},
		{"A: 1\r\nFrom\v: b@c\r\n\r\n", known, Malformed},
		{"A: 1\r\nFrom \x0c : b@c\r\n\r\n", known, Malformed},
		{"A: 1\r\nFrom\xa0: b@c\r\n\r\n", known, Malformed},
		{"A: 1\r\n\u00a0From: b@c\r\n\r\n", known, Malformed},
		{"\ufeffFrom: b@c\r\n\r\n", known, Malformed},
		{"A: 1\r\nFrom\u200b: b@c\r\n\r\n", known, Malformed},
		{"A: 1\x00\r\n\r\n", known, Malformed},
		{"A: 1\r\n 2\v\r\n\r\n", known, Malformed},
		{"A: \x1b[2J\r\n\r\n", known, Malformed},
		{"A: \x7f\r\n\r\n", known, Malformed},
		{"A: \x01From: b@c\r\n\r\n", known, Malformed},
	} {
		_, err := Read([]byte(c.content), c.rules)
		var refusal *Refusal
		if !errors.As(err, &refusal) || refusal.Kind != c.want {
			t.Errorf("Read(%.80q, %+v) = %v, want kind %d", c.content, c.rules, err, c.want)
		} else if strings.ContainsFunc(refusal.Text, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q is not fit for a client", refusal.Text)
		}
	}
}

// Whatever the content, reading it finds nothing that is not there, and what
// is relayed of it has a header section that is read again as the same.
func FuzzHeader(f *testing.F) {
	f.Add([]byte("Received: a\r\n b\r\nMessage-ID: <x\xff>\r\nX-Traceparent: 1\r\nBcc: x\r\n\r\nbody"))
	f.Add([]byte("From a Mon Nov 14\r\nFrom: a@b\r\nFrom\x00: c\r\n"))
	f.Add([]byte("From: a@b\r\n\ttext\r\ntext: \r\nno field\r\n"))
	f.Add([]byte(":\r\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		if bytes.ContainsAny(bytes.ReplaceAll(content, []byte("\r\n"), nil), "\r\n") {
			return // the doors refuse it
		}
		for _, rules := range []Rules{network, known} {
			h, err := Read(content, rules)
			if err != nil {
				continue
			}
			at := 0
			for _, cut := range h.Cuts {
				if cut.From < at || cut.To <= cut.From || cut.To > h.End {
					t.Fatalf("%+v of %q", h, content)
				}
				at = cut.To
			}
			if strings.ContainsAny(h.MessageID, "\x00\r\n\x7f") || len(h.MessageID) > maxHeaderID {
				t.Fatalf("%+v of %q", h, content)
			}
			const trace = "Received: x\r\n"
			kept := append(h.AppendKept([]byte(trace), content), content[h.End:]...)
			if h.End == 0 || h.Cuts != nil && h.Cuts[len(h.Cuts)-1].To == h.End && len(h.AppendKept(nil, content)) == len(h.Gap) {
				continue // nothing is left of it
			}
			again, err := Read(kept, rules)
			end := len(trace) + len(h.AppendKept(nil, content))
			if h.Gap != "" {
				end -= len("\r\n")
			}
			if err != nil || again.End != end || again.Gap != "" || len(again.Cuts) > 0 || again.Hops != h.Hops+1 {
				t.Fatalf("%q is %q, read as %+v, %v", content, kept, again, err)
			}
		}
	})
}
