package smtpclient

import (
	"crypto/tls"
	"errors"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
)

// secured is a server with a certificate, and options that verify it.
func secured(t *testing.T, script smtptest.Script) (*smtptest.Server, Host, Options) {
	t.Helper()
	authority, err := smtptest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	if script.TLS, err = authority.Server("mx.example"); err != nil {
		t.Fatal(err)
	}
	script.Users = map[string]string{"user@example": "s3cret pass"}
	mx := smtptest.Start(t, script)
	host, o := optionsFor(mx)
	o.TLS, o.TLSConfig = mail.TLSVerify, &tls.Config{RootCAs: authority.Pool(), MinVersion: tls.VersionTLS12}
	o.Auth = &Credential{"user@example", "s3cret pass"}
	return mx, host, o
}

func TestAuth(t *testing.T) {
	for offer, want := range map[string]string{
		"AUTH PLAIN LOGIN SCRAM-SHA-256": "SCRAM-SHA-256",
		"AUTH LOGIN PLAIN":               "PLAIN",
		"AUTH=LOGIN":                     "LOGIN",
		"auth login":                     "LOGIN",
	} {
		for _, implicit := range []bool{false, true} {
			mx, host, o := secured(t, smtptest.Script{Extensions: []string{"PIPELINING", strings.Replace(offer, "AUTH=", "AUTH ", 1)}, ImplicitTLS: implicit})
			o.ImplicitTLS = implicit
			s, failed := Dial(t.Context(), host, o)
			if s == nil {
				t.Fatalf("%s: %+v", want, failed)
			}
			if got := s.Send(t.Context(), message(hello, "a@b.example")); codes(got) != "dot 250" {
				t.Error(codes(got))
			}
			s.Close()
			if m := mx.Messages(); len(m) != 1 || m[0].User != "user@example" || m[0].TLS == "" {
				t.Errorf("%s: %+v", want, m)
			}
			if v := mx.Violations(); len(v) > 0 {
				t.Error(v)
			}
		}
	}
}

func TestAuthThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		offers []string
		secret string
		rule   smtptest.Act
		code   int
		err    error
	}{
		"wrong password, PLAIN":     {[]string{"AUTH PLAIN"}, "wrong", nil, 535, nil},
		"wrong password, LOGIN":     {[]string{"AUTH LOGIN"}, "wrong", nil, 535, nil},
		"wrong password, SCRAM":     {[]string{"AUTH SCRAM-SHA-256"}, "wrong", nil, 535, nil},
		"no mechanism that we know": {[]string{"AUTH GSSAPI"}, "s3cret pass", nil, 0, ErrNoAuth},
		"no AUTH":                   {[]string{"PIPELINING"}, "s3cret pass", nil, 0, ErrNoAuth},
		"its trouble":               {[]string{"AUTH PLAIN"}, "s3cret pass", smtptest.Reply(454, "4.7.0 later"), 454, nil},
		"one challenge too many":    {[]string{"AUTH PLAIN"}, "s3cret pass", smtptest.Reply(334, "bW9yZQ=="), 501, nil},
		"no proof of its own":       {[]string{"AUTH SCRAM-SHA-256"}, "s3cret pass", smtptest.Reply(235, "2.7.0 trust me"), 0, ErrAuthExchange},
		"nonsense for a challenge":  {[]string{"AUTH SCRAM-SHA-256"}, "s3cret pass", smtptest.Reply(334, "!"), 0, ErrAuthExchange},
		"hangs up":                  {[]string{"AUTH PLAIN"}, "s3cret pass", smtptest.Drop(), 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			script := smtptest.Script{Extensions: c.offers}
			if c.rule != nil {
				script.Rules = []smtptest.Rule{{At: smtptest.Auth, Do: c.rule}}
			}
			_, host, o := secured(t, script)
			o.Auth.Secret = c.secret
			s, a := Dial(t.Context(), host, o)
			if s != nil || a.Phase != mail.PhaseAuth || a.Reply.Code != c.code || c.err != nil && !errors.Is(a.Err, c.err) || a.Err == nil && a.Reply.Code == 0 {
				t.Errorf("answer %+v", a)
			}
		})
	}
}

// A secret never leaves in plaintext, or to a host that nobody vouches for.
func TestAuthWantsVerifiedTLS(t *testing.T) {
	for name, change := range map[string]func(*smtptest.Script, *Options){
		"plaintext":              func(s *smtptest.Script, o *Options) { o.TLS = mail.TLSNone },
		"TLS is not offered":     func(s *smtptest.Script, o *Options) { s.TLS, o.TLS = nil, mail.TLSMay },
		"TLS is not verified":    func(s *smtptest.Script, o *Options) { o.TLS = mail.TLSEncrypt },
		"implicit, unverified":   func(s *smtptest.Script, o *Options) { s.ImplicitTLS, o.ImplicitTLS, o.TLS = true, true, mail.TLSMay },
		"the certificate is bad": func(s *smtptest.Script, o *Options) { o.TLSConfig = nil },
	} {
		t.Run(name, func(t *testing.T) {
			config, err := smtptest.SelfSigned("mx.example")
			if err != nil {
				t.Fatal(err)
			}
			script := smtptest.Script{Extensions: []string{"AUTH PLAIN LOGIN SCRAM-SHA-256"}, TLS: config}
			o := Options{Hello: "client.example", TLS: mail.TLSVerify, Timeouts: patient, Auth: &Credential{"user", "secret"}}
			change(&script, &o)
			mx := smtptest.Start(t, script)
			s, a := Dial(t.Context(), Host{Name: "mx.example", Addr: mx.Addr()}, o)
			if s != nil || !errors.Is(a.Err, ErrAuthUnverified) && !errors.Is(a.Err, ErrHandshake) {
				t.Errorf("answer %+v", a)
			}
			for _, verb := range mx.Connections()[0].Commands {
				if verb == "AUTH" {
					t.Error("AUTH was sent")
				}
			}
		})
	}
}

// RFC 8689 §4.2.1: verified TLS, and the promise of the host.
func TestRequireTLS(t *testing.T) {
	for offered, want := range map[string]string{"REQUIRETLS": "dot 250", "DSN": "mail -"} {
		mx, host, o := secured(t, smtptest.Script{Extensions: []string{offered}})
		o.Auth = nil
		s, failed := Dial(t.Context(), host, o)
		if s == nil {
			t.Fatal(failed)
		}
		tx := message(hello, "a@b.example")
		tx.Message.Envelope.RequireTLS = true
		got := s.Send(t.Context(), tx)
		if codes(got) != want || want == "mail -" && !errors.Is(got.Answers[0].Err, ErrNeedsRequireTLS) {
			t.Errorf("%s: %+v", offered, got.Answers)
		}
		if want == "dot 250" && mx.Messages()[0].Params != "REQUIRETLS" {
			t.Errorf("MAIL %q", mx.Messages()[0].Params)
		}
		s.Close()
	}
}
