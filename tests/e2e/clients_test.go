package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/proc"
	"github.com/postrider/postrider/tests/internal/submit"
)

// pythonClient is what an application does with Python's smtplib.
const pythonClient = `
import smtplib, sys
from email.message import EmailMessage
m = EmailMessage()
m["From"], m["To"], m["Subject"] = "sender@sender.test", sys.argv[3], "from smtplib"
m.set_content("Grüße aus Python\n.\n..\n")
with smtplib.SMTP(sys.argv[1], int(sys.argv[2])) as s:
    s.send_message(m)
`

// TestClients: the clients that newcomers have at hand.
func TestClients(t *testing.T) {
	w := shared.Get(t)
	host, port, err := net.SplitHostPort(w.SMTP(0))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"smtplib", []string{"python3", "-c", pythonClient, host, port, "a@smtplib.test"}, "Subject: from smtplib\r\n"},
		{"swaks", []string{"swaks", "--server", host, "--port", port, "--from", "sender@sender.test", "--to", "a@swaks.test",
			"--header", "Subject: from swaks", "--body", "two\nlines"}, "Subject: from swaks\r\n"},
		{"swaks-pipeline", []string{"swaks", "--pipeline", "--server", host, "--port", port, "--from", "sender@sender.test",
			"--to", "a@swaks-pipeline.test,b@swaks-pipeline.test", "--header", "Subject: pipelined"}, "Subject: pipelined\r\n"},
		{"smtp-source", []string{"smtp-source", "-f", "sender@sender.test", "-t", "a@smtp-source.test", "-S", "from source", "inet:" + w.SMTP(0)}, "Subject: from source\r\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			domain := tc.name + ".test"
			mx := w.Host(t, "mx."+domain, smtptest.Script{})
			w.MX(t, domain, "10 mx."+domain)
			cmd := exec.CommandContext(t.Context(), tc.args[0], tc.args[1:]...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v (the tests need python3, swaks and postfix)\n%s", tc.args[0], err, out)
			}
			mx.WaitMessages(t, 1, deadline)
			if got := only(t, mx); !strings.Contains(string(got.Content), tc.want) {
				t.Errorf("arrived without %q:\n%s", tc.want, got.Content)
			}
		})
	}
}

// TestSMTPSink: Debian's smtp-sink as the remote host takes a message as it
// was sent. Its dump has LF line ends and its own lines before the content.
func TestSMTPSink(t *testing.T) {
	w := shared.Get(t)
	addr, err := w.Remote("mx.sink.test")
	if err != nil {
		t.Fatal(err)
	}
	w.MX(t, "sink.test", "10 mx.sink.test")
	dir := t.TempDir()
	dump := filepath.Join(dir, "dump")
	args := []string{"-d", dump + "."}
	if os.Getuid() == 0 {
		args = append(args, "-u", "nobody") // it refuses to run as root
		for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o777); err != nil {
				t.Fatal(err)
			}
		}
	}
	sink, err := proc.Start(proc.Spec{Name: "sink", Path: "/usr/sbin/smtp-sink", Args: append(args, "inet:"+addr, "16"), LogDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sink.Kill)
	sent := content("to the sink")
	id := send(t, w, 0, submit.Message{From: "sender@sender.test", To: []string{"a@sink.test"}, Content: sent})
	waitState(t, w, id, "relayed")
	w.Eventually(t, deadline, "the dump", func(context.Context) error {
		files, err := filepath.Glob(dump + ".*")
		if err != nil {
			return err
		}
		if len(files) != 1 {
			return fmt.Errorf("%d dumps\n%s", len(files), sink.Log(1<<12))
		}
		text, err := os.ReadFile(files[0])
		if err != nil {
			return err
		}
		if want := strings.ReplaceAll(string(sent), "\r\n", "\n"); !strings.HasSuffix(strings.TrimRight(string(text), "\n"), strings.TrimRight(want, "\n")) {
			return fmt.Errorf("the dump is\n%s", text)
		}
		return nil
	})
}

// TestSTARTTLS: offered TLS is used, and content is the same.
func TestSTARTTLS(t *testing.T) {
	t.Parallel()
	w := shared.Get(t)
	tls, err := smtptest.SelfSigned("mx.tls.test")
	if err != nil {
		t.Fatal(err)
	}
	host := w.Host(t, "mx.tls.test", smtptest.Script{TLS: tls})
	w.MX(t, "tls.test", "10 mx.tls.test")
	sent := content("over TLS")
	id := send(t, w, 0, submit.Message{From: "sender@sender.test", To: []string{"a@tls.test"}, Content: sent})
	waitState(t, w, id, "relayed")
	got := only(t, host)
	wantIntact(t, got, sent)
	if got.TLS == "" {
		t.Error("the message came in plaintext, though STARTTLS was offered")
	}
	var used string
	if err := w.DB.QueryRow(t.Context(), `SELECT tls FROM postrider.history WHERE queue_id = $1`, id).Scan(&used); err != nil || used == "" {
		t.Errorf("history says of TLS %q (%v)", used, err)
	}
}
