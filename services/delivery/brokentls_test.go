package delivery_test

import (
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/pkg/store"
)

// TestTLSThatFailsOnce: what breaks one handshake, or has a host say 454 once,
// costs a while and no secrecy. Nothing is remembered of it.
func TestTLSThatFailsOnce(t *testing.T) {
	t.Parallel()
	for name, rule := range map[string]smtptest.Rule{
		"handshake": {At: smtptest.Handshake, Times: 3, Do: smtptest.Drop()},
		"454":       {At: smtptest.StartTLS, Times: 1, Do: smtptest.Reply(454, "4.7.0 TLS not available due to temporary reason")},
		"closed":    {At: smtptest.StartTLS, Times: 1, Do: smtptest.Drop()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			certificate, err := smtptest.SelfSigned("mx1.example.test")
			if err != nil {
				t.Fatal(err)
			}
			mx := smtptest.Start(t, smtptest.Script{TLS: certificate, Rules: []smtptest.Rule{rule}})
			r.route("example.test", "mx.example.test", mx.Addr())
			c := r.config(unlimited)
			c.PlainAfter = 5 * time.Minute
			r.start(c)
			ids := r.accept(1, message{domain: "example.test"})
			r.conduct()
			r.drained(20 * time.Second)
			r.mustArrive(mx, ids)
			for _, m := range mx.Messages() {
				if m.TLS == "" {
					t.Error("the message went in plaintext")
				}
			}
			if all, err := r.db.BrokenTLS(t.Context()); err != nil || len(all) != 0 {
				t.Errorf("remembered: %+v, %v", all, err)
			}
		})
	}
}

// TestTLSThatStaysBroken: plaintext comes after a while, when TLS failed in
// another attempt, too, and then it is remembered.
func TestTLSThatStaysBroken(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	certificate, err := smtptest.SelfSigned("mx1.example.test")
	if err != nil {
		t.Fatal(err)
	}
	mx := smtptest.Start(t, smtptest.Script{TLS: certificate, Rules: []smtptest.Rule{{At: smtptest.Handshake, Do: smtptest.Drop()}}})
	r.route("example.test", "mx.example.test", mx.Addr())
	c := r.config(unlimited)
	c.PlainAfter = 500 * time.Millisecond
	r.start(c)
	ids := r.accept(1, message{domain: "example.test"})
	r.conduct()
	r.drained(20 * time.Second)
	r.mustArrive(mx, ids)
	attempts := r.show(ids[0]).Attempts
	if len(attempts) < 2 || attempts[0].Action != mail.Delayed {
		t.Errorf("want plaintext at the second attempt at the earliest: %s", describe(attempts))
	}
	if all, err := r.db.BrokenTLS(t.Context()); err != nil || len(all) != 1 || all[0].Fault != "starttls" {
		t.Errorf("remembered: %+v, %v", all, err)
	}
}

// TestTLSWantedAfterAll: where TLS is remembered as broken, and the host takes
// nothing in plaintext, that says nothing of the message.
func TestTLSWantedAfterAll(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	certificate, err := smtptest.SelfSigned("mx1.example.test")
	if err != nil {
		t.Fatal(err)
	}
	mx := smtptest.Start(t, smtptest.Script{TLS: certificate, Rules: []smtptest.Rule{
		{At: smtptest.Mail, Times: 1, Do: smtptest.Reply(530, "5.7.0 Must issue a STARTTLS command first")}}})
	r.route("example.test", "mx.example.test", mx.Addr())
	if err := r.db.RememberBrokenTLS(t.Context(), store.BrokenTLS{Address: mx.Addr(), Host: "mx1.example.test", Fault: "starttls", Evidence: "EOF"}); err != nil {
		t.Fatal(err)
	}
	c := r.config(unlimited)
	c.PlainAfter = 5 * time.Minute
	r.start(c)
	ids := r.accept(1, message{domain: "example.test"})
	r.conduct()
	r.drained(20 * time.Second)
	r.mustArrive(mx, ids)
	if m := mx.Messages(); m[len(m)-1].TLS == "" {
		t.Error("the message went in plaintext")
	}
	if all, err := r.db.BrokenTLS(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("still remembered: %+v, %v", all, err)
	}
}
