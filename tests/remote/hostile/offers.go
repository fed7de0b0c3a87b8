package hostile

import (
	"crypto/tls"

	"github.com/postrider/postrider/pkg/smtptest"
)

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
		chunk("502", "DATA", "replies 502 to BDAT", smtptest.Bdat, reply(502, "5.5.1 what?"), after(2)),
		chunk("503", "DATA", "replies 503 to BDAT", smtptest.Bdat, reply(503, "5.5.1 not now"), after(2)),
		chunk("554", "DATA", "replies 554 to BDAT, and not to DATA", smtptest.Bdat, reply(554, "5.7.1 no"), after(2)),
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

// handshakes are what goes wrong around STARTTLS. Then the mail waits; what may
// leave in plaintext does so minutes later, when TLS has failed once more
// (TestBrokenTLS in tests/policies).
func handshakes() []*Scenario {
	var all []*Scenario
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
	}, encrypted, twice, "")

	handshake := func(name, host, shape string, do smtptest.Act) {
		add(name, host, good, twice, twice, shape, smtptest.Rule{At: smtptest.Handshake, Do: do})
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
	starttls("starttls-454", "offers STARTTLS and replies 454", "", smtptest.Reply(454, "4.7.0 not now"), before("4.7.0"), before("4.7.4"))
	starttls("starttls-502", "offers STARTTLS and replies 502", "", smtptest.Reply(502, "5.5.1 what?"), refused, before("4.7.4"))
	starttls("starttls-554", "offers STARTTLS and replies 554", "", smtptest.Reply(554, "5.7.0 no"), refused, before("4.7.4"))
	starttls("starttls-250", "replies 250 to STARTTLS, which is not what begins TLS", "", smtptest.Reply(250, "2.0.0 yes?"), before("4.5.0"), before("4.5.0"))
	starttls("starttls-334", "replies 334 to STARTTLS", "", smtptest.Reply(334, "go on"), before("4.5.0"), before("4.5.0"))
	starttls("starttls-ahead", "sends replies in plaintext behind its 220, for what is said in TLS", "", smtptest.Raw("220 2.0.0 go ahead\r\n250-mx.test\r\n250 PIPELINING\r\n250 2.1.0 ok\r\n"), encrypted, encrypted)
	starttls("starttls-421", "replies 421 to STARTTLS and closes", "", smtptest.Then(smtptest.Reply(421, "4.3.2 bye"), smtptest.Drop()), before("4.3.2"), before("4.3.2"))
	starttls("starttls-drop", "closes at STARTTLS", "", smtptest.Drop(), before("4.4.2"), before("4.4.2"))
	starttls("starttls-stall", "says nothing to STARTTLS", `starttls_timeout = "1s"`, smtptest.Stall(), before("4.4.2"), before("4.4.2"))
	starttls("starttls-garbage", "sends what is no reply to STARTTLS", "", smtptest.Raw("what?\r\n"), before("4.5.0"), before("4.5.0"))

	inside := func(name, host, shape string, do smtptest.Act, may, must Want) {
		add(name, host, good, may, must, shape, smtptest.Rule{At: smtptest.Hello, Skip: 1, Each: smtptest.PerConnection, Do: do})
	}
	inside("ehlo-in-tls-502", "replies 502 to EHLO inside TLS and knows HELO", "", smtptest.Reply(502, "5.5.1 what?"), encrypted, encrypted)
	inside("ehlo-in-tls-421", "replies 421 to EHLO inside TLS and closes", "", smtptest.Then(smtptest.Reply(421, "4.3.2 bye"), smtptest.Drop()), before("4.3.2"), before("4.3.2"))
	inside("ehlo-in-tls-drop", "closes at EHLO inside TLS", "", smtptest.Drop(), before("4.4.2"), before("4.4.2"))
	inside("ehlo-in-tls-rst", "sends RST at EHLO inside TLS", "", smtptest.Reset(), before("4.4.2"), before("4.4.2"))
	inside("ehlo-in-tls-stall", "says nothing to EHLO inside TLS", `ehlo_timeout = "1s"`, smtptest.Stall(), before("4.4.2"), before("4.4.2"))
	inside("ehlo-in-tls-starttls", "offers STARTTLS inside TLS once more", "", smtptest.Offer("PIPELINING", "8BITMIME", "STARTTLS"), encrypted, encrypted)
	add("ehlo-in-tls-550", "replies 550 to EHLO and HELO inside TLS", good, before("4.7.1"), before("4.7.1"), "",
		smtptest.Rule{At: smtptest.Hello, Skip: 1, Each: smtptest.PerConnection, Do: smtptest.Reply(550, "5.7.1 not you")}, smtptest.Rule{At: smtptest.Helo, Do: smtptest.Reply(550, "5.7.1 not you")})
	add("certificate-wanted", "wants a certificate of ours, which TLS 1.3 says behind the handshake", func(k *Kit, name string) (*tls.Config, error) {
		config, err := k.Authority.Server(name)
		if err == nil {
			config.ClientAuth = tls.RequireAnyClientCert
		}
		return config, err
	}, before("4.4.2"), before("4.4.2"), "")

	none := func(name, host string, level string, want Want) {
		s := &Scenario{Name: name, At: "STARTTLS", Host: host, Shaping: "enable_tls = \"" + level + "\"", Want: want}
		s.Script = certified(good, s.MX(), smtptest.Rule{At: smtptest.Hello, Do: smtptest.Offer("PIPELINING")})
		all = append(all, s)
	}
	none("no-tls-encrypt", "does not offer STARTTLS; TLS is required", "RequiredInsecure", before("4.7.4"))
	none("no-tls-verify", "does not offer STARTTLS; TLS is required, with a certificate that is good", "Required", before("4.7.4"))
	return all
}
