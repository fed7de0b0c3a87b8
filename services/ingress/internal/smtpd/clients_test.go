package smtpd

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
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

// nodemailer is from tests/clients; tests/deps.sh installs it.
const nodemailer = `
const {createTransport} = require("/var/cache/postrider-tests/clients/node_modules/nodemailer");
const [host, port, secure, authMethod, file] = process.argv.slice(1);
const transport = createTransport({host, port, secure: secure === "true", requireTLS: true, tls: {rejectUnauthorized: false},
    auth: {user: "user", pass: "secret"}, authMethod});
transport.sendMail({envelope: {from: "a@example.com", to: ["b@example.net"], use8BitMime: true}, raw: require("fs").readFileSync(file)})
    .catch(err => { console.error(err); process.exit(1); });
`

// letters are what each client sends. The last line may have no end.
var letters = map[string]string{
	"plain":      letter,
	"no end":     letter + "the last line",
	"long lines": letter + strings.Repeat(strings.Repeat("x", 998)+"\r\n."+strings.Repeat("y", 996)+"\r\n", 20),
	"5 MB":       letter + strings.Repeat("..Grüße aus einer langen Zeile, die sich wiederholt, ohne daß jemand sie liest.\r\n.\r\n", 60_000) + "the end\r\n",
}

// Real clients authenticate, and what they send arrives byte for byte.
func TestRealClients(t *testing.T) {
	const file = "FILE"
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
		{name: "nodemailer STARTTLS PLAIN", command: []string{"node", "-e", nodemailer, "HOST", "PORT", "false", "PLAIN", file}},
		{name: "nodemailer implicit LOGIN", implicit: true, command: []string{"node", "-e", nodemailer, "HOST", "PORT", "true", "LOGIN", file}},
		{name: "smtplib SMTPUTF8", implicit: true, command: []string{"python3", "-c", smtplibUTF8, "HOST", "PORT", file}},
		{name: "smtplib wrong password", implicit: true, command: []string{"python3", "-c", smtplibWrong, "HOST", "PORT"}, refused: true},
	}
	for _, tt := range tests {
		for name, content := range letters {
			// One way of each client carries all letters, for the others are the
			// same there.
			if name != "plain" && !strings.HasSuffix(tt.name, "STARTTLS PLAIN") && tt.name != "smtplib STARTTLS" {
				continue
			}
			t.Run(tt.name+", "+name, func(t *testing.T) {
				t.Parallel()
				sent := filepath.Join(t.TempDir(), "letter")
				if err := os.WriteFile(sent, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
				listener, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				keeper, _ := newAccess(t)
				store := &fakeStore{}
				cfg := testConfig()
				cfg.IdleTimeout = 5 * time.Minute // the machine may be busy with all the others
				server := startDoor(t, cfg, store, Door{Listener: listener, ImplicitTLS: tt.implicit, Submission: true},
					Deps{Access: keeper, TLS: newCertificates(t)})
				host, port, err := net.SplitHostPort(server.address)
				if err != nil {
					t.Fatal(err)
				}
				var command []string
				for _, argument := range tt.command {
					command = append(command, strings.NewReplacer("HOST", host, "PORT", port, file, sent).Replace(argument))
				}
				cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
				cmd.Stdin = strings.NewReader(content)
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
				want := content + tt.adds
				if !strings.HasSuffix(want, "\r\n") {
					want += "\r\n"
				}
				if _, got, ok := cutReceived(kept[0].Content); !ok || string(got) != want {
					t.Errorf("sent    %d octets %.1000q\narrived %d octets %.1000q", len(content), content, len(got), got)
				}
				if p := kept[0].Client.Protocol; p != "ESMTPSA" && p != "UTF8SMTPSA" || kept[0].Tenant != "acme" {
					t.Errorf("with %s of %q", p, kept[0].Tenant)
				}
			})
		}
	}
}
