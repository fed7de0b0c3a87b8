package smtpclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patient are the timeouts of tests that do not wait for one.
var patient = Timeouts{
	Connect: 10 * time.Second, Banner: 10 * time.Second, Hello: 10 * time.Second, StartTLS: 10 * time.Second, Mail: 10 * time.Second,
	Rcpt: 10 * time.Second, Data: 10 * time.Second, Block: 10 * time.Second, Dot: 10 * time.Second,
}

func optionsFor(s *smtptest.Server) (Host, Options) {
	return Host{Name: "mx.example", Addr: s.Addr()}, Options{Hello: "client.example", TLS: mail.TLSMay, Timeouts: patient}
}

// start is a server and a session with it that must succeed.
func start(t *testing.T, script smtptest.Script) (*smtptest.Server, *Session) {
	t.Helper()
	mx := smtptest.Start(t, script)
	return mx, dial(t, mx)
}

func dial(t *testing.T, mx *smtptest.Server) *Session {
	t.Helper()
	host, o := optionsFor(mx)
	s, failed := Dial(t.Context(), host, o)
	if s == nil {
		t.Fatalf("dial: %+v", failed)
	}
	t.Cleanup(s.Close)
	return s
}

func message(content string, recipients ...string) Transaction {
	m := &mail.Message{Envelope: mail.Envelope{ReversePath: "from@client.example"}, SizeBytes: int64(len(content))}
	t := Transaction{Message: m, Content: []byte(content)}
	for i, r := range recipients {
		t.Recipients = append(t.Recipients, mail.Pending{Recipient: mail.Recipient{No: int32(i + 1), ForwardPath: mail.ForwardPath(r)}})
	}
	return t
}

const hello = "Subject: hello\r\n\r\nhello\r\n"

// streamed is the same transaction with its content read from a stream.
func streamed(t Transaction) Transaction {
	content := t.Content
	t.Content = nil
	t.Open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }
	return t
}

func codes(r Result) string {
	var words []string
	for _, a := range r.Answers {
		word := string(a.Phase) + " "
		switch {
		case a.Reply.Code != 0:
			word += a.Reply.String()[:3]
		default:
			word += "-"
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}

func TestRelay(t *testing.T) {
	for name, extensions := range map[string][]string{
		"pipelining": nil, "no pipelining": smtptest.NoPipelining, "no extensions": {},
	} {
		t.Run(name, func(t *testing.T) {
			mx, s := start(t, smtptest.Script{Extensions: extensions})
			for range 3 {
				got := s.Send(t.Context(), message(hello, "a@mx.example", "b@mx.example"))
				if codes(got) != "dot 250, dot 250" || got.Accepted != 2 || !got.MailSent || !s.Usable() {
					t.Fatalf("result %+v", got)
				}
			}
			if s.Used() != 3 || !s.Local().IsValid() || s.TLS() != "" {
				t.Errorf("used %d, local %v, TLS %q", s.Used(), s.Local(), s.TLS())
			}
			s.Close()
			messages := mx.Messages()
			if len(messages) != 3 {
				t.Fatalf("%d messages", len(messages))
			}
			for _, m := range messages {
				if string(m.Content) != hello || m.ReversePath != "from@client.example" || strings.Join(m.Accepted(), " ") != "a@mx.example b@mx.example" || m.Hello != "client.example" {
					t.Errorf("message %+v", m)
				}
			}
			if n := len(mx.Connections()); n != 1 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

func TestContentIsExact(t *testing.T) {
	line := "0123456789abcdef0123456789abcdef\r\n"
	tests := map[string]struct{ content, want string }{
		"empty":            {"", ""},
		"one dot":          {".\r\n", ".\r\n"},
		"dots":             {"..\r\n.\r\n\r\n.a\r\n", "..\r\n.\r\n\r\n.a\r\n"},
		"end inside":       {"a\r\n.\r\nQUIT\r\n", "a\r\n.\r\nQUIT\r\n"},
		"no final newline": {"a\r\nb", "a\r\nb\r\n"},
		"final dot":        {"a\r\n.", "a\r\n.\r\n"},
		"8-bit":            {"ä\r\n\xff\xfe\x00\r\n", "ä\r\n\xff\xfe\x00\r\n"},
		"long line":        {strings.Repeat("x", 100_000) + "\r\n", strings.Repeat("x", 100_000) + "\r\n"},
		"5 KB":             {strings.Repeat(line, 5<<10/len(line)), strings.Repeat(line, 5<<10/len(line))},
		"1 MB of dots":     {strings.Repeat(".\r\n", 1<<20/3), strings.Repeat(".\r\n", 1<<20/3)},
		"25 MB":            {strings.Repeat(line, 25<<20/len(line)), strings.Repeat(line, 25<<20/len(line))},
	}
	mx, s := start(t, smtptest.Script{})
	n := 0
	for name, tt := range tests {
		for _, tx := range []Transaction{message(tt.content, "a@mx.example"), streamed(message(tt.content, "a@mx.example"))} {
			if got := s.Send(t.Context(), tx); codes(got) != "dot 250" {
				t.Fatalf("%s: %+v", name, got)
			}
			got := mx.Messages()[n]
			if n++; string(got.Content) != tt.want {
				t.Errorf("%s: content changed, %d octets of %d", name, len(got.Content), len(tt.want))
			}
		}
	}
}

func TestContentThatIsNoMailNeverLeaves(t *testing.T) {
	for _, content := range []string{"a\nb\r\n", "a\rb\r\n", "a\r\n.\nMAIL FROM:<>\r\n", "a\r"} {
		mx, err := smtptest.Listen(smtptest.Script{})
		if err != nil {
			t.Fatal(err)
		}
		s := dial(t, mx)
		got := s.Send(t.Context(), message(content, "a@mx.example"))
		if got.Answers[0].Phase != mail.PhaseBody || got.Answers[0].Err == nil || s.Usable() {
			t.Errorf("%q: %+v", content, got)
		}
		mx.Close()
		if mx.Count() != 0 || len(mx.Violations()) != 0 {
			t.Errorf("%q: %d taken, %q", content, mx.Count(), mx.Violations())
		}
	}
}

func TestManyRecipients(t *testing.T) {
	const n = 1000
	var paths []string
	for range n {
		paths = append(paths, strings.Repeat("x", 60)+"@mx.example")
	}
	paths[500] = "no@mx.example"
	for name, extensions := range map[string][]string{"pipelining": nil, "no pipelining": smtptest.NoPipelining} {
		t.Run(name, func(t *testing.T) {
			// Replies as long as they may be, so that both windows would fill.
			long := smtptest.Reply(250, "2.1.5 "+strings.Repeat("long ", 100))
			mx, s := start(t, smtptest.Script{Extensions: extensions, Rules: []smtptest.Rule{
				{At: smtptest.Rcpt, Match: "no@", Do: smtptest.Reply(550, "5.1.1 no")},
				{At: smtptest.Rcpt, Do: long},
			}})
			got := s.Send(t.Context(), message(hello, paths...))
			if got.Accepted != n-1 {
				t.Fatalf("%d accepted", got.Accepted)
			}
			for i, a := range got.Answers {
				want := 250
				if i == 500 {
					want = 550
				}
				if a.Reply.Code != want {
					t.Errorf("recipient %d: %+v", i, a)
				}
			}
			if m := mx.Messages(); len(m) != 1 || len(m[0].Accepted()) != n-1 {
				t.Errorf("%d messages", len(m))
			}
		})
	}
}

func TestRecipientsAreAnsweredEachByItsReply(t *testing.T) {
	for name, extensions := range map[string][]string{"pipelining": nil, "no pipelining": smtptest.NoPipelining} {
		t.Run(name, func(t *testing.T) {
			mx, s := start(t, smtptest.Script{Extensions: extensions, Rules: []smtptest.Rule{
				{At: smtptest.Rcpt, Match: "gone@", Do: smtptest.Reply(550, "5.1.1 no", "such user")},
				{At: smtptest.Rcpt, Match: "full@", Do: smtptest.Reply(452, "4.2.2 full")},
				{At: smtptest.Rcpt, Skip: 2, Each: smtptest.PerTransaction, Do: smtptest.Reply(452, "4.5.3 enough")},
			}})
			got := s.Send(t.Context(), message(hello, "gone@b.example", "a@b.example", "full@b.example", "b@b.example", "c@b.example"))
			if codes(got) != "rcpt 550, dot 250, rcpt 452, dot 250, rcpt 452" || got.Accepted != 2 {
				t.Errorf("result %s", codes(got))
			}
			if r := got.Answers[0].Reply; r.Enhanced != (mail.EnhancedCode{Class: 5, Subject: 1, Detail: 1}) || r.Text() != "no such user" {
				t.Errorf("reply %+v", r)
			}
			// The rest goes at once, in the same session, without RSET.
			if got := s.Send(t.Context(), message(hello, "c@b.example")); codes(got) != "dot 250" {
				t.Errorf("the rest: %s", codes(got))
			}
			// None is accepted: no content leaves, and RSET clears the table.
			if got := s.Send(t.Context(), message(hello, "gone@b.example", "full@b.example")); codes(got) != "rcpt 550, rcpt 452" || !s.Usable() {
				t.Errorf("none accepted: %s", codes(got))
			}
			if got := s.Send(t.Context(), message(hello, "a@b.example")); codes(got) != "dot 250" {
				t.Errorf("after RSET: %s", codes(got))
			}
			commands := strings.Join(mx.Connections()[0].Commands, " ")
			if n := strings.Count(commands, "RSET"); n != 1 {
				t.Errorf("%d RSET in %s", n, commands)
			}
			if len(mx.Messages()) != 3 {
				t.Errorf("%d messages", len(mx.Messages()))
			}
		})
	}
}

// TestDataAnyway: a host that says 354 though nobody was accepted gets an
// empty message to refuse (RFC 2920 §3.1), never the content.
func TestDataAnyway(t *testing.T) {
	for _, at := range []smtptest.Phase{smtptest.Rcpt, smtptest.Mail} {
		mx, s := start(t, smtptest.Script{Rules: []smtptest.Rule{
			{At: at, Times: 1, Do: smtptest.Reply(550, "5.0.0 no")},
			{At: smtptest.Data, Times: 1, Do: smtptest.Reply(354, "go on")},
		}})
		got := s.Send(t.Context(), message(hello, "a@b.example"))
		if codes(got) != string(at)+" 550" || got.Accepted != 0 {
			t.Errorf("%s: %s", at, codes(got))
		}
		if !s.Usable() {
			t.Fatalf("%s: session ended", at)
		}
		if got := s.Send(t.Context(), message(hello, "a@b.example")); codes(got) != "dot 250" {
			t.Errorf("%s: next: %s", at, codes(got))
		}
		if m := mx.Messages(); len(m) != 1 {
			t.Errorf("%s: %d messages", at, len(m))
		}
	}
}

func TestBeforeDot(t *testing.T) {
	lost := errors.New("lease lost")
	for name, content := range map[string]string{"small": hello, "large": strings.Repeat(hello, 100_000)} {
		mx, s := start(t, smtptest.Script{})
		called := 0
		tx := message(content, "a@b.example")
		tx.BeforeDot = func() error {
			if called++; called == 2 {
				return lost
			}
			return nil
		}
		if got := s.Send(t.Context(), tx); codes(got) != "dot 250" || called != 1 {
			t.Fatalf("%s: %s, called %d times", name, codes(got), called)
		}
		got := s.Send(t.Context(), tx)
		a := got.Answers[0]
		if a.Phase != mail.PhaseBody || !errors.Is(a.Err, lost) || !errors.Is(a.Err, ErrWithheld) || a.Uncertain || s.Usable() {
			t.Errorf("%s: %+v", name, a)
		}
		if err := mx.Wait(t.Context(), func() bool { return len(mx.Transactions()) == 2 }); err != nil {
			t.Fatal(err)
		}
		if last := mx.Transactions()[1]; !last.DataIsBroken || mx.Count() != 1 {
			t.Errorf("%s: the host has %+v", name, last)
		}
	}
}

func TestContentSourceFails(t *testing.T) {
	broken := errors.New("database away")
	for name, open := range map[string]func() (io.ReadCloser, error){
		"open": func() (io.ReadCloser, error) { return nil, broken },
		"read": func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(strings.NewReader(hello), errorReader{broken})), nil
		},
	} {
		mx, s := start(t, smtptest.Script{})
		tx := message("", "a@b.example")
		tx.Content, tx.Open = nil, open
		a := s.Send(t.Context(), tx).Answers[0]
		if a.Phase != mail.PhaseBody || !errors.Is(a.Err, ErrContent) || !errors.Is(a.Err, broken) || s.Usable() {
			t.Errorf("%s: %+v", name, a)
		}
		s.Close()
		if mx.Count() != 0 {
			t.Errorf("%s: half a message was taken", name)
		}
	}
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

// TestContextEndsEveryWait ends the context right before each wait, and
// during the last.
func TestContextEndsEveryWait(t *testing.T) {
	cause := errors.New("shutting down")
	for _, tt := range []struct{ after, want mail.Phase }{
		{mail.PhaseConnect, mail.PhaseBanner},
		{mail.PhaseBanner, mail.PhaseHello},
		{mail.PhaseHello, mail.PhaseMail},
		{mail.PhaseMail, mail.PhaseRcpt},
		{mail.PhaseRcpt, mail.PhaseData},
		{mail.PhaseData, mail.PhaseBody},
		{"", mail.PhaseDot},
	} {
		t.Run(string(tt.want), func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			stop := func() { cancel(cause) }
			script := smtptest.Script{Extensions: smtptest.NoPipelining}
			if tt.want == mail.PhaseDot {
				script.Rules = []smtptest.Rule{{At: smtptest.Dot, Do: smtptest.Then(smtptest.Signal(stop), smtptest.Stall())}}
			} else {
				script.Rules = []smtptest.Rule{{At: smtptest.Phase(tt.want), Do: smtptest.Stall()}}
			}
			mx, err := smtptest.Listen(script) // half a command may arrive
			if err != nil {
				t.Fatal(err)
			}
			defer mx.Close()
			host, o := optionsFor(mx)
			o.Observe = func(step Step) {
				if step.Phase == tt.after {
					stop()
				}
			}
			s, a := Dial(ctx, host, o)
			if s != nil {
				size := 100_000 // more than fits between two sockets
				if tt.want == mail.PhaseDot {
					size = 100
				}
				tx := message(strings.Repeat(hello, size), "a@b.example")
				tx.Observe = o.Observe
				a = s.Send(ctx, tx).Answers[0]
				if s.Usable() {
					t.Error("session goes on")
				}
			}
			dialled := tt.after == mail.PhaseHello && a.Phase == mail.PhaseHello // Dial noticed it itself
			if a.Phase != tt.want && !dialled || !errors.Is(a.Err, ErrStopped) || !errors.Is(a.Err, cause) || a.Uncertain != (tt.want == mail.PhaseDot) {
				t.Errorf("answer %+v", a)
			}
		})
	}
}

func TestObserve(t *testing.T) {
	mx := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Data, Times: 1, Do: smtptest.Reply(451, "4.3.0 no")}}})
	host, o := optionsFor(mx)
	var seen []string
	note := func(step Step) {
		seen = append(seen, strings.TrimSuffix(fmt.Sprintf("%s %d", step.Phase, step.Reply.Code), " 0"))
	}
	o.Observe = note
	s, failed := Dial(t.Context(), host, o)
	if s == nil {
		t.Fatal(failed)
	}
	defer s.Close()
	tx := message(hello, "a@b.example", "b@b.example")
	tx.Observe = note
	s.Send(t.Context(), tx)
	s.Send(t.Context(), tx)
	want := "connect, banner 220, ehlo 250, mail 250, rcpt 250, rcpt 250, data 451, rset 250, mail 250, rcpt 250, rcpt 250, data 354, dot 250"
	if got := strings.Join(seen, ", "); got != want {
		t.Errorf("steps %s", got)
	}
}
