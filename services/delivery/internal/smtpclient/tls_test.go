package smtpclient

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
)

func TestTLSLevels(t *testing.T) {
	ca, err := smtptest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	good, err := ca.Server("mx.example", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	wrongName, err := ca.Server("other.example")
	if err != nil {
		t.Fatal(err)
	}
	selfSigned, err := smtptest.SelfSigned("mx.example")
	if err != nil {
		t.Fatal(err)
	}
	old := good.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	rsaOnly := rsaServer(t, tls.TLS_RSA_WITH_AES_128_GCM_SHA256)
	weak := rsaServer(t, tls.TLS_RSA_WITH_RC4_128_SHA, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA)

	const (
		plain  = "plain"
		secure = "secure"
		dated  = "dated"
	)
	type want struct{ none, may, encrypt, verify string } // plain, secure, dated, or the error and code
	tests := []struct {
		name   string
		config *tls.Config
		rules  []smtptest.Rule
		want   want
	}{
		{"verified", good, nil, want{plain, secure, secure, secure}},
		{"wrong name", wrongName, nil, want{plain, secure, secure, "handshake"}},
		{"self-signed", selfSigned, nil, want{plain, secure, secure, "handshake"}},
		{"not offered", nil, nil, want{plain, plain, "no TLS", "no TLS"}},
		{"old", old, nil, want{plain, dated, dated, "handshake"}},
		{"RSA key exchange", rsaOnly, nil, want{plain, dated, dated, "handshake"}},
		{"RC4 and 3DES", weak, nil, want{plain, "handshake", "handshake", "handshake"}},
		{"refused for now", good, []smtptest.Rule{{At: smtptest.StartTLS, Do: smtptest.Reply(454, "4.7.0 not now")}}, want{plain, " 454", "no TLS 454", "no TLS 454"}},
		{"refused", good, []smtptest.Rule{{At: smtptest.StartTLS, Do: smtptest.Reply(502, "5.5.1 what?")}}, want{plain, plain, "no TLS 502", "no TLS 502"}},
		{"421", good, []smtptest.Rule{{At: smtptest.StartTLS, Do: smtptest.Reply(421, "bye")}}, want{plain, " 421", " 421", " 421"}},
		{"3yz", good, []smtptest.Rule{{At: smtptest.StartTLS, Do: smtptest.Reply(354, "what?")}}, want{plain, "step 354", "step 354", "step 354"}},
		{"drop", good, []smtptest.Rule{{At: smtptest.StartTLS, Do: smtptest.Drop()}}, want{plain, "EOF", "EOF", "EOF"}},
		{"no handshake", good, []smtptest.Rule{{At: smtptest.Handshake, Do: smtptest.Drop()}}, want{plain, "handshake", "handshake", "handshake"}},
		{"stalled handshake", good, []smtptest.Rule{{At: smtptest.Handshake, Do: smtptest.Stall()}}, want{plain, "handshake", "handshake", "handshake"}},
		{"garbage", good, []smtptest.Rule{{At: smtptest.Handshake, Do: smtptest.Then(smtptest.Raw("no TLS here\r\n"), smtptest.Drop())}}, want{plain, "handshake", "handshake", "handshake"}},
		{"EHLO refused inside TLS", good, []smtptest.Rule{{At: smtptest.Hello, Skip: 1, Do: smtptest.Reply(451, "no")}}, want{plain, " 451", " 451", " 451"}},
	}
	for _, tt := range tests {
		for level, want := range map[mail.TLSLevel]string{
			mail.TLSNone: tt.want.none, mail.TLSMay: tt.want.may, mail.TLSEncrypt: tt.want.encrypt, mail.TLSVerify: tt.want.verify,
		} {
			t.Run(tt.name+"/"+string(level), func(t *testing.T) {
				t.Parallel()
				mx, err := smtptest.Listen(smtptest.Script{TLS: tt.config, Rules: tt.rules})
				if err != nil {
					t.Fatal(err)
				}
				defer mx.Close()
				host, o := optionsFor(mx)
				o.TLS, o.TLSConfig = level, &tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS12}
				if strings.HasPrefix(tt.name, "stalled") {
					o.Timeouts.StartTLS = hasty.StartTLS
				}
				s, a := Dial(t.Context(), host, o)
				if got := tlsOutcome(t, s, a); got != want {
					t.Errorf("got %q, want %q: %+v", got, want, a)
				}
				if s == nil {
					if want := mail.PhaseStartTLS; a.Phase != want && !strings.HasPrefix(tt.name, "EHLO") {
						t.Errorf("phase %s", a.Phase)
					}
					return
				}
				defer s.Close()
				if got := s.Send(t.Context(), message(hello, "a@b.example")); codes(got) != "dot 250" {
					t.Errorf("message: %s", codes(got))
				}
				if m := mx.Messages(); len(m) != 1 || m[0].TLS != s.TLS() {
					t.Errorf("the host saw %+v", m)
				}
			})
		}
	}
}

// rsaServer is a server of TLS 1.2 with an RSA key and these cipher suites.
func rsaServer(t *testing.T, suites ...uint16) *tls.Config {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"mx.example"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: suites, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

func tlsOutcome(t *testing.T, s *Session, a Answer) string {
	t.Helper()
	words := ""
	switch {
	case s != nil && s.TLS() == "":
		return "plain"
	case s != nil && strings.HasPrefix(s.TLS(), "TLS1.3 TLS_"):
		return "secure"
	case s != nil:
		return "dated"
	case errors.Is(a.Err, ErrHandshake):
		words = "handshake"
	case errors.Is(a.Err, ErrNoTLS):
		words = "no TLS"
	case errors.Is(a.Err, ErrOutOfStep):
		words = "step"
	case errors.Is(a.Err, io.EOF):
		words = "EOF"
	case a.Err != nil:
		words = a.Err.Error()
	}
	if a.Reply.Code != 0 {
		words += " " + a.Reply.String()[:3]
	}
	return words
}

func TestVerifyNamesOfEachKind(t *testing.T) {
	ca, err := smtptest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	config, err := ca.Server("mx.example", "127.0.0.1", "::1")
	if err != nil {
		t.Fatal(err)
	}
	for name, good := range map[string]bool{"mx.example": true, "[127.0.0.1]": true, "[IPv6:::1]": true, "mx2.example": false, "[127.0.0.2]": false} {
		mx := smtptest.Start(t, smtptest.Script{TLS: config})
		host, o := optionsFor(mx)
		host.Name, o.TLS, o.TLSConfig = name, mail.TLSVerify, &tls.Config{RootCAs: ca.Pool()}
		s, a := Dial(t.Context(), host, o)
		if (s != nil) != good {
			t.Errorf("%s: %+v", name, a)
		}
		if s != nil {
			s.Close()
		}
	}
}

// TestInjectionBeforeTheHandshake: a man in the middle adds replies in
// plaintext behind the 220, to be read inside TLS (RFC 3207 §4.2).
func TestInjectionBeforeTheHandshake(t *testing.T) {
	config, err := smtptest.SelfSigned("mx.example")
	if err != nil {
		t.Fatal(err)
	}
	injected := smtptest.Raw("220 go ahead\r\n250-mx.example\r\n250 AUTH PLAIN\r\n250 ok\r\n")
	mx := smtptest.Start(t, smtptest.Script{TLS: config, MaxSize: 1000, Rules: []smtptest.Rule{{At: smtptest.StartTLS, Do: injected}}})
	s := dial(t, mx)
	if s.TLS() == "" || s.offers.maxSizeBytes != 1000 {
		t.Errorf("TLS %q, offers %+v: not those of the EHLO inside TLS", s.TLS(), s.offers)
	}
	if got := s.Send(t.Context(), message(hello, "a@b.example")); codes(got) != "dot 250" {
		t.Errorf("message: %s", codes(got))
	}
}

// TestOffersBeforeTLSAreForgotten: RFC 3207 §4.2.
func TestOffersBeforeTLSAreForgotten(t *testing.T) {
	config, err := smtptest.SelfSigned("mx.example")
	if err != nil {
		t.Fatal(err)
	}
	mx := smtptest.Start(t, smtptest.Script{TLS: config, Extensions: []string{}, Rules: []smtptest.Rule{
		{At: smtptest.Hello, Times: 1, Do: smtptest.Offer("DSN", "SIZE 1", "STARTTLS", "PIPELINING")},
	}})
	s := dial(t, mx)
	if s.TLS() == "" || s.offers != (offers{}) {
		t.Errorf("TLS %q, offers %+v", s.TLS(), s.offers)
	}
}
