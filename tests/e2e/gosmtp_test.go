package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emersion/go-sasl"
	gosmtp "github.com/emersion/go-smtp"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/world"
)

// certificate writes a certificate for a name and its key into files, and
// returns what the client is to trust.
func certificate(t *testing.T, name string) (env map[string]string, roots *x509.CertPool) {
	t.Helper()
	authority, err := smtptest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	server, err := authority.Server(name)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(server.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	env = map[string]string{
		"POSTRIDER_TLS_CERT_FILES": filepath.Join(dir, "cert.pem"),
		"POSTRIDER_TLS_KEY_FILES":  filepath.Join(dir, "key.pem"),
		// AUTH is offered at the relay listener, too.
		"POSTRIDER_SUBMISSION_LISTEN":  "",
		"POSTRIDER_SUBMISSIONS_LISTEN": "",
	}
	for file, block := range map[string]*pem.Block{
		env["POSTRIDER_TLS_CERT_FILES"]: {Type: "CERTIFICATE", Bytes: server.Certificates[0].Certificate[0]},
		env["POSTRIDER_TLS_KEY_FILES"]:  {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return env, authority.Pool()
}

// TestGoSMTP: the client of emersion/go-smtp, which is of others than ours,
// with STARTTLS, AUTH and SMTPUTF8. What it sends reaches the remote host byte
// for byte.
func TestGoSMTP(t *testing.T) {
	env, roots := certificate(t, "mta.postrider.test")
	w := world.Start(t, world.Options{Env: env})
	host := w.Host(t, "mx.gosmtp.test", smtptest.Script{Extensions: []string{"8BITMIME", "SMTPUTF8"}})
	w.MX(t, "gosmtp.test", "10 mx.gosmtp.test")
	for _, command := range []string{"tenant add acme", "domain add sender.test --tenant acme"} {
		if err := w.Command(t.Context(), strings.Fields(command)...); err != nil {
			t.Fatal(err)
		}
	}
	out, err := w.Output(t.Context(), "credential", "add", "app", "--tenant", "acme")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(out, "password: ")
	password, _, _ := strings.Cut(rest, "\n")

	dial := func() *gosmtp.Client {
		conn, err := net.Dial("tcp", w.SMTP(0))
		if err != nil {
			t.Fatal(err)
		}
		c, err := gosmtp.NewClientStartTLS(conn, &tls.Config{ServerName: "mta.postrider.test", RootCAs: roots, MinVersion: tls.VersionTLS12})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() }) // it has quit before, if all went well
		return c
	}
	wrong := dial()
	if err := wrong.Auth(sasl.NewPlainClient("", "app", "not "+password)); !isCode(err, 535) {
		t.Errorf("a wrong password: %v, want 535", err)
	}

	utf8 := "From: a@sender.test\r\nTo: grüße@gosmtp.test\r\nSubject: Grüße\r\nDate: Fri, 27 Nov 2026 05:00:00 +0000\r\nMessage-ID: <2@sender.test>\r\n\r\nüber alles\r\n"
	sent := map[string][]byte{}
	for _, m := range []struct {
		name    string
		auth    sasl.Client
		to      string
		options gosmtp.MailOptions
		content []byte
	}{
		{"PLAIN", sasl.NewPlainClient("", "app", password), "a@gosmtp.test", gosmtp.MailOptions{}, content("by go-smtp")},
		{"LOGIN", sasl.NewLoginClient("app", password), "b@gosmtp.test", gosmtp.MailOptions{Body: gosmtp.Body8BitMIME},
			append(content("by go-smtp too"), bytes.Repeat([]byte("..dots and Grüße\r\n.\r\n"), 5000)...)},
		{"SMTPUTF8", sasl.NewPlainClient("", "app", password), "grüße@gosmtp.test", gosmtp.MailOptions{UTF8: true, Body: gosmtp.Body8BitMIME}, []byte(utf8)},
	} {
		sent[m.to] = m.content
		c := dial()
		if err := c.Auth(m.auth); err != nil {
			t.Fatalf("%s: AUTH: %v", m.name, err)
		}
		if err := c.Mail("a@sender.test", &m.options); err != nil {
			t.Fatalf("%s: MAIL: %v", m.name, err)
		}
		if err := c.Rcpt(m.to, nil); err != nil {
			t.Fatalf("%s: RCPT: %v", m.name, err)
		}
		data, err := c.Data()
		if err != nil {
			t.Fatalf("%s: DATA: %v", m.name, err)
		}
		if _, err := io.Copy(data, bytes.NewReader(m.content)); err != nil {
			t.Fatalf("%s: %v", m.name, err)
		}
		if err := data.Close(); err != nil {
			t.Fatalf("%s: the end of the content: %v", m.name, err)
		}
		if err := c.Quit(); err != nil {
			t.Errorf("%s: QUIT: %v", m.name, err)
		}
	}
	host.WaitMessages(t, 3, deadline)
	arrived := map[string]smtptest.Transaction{}
	for _, m := range host.Messages() {
		arrived[m.Recipients[0].Path] = m
	}
	for to, sent := range sent {
		wantIntact(t, arrived[to], sent)
	}
}

// isCode reports whether a server has refused with a code.
func isCode(err error, code int) bool {
	var refused *gosmtp.SMTPError
	return errors.As(err, &refused) && refused.Code == code
}
