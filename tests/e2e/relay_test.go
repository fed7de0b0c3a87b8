package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

// TestNeverAnOpenRelay: from a network that is not allowed, RCPT to any
// domain gets 550 5.7.1, and nothing is queued.
func TestNeverAnOpenRelay(t *testing.T) {
	w := shared.Get(t)
	host := w.Host(t, "mx.relay.test", smtptest.Script{})
	w.MX(t, "relay.test", "10 mx.relay.test")
	const outside = "127.255.7.9" // in neither of the world's relay networks
	for c := range 2 {
		for _, hello := range []string{"EHLO", "HELO"} {
			for _, from := range []string{"", "sender@sender.test", "me@relay.test", "me@mta.postrider.test"} {
				s, err := submit.Dial(t.Context(), w.SMTP(c), outside)
				if err != nil {
					t.Fatal(err)
				}
				for _, to := range []string{
					"a@relay.test", "a@nxdomain.test", "a@mta.postrider.test", "a@localhost", "a@[127.0.0.1]",
					"a%relay.test@mta.postrider.test", `"a@relay.test"@mta.postrider.test`, "@mta.postrider.test:a@relay.test", "a@xn--bcher-kva.test",
				} {
					refused(t, s, hello, from, to)
				}
				if reply, err := s.Command("DATA"); err != nil || reply.Code/100 != 5 {
					t.Errorf("DATA without a recipient: %s, %v, want 5yz", reply, err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		}
	}
	var queued int
	if err := w.DB.QueryRow(t.Context(), `SELECT count(*) FROM postrider.messages WHERE client_address = $1`, outside).Scan(&queued); err != nil || queued > 0 {
		t.Errorf("%d messages from outside are queued (%v)", queued, err)
	}
	if n := host.Count(); n > 0 {
		t.Errorf("%d messages from outside were relayed", n)
	}
}

// refused tries one transaction up to RCPT.
func refused(t *testing.T, s *submit.Session, hello, from, to string) {
	t.Helper()
	if reply, err := s.Command("%s outside.example", hello); err != nil || reply.Code != 250 {
		t.Fatalf("%s: %s, %v", hello, reply, err)
	}
	if reply, err := s.Command("MAIL FROM:<%s>", from); err != nil || reply.Code/100 != 2 && reply.Code != 550 {
		t.Fatalf("MAIL FROM:<%s>: %s, %v", from, reply, err)
	}
	reply, err := s.Command("RCPT TO:<%s>", to)
	if err != nil {
		t.Fatalf("RCPT TO:<%s>: %v", to, err)
	}
	if reply.Code != 550 || !strings.HasPrefix(reply.Text, "5.7.1 ") {
		t.Errorf("%s, from <%s>, RCPT TO:<%s>: %s, want 550 5.7.1", hello, from, to, reply)
	}
	if reply, err := s.Command("RSET"); err != nil || reply.Code != 250 {
		t.Fatalf("RSET: %s, %v", reply, err)
	}
}

// TestSmuggling: what is not CRLF.CRLF ends no message, and nothing that
// follows in the same content is taken as commands.
func TestSmuggling(t *testing.T) {
	w := shared.Get(t)
	host := w.Host(t, "mx.smuggle.test", smtptest.Script{})
	w.MX(t, "smuggle.test", "10 mx.smuggle.test")
	for i, end := range []string{"\n.\n", "\r\n.\n", "\n.\r\n", "\r.\r", "\r.\r\n", "\r\n.\r"} {
		s, err := submit.Dial(t.Context(), w.SMTP(i%2), "")
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for _, line := range []string{"EHLO client.example", "MAIL FROM:<sender@sender.test>", "RCPT TO:<outer@smuggle.test>", "DATA"} {
			if reply, err := s.Command("%s", line); err != nil || reply.Code/100 > 3 {
				t.Fatalf("%s: %s, %v", line, reply, err)
			}
		}
		inner := "MAIL FROM:<forged@sender.test>\r\nRCPT TO:<inner@smuggle.test>\r\nDATA\r\nSubject: smuggled\r\n\r\nforged\r\n.\r\n"
		reply, err := s.Raw([]byte("Subject: outer\r\n\r\ntext" + end + inner))
		if err != nil {
			t.Fatal(err)
		}
		if reply.Code/100 != 5 {
			t.Errorf("content with the end %q: %s, want a refusal", end, reply)
		}
	}
	var inner int
	if err := w.DB.QueryRow(t.Context(), `SELECT count(*) FROM postrider.recipients WHERE domain = 'smuggle.test'`).Scan(&inner); err != nil || inner > 0 {
		t.Errorf("%d recipients queued from refused content (%v)", inner, err)
	}
	if n := host.Count(); n > 0 {
		t.Errorf("%d messages were smuggled through", n)
	}
}

// TestShow: the command line tells the story of a message.
func TestShow(t *testing.T) {
	t.Parallel()
	w := shared.Get(t)
	host := w.Host(t, "mx.show.test", smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Rcpt, Times: 1, Do: smtptest.Reply(450, "4.2.1 greylisted, dear friend")}}})
	w.MX(t, "show.test", "10 mx.show.test")
	id := send(t, w, 0, submit.Message{From: "sender@sender.test", To: []string{"a@show.test"}, Content: content("show")})
	host.WaitMessages(t, 1, deadline)
	waitState(t, w, id, "relayed")
	text := show(t, w, id)
	for _, want := range []string{id, "sender@sender.test", "a@show.test", "greylisted, dear friend", "mx.show.test", "relayed", "250"} {
		if !strings.Contains(text, want) {
			t.Errorf("postrider show does not say %q:\n%s", want, text)
		}
	}
	if text, err := w.Output(t.Context(), "version"); err != nil || strings.TrimSpace(text) == "" {
		t.Errorf("postrider version: %q, %v", text, err)
	}
	if text, err := w.Output(t.Context(), "show", "01900000-0000-7000-8000-000000000000"); err == nil {
		t.Errorf("postrider show of an unknown id succeeds and says %q", text)
	}
}

func show(t *testing.T, w *world.World, id string) string {
	t.Helper()
	text, err := w.Output(t.Context(), "show", id)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestQueueCommand: a message that waits is listed.
func TestQueueCommand(t *testing.T) {
	t.Parallel()
	w := shared.Get(t)
	w.Host(t, "mx.waits.test", smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Mail, Do: smtptest.Reply(451, "4.3.0 full up")}}})
	w.MX(t, "waits.test", "10 mx.waits.test")
	id := send(t, w, 0, submit.Message{From: "sender@sender.test", To: []string{"a@waits.test"}, Content: content("waits")})
	text, err := w.Output(t.Context(), "queue")
	if err != nil || !strings.Contains(text, id) {
		t.Errorf("postrider queue does not list %s (%v):\n%s", id, err, text)
	}
	// Leave nothing behind that is tried for days.
	var failed int64
	if err := w.DB.QueryRow(t.Context(), `SELECT postrider.cancel(reason => 'the test is over', queue_id => $1::uuid)`, id).Scan(&failed); err != nil {
		t.Fatal(fmt.Errorf("cancel: %w", err))
	}
	waitState(t, w, id, "cancelled")
}
