package hostile

import (
	"crypto/tls"
	"time"

	"github.com/postrider/postrider/pkg/smtptest"
)

// extensions are hosts that offer what they do not have.
func extensions() []*Scenario {
	reply := smtptest.Reply
	tooBig := fails("5.3.4")
	tooBig.Transactions = 0
	unoffered := fails("5.6.7")
	unoffered.Transactions = 0
	slow := before("4.4.7")
	slow.Outcomes = []Outcome{{"failed", "5.4.7"}}
	slowly := func(phase smtptest.Phase, do smtptest.Act) smtptest.Rule {
		return smtptest.Rule{At: phase, Do: smtptest.Later(50*time.Millisecond, do)}
	}
	return []*Scenario{
		{Name: "size-small", At: "EHLO", Host: "offers SIZE 1000, and the message is larger", Bytes: 5000, Script: offering([]string{"PIPELINING", "SIZE 1000"}), Want: tooBig},
		{Name: "size-lie", At: "MAIL", Host: "offers SIZE 10000000 and replies 552 to 5,000 octets", Bytes: 5000,
			Script: offering([]string{"PIPELINING", "SIZE 10000000"}, smtptest.Rule{At: smtptest.Mail, Do: reply(552, "5.3.4 too big")}), Want: fails("5.3.4")},
		{Name: "size-lie-at-dot", At: "final dot", Host: "offers SIZE 10000000 and refuses 5,000 octets when it has them", Bytes: 5000,
			Script: offering([]string{"PIPELINING", "SIZE 10000000"}, smtptest.Rule{At: smtptest.Dot, Do: reply(552, "5.3.4 too big")}), Want: fails("5.3.4")},
		{Name: "size-nonsense", At: "EHLO", Host: "offers SIZE -1 and SIZE many, which set no limit", Script: offering([]string{"SIZE -1", "SIZE many"}), Want: relayed()},
		{Name: "keywords-odd", At: "EHLO", Host: "offers keywords twice, in small letters and with spaces behind", Script: offering([]string{"pipelining ", "8bitmime", "8BITMIME"}), Want: relayed()},
		{Name: "one-at-a-time", At: "RCPT", Host: "offers PIPELINING and replies to each command by itself, slowly",
			Script: rules(slowly(smtptest.Mail, reply(250, "ok")), slowly(smtptest.Rcpt, reply(250, "ok")), slowly(smtptest.Data, reply(354, "go"))), Want: relayed()},
		{Name: "pipelining-lie", At: "RCPT", Host: "offers PIPELINING and throws away what came behind MAIL", Shaping: `rcpt_to_timeout = "1s"`,
			Script: at(smtptest.Mail, smtptest.Then(smtptest.Forget(), reply(250, "ok"))), Want: next("4.4.2")},
		{Name: "8bitmime-lie", At: "MAIL", Host: "offers 8BITMIME and replies 555 to BODY=8BITMIME", EightBit: true, Params: "BODY=8BITMIME",
			Script: rules(smtptest.Rule{At: smtptest.Mail, Match: "BODY=8BITMIME", Do: reply(555, "5.5.4 what?")}), Want: fails("5.5.4")},
		{Name: "smtputf8-missing", At: "EHLO", Host: "does not offer SMTPUTF8, and the message needs it", To: []string{"bücher"}, Params: "SMTPUTF8",
			Script: offering([]string{"PIPELINING", "8BITMIME"}), Want: unoffered},
		{Name: "smtputf8-lie", At: "RCPT", Host: "offers SMTPUTF8 and replies 553 5.6.7 to such an address", To: []string{"bücher"}, Params: "SMTPUTF8",
			Script: at(smtptest.Rcpt, reply(553, "5.6.7 ASCII only")), Want: fails("5.6.7")},
		{Name: "dsn-lie", At: "MAIL", Host: "offers DSN and replies 555 to RET", Params: "RET=HDRS",
			Script: rules(smtptest.Rule{At: smtptest.Mail, Match: "RET=", Do: reply(555, "5.5.4 what?")}), Want: fails("5.5.4")},
		{Name: "pipelining-drop", At: "RCPT", Host: "offers PIPELINING and closes when more than one command comes",
			Script: at(smtptest.Mail, smtptest.Then(reply(250, "ok"), smtptest.Drop())), Want: next("4.4.2")},
		{Name: "8bitmime-missing", At: "EHLO", Host: "does not offer 8BITMIME: it gets a conversion", EightBit: true, Params: "BODY=8BITMIME",
			Script: offering([]string{"PIPELINING"}), Want: relayed()},
		{Name: "deliverby-lie", At: "MAIL", Host: "offers DELIVERBY and replies 555 to BY", Params: "BY=3600;N",
			Script: offering([]string{"PIPELINING", "DELIVERBY"}, smtptest.Rule{At: smtptest.Mail, Match: "BY=", Do: reply(555, "5.5.4 what?")}), Want: fails("5.5.4")},
		{Name: "deliverby-slow", At: "EHLO", Host: "offers DELIVERBY of two hours at least, and the message is to be there in one", Params: "BY=3600;R",
			Script: offering([]string{"PIPELINING", "DELIVERBY 7200"}), Want: slow},
	}
}

// chunks are hosts that offer CHUNKING. A host that refuses BDAT gets the
// message by DATA, in a transaction of its own.
func chunks() []*Scenario {
	reply, drop := smtptest.Reply, smtptest.Drop()
	chunk := func(name, at, host string, phase smtptest.Phase, do smtptest.Act, want Want) *Scenario {
		return &Scenario{Name: "chunking-" + name, At: at, Host: "offers CHUNKING and " + host, Want: want,
			Script: offering([]string{"PIPELINING", "8BITMIME", "CHUNKING"}, smtptest.Rule{At: phase, Do: do})}
	}
	stalls := chunk("stall", "DATA", "says nothing to BDAT", smtptest.Bdat, smtptest.Stall(), next("4.4.2"))
	stalls.Shaping = `data_timeout = "1s"`
	return []*Scenario{
		chunk("502", "DATA", "replies 502 to BDAT", smtptest.Bdat, reply(502, "5.5.1 what?"), after(1, 2)),
		chunk("503", "DATA", "replies 503 to BDAT", smtptest.Bdat, reply(503, "5.5.1 not now"), after(1, 2)),
		chunk("554", "DATA", "replies 554 to BDAT, and not to DATA", smtptest.Bdat, reply(554, "5.7.1 no"), after(1, 2)),
		chunk("451", "DATA", "replies 451 to BDAT", smtptest.Bdat, reply(451, "4.7.0 later"), waits("4.7.0")),
		chunk("354", "DATA", "replies 354 to BDAT", smtptest.Bdat, reply(354, "go ahead"), next("4.5.0")),
		chunk("421", "DATA", "replies 421 to BDAT and closes", smtptest.Bdat, smtptest.Then(reply(421, "4.3.2 bye"), drop), next("4.3.2")),
		chunk("drop", "DATA", "closes at BDAT", smtptest.Bdat, drop, next("4.4.2")),
		stalls,
		chunk("drop-in-chunk", "content", "closes before it reads the chunk, which had left whole", smtptest.Body, drop, unsure("4.4.2")),
		chunk("552-at-end", "final dot", "replies 552 to the last chunk", smtptest.Dot, reply(552, "5.3.4 too big"), fails("5.3.4")),
		chunk("451-at-end", "final dot", "replies 451 to the last chunk", smtptest.Dot, reply(451, "4.7.0 later"), waits("4.7.0")),
		chunk("354-at-end", "final dot", "replies 354 to the last chunk", smtptest.Dot, reply(354, "more"), unsure("4.5.0")),
		chunk("drop-at-end", "final dot", "closes in place of a reply to the last chunk", smtptest.Dot, drop, unsure("4.4.2")),
	}
}

// handshakes are what goes wrong around STARTTLS. What may be encrypted leaves
// in plaintext then, over a connection of its own; what must be waits.
func handshakes() []*Scenario {
	var all []*Scenario
	plain := after(2, 1)
	plain.Plaintext = true
	good := func(k *Kit, name string) (*tls.Config, error) { return k.Authority.Server(name) }
	add := func(name, host string, bad func(*Kit, string) (*tls.Config, error), may, must Want, shape string, more ...smtptest.Rule) {
		for _, level := range []struct {
			suffix, words, key string
			want               Want
		}{
			{"", "; TLS is optional", "", may},
			{"-required", "; TLS is required, with a certificate that is good", "enable_tls = \"Required\"\n", must},
		} {
			s := &Scenario{Name: name + level.suffix, At: "STARTTLS", Host: host + level.words, Shaping: level.key + shape, Want: level.want}
			s.Script = certified(bad, s.MX(), more...)
			all = append(all, s)
		}
	}
	encrypted := relayed()
	encrypted.Encrypted = true
	refused := relayed()
	refused.Plaintext = true
	badCert := before("4.7.5")
	// A handshake that breaks is tried once more with a smaller hello.
	twice := before("4.7.5")
	twice.Connections = 2
	thrice := after(3, 1)
	thrice.Plaintext = true
	add("good", "has a good certificate", good, encrypted, encrypted, "")
	add("expired", "has a certificate that has expired", func(k *Kit, name string) (*tls.Config, error) { return k.Authority.Expired(name) }, encrypted, badCert, "")
	add("wrong-name", "has a certificate for another name", func(k *Kit, _ string) (*tls.Config, error) { return k.Authority.Server("other.test") }, encrypted, badCert, "")
	add("self-signed", "has a certificate that nobody vouches for", func(_ *Kit, name string) (*tls.Config, error) { return smtptest.SelfSigned(name) }, encrypted, badCert, "")
	add("old-tls", "knows TLS 1.1 at most", func(k *Kit, name string) (*tls.Config, error) {
		config, err := k.Authority.Server(name)
		if err == nil {
			config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		}
		return config, err
	}, thrice, twice, "")

	handshake := func(name, host, shape string, do smtptest.Act) {
		add(name, host, good, thrice, twice, shape, smtptest.Rule{At: smtptest.Handshake, Do: do})
	}
	handshake("tls-plaintext", "goes on in plaintext after its 220", `starttls_timeout = "1s"`, smtptest.Then(smtptest.Raw("250 mx.test\r\n"), smtptest.Stall()))
	handshake("tls-garbage", "answers the handshake with what is no TLS", "", smtptest.AfterBytes(1, smtptest.Then(smtptest.Raw("\x00\x01\x02 no TLS at all\xff"), smtptest.Stall())))
	handshake("tls-alert", "ends the handshake with an alert", "", smtptest.Then(smtptest.Raw("\x15\x03\x03\x00\x02\x02\x28"), smtptest.Drop()))
	handshake("tls-drop", "closes in the handshake", "", smtptest.Drop())
	handshake("tls-rst", "sends RST in the handshake", "", smtptest.Reset())
	handshake("tls-stall", "says nothing in the handshake", `starttls_timeout = "1s"`, smtptest.Stall())

	starttls := func(name, host, shape string, do smtptest.Act, may, must Want) {
		add(name, host, good, may, must, shape, smtptest.Rule{At: smtptest.StartTLS, Do: do})
	}
	starttls("starttls-454", "offers STARTTLS and replies 454", "", smtptest.Reply(454, "4.7.0 not now"), refused, before("4.7.4"))
	starttls("starttls-502", "offers STARTTLS and replies 502", "", smtptest.Reply(502, "5.5.1 what?"), refused, before("4.7.4"))
	starttls("starttls-421", "replies 421 to STARTTLS and closes", "", smtptest.Then(smtptest.Reply(421, "4.3.2 bye"), smtptest.Drop()), before("4.3.2"), before("4.3.2"))
	starttls("starttls-drop", "closes at STARTTLS", "", smtptest.Drop(), plain, before("4.4.2"))
	starttls("starttls-stall", "says nothing to STARTTLS", `starttls_timeout = "1s"`, smtptest.Stall(), plain, before("4.4.2"))
	starttls("starttls-garbage", "sends what is no reply to STARTTLS", "", smtptest.Raw("what?\r\n"), plain, before("4.5.0"))

	none := func(name, host string, level string, want Want) {
		s := &Scenario{Name: name, At: "STARTTLS", Host: host, Shaping: "enable_tls = \"" + level + "\"", Want: want}
		s.Script = certified(good, s.MX(), smtptest.Rule{At: smtptest.Hello, Do: smtptest.Offer("PIPELINING")})
		all = append(all, s)
	}
	none("no-tls-encrypt", "does not offer STARTTLS; TLS is required", "RequiredInsecure", before("4.7.4"))
	none("no-tls-verify", "does not offer STARTTLS; TLS is required, with a certificate that is good", "Required", before("4.7.4"))
	return all
}
