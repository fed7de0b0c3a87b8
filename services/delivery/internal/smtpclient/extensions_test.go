package smtpclient

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
)

func TestHelloFallsBack(t *testing.T) {
	for _, code := range []int{500, 502, 550} {
		mx, s := start(t, smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Hello, Do: smtptest.Reply(code, "5.5.1 what?")}}})
		tx := message(hello, "a@b.example")
		tx.Message.Envelope.Ret, tx.Recipients[0].Notify = mail.RetHdrs, mail.NotifyNever
		if got := s.Send(t.Context(), tx); codes(got) != "dot 250" {
			t.Fatal(codes(got))
		}
		if c := mx.Connections()[0]; c.Extended || strings.Join(c.Commands[:2], " ") != "EHLO HELO" {
			t.Errorf("connection %+v", c)
		}
		if m := mx.Messages()[0]; m.Params != "" || m.Recipients[0].Params != "" {
			t.Errorf("parameters without extensions: %+v", m)
		}
	}
}

// TestHangsUpOnHello: the reason is the reply to EHLO, not the connection that
// is gone when HELO is tried.
func TestHangsUpOnHello(t *testing.T) {
	mx := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{
		{At: smtptest.Hello, Do: smtptest.Then(smtptest.Reply(550, "5.7.1 you are", "5.7.1 on a list"), smtptest.Drop())},
	}})
	host, o := optionsFor(mx)
	s, a := Dial(t.Context(), host, o)
	if s != nil || a.Phase != mail.PhaseHello || a.Err != nil || a.Reply.Code != 550 || a.Reply.String() != "550 5.7.1 you are on a list" {
		t.Errorf("answer %+v", a)
	}
}

func TestLockstep(t *testing.T) {
	mx := smtptest.Start(t, smtptest.Script{})
	host, o := optionsFor(mx)
	for _, lockstep := range []bool{false, true} {
		o.Lockstep = lockstep
		s, a := Dial(t.Context(), host, o)
		if s == nil {
			t.Fatal(a)
		}
		if s.Pipelines() == lockstep {
			t.Errorf("in lockstep %v, and it pipelines %v", lockstep, s.Pipelines())
		}
		if got := s.Send(t.Context(), message(hello, "a@b.example", "b@b.example")); codes(got) != "dot 250, dot 250" {
			t.Error(codes(got))
		}
		s.Close()
	}
}

func TestParseOffers(t *testing.T) {
	tests := []struct {
		lines []string
		want  offers
	}{
		{nil, offers{}},
		{[]string{"pipelining", " 8bitmime ", "SmtpUTF8", "dsn", "starttls"}, offers{pipelining: true, eightBit: true, smtputf8: true, dsn: true, startTLS: true}},
		{[]string{"SIZE"}, offers{size: true}},
		{[]string{"SIZE 0"}, offers{size: true}},
		{[]string{"SIZE  1000 "}, offers{size: true, maxSizeBytes: 1000}},
		{[]string{"SIZE -1"}, offers{size: true}},
		{[]string{"SIZE 99999999999999999999"}, offers{size: true}},
		{[]string{"chunking", "BinaryMime", "DeliverBy 600", "mt-priority mixer", "requiretls", "auth Plain scram-sha-256"},
			offers{chunking: true, binary: true, deliverBy: true, minBy: 10 * time.Minute, priority: true, requireTLS: true, auth: "PLAIN SCRAM-SHA-256"}},
		{[]string{"BINARYMIME", "DELIVERBY", "AUTH=LOGIN plain"}, offers{deliverBy: true, auth: "LOGIN PLAIN"}},
		{[]string{"AUTH LOGIN", "AUTH=PLAIN", "DELIVERBY -5"}, offers{deliverBy: true, auth: "LOGIN"}},
		{[]string{"SIZE lots", "SIZER 5", "XPIPELINING", ""}, offers{size: true}},
	}
	for _, tt := range tests {
		if got := parseOffers(tt.lines); got != tt.want {
			t.Errorf("%q: %+v, want %+v", tt.lines, got, tt.want)
		}
	}
}

func TestSizeIsCheckedBeforeSending(t *testing.T) {
	mx, s := start(t, smtptest.Script{MaxSize: int64(len(hello))})
	for _, tx := range []Transaction{message(hello+"x", "a@b.example", "b@b.example"), streamed(message(hello+"x", "a@b.example", "b@b.example"))} {
		got := s.Send(t.Context(), tx)
		for _, a := range got.Answers {
			if a.Phase != mail.PhaseMail || !errors.Is(a.Err, ErrTooBig) || a.Reply.Code != 0 {
				t.Errorf("answer %+v", a)
			}
		}
		if got.MailSent || !s.Usable() {
			t.Errorf("MAIL sent %v, usable %v", got.MailSent, s.Usable())
		}
	}
	if got := s.Send(t.Context(), message(hello, "a@b.example")); codes(got) != "dot 250" {
		t.Fatal(codes(got))
	}
	if m := mx.Transactions(); len(m) != 1 || m[0].Params != "SIZE=25" || m[0].Size != 25 {
		t.Errorf("transactions %+v", m)
	}
}

// TestParameters: what goes with MAIL and RCPT, by what the host offers.
func TestParameters(t *testing.T) {
	type envelope func(*Transaction)
	eightBit := strings.ReplaceAll(hello, "hello", "hellö")
	declared := func(b mail.BodyType) envelope { return func(t *Transaction) { t.Message.Envelope.Body = b } }
	utf8 := func(t *Transaction) {
		t.Message.Envelope.SMTPUTF8, t.Message.Envelope.ReversePath = true, "grå@client.example"
	}
	dsn := func(t *Transaction) {
		t.Message.Envelope.Ret, t.Message.Envelope.EnvID = mail.RetHdrs, "a+b c"
		t.Recipients[0].Notify, t.Recipients[0].ORCPT = mail.NotifySuccess|mail.NotifyFailure, "rfc822;x=y@b.example"
	}
	by := func(in time.Duration, back bool) envelope {
		return func(t *Transaction) {
			t.Message.Envelope.DeliverBy = mail.DeliverBy{At: time.Now().Add(in), Return: back, Trace: true}
		}
	}
	tests := []struct {
		name       string
		extensions []string
		content    string
		stream     bool
		set        envelope
		mail, rcpt string
		err        error
	}{
		{"nothing needed", nil, hello, false, func(*Transaction) {}, "", "", nil},
		{"8-bit undeclared", nil, eightBit, false, declared(""), "BODY=8BITMIME", "", nil},
		{"8-bit declared 7-bit", nil, eightBit, false, declared(mail.Body7Bit), "BODY=8BITMIME", "", nil},
		{"7-bit declared 8-bit", nil, hello, false, declared(mail.Body8BitMIME), "BODY=8BITMIME", "", nil},
		{"stream undeclared", nil, eightBit, true, declared(""), "BODY=8BITMIME", "", nil},
		{"stream declared 7-bit", nil, hello, true, declared(mail.Body7Bit), "", "", nil},
		{"8-bit not offered and not needed", []string{"PIPELINING"}, hello, false, declared(mail.Body8BitMIME), "", "", nil},
		{"8-bit header section, which has no 7-bit form", []string{"PIPELINING"}, eightBit, false, declared(mail.Body8BitMIME), "", "", ErrNeeds8Bit},
		{"binary", []string{"BINARYMIME", "CHUNKING"}, "Subject: x\r\n\r\n\xff\n\x00\r", false, declared(mail.BodyBinaryMIME), "BODY=BINARYMIME", "", nil},
		{"binary stream", []string{"BINARYMIME", "CHUNKING", "SIZE"}, "Subject: x\r\n\r\n\xff\n\x00\r", true, declared(mail.BodyBinaryMIME), "SIZE=18 BODY=BINARYMIME", "", nil},
		{"binary without chunks", []string{"BINARYMIME"}, hello, false, declared(mail.BodyBinaryMIME), "", "", nil},
		{"chunks", []string{"CHUNKING", "PIPELINING"}, hello, false, declared(""), "", "", nil},
		{"chunks of a stream", []string{"CHUNKING", "8BITMIME"}, eightBit, true, declared(""), "BODY=8BITMIME", "", nil},
		{"priority", []string{"MT-PRIORITY"}, hello, false, func(t *Transaction) { t.Message.Priority = -3 }, "MT-PRIORITY=-3", "", nil},
		{"priority beyond words", []string{"MT-PRIORITY MIXER"}, hello, false, func(t *Transaction) { t.Message.Priority = 100 }, "MT-PRIORITY=9", "", nil},
		{"priority not offered", []string{"PIPELINING"}, hello, false, func(t *Transaction) { t.Message.Priority = 3 }, "", "", nil},
		{"no priority", []string{"MT-PRIORITY"}, hello, false, func(*Transaction) {}, "", "", nil},
		{"by, mode R", []string{"DELIVERBY"}, hello, false, by(90*time.Minute+time.Second/2, true), "BY=5400;RT", "", nil},
		{"by, mode N", []string{"DELIVERBY 3600"}, hello, false, by(10*time.Second+time.Second/2, false), "BY=10;NT", "", nil},
		{"by, mode N, late", []string{"DELIVERBY"}, hello, false, by(-10*time.Second+time.Second/2, false), "BY=-10;NT", "", nil},
		{"by, mode R, late", []string{"DELIVERBY"}, hello, false, by(-time.Second, true), "", "", ErrTooLate},
		{"by, mode R, sooner than the host can", []string{"DELIVERBY 3600"}, hello, false, by(time.Minute, true), "", "", ErrTooLate},
		{"by, mode N, not offered", []string{"PIPELINING"}, hello, false, by(time.Minute, false), "", "", nil},
		{"by, mode R, not offered", []string{"PIPELINING"}, hello, false, by(time.Minute, true), "", "", ErrTooLate},
		{"REQUIRETLS in plaintext", []string{"REQUIRETLS"}, hello, false, func(t *Transaction) { t.Message.Envelope.RequireTLS = true }, "", "", ErrNeedsRequireTLS},
		{"SMTPUTF8 declared and not needed", []string{"PIPELINING"}, hello, false, func(t *Transaction) { t.Message.Envelope.SMTPUTF8 = true }, "", "", nil},
		{"SMTPUTF8 in a header section", []string{"8BITMIME"}, eightBit, true, func(t *Transaction) { t.Message.Envelope.SMTPUTF8 = true }, "", "", ErrNeedsSMTPUTF8},
		{"SMTPUTF8", nil, hello, false, utf8, "SMTPUTF8", "", nil},
		{"SMTPUTF8 not offered", []string{"PIPELINING"}, hello, false, utf8, "", "", ErrNeedsSMTPUTF8},
		{"UTF-8 forward-path", nil, hello, false, func(t *Transaction) { t.Recipients[0].ForwardPath = "ø@b.example" }, "SMTPUTF8", "", nil},
		{"UTF-8 forward-path not offered", []string{"PIPELINING"}, hello, false, func(t *Transaction) { t.Recipients[0].ForwardPath = "ø@b.example" }, "", "", ErrNeedsSMTPUTF8},
		{"DSN", nil, hello, false, dsn, "RET=HDRS ENVID=a+2Bb+20c", "NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;x+3Dy@b.example", nil},
		{"DSN not offered", []string{"PIPELINING"}, hello, false, dsn, "", "", nil},
		{"SIZE without limit", []string{"SIZE"}, hello, false, func(*Transaction) {}, "SIZE=25", "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mx, s := start(t, smtptest.Script{Extensions: tt.extensions})
			tx := message(tt.content, "a@b.example")
			tt.set(&tx)
			if tt.stream {
				tx = streamed(tx)
			}
			got := s.Send(t.Context(), tx)
			if tt.err != nil {
				if a := got.Answers[0]; !errors.Is(a.Err, tt.err) || a.Phase != mail.PhaseMail || got.MailSent || !s.Usable() {
					t.Errorf("answer %+v", a)
				}
				return
			}
			if codes(got) != "dot 250" {
				t.Fatalf("%s: %+v", codes(got), got)
			}
			m := mx.Messages()[0]
			if m.Params != tt.mail || m.Recipients[0].Params != tt.rcpt || string(m.Content) != tt.content {
				t.Errorf("MAIL %q, RCPT %q", m.Params, m.Recipients[0].Params)
			}
			want := mail.Promise{DSN: tt.extensions == nil, DeliverBy: strings.HasPrefix(strings.Join(tt.extensions, " "), "DELIVERBY")}
			if got := got.Answers[0].Promised; got != want {
				t.Errorf("promised %+v, want %+v", got, want)
			}
		})
	}
}

// TestParametersThatAreRefused: what a host offers and then refuses is left
// out, and a refusal that has another reason stands.
func TestParametersThatAreRefused(t *testing.T) {
	all := []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "DSN", "SIZE", "DELIVERBY", "MT-PRIORITY", "CHUNKING", "BINARYMIME"}
	eightBit := "Subject: x\r\n\r\nhell\xc3\xb6\r\n"
	dsn := func(t *Transaction) {
		t.Message.Envelope.Ret, t.Message.Envelope.EnvID = mail.RetHdrs, "id"
		t.Recipients[0].Notify = mail.NotifySuccess
		t.Recipients[1].ORCPT = "rfc822;x@b.example"
	}
	body := func(b mail.BodyType) func(*Transaction) {
		return func(t *Transaction) { t.Message.Envelope.Body = b }
	}
	utf8 := func(t *Transaction) { t.Recipients[0].ForwardPath = "ø@b.example" }
	at := func(phase smtptest.Phase, match string, code int, text string) smtptest.Rule {
		return smtptest.Rule{At: phase, Match: match, Do: smtptest.Reply(code, text)}
	}
	tests := []struct {
		name    string
		rule    smtptest.Rule
		content string
		set     func(*Transaction)
		want    string
		mails   int    // MAIL commands of this message
		next    string // parameters of the next one
		err     error
	}{
		{"RET", at(smtptest.Mail, "RET=", 555, "5.5.4 what?"), hello, dsn, "dot 250, dot 250", 2, "", nil},
		{"SIZE, bare", at(smtptest.Mail, "SIZE=", 501, "syntax"), hello, dsn, "dot 250, dot 250", 2, "", nil},
		{"NOTIFY of one recipient", at(smtptest.Rcpt, "NOTIFY=", 504, "5.5.4 what?"), hello, dsn, "dot 250, dot 250", 2, "SIZE=25", nil},
		{"NOTIFY and ORCPT", at(smtptest.Rcpt, "=", 555, "5.5.4 what?"), hello, dsn, "dot 250, dot 250", 2, "SIZE=25", nil},
		{"the address itself", at(smtptest.Rcpt, "a@", 501, "bad address"), hello, dsn, "rcpt 501, dot 250", 2, "SIZE=25 RET=HDRS ENVID=id", nil},
		{"the address, in words of its own", at(smtptest.Rcpt, "a@", 501, "5.1.3 bad address"), hello, dsn, "rcpt 501, dot 250", 1, "SIZE=25 RET=HDRS ENVID=id", nil},
		{"no such user", at(smtptest.Rcpt, "a@", 550, "5.1.1 unknown"), hello, dsn, "rcpt 550, dot 250", 1, "SIZE=25 RET=HDRS ENVID=id", nil},
		{"8BITMIME", at(smtptest.Mail, "8BITMIME", 555, "5.5.4 what?"), eightBit, body(mail.Body8BitMIME), "dot 250, dot 250", 3, "", nil},
		{"BINARYMIME", at(smtptest.Mail, "BINARYMIME", 504, "5.5.4 what?"), "Subject: x\r\n\r\n\xff\n\x00", body(mail.BodyBinaryMIME), "dot 250, dot 250", 3, "", nil},
		{"SMTPUTF8", at(smtptest.Mail, "SMTPUTF8", 555, "5.5.4 what?"), hello, utf8, "mail 555, mail 555", 2, "SIZE=25", ErrNeedsSMTPUTF8},
		{"the sender", at(smtptest.Mail, "from@", 501, "bad sender"), eightBit, body(mail.Body8BitMIME), "mail 501, mail 501", 3, "SIZE=25", nil},
		{"the sender, in words of its own", at(smtptest.Mail, "from@", 501, "5.1.7 bad sender"), hello, dsn, "mail 501, mail 501", 1, "SIZE=25 RET=HDRS ENVID=id", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mx, s := start(t, smtptest.Script{Extensions: all, Rules: []smtptest.Rule{tt.rule}})
			tx := message(tt.content, "a@b.example", "c@b.example")
			tt.set(&tx)
			got := s.Send(t.Context(), tx)
			if codes(got) != tt.want || !s.Usable() || !errors.Is(got.Answers[0].Err, tt.err) {
				t.Fatalf("%s: %+v", codes(got), got)
			}
			commands := strings.Join(mx.Connections()[0].Commands, " ")
			if n := strings.Count(commands, "MAIL"); n != tt.mails {
				t.Errorf("%d transactions, want %d: %s", n, tt.mails, commands)
			}
			// A refusal that was not of the parameters takes nothing from the next.
			mx.SetRules()
			next := message(hello, "a@b.example", "c@b.example")
			next.Message.Envelope.Ret, next.Message.Envelope.EnvID = tx.Message.Envelope.Ret, tx.Message.Envelope.EnvID
			if got := s.Send(t.Context(), next); codes(got) != "dot 250, dot 250" {
				t.Fatalf("the next: %s", codes(got))
			}
			messages := mx.Messages()
			if m := messages[len(messages)-1]; m.Params != tt.next {
				t.Errorf("the next has %q, want %q", m.Params, tt.next)
			}
		})
	}
}
