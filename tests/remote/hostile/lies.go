package hostile

import (
	"crypto/tls"
	"time"

	"github.com/postrider/postrider/pkg/smtptest"
)

// missing are hosts that cannot do what the message needs.
func missing() []*Scenario {
	tooBig := fails("5.3.4")
	tooBig.Transactions = 0
	unoffered := fails("5.6.7")
	unoffered.Transactions = 0
	slow := before("4.4.7")
	slow.Outcomes = []Outcome{{"failed", "5.4.7"}}
	return []*Scenario{
		{Name: "size-small", At: "EHLO", Host: "offers SIZE 1000, and the message is larger", Bytes: 5000, Script: offering([]string{"PIPELINING", "SIZE 1000"}), Want: tooBig},
		{Name: "size-nonsense", At: "EHLO", Host: "offers SIZE -1 and SIZE many, which set no limit", Script: offering([]string{"SIZE -1", "SIZE many"}), Want: relayed()},
		{Name: "keywords-odd", At: "EHLO", Host: "offers keywords twice, in small letters and with spaces behind", Script: offering([]string{"pipelining ", "8bitmime", "8BITMIME"}), Want: relayed()},
		{Name: "smtputf8-missing", At: "EHLO", Host: "does not offer SMTPUTF8, and the message needs it", To: []string{"bücher"}, Params: "SMTPUTF8",
			Script: offering([]string{"PIPELINING", "8BITMIME"}), Want: unoffered},
		{Name: "8bitmime-missing", At: "EHLO", Host: "does not offer 8BITMIME: it gets a conversion", EightBit: true, Params: "BODY=8BITMIME",
			Script: offering([]string{"PIPELINING"}), Want: relayed()},
		{Name: "deliverby-missing", At: "EHLO", Host: "does not offer DELIVERBY, and the message is to come back if it is late", Params: "BY=3600;R", Script: rules(), Want: slow},
		{Name: "deliverby-missing-notify", At: "EHLO", Host: "does not offer DELIVERBY, and the sender is to hear if the message is late", Params: "BY=3600;N", Script: rules(), Want: relayed()},
		{Name: "deliverby-slow", At: "EHLO", Host: "offers DELIVERBY of two hours at least, and the message is to be there in one", Params: "BY=3600;R",
			Script: offering([]string{"PIPELINING", "DELIVERBY 7200"}), Want: slow},
	}
}

// lies are hosts that offer what they do not have. What a message can do
// without is left out, in another transaction.
func lies() []*Scenario {
	reply := smtptest.Reply
	what := reply(555, "5.5.4 what?")
	refuses := func(at smtptest.Phase, match string, do smtptest.Act) smtptest.Rule {
		return smtptest.Rule{At: at, Match: match, Do: do}
	}
	without := after(2)
	two, both := []string{"one", "two"}, after(2)
	both.Outcomes = []Outcome{{"relayed", "2.0.0"}, {"relayed", "2.0.0"}}
	late := fails("5.4.7")
	late.Next = true
	short := next("4.5.0")
	short.Outcomes = []Outcome{{"queued", "4.5.0"}, {"queued", "4.5.0"}}
	slowly := func(phase smtptest.Phase, do smtptest.Act) smtptest.Rule {
		return smtptest.Rule{At: phase, Do: smtptest.Later(50*time.Millisecond, do)}
	}
	return []*Scenario{
		{Name: "size-lie", At: "MAIL", Host: "offers SIZE 10000000 and replies 552 to 5,000 octets", Bytes: 5000,
			Script: offering([]string{"PIPELINING", "SIZE 10000000"}, smtptest.Rule{At: smtptest.Mail, Do: reply(552, "5.3.4 too big")}), Want: fails("5.3.4")},
		{Name: "size-lie-at-dot", At: "final dot", Host: "offers SIZE 10000000 and refuses 5,000 octets when it has them", Bytes: 5000,
			Script: offering([]string{"PIPELINING", "SIZE 10000000"}, smtptest.Rule{At: smtptest.Dot, Do: reply(552, "5.3.4 too big")}), Want: fails("5.3.4")},
		{Name: "size-parameter-lie", At: "MAIL", Host: "offers SIZE and replies 501 to it", Script: offering([]string{"SIZE"}, refuses(smtptest.Mail, "SIZE=", reply(501, "syntax"))), Want: without},
		{Name: "8bitmime-lie", At: "MAIL", Host: "offers 8BITMIME and replies 555 to BODY=8BITMIME: it gets a conversion", EightBit: true, Params: "BODY=8BITMIME",
			Script: rules(refuses(smtptest.Mail, "BODY=8BITMIME", what)), Want: without},
		{Name: "8bitmime-lie-at-dot", At: "final dot", Host: "offers 8BITMIME and refuses octets over 127 when it has them", EightBit: true, Params: "BODY=8BITMIME",
			Script: rules(refuses(smtptest.Dot, "", reply(554, "5.6.1 7-bit only"))), Want: fails("5.6.1")},
		{Name: "binarymime-lie", At: "MAIL", Host: "offers BINARYMIME and replies 504 to it: it gets a conversion", EightBit: true, Params: "BODY=BINARYMIME",
			Script: offering([]string{"PIPELINING", "CHUNKING", "BINARYMIME"}, refuses(smtptest.Mail, "BINARYMIME", reply(504, "5.5.4 what?"))), Want: without},
		{Name: "binarymime-without-bdat", At: "DATA", Host: "offers BINARYMIME and replies 502 to BDAT: it gets a conversion, by DATA", EightBit: true, Params: "BODY=BINARYMIME",
			Script: offering([]string{"PIPELINING", "CHUNKING", "BINARYMIME"}, refuses(smtptest.Bdat, "", reply(502, "5.5.1 what?"))), Want: without},
		{Name: "smtputf8-lie", At: "RCPT", Host: "offers SMTPUTF8 and replies 553 5.6.7 to such an address", To: []string{"bücher"}, Params: "SMTPUTF8",
			Script: at(smtptest.Rcpt, reply(553, "5.6.7 ASCII only")), Want: fails("5.6.7")},
		{Name: "smtputf8-lie-at-mail", At: "MAIL", Host: "offers SMTPUTF8 and replies 555 to it", To: []string{"bücher"}, Params: "SMTPUTF8",
			Script: rules(refuses(smtptest.Mail, "SMTPUTF8", what)), Want: fails("5.6.7")},
		{Name: "dsn-lie", At: "MAIL", Host: "offers DSN and replies 555 to RET", Params: "RET=HDRS", Script: rules(refuses(smtptest.Mail, "RET=", what)), Want: without},
		{Name: "dsn-lie-at-rcpt", At: "RCPT", Host: "offers DSN and replies 555 to NOTIFY", Each: "NOTIFY=FAILURE", Script: rules(refuses(smtptest.Rcpt, "NOTIFY=", what)), Want: without},
		{Name: "dsn-lie-orcpt", At: "RCPT", Host: "offers DSN and replies 501 to ORCPT", Each: "ORCPT=rfc822;a@b.test", Script: rules(refuses(smtptest.Rcpt, "ORCPT=", reply(501, "5.5.4 syntax"))), Want: without},
		{Name: "dsn-lie-to-one", At: "RCPT", Host: "offers DSN, takes NOTIFY of one recipient and replies 555 to that of the other", To: two, Each: "NOTIFY=FAILURE",
			Script: rules(refuses(smtptest.Rcpt, "<two@dsn-lie-to-one.hostile.test> NOTIFY=", what), refuses(smtptest.Rcpt, "<two@dsn-lie-to-one.next.test> NOTIFY=", what)), Want: both},
		{Name: "deliverby-lie", At: "MAIL", Host: "offers DELIVERBY and replies 555 to BY", Params: "BY=3600;N",
			Script: offering([]string{"PIPELINING", "DELIVERBY"}, refuses(smtptest.Mail, "BY=", what)), Want: without},
		{Name: "deliverby-lie-return", At: "MAIL", Host: "offers DELIVERBY and replies 555 to BY, and the message is to come back if it is late", Params: "BY=3600;R",
			Script: offering([]string{"PIPELINING", "DELIVERBY"}, refuses(smtptest.Mail, "BY=", what)), Want: late},
		{Name: "one-at-a-time", At: "RCPT", Host: "offers PIPELINING and replies to each command by itself, slowly",
			Script: rules(slowly(smtptest.Mail, reply(250, "ok")), slowly(smtptest.Rcpt, reply(250, "ok")), slowly(smtptest.Data, reply(354, "go"))), Want: relayed()},
		{Name: "pipelining-lie", At: "RCPT", Host: "offers PIPELINING and throws away what came behind MAIL", Shaping: `rcpt_to_timeout = "1s"`,
			Script: at(smtptest.Mail, smtptest.Then(smtptest.Forget(), reply(250, "ok"))), Want: next("4.4.2")},
		{Name: "pipelining-drop", At: "RCPT", Host: "offers PIPELINING and closes when more than one command comes",
			Script: at(smtptest.Mail, smtptest.Then(reply(250, "ok"), smtptest.Drop())), Want: next("4.4.2")},
		{Name: "pipelining-short", At: "RCPT", Host: "offers PIPELINING and replies to one of two recipients", To: two,
			Script: rules(smtptest.Rule{At: smtptest.Rcpt, Each: smtptest.PerTransaction, Times: 1, Do: smtptest.As(250, smtptest.Raw(""))}), Want: short},
	}
}

// required are hosts that get a message with REQUIRETLS: RFC 8689.
func required() []*Scenario {
	cannot := fails("5.7.30")
	cannot.Next = true
	unoffered := cannot
	unoffered.Transactions = 0
	row := func(name, at, host string, certificate func(*Kit, string) (*tls.Config, error), want Want, more ...smtptest.Rule) *Scenario {
		s := &Scenario{Name: name, At: at, Host: host, Params: "REQUIRETLS", Shaping: `enable_tls = "Required"`, Want: want}
		s.Script = certified(certificate, s.MX(), more...)
		return s
	}
	good := func(k *Kit, name string) (*tls.Config, error) { return k.Authority.Server(name) }
	offers := smtptest.Rule{At: smtptest.Hello, Skip: 1, Each: smtptest.PerConnection, Do: smtptest.Offer("PIPELINING", "REQUIRETLS")}
	refuses := func(do smtptest.Act) smtptest.Rule {
		return smtptest.Rule{At: smtptest.Mail, Match: "REQUIRETLS", Do: do}
	}
	relayed := relayed()
	relayed.Encrypted = true
	return []*Scenario{
		row("requiretls", "MAIL", "offers REQUIRETLS and keeps it", good, relayed, offers),
		row("requiretls-missing", "EHLO", "does not offer REQUIRETLS, and the message demands it", good, unoffered),
		row("requiretls-lie", "MAIL", "offers REQUIRETLS and replies 555 to it", good, cannot, offers, refuses(smtptest.Reply(555, "5.5.4 what?"))),
		row("requiretls-refused", "MAIL", "offers REQUIRETLS and replies 550 5.7.30 to it", good, fails("5.7.30"), offers, refuses(smtptest.Reply(550, "5.7.30 not onwards"))),
		row("requiretls-expired", "STARTTLS", "offers REQUIRETLS with a certificate that has expired",
			func(k *Kit, name string) (*tls.Config, error) { return k.Authority.Expired(name) }, before("4.7.5"), offers),
		row("requiretls-no-starttls", "STARTTLS", "does not offer STARTTLS, and the message demands REQUIRETLS", good, before("4.7.4"),
			smtptest.Rule{At: smtptest.Hello, Do: smtptest.Offer("PIPELINING", "REQUIRETLS")}),
	}
}
