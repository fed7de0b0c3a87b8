package smtpclient

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/pkg/smtptest"
)

// hasty are the timeouts of tests that wait for them.
var hasty = Timeouts{
	Connect: 10 * time.Second, Banner: 80 * time.Millisecond, Hello: 80 * time.Millisecond, StartTLS: 80 * time.Millisecond, Mail: 80 * time.Millisecond,
	Rcpt: 80 * time.Millisecond, Data: 80 * time.Millisecond, Block: 200 * time.Millisecond, Dot: 80 * time.Millisecond,
}

// phases are those at which a remote host can misbehave.
var phases = []struct {
	at   smtptest.Phase
	want mail.Phase
}{
	{smtptest.Banner, mail.PhaseBanner},
	{smtptest.Hello, mail.PhaseHello},
	{smtptest.Mail, mail.PhaseMail},
	{smtptest.Rcpt, mail.PhaseRcpt},
	{smtptest.Data, mail.PhaseData},
	{smtptest.Dot, mail.PhaseDot},
}

// TestEveryFaultAtEveryPhase crosses what a host can do with where. One
// recipient of two is hit at RCPT as at the other phases.
func TestEveryFaultAtEveryPhase(t *testing.T) {
	faults := []struct {
		name  string
		do    smtptest.Act
		code  int   // of the reply in the answer
		err   error // errors.Is
		ends  bool  // the session
		hasty bool
	}{
		{"4yz", smtptest.Reply(451, "4.3.0 not now"), 451, nil, false, false},
		{"5yz", smtptest.Reply(550, "5.7.1 no"), 550, nil, false, false},
		{"5yz in lines", smtptest.Reply(550, "5.7.1 no", "5.7.1 really", "5.7.1 no"), 550, nil, false, false},
		{"5yz in 300 lines", smtptest.Reply(550, slices.Repeat([]string{"5.7.1 no"}, 300)...), 550, nil, false, false},
		{"5yz in a line of 50 KiB", smtptest.Raw("550 5.7.1 " + strings.Repeat("no", 25<<10) + "\r\n"), 550, nil, false, false},
		{"5yz byte by byte", smtptest.Bytewise(smtptest.Reply(550, "5.7.1 no", "and no")), 550, nil, false, false},
		{"421 and goes on", smtptest.Reply(421, "4.3.2 bye"), 421, nil, true, false},
		{"421 and closes", smtptest.Then(smtptest.Reply(421, "4.3.2 bye"), smtptest.Drop()), 421, nil, true, false},
		{"3yz", smtptest.Reply(334, "go on"), 334, ErrOutOfStep, true, false},
		{"not SMTP", smtptest.Raw("HTTP/1.1 400 Bad Request\r\n\r\n"), 0, smtp.ErrReply, true, false},
		{"1yz", smtptest.Raw("120 soon\r\n"), 0, smtp.ErrReply, true, false},
		{"half a reply", smtptest.Then(smtptest.Raw("25"), smtptest.Drop()), 0, io.ErrUnexpectedEOF, true, false},
		{"half of two lines", smtptest.Then(smtptest.Raw("550-ok\r\n"), smtptest.Drop()), 0, io.ErrUnexpectedEOF, true, false},
		{"endless lines", smtptest.Endless("250-more\r\n"), 0, smtp.ErrReply, true, false},
		{"endless line", smtptest.Endless("250 more and more"), 0, smtp.ErrReply, true, false},
		{"drop", smtptest.Drop(), 0, io.EOF, true, false},
		{"RST", smtptest.Reset(), 0, syscall.ECONNRESET, true, false},
		{"stall", smtptest.Stall(), 0, os.ErrDeadlineExceeded, true, true},
		{"drip", smtptest.Drip(30*time.Millisecond, smtptest.Reply(250, "this takes too long")), 0, os.ErrDeadlineExceeded, true, true},
	}
	for _, extensions := range [][]string{smtptest.DefaultExtensions, smtptest.NoPipelining} {
		for _, p := range phases {
			for _, f := range faults {
				if p.at == smtptest.Data && f.code == 334 {
					continue // it waits for 3yz
				}
				name := strings.Join([]string{extensions[0], string(p.at), f.name}, "/")
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					// The client may leave in the middle of what it pipelined.
					mx, err := smtptest.Listen(smtptest.Script{Extensions: extensions, Rules: []smtptest.Rule{
						{At: p.at, Do: f.do}, {At: smtptest.Helo, Do: f.do},
					}})
					if err != nil {
						t.Fatal(err)
					}
					defer mx.Close()
					host, o := optionsFor(mx)
					if f.hasty {
						o.Timeouts = hasty
					}
					s, a := Dial(t.Context(), host, o)
					if early := p.want == mail.PhaseBanner || p.want == mail.PhaseHello; early != (s == nil) {
						t.Fatalf("session %v: %+v", s != nil, a)
					}
					if s != nil {
						defer s.Close()
						got := s.Send(t.Context(), message(hello, "a@b.example", "b@b.example"))
						a = got.Answers[1]
						if s.Usable() == f.ends {
							t.Errorf("usable %v", s.Usable())
						}
						if !got.MailSent {
							t.Error("MAIL was sent")
						}
					}
					reset := errors.Is(f.err, syscall.ECONNRESET)
					if a.Phase != p.want && !reset {
						// A RST overtakes replies that are still on their way.
						t.Errorf("phase %s, want %s", a.Phase, p.want)
					}
					switch {
					case a.Reply.Code != f.code:
						t.Errorf("reply %v, want %d", a.Reply, f.code)
					case !errors.Is(a.Err, f.err) && !(reset && hungUpErr(a.Err)) && !(errors.Is(f.err, io.EOF) && hungUpErr(a.Err)):
						t.Errorf("error %v, want %v", a.Err, f.err)
					case f.err == nil && a.Err != nil:
						t.Errorf("error %v", a.Err)
					}
					if uncertain := a.Phase == mail.PhaseDot && f.err != nil; a.Uncertain != uncertain {
						t.Errorf("uncertain %v", a.Uncertain)
					}
					if mx.Count() != 0 {
						t.Error("the host took a message")
					}
				})
			}
		}
	}
}

// hungUpErr: how a closed connection looks depends on what was under way.
func hungUpErr(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func TestConnectFails(t *testing.T) {
	mx, err := smtptest.Listen(smtptest.Script{})
	if err != nil {
		t.Fatal(err)
	}
	host, o := optionsFor(mx)
	mx.Close()
	s, a := Dial(t.Context(), host, o)
	if s != nil || a.Phase != mail.PhaseConnect || !errors.Is(a.Err, syscall.ECONNREFUSED) {
		t.Errorf("answer %+v", a)
	}
	o.Timeouts.Connect = time.Nanosecond
	if _, a = Dial(t.Context(), host, o); a.Phase != mail.PhaseConnect || errors.Is(a.Err, ErrStopped) || !os.IsTimeout(a.Err) {
		t.Errorf("timeout: %+v", a)
	}
}

func TestOneReplyForEachPhaseInOneWrite(t *testing.T) {
	// All replies of a pipelined group come at once, and split anywhere.
	mx, s := start(t, smtptest.Script{Rules: []smtptest.Rule{
		{At: smtptest.Mail, Do: smtptest.Bytewise(smtptest.Reply(250, "2.1.0 ok", "ok"))},
		{At: smtptest.Rcpt, Do: smtptest.Bytewise(smtptest.Reply(250, "2.1.5 ok"))},
		{At: smtptest.Data, Do: smtptest.Bytewise(smtptest.Reply(354, "go", "on"))},
		{At: smtptest.Dot, Do: smtptest.Bytewise(smtptest.Reply(250, "2.0.0", "ok"))},
	}})
	for range 3 {
		if got := s.Send(t.Context(), message(hello, "a@b.example", "b@b.example")); codes(got) != "dot 250, dot 250" {
			t.Fatal(codes(got))
		}
	}
	mx.WaitMessages(t, 3, 10*time.Second)
}

// TestHostLeavesBetweenTransactions: the next transaction finds the reason.
func TestHostLeavesBetweenTransactions(t *testing.T) {
	for name, tt := range map[string]struct {
		say  smtptest.Act
		code int
		err  error
	}{
		"421":         {smtptest.Raw("421 4.4.2 idle\r\n"), 421, nil},
		"out of step": {smtptest.Raw("250 2.0.0 what?\r\n"), 0, ErrOutOfStep},
	} {
		t.Run(name, func(t *testing.T) {
			_, s := start(t, smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Dot, Do: smtptest.Then(smtptest.Reply(250, "ok"), tt.say)}}})
			if got := s.Send(t.Context(), message(hello, "a@b.example")); codes(got) != "dot 250" || !s.Usable() {
				t.Fatal(codes(got))
			}
			got := s.Send(t.Context(), message(hello, "a@b.example"))
			if a := got.Answers[0]; a.Phase != mail.PhaseMail || a.Reply.Code != tt.code || !errors.Is(a.Err, tt.err) || s.Usable() {
				t.Errorf("answer %+v", a)
			}
		})
	}
	t.Run("drop", func(t *testing.T) {
		mx, s := start(t, smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Dot, Do: smtptest.Then(smtptest.Reply(250, "ok"), smtptest.Drop())}}})
		if got := s.Send(t.Context(), message(hello, "a@b.example")); codes(got) != "dot 250" {
			t.Fatal(codes(got))
		}
		if err := mx.Wait(t.Context(), func() bool { return mx.Open() == 0 }); err != nil {
			t.Fatal(err)
		}
		if a := s.Send(t.Context(), message(hello, "a@b.example")).Answers[0]; a.Phase != mail.PhaseMail || !hungUpErr(a.Err) || a.Uncertain {
			t.Errorf("answer %+v", a)
		}
	})
}

func TestTroubleInsideTheContent(t *testing.T) {
	large := strings.Repeat("0123456789abcdef0123456789abcdef\r\n", 1<<20)
	for name, tt := range map[string]struct {
		do   smtptest.Act
		code int
		err  func(error) bool
	}{
		"frozen":             {smtptest.Freeze(), 0, os.IsTimeout},
		"dropped":            {smtptest.AfterBytes(1<<20, smtptest.Reset()), 0, hungUpErr},
		"refused and closed": {smtptest.Then(smtptest.Reply(552, "5.3.4 too big"), smtptest.AfterBytes(1<<20, smtptest.Freeze())), 552, func(err error) bool { return err == nil }},
	} {
		t.Run(name, func(t *testing.T) {
			mx := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Body, Do: tt.do}}})
			host, o := optionsFor(mx)
			o.Timeouts.Block = 200 * time.Millisecond
			s, failed := Dial(t.Context(), host, o)
			if s == nil {
				t.Fatal(failed)
			}
			a := s.Send(t.Context(), streamed(message(large, "a@b.example"))).Answers[0]
			if a.Phase != mail.PhaseBody || a.Reply.Code != tt.code || !tt.err(a.Err) || a.Uncertain || s.Usable() {
				t.Errorf("answer %+v", a)
			}
		})
	}
}

// TestSlowButSteady: the deadline of a block starts anew with each block.
func TestSlowButSteady(t *testing.T) {
	large := strings.Repeat("0123456789abcdef0123456789abcdef\r\n", 1<<19)
	acts := []smtptest.Act{}
	for range 8 {
		acts = append(acts, smtptest.Later(60*time.Millisecond, smtptest.Signal(func() {})))
		acts = append(acts, smtptest.AfterBytes(2<<20, smtptest.Signal(func() {})))
	}
	mx := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Body, Do: smtptest.Then(acts...)}}})
	host, o := optionsFor(mx)
	o.Timeouts.Block = 250 * time.Millisecond
	s, failed := Dial(t.Context(), host, o)
	if s == nil {
		t.Fatal(failed)
	}
	began := time.Now()
	got := s.Send(t.Context(), message(large, "a@b.example"))
	if codes(got) != "dot 250" || time.Since(began) < o.Timeouts.Block {
		t.Errorf("after %v: %+v", time.Since(began), got)
	}
	s.Close()
}

func TestResetIsRefused(t *testing.T) {
	for _, act := range []smtptest.Act{smtptest.Reply(503, "5.5.1 no"), smtptest.Reply(421, "bye"), smtptest.Drop()} {
		_, s := start(t, smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Rset, Do: act}, {At: smtptest.Dot, Do: smtptest.Reply(451, "no")}}})
		if got := s.Send(t.Context(), message(hello, "a@b.example")); codes(got) != "dot 451" || !s.Usable() {
			t.Fatal(codes(got))
		}
		a := s.Send(t.Context(), message(hello, "a@b.example")).Answers[0]
		if a.Phase != mail.PhaseMail || a.Err == nil && a.Reply.Code != 421 || s.Usable() {
			t.Errorf("answer %+v", a)
		}
	}
}

func TestCloseDoesNotWait(t *testing.T) {
	mx, s := start(t, smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Quit, Do: smtptest.Stall()}}})
	began := time.Now()
	s.Close()
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %v", took)
	}
	said := func() string { return strings.Join(mx.Connections()[0].Commands, " ") }
	if err := mx.Wait(t.Context(), func() bool { return said() == "EHLO QUIT" }); err != nil {
		t.Fatal(err)
	}
	if got := s.Send(t.Context(), message(hello, "a@b.example")); !errors.Is(got.Answers[0].Err, ErrClosed) || got.MailSent {
		t.Errorf("after Close: %+v", got)
	}
}
