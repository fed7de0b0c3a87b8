package dsn

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postrider/postrider/pkg/mail"
)

var update = flag.Bool("update", false, "write the golden files")

const originalHeader = "Received: from client.example ([192.0.2.7]) by mx.postrider.example with ESMTP\r\n" +
	"\tid 018f4e2a-0000-7000-8000-000000000001; Mon, 01 Jun 2026 08:00:00 +0000\r\n" +
	"From: Alice <alice@sender.example>\r\n" +
	"To: bob@remote.example\r\n" +
	"Subject: Your order\r\n" +
	"Message-ID: <order-17@sender.example>\r\n"

var (
	accepted  = time.Date(2026, 6, 1, 8, 0, 0, 0, time.UTC)
	attempted = accepted.Add(3 * time.Second)
	expires   = accepted.Add(5 * 24 * time.Hour)
)

func queueID(t testing.TB, text string) mail.QueueID {
	t.Helper()
	id, err := mail.ParseQueueID(text)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// plain is the report of one ordinary failure, to be changed by each case.
func plain(t testing.TB) *Report {
	content := []byte(originalHeader + "\r\nDear Bob,\r\n")
	return &Report{
		ID:       queueID(t, "018f4e2a-2222-7000-8000-00000000000a"),
		Hostname: "mx.postrider.example",
		Date:     attempted.Add(time.Second),
		Original: mail.Message{
			ID:         queueID(t, "018f4e2a-0000-7000-8000-000000000001"),
			Envelope:   mail.Envelope{ReversePath: "alice@sender.example", EnvID: "order 17"},
			SizeBytes:  int64(len(content)),
			AcceptedAt: accepted,
		},
		HeaderID: "<order-17@sender.example>",
		Content:  content,
		Recipients: []Recipient{{
			Recipient: mail.Recipient{
				No: 1, ForwardPath: "bob@remote.example", Domain: "remote.example",
				ORCPT: "rfc822;robert@remote.example", ExpiresAt: expires,
			},
			Action:        mail.Failed,
			Status:        mail.EnhancedCode{Class: 5, Subject: 1, Detail: 1},
			Reply:         reply(550, "5.1.1", "No such user here", "See https://remote.example/why"),
			Phase:         mail.PhaseRcpt,
			Host:          "mx1.remote.example",
			LastAttemptAt: attempted,
		}},
	}
}

func reply(code int, enhanced string, lines ...string) mail.Reply {
	r := mail.Reply{Code: code, Lines: lines}
	if enhanced != "" {
		d := enhanced[4] - '0'
		r.Enhanced = mail.EnhancedCode{Class: uint16(enhanced[0] - '0'), Subject: uint16(enhanced[2] - '0'), Detail: uint16(d)}
	}
	return r
}

func local(text string) mail.Reply { return mail.Reply{Lines: []string{text}} }

// cases are the reports that have a golden file each.
var cases = []struct {
	name   string
	change func(*Report)
}{
	{"failed", func(*Report) {}},
	{"failed-without-remote-host", func(r *Report) {
		rcpt := &r.Recipients[0]
		rcpt.Host, rcpt.ORCPT = "", ""
		rcpt.Status = mail.EnhancedCode{Class: 5, Subject: 1, Detail: 10}
		rcpt.Reply = local("remote.example does not accept mail (null MX)")
	}},
	{"failed-content-gone", func(r *Report) { r.Content = nil }},
	{"failed-ret-full", func(r *Report) { r.Original.Envelope.Ret = mail.RetFull }},
	{"failed-ret-full-8bit", func(r *Report) {
		r.Original.Envelope.Ret = mail.RetFull
		r.Content = append(r.Content, "Gr\xc3\xbc\xc3\x9fe\r\n"...)
		r.Original.SizeBytes = int64(len(r.Content))
	}},
	{"expired", func(r *Report) {
		rcpt := &r.Recipients[0]
		rcpt.Action, rcpt.Status = mail.Expired, mail.EnhancedCode{}
		rcpt.Reply = reply(451, "4.7.1", "Greylisted, try again in 5 minutes")
		rcpt.LastAttemptAt = expires.Add(-time.Hour)
	}},
	{"expired-never-tried", func(r *Report) {
		r.Recipients[0] = Recipient{Recipient: r.Recipients[0].Recipient, Action: mail.Expired}
	}},
	{"delayed", func(r *Report) {
		r.Original.Envelope.Ret = mail.RetFull // counts for failures only
		rcpt := &r.Recipients[0]
		rcpt.Action, rcpt.Status = mail.Delayed, mail.EnhancedCode{Class: 4, Subject: 2, Detail: 2}
		rcpt.Reply = reply(452, "4.2.2", "Mailbox full")
	}},
	{"relayed", func(r *Report) {
		rcpt := &r.Recipients[0]
		rcpt.Action, rcpt.Status = mail.Relayed, mail.EnhancedCode{Class: 2}
		rcpt.Reply = reply(250, "2.0.0", "Ok: queued as 4XYZ")
	}},
	{"deliver-by-return", func(r *Report) { // RFC 2852 §4: 5.4.7
		by := accepted.Add(time.Hour)
		r.Original.Envelope.DeliverBy = mail.DeliverBy{At: by, Return: true}
		r.Date = by.Add(time.Second)
		r.Recipients[0] = Recipient{Recipient: r.Recipients[0].Recipient, Action: mail.Expired}
	}},
	{"deliver-by-notice", func(r *Report) { // RFC 2852 §4: 4.4.7
		by := accepted.Add(time.Hour)
		r.Original.Envelope.DeliverBy = mail.DeliverBy{At: by}
		r.Date = by.Add(time.Second)
		rcpt := &r.Recipients[0]
		rcpt.Action, rcpt.Status = mail.Delayed, mail.EnhancedCode{Class: 4, Subject: 2, Detail: 2}
		rcpt.Reply = reply(452, "4.2.2", "Mailbox full")
	}},
	{"failed-requiretls", func(r *Report) { // RFC 8689 §5: redacted
		r.Original.Envelope.RequireTLS, r.Original.Envelope.Ret = true, mail.RetFull
		rcpt := &r.Recipients[0]
		rcpt.Status = mail.EnhancedCode{Class: 5, Subject: 7, Detail: 30}
		rcpt.Host, rcpt.Reply = "", local("no host of remote.example offers REQUIRETLS")
	}},
	{"mixed", func(r *Report) {
		failed := r.Recipients[0]
		delayed, relayed := failed, failed
		delayed.No, delayed.ForwardPath, delayed.ORCPT = 2, "carol@slow.example", ""
		delayed.Action, delayed.Status, delayed.Host = mail.Delayed, mail.EnhancedCode{Class: 4, Subject: 4, Detail: 1}, "mx.slow.example"
		delayed.Reply = local("connect to mx.slow.example [192.0.2.9]:25: connection timed out")
		relayed.No, relayed.ForwardPath, relayed.ORCPT = 3, "dave@good.example", ""
		relayed.Action, relayed.Status, relayed.Host = mail.Relayed, mail.EnhancedCode{Class: 2}, "mx.good.example"
		relayed.Reply = reply(250, "", "OK")
		r.Recipients = append(r.Recipients, delayed, relayed)
	}},
	{"eight-bit-reply-and-header", func(r *Report) {
		r.Recipients[0].Reply = reply(550, "5.1.1", "Benutzer unbekannt: kein Empfänger dieses Namens ist hier zu finden", "Grüße vom Postamt")
		r.Content = []byte("Subject: Gr\xfc\xdfe\r\n" + string(r.Content))
	}},
	{"smtputf8-to-ascii-sender", func(r *Report) {
		r.Original.Envelope.SMTPUTF8 = true
		r.Recipients[0].ForwardPath, r.Recipients[0].ORCPT = "用户@例子.example", "utf-8;用户@例子.example"
		r.Recipients[0].Reply = reply(550, "5.1.1", "没有这个用户")
		r.Content = []byte("Subject: 订单\r\n" + string(r.Content))
	}},
	{"smtputf8-to-utf8-sender", func(r *Report) {
		r.Original.Envelope.SMTPUTF8, r.Original.Envelope.ReversePath = true, "発信者@例え.example"
		r.Recipients[0].ForwardPath, r.Recipients[0].ORCPT = "用户@例子.example", ""
		r.Recipients[0].Reply = reply(550, "5.1.1", "没有这个用户")
		r.Content = []byte("Subject: 订单\r\n" + string(r.Content))
	}},
	{"hostile", func(r *Report) {
		r.Original.Envelope.EnvID = "x\r\nBcc: victim@example.com\r\n\r\nbody\xff"
		r.HeaderID = "<a@b>\r\nBcc: <victim@example.com>"
		rcpt := &r.Recipients[0]
		rcpt.ORCPT = "rfc822;a\r\n\r\nFinal-Recipient: rfc822; other@example.com"
		rcpt.Host = "mx.example\r\nAction: relayed"
		rcpt.Reply = reply(550, "5.7.1", "no\r\n\r\n--=_018f4e2a-2222-7000-8000-00000000000a--\r\n\x00\x1b[31mred", "=?utf-8?q?=0D=0AAction:_relayed?=", strings.Repeat("x", 5000))
		r.Content = []byte("Subject: " + strings.Repeat("y", 2000) + "\r\nX: \x00\rA\nB\r\n\r\n")
	}},
}

func TestGolden(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := plain(t)
			c.change(r)
			got := r.Compose()
			golden := filepath.Join("testdata", c.name+".eml")
			if *update {
				if err := os.WriteFile(golden, got.Content, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got.Content)); diff != "" {
				t.Errorf("differs from %s (-want +got, run with -update to accept):\n%s", golden, diff)
			}
			check(t, r, got)
		})
	}
}

// RFC 5321 §4.5.5, RFC 6531: only a UTF-8 reverse-path makes the report need
// SMTPUTF8 on its way back.
func TestWhatTheNextHopMustKnow(t *testing.T) {
	want := map[string]Composed{
		"failed":                   {Body: mail.Body7Bit},
		"failed-ret-full-8bit":     {Body: mail.Body8BitMIME},
		"smtputf8-to-ascii-sender": {Body: mail.Body8BitMIME},
		"smtputf8-to-utf8-sender":  {Body: mail.Body8BitMIME, SMTPUTF8: true},
	}
	for _, c := range cases {
		w, ok := want[c.name]
		if !ok {
			continue
		}
		r := plain(t)
		c.change(r)
		got := r.Compose()
		if got.Body != w.Body || got.SMTPUTF8 != w.SMTPUTF8 {
			t.Errorf("%s: Body %s, SMTPUTF8 %t, want %s, %t", c.name, got.Body, got.SMTPUTF8, w.Body, w.SMTPUTF8)
		}
	}
}

// RFC 3464 §2.3.4: the status agrees with the action.
func TestStatusAgreesWithAction(t *testing.T) {
	for _, c := range []struct {
		action mail.Action
		status string
		code   int
		want   string
	}{
		{mail.Failed, "5.1.1", 550, "5.1.1"},
		{mail.Failed, "4.4.1", 0, "4.4.1"},
		{mail.Failed, "2.0.0", 250, "5.0.0"},
		{mail.Failed, "", 554, "5.0.0"},
		{mail.Expired, "4.2.2", 452, "4.4.7"},
		{mail.Expired, "", 0, "4.4.7"},
		{mail.Expired, "5.7.1", 550, "5.4.7"},
		{mail.Delayed, "5.7.1", 550, "4.7.1"},
		{mail.Delayed, "", 0, "4.0.0"},
		{mail.Relayed, "", 250, "2.0.0"},
		{mail.Relayed, "2.6.0", 250, "2.6.0"},
	} {
		rcpt := Recipient{Action: c.action, Status: reply(0, c.status).Enhanced, Reply: mail.Reply{Code: c.code}}
		if got := rcpt.status().String(); got != c.want {
			t.Errorf("%s with status %q and reply %d: status %s, want %s", c.action, c.status, c.code, got, c.want)
		}
	}
}

func TestManyRecipientsAreToldBriefly(t *testing.T) {
	r := plain(t)
	for len(r.Recipients) < 1000 {
		next := r.Recipients[0]
		next.No = int32(len(r.Recipients) + 1)
		r.Recipients = append(r.Recipients, next)
	}
	got := r.Compose()
	check(t, r, got)
	if n := bytes.Count(got.Content, []byte("  <bob@remote.example>\r\n")); n != maxTold {
		t.Errorf("the text tells of %d recipients, want %d", n, maxTold)
	}
	if !bytes.Contains(got.Content, []byte("and 950 more, who are listed")) {
		t.Error("the text does not say that there are 950 more")
	}
}

func TestHeaderSection(t *testing.T) {
	field := "X-Long: " + strings.Repeat("a", 900) + "\r\n " + strings.Repeat("b", 900) + "\r\n"
	long := strings.Repeat(field, 40)
	for _, c := range []struct{ name, content, want string }{
		{"nothing", "", ""},
		{"no header", "\r\nbody", ""},
		{"header and body", "A: 1\r\nB: 2\r\n\r\nbody\r\n\r\n", "A: 1\r\nB: 2\r\n"},
		{"no body", "A: 1\r\nB: 2\r\n", "A: 1\r\nB: 2\r\n"},
		{"no line ending", "A: 1", "A: 1"},
		{"cut between fields", long, long[:MaxReturned/len(field)*len(field)]},
		{"cut at a field end exactly", field + strings.Repeat("c", MaxReturned-len(field)-2) + "\r\n" + field, field + strings.Repeat("c", MaxReturned-len(field)-2) + "\r\n"},
		{"one endless field", strings.Repeat("z", 2*MaxReturned), strings.Repeat("z", MaxReturned)},
		{"one endless folded field", "A: 1\r\n " + strings.Repeat("z\r\n ", MaxReturned), ("A: 1\r\n " + strings.Repeat("z\r\n ", MaxReturned))[:MaxReturned]},
	} {
		if got := string(headerSection([]byte(c.content))); got != c.want {
			t.Errorf("%s: got %d bytes, want %d", c.name, len(got), len(c.want))
		}
	}
}

func TestRetFullOnlyWhenItFits(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Report)
		want   string
	}{
		{"fits", func(*Report) {}, "message/rfc822"},
		{"only the beginning is at hand", func(r *Report) { r.Original.SizeBytes++ }, "text/rfc822-headers"},
		{"too large", func(r *Report) {
			r.Content = append(r.Content, bytes.Repeat([]byte("line\r\n"), MaxReturned/6)...)
			r.Original.SizeBytes = int64(len(r.Content))
		}, "text/rfc822-headers"},
		{"binary", func(r *Report) { // RFC 2046 §5.2.1
			r.Content = append(r.Content, 0)
			r.Original.SizeBytes = int64(len(r.Content))
		}, "text/rfc822-headers"},
		{"not a failure", func(r *Report) { r.Recipients[0].Action = mail.Relayed }, "text/rfc822-headers"},
		{"international", func(r *Report) { r.Original.Envelope.SMTPUTF8 = true }, "message/global"},
	} {
		r := plain(t)
		r.Original.Envelope.Ret = mail.RetFull
		c.change(r)
		_, parts := read(t, r.Compose().Content)
		if got := parts[2].contentType; got != c.want {
			t.Errorf("%s: returned as %s, want %s", c.name, got, c.want)
		}
	}
}
