package smtpd

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// letter is what each client sends: dots, octets outside ASCII, an empty
// line at the end.
const letter = "From: A <a@example.com>\r\nTo: b@example.net\r\nSubject: =?utf-8?q?=C3=BC?=\r\nDate: Sun, 22 Nov 2026 05:00:00 +0000\r\n" +
	"Message-ID: <1@example.com>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" +
	"Grüße\r\n.\r\n..\r\n.dots at the beginning\r\n\r\nlast line\r\n\r\n"

const (
	smtplibSTARTTLS = `
import smtplib, ssl, sys
context = ssl._create_unverified_context()
with smtplib.SMTP(sys.argv[1], int(sys.argv[2])) as s:
    s.starttls(context=context)
    s.login("user", "secret")
    s.sendmail("a@example.com", ["b@example.net"], open(sys.argv[3], "rb").read(), ["BODY=8BITMIME"])
`
	smtplibImplicit = `
import smtplib, ssl, sys
with smtplib.SMTP_SSL(sys.argv[1], int(sys.argv[2]), context=ssl._create_unverified_context()) as s:
    s.login("user", "secret")
    s.sendmail("a@example.com", ["b@example.net"], open(sys.argv[3], "rb").read(), ["BODY=8BITMIME"])
`
	smtplibUTF8 = `
import smtplib, ssl, sys
with smtplib.SMTP_SSL(sys.argv[1], int(sys.argv[2]), context=ssl._create_unverified_context()) as s:
    s.ehlo()
    s.login("user", "secret")
    s.sendmail("ü@example.com", ["ö@example.net"], open(sys.argv[3], "rb").read(), ["BODY=8BITMIME", "SMTPUTF8"])
`
	smtplibWrong = `
import smtplib, ssl, sys
with smtplib.SMTP_SSL(sys.argv[1], int(sys.argv[2]), context=ssl._create_unverified_context()) as s:
    try:
        s.login("user", "wrong")
    except smtplib.SMTPAuthenticationError as e:
        sys.exit(0 if e.smtp_code == 535 else 1)
    sys.exit(1)
`
)

// Real clients authenticate, and what they send arrives byte for byte.
func TestRealClients(t *testing.T) {
	file := filepath.Join(t.TempDir(), "letter")
	if err := os.WriteFile(file, []byte(letter), 0o600); err != nil {
		t.Fatal(err)
	}
	swaks := func(more ...string) []string {
		return append([]string{"swaks", "--server", "HOST", "--port", "PORT", "--from", "a@example.com", "--to", "b@example.net",
			"--data", "@" + file, "--auth-user", "user", "--auth-password", "secret"}, more...)
	}
	msmtp := func(more ...string) []string {
		return append([]string{"msmtp", "-C", "/dev/null", "--host=HOST", "--port=PORT", "--from=a@example.com", "--user=user",
			"--passwordeval=echo secret", "--tls=on", "--tls-certcheck=off"}, more...)
	}
	curl := func(url string, more ...string) []string {
		return append([]string{"curl", "-sSk", "--url", url, "--mail-from", "a@example.com", "--mail-rcpt", "b@example.net",
			"--user", "user:secret", "--upload-file", file}, more...)
	}
	tests := []struct {
		name     string
		implicit bool
		command  []string
		adds     string // what the client puts behind every message
		refused  bool   // nothing arrives
	}{
		{name: "swaks STARTTLS PLAIN", command: swaks("--tls", "--auth", "PLAIN"), adds: "\r\n"},
		{name: "swaks STARTTLS LOGIN", command: swaks("--tls", "--auth", "LOGIN"), adds: "\r\n"},
		{name: "swaks implicit PLAIN", implicit: true, command: swaks("--tls-on-connect", "--auth", "PLAIN"), adds: "\r\n"},
		{name: "msmtp STARTTLS PLAIN", command: msmtp("--auth=plain", "b@example.net")},
		{name: "msmtp STARTTLS LOGIN", command: msmtp("--auth=login", "b@example.net")},
		{name: "msmtp implicit SCRAM", implicit: true, command: msmtp("--tls-starttls=off", "--auth=scram-sha-256", "b@example.net")},
		{name: "curl STARTTLS PLAIN", command: curl("smtp://HOST:PORT/client.example", "--ssl-reqd", "--login-options", "AUTH=PLAIN")},
		{name: "curl implicit LOGIN", implicit: true, command: curl("smtps://HOST:PORT/client.example", "--login-options", "AUTH=LOGIN")},
		{name: "smtplib STARTTLS", command: []string{"python3", "-c", smtplibSTARTTLS, "HOST", "PORT", file}},
		{name: "smtplib implicit", implicit: true, command: []string{"python3", "-c", smtplibImplicit, "HOST", "PORT", file}},
		{name: "smtplib SMTPUTF8", implicit: true, command: []string{"python3", "-c", smtplibUTF8, "HOST", "PORT", file}},
		{name: "smtplib wrong password", implicit: true, command: []string{"python3", "-c", smtplibWrong, "HOST", "PORT"}, refused: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			keeper, _ := newAccess(t)
			store := &fakeStore{}
			server := startDoor(t, testConfig(), store, Door{Listener: listener, ImplicitTLS: tt.implicit, Submission: true},
				Deps{Access: keeper, TLS: newCertificates(t)})
			host, port, err := net.SplitHostPort(server.address)
			if err != nil {
				t.Fatal(err)
			}
			command := append([]string(nil), tt.command...)
			for i, argument := range command {
				argument := bytes.ReplaceAll([]byte(argument), []byte("HOST"), []byte(host))
				command[i] = string(bytes.ReplaceAll(argument, []byte("PORT"), []byte(port)))
			}
			cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
			cmd.Stdin = bytes.NewReader([]byte(letter))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v (tests/deps.sh installs the clients)\n%s", err, out)
			}
			kept := store.submissions()
			if tt.refused {
				if len(kept) != 0 {
					t.Errorf("%d messages, want none", len(kept))
				}
				return
			}
			if len(kept) != 1 {
				t.Fatalf("%d messages, want 1", len(kept))
			}
			if _, content, ok := cutReceived(kept[0].Content); !ok || string(content) != letter+tt.adds {
				t.Errorf("sent    %q\narrived %q", letter, content)
			}
			if p := kept[0].Client.Protocol; p != "ESMTPSA" && p != "UTF8SMTPSA" || kept[0].Tenant != "acme" {
				t.Errorf("with %s of %q", p, kept[0].Tenant)
			}
		})
	}
}
