package hostile

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/smtptest"
)

// connecting are the hosts that nobody gets through to.
func connecting() []*Scenario {
	refused := before("4.4.1")
	refused.Connections = 0
	return []*Scenario{
		{Name: "refused", At: "connect", Host: "refuses the connection", Want: refused},
		{Name: "unanswered", At: "connect", Host: "answers no SYN", Unanswered: true, Shaping: `connect_timeout = "1s"`, Want: refused},
		{Name: "rst-at-once", At: "connect", Host: "accepts and sends RST at once", Script: at(smtptest.Banner, smtptest.Reset()), Want: reset()},
	}
}

// replies are forms that a reply may have, or should not.
func replies() []*Scenario {
	lines := func(n int) []string {
		all := []string{"mx.test"}
		for i := range n {
			all = append(all, fmt.Sprintf("X-EXTENSION-%d", i))
		}
		return all
	}
	long := slices.Repeat([]string{"X-" + strings.Repeat("LONG", 400)}, 64)
	return []*Scenario{
		{Name: "ehlo-unknown", At: "EHLO", Host: "replies 502 to EHLO and knows HELO", Script: at(smtptest.Hello, smtptest.Reply(502, "5.5.1 what?")), Want: relayed()},
		{Name: "ehlo-hangs-up", At: "EHLO", Host: "replies 550 to EHLO and closes",
			Script: at(smtptest.Hello, smtptest.Then(smtptest.Reply(550, "5.7.1 you are on a list"), smtptest.Drop())), Want: before("4.7.1")},
		{Name: "ehlo-100-lines", At: "EHLO", Host: "offers a hundred extensions", Script: at(smtptest.Hello, smtptest.Reply(250, lines(100)...)), Want: relayed()},
		{Name: "ehlo-1000-lines", At: "EHLO", Host: "offers a thousand extensions", Script: at(smtptest.Hello, smtptest.Reply(250, lines(1000)...)), Want: relayed()},
		{Name: "ehlo-100-kilobytes", At: "EHLO", Host: "offers extensions of 100 KB in all", Script: at(smtptest.Hello, smtptest.Reply(250, long...)), Want: relayed()},
		{Name: "25-megabytes", At: "greeting", Host: "greets with 25 MB",
			Script: at(smtptest.Banner, smtptest.Raw(strings.Repeat("220-"+strings.Repeat("x", 994)+"\r\n", 25_000)+"220 mx.test\r\n")), Want: before("4.5.0")},
		{Name: "25-megabytes-dripped", At: "greeting", Host: "greets with 25 MB, one octet at a time", Shaping: `banner_timeout = "1s"`,
			Script: at(smtptest.Banner, smtptest.Bytewise(smtptest.Raw("220-"+strings.Repeat("x", 25_000_000)))), Want: before("4.4.2")},
		{Name: "all-at-once", At: "greeting", Host: "says all replies of the dialogue at once, before it is asked",
			Script: at(smtptest.Banner, smtptest.Raw("220 mx.test\r\n250 mx.test\r\n250 ok\r\n250 ok\r\n354 go ahead\r\n250 taken\r\n")), Want: before("4.5.0")},
		{Name: "521-at-greeting", At: "greeting", Host: "replies 521: it never takes mail", Script: at(smtptest.Banner, smtptest.Reply(521, "no mail here")), Want: before("4.3.2")},
		{Name: "two-replies-at-rcpt", At: "RCPT", Host: "replies 250 and then 550 to RCPT: the second refuses DATA",
			Script: at(smtptest.Rcpt, smtptest.Then(smtptest.Reply(250, "2.1.5 ok"), smtptest.Reply(550, "5.7.1 no"))), Want: fails("5.7.1")},
		{Name: "bare-lf", At: "greeting", Host: "ends its lines in LF", Script: at(smtptest.Banner, smtptest.Raw("220-mx\n220 mx\n")), Want: relayed()},
		{Name: "no-text", At: "RCPT", Host: "gives codes without text", Script: at(smtptest.Rcpt, smtptest.Raw("250\r\n")), Want: relayed()},
		{Name: "odd-enhanced", At: "RCPT", Host: "gives an enhanced code of another class, which does not count",
			Script: at(smtptest.Rcpt, smtptest.Reply(550, "2.1.5 no such user")), Want: fails("5.0.0")},
		{Name: "control-characters", At: "final dot", Host: "has NULs and control characters in the text of its refusal",
			Script: at(smtptest.Dot, smtptest.Raw("550 5.7.1 \x1b[31mno\x00\x07 \xff\xfe\r\n")), Want: fails("5.7.1")},
	}
}

// recipients are hosts that take some recipients and not others.
func recipients() []*Scenario {
	two := []string{"one", "two"}
	rcpt := func(match string, times int, do smtptest.Act) smtptest.Rule {
		return smtptest.Rule{At: smtptest.Rcpt, Match: match, Times: times, Do: do}
	}
	some := relayed()
	some.Outcomes = []Outcome{{"relayed", "2.0.0"}, {"failed", "5.1.1"}, {"queued", "4.2.2"}}
	both := relayed()
	both.Outcomes = []Outcome{{"relayed", "2.0.0"}, {"relayed", "2.0.0"}}
	split := both
	split.Transactions = 2
	none := waits("4.5.3")
	neither := fails("5.1.1")
	neither.Outcomes = []Outcome{{"failed", "5.1.1"}, {"failed", "5.1.1"}}
	return []*Scenario{
		{Name: "some-recipients", At: "RCPT", Host: "takes one recipient, refuses one with 550 and one with 452 4.2.2", To: []string{"one", "gone", "full"},
			Script: rules(rcpt("gone", 0, smtptest.Reply(550, "5.1.1 unknown")), rcpt("full", 0, smtptest.Reply(452, "4.2.2 mailbox full"))), Want: some},
		{Name: "too-many-recipients", At: "RCPT", Host: "takes one recipient a transaction, 452 4.5.3 to the others", To: two,
			Script: rules(rcpt("two", 1, smtptest.Reply(452, "4.5.3 too many"))), Want: split},
		{Name: "no-recipient-at-all", At: "RCPT", Host: "replies 452 4.5.3 to the first recipient already",
			Script: rules(rcpt("", 0, smtptest.Reply(452, "4.5.3 too many"))), Want: none},
		{Name: "data-for-nobody", At: "RCPT", Host: "refuses all recipients and replies 354 to DATA all the same", To: two,
			Script: rules(rcpt("", 0, smtptest.Reply(550, "5.1.1 unknown")), smtptest.Rule{At: smtptest.Data, Do: smtptest.Reply(354, "go ahead")},
				smtptest.Rule{At: smtptest.Dot, Do: smtptest.Reply(554, "5.5.1 nobody")}), Want: neither},
		{Name: "251", At: "RCPT", Host: "replies 251: it will forward", Script: at(smtptest.Rcpt, smtptest.Reply(251, "2.1.5 will forward")), Want: relayed()},
	}
}

// content are hosts that leave while the content is on its way, or just after.
func content() []*Scenario {
	const large = 12 << 20 // more than fits between two sockets
	late := unsure("4.4.2")
	late.Twice = true
	return []*Scenario{
		{Name: "rst-in-content", At: "content", Host: "closes with RST in the middle of the content", Bytes: large,
			Script: at(smtptest.Body, smtptest.AfterBytes(1<<20, smtptest.Reset())), Want: next("4.4.2")},
		{Name: "552-in-content", At: "content", Host: "replies 552 5.3.4 in the middle of the content and closes", Bytes: large,
			Script: at(smtptest.Body, smtptest.AfterBytes(1<<20, smtptest.Then(smtptest.Reply(552, "5.3.4 too big"), smtptest.Drain(time.Second), smtptest.Drop()))), Want: fails("5.3.4")},
		{Name: "frozen-in-content", At: "content", Host: "reads no more of the content", Bytes: large, Shaping: `data_block_timeout = "1s"`,
			Script: at(smtptest.Body, smtptest.AfterBytes(1<<20, smtptest.Freeze())), Want: next("4.4.2")},
		{Name: "drop-behind-354", At: "content", Host: "closes before it reads the content, which had left with its dot",
			Script: at(smtptest.Body, smtptest.Drop()), Want: unsure("4.4.2")},
		{Name: "250-in-content", At: "content", Host: "says in the middle of the content that it has taken it, and takes it", Bytes: large,
			Script: at(smtptest.Body, smtptest.AfterBytes(1<<20, smtptest.Reply(250, "2.0.0 taken"))), Want: relayed()},
		{Name: "closes-after-250", At: "final dot", Host: "takes the message and closes",
			Script: at(smtptest.Dot, smtptest.Then(smtptest.Reply(250, "2.0.0 taken"), smtptest.Drop())), Want: relayed()},
		{Name: "rst-after-250", At: "final dot", Host: "takes the message and sends RST a little later",
			Script: at(smtptest.Dot, smtptest.Then(smtptest.Reply(250, "2.0.0 taken"), smtptest.Later(50*time.Millisecond, smtptest.Reset()))), Want: relayed()},
		{Name: "late-250", At: "final dot", Host: "takes the message, and says so after our wait has ended", Shaping: `data_dot_timeout = "1s"`,
			Script: at(smtptest.Dot, smtptest.Later(3*time.Second, smtptest.Reply(250, "2.0.0 taken"))), Want: late},
	}
}

// sessions are hosts that take one message and then have enough.
func sessions() []*Scenario {
	var all []*Scenario
	used := func(name, at, host string, phase smtptest.Phase, do smtptest.Act, want Want) {
		all = append(all, &Scenario{
			Name: name, At: at, Host: host, Used: true, Shaping: `idle_timeout = "1m"`, Want: want,
			Script: rules(smtptest.Rule{At: phase, Skip: 1, Times: 1, Do: do}),
		})
	}
	bye := smtptest.Then(smtptest.Reply(421, "4.7.0 enough"), smtptest.Drop())
	for _, p := range points[2:] {
		used("421-second-"+string(p.phase), p.at, "takes one message, then replies 421 and closes", p.phase, bye, after(2))
	}
	used("drop-second-mail", "MAIL", "takes one message, then closes", smtptest.Mail, smtptest.Drop(), after(2))
	used("rst-second-mail", "MAIL", "takes one message, then sends RST", smtptest.Mail, smtptest.Reset(), after(2))
	used("drop-second-rcpt", "RCPT", "takes one message, then closes at RCPT", smtptest.Rcpt, smtptest.Drop(), func() Want {
		w := next("4.4.2")
		w.Connections = 0 // the one that was there
		return w
	}())
	// It is there before the next message, and no answer to it.
	for _, u := range []struct{ name, words, text string }{
		{"421", "421 unasked and closes", "421 4.4.2 idle for too long\r\n"},
		{"554", "554 unasked and closes", "554 5.0.0 idle for too long\r\n"},
		{"250", "250 unasked", "250 2.0.0 ok\r\n"},
	} {
		for _, bdat := range []bool{false, true} {
			say := smtptest.Raw(u.text)
			if u.name != "250" {
				say = smtptest.Then(say, smtptest.Drop())
			}
			s := &Scenario{
				Name: u.name + "-unasked", At: "MAIL", Host: "takes one message, then says " + u.words, Used: true, Shaping: `idle_timeout = "1m"`, Want: after(1),
			}
			rule := smtptest.Rule{At: smtptest.Dot, Times: 1, Do: smtptest.Then(smtptest.Reply(250, "2.0.0 taken"), smtptest.Later(time.Millisecond, say))}
			s.Script = rules(rule)
			if bdat {
				s.Name, s.Host = s.Name+"-bdat", s.Host+"; it offers CHUNKING"
				s.Script = offering([]string{"PIPELINING", "CHUNKING"}, rule)
			}
			all = append(all, s)
		}
	}
	for _, r := range []struct {
		name, words, timeout string
		do                   smtptest.Act
		transactions         int // MAIL has left together with RSET
	}{
		{"503", "replies 503", "", smtptest.Reply(503, "5.5.1 no"), 2},
		{"421", "replies 421 and closes", "", bye, 1},
		{"drop", "closes", "", smtptest.Drop(), 1},
		{"rst", "closes with RST", "", smtptest.Reset(), 1},
		{"garbage", "sends what is no reply", "", smtptest.Raw("what?\r\n"), 2},
		{"stall", "says nothing", "\nrset_timeout = \"1s\"", smtptest.Stall(), 1},
	} {
		all = append(all, &Scenario{
			Name: r.name + "-at-rset", At: "RSET", Host: r.words, Owed: true, Shaping: `idle_timeout = "1m"` + r.timeout, Want: after(r.transactions),
			Script: rules(smtptest.Rule{At: smtptest.Rcpt, Match: "refused", Do: smtptest.Reply(550, "5.1.1 unknown")}, smtptest.Rule{At: smtptest.Rset, Times: 1, Do: r.do}),
		})
	}
	for _, q := range []struct {
		name, words string
		do          smtptest.Act
	}{
		{"stall", "says nothing", smtptest.Stall()}, {"drop", "closes without a reply", smtptest.Drop()}, {"rst", "sends RST", smtptest.Reset()}, {"500", "replies 500", smtptest.Reply(500, "what?")},
	} {
		all = append(all, &Scenario{Name: q.name + "-at-quit", At: "QUIT", Host: q.words, Script: at(smtptest.Quit, q.do), Want: relayed()})
	}
	return all
}
