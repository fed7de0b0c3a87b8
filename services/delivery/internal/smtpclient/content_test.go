package smtpclient

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
)

var chunking = []string{"PIPELINING", "8BITMIME", "CHUNKING"}

func verbs(mx *smtptest.Server) string { return strings.Join(mx.Connections()[0].Commands, " ") }

// The first chunk of a session is empty, and shows that BDAT works.
func TestChunks(t *testing.T) {
	mx, s := start(t, smtptest.Script{Extensions: chunking})
	content := "Subject: x\r\n\r\n.dot\r\n..\r\n.\r\n" + strings.Repeat("line\r\n", 30000)
	for _, tx := range []Transaction{message(content, "a@b.example", "b@b.example"), streamed(message(content, "a@b.example")), message("", "a@b.example")} {
		if got := s.Send(t.Context(), tx); strings.Trim(strings.ReplaceAll(codes(got), "dot 250", ""), ", ") != "" {
			t.Fatal(codes(got))
		}
	}
	s.Close()
	for i, m := range mx.Messages() {
		if want := content; i < 2 && string(m.Content) != want || !m.Chunked {
			t.Errorf("message %d: %d octets, chunked %v", i, m.Size, m.Chunked)
		}
	}
	if got := verbs(mx); got != "EHLO MAIL RCPT RCPT BDAT BDAT MAIL RCPT BDAT MAIL RCPT BDAT" && got != "EHLO MAIL RCPT RCPT BDAT BDAT MAIL RCPT BDAT MAIL RCPT BDAT QUIT" {
		t.Errorf("commands %s", got)
	}
	if v := mx.Violations(); len(v) > 0 {
		t.Error(v)
	}
}

// A host that only says that it has BDAT gets DATA, in a transaction begun anew,
// and none of the content before.
func TestBdatThatDoesNotWork(t *testing.T) {
	for _, code := range []int{500, 502, 503} {
		mx, s := start(t, smtptest.Script{Extensions: chunking, Rules: []smtptest.Rule{{At: smtptest.Bdat, Do: smtptest.Reply(code, "5.5.1 what?")}}})
		for range 2 {
			if got := s.Send(t.Context(), message(hello, "a@b.example")); codes(got) != "dot 250" {
				t.Fatal(codes(got))
			}
		}
		if got := verbs(mx); got != "EHLO MAIL RCPT BDAT RSET MAIL RCPT DATA MAIL RCPT DATA" {
			t.Errorf("commands %s", got)
		}
	}
}

func TestNobodyAcceptedWithChunks(t *testing.T) {
	mx, s := start(t, smtptest.Script{Extensions: chunking, Rules: []smtptest.Rule{{At: smtptest.Rcpt, Match: "gone", Do: smtptest.Reply(550, "5.1.1 no")}}})
	for _, want := range []string{"rcpt 550", "rcpt 550, dot 250", "rcpt 550"} {
		to := []string{"gone@b.example"}
		if strings.Contains(want, "dot") {
			to = append(to, "a@b.example")
		}
		if got := s.Send(t.Context(), message(hello, to...)); codes(got) != want {
			t.Errorf("%s, want %s", codes(got), want)
		}
	}
	if n := mx.Count(); n != 1 || !s.Usable() {
		t.Errorf("%d taken, usable %v", n, s.Usable())
	}
}

// Content that is not what it was said to be never gets its last octet.
func TestChunkThatIsNotWhole(t *testing.T) {
	for name, c := range map[string]struct {
		content string
		size    int64
		err     error
	}{
		"too short": {hello, int64(len(hello)) + 1, ErrContent},
		"too long":  {hello, int64(len(hello)) - 1, ErrContent},
		"bare LF":   {"Subject: x\r\n\r\na\nb\r\n", 17, nil},
	} {
		mx, s := start(t, smtptest.Script{Extensions: chunking})
		tx := streamed(message(c.content, "a@b.example"))
		tx.Message.SizeBytes = c.size
		tx.Message.SizeBytes = map[bool]int64{true: int64(len(c.content)), false: c.size}[c.err == nil]
		got := s.Send(t.Context(), tx)
		if a := got.Answers[0]; a.Err == nil || a.Uncertain || a.Phase != mail.PhaseBody || c.err != nil && !errors.Is(a.Err, c.err) || s.Usable() {
			t.Errorf("%s: %+v", name, a)
		}
		if mx.Count() != 0 {
			t.Errorf("%s: taken", name)
		}
	}
	_, s := start(t, smtptest.Script{Extensions: chunking})
	tx := message(hello, "a@b.example")
	tx.BeforeDot = func() error { return io.ErrClosedPipe }
	if a := s.Send(t.Context(), tx).Answers[0]; !errors.Is(a.Err, ErrWithheld) || a.Uncertain {
		t.Errorf("withheld: %+v", a)
	}
}

// RFC 6152 §3: a host without 8BITMIME gets 7-bit content.
func TestConversion(t *testing.T) {
	const field = "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
	const content = field + "Content-Transfer-Encoding: 8bit\r\n\r\nGrüße aus dem hohen Norden\r\n"
	const converted = field + "Content-Transfer-Encoding: quoted-printable\r\n\r\nGr=C3=BC=C3=9Fe aus dem hohen Norden\r\n"
	signed := "DKIM-Signature: v=1\r\n"
	for name, c := range map[string]struct {
		content    string
		conversion Conversion
		want       string
		err        error
	}{
		"always":               {content, ConvertAlways, converted, nil},
		"by default":           {content, "", converted, nil},
		"signed":               {signed + content, ConvertAlways, signed + converted, nil},
		"unsigned":             {content, ConvertUnsigned, converted, nil},
		"signed, not if so":    {signed + content, ConvertUnsigned, "", ErrNeeds8Bit},
		"never":                {content, ConvertNever, "", ErrNeeds8Bit},
		"never, and no need":   {hello, ConvertNever, hello, nil},
		"no conversion exists": {"Subject: ü\r\n" + content, ConvertAlways, "", ErrNeeds8Bit},
	} {
		for _, stream := range []bool{false, true} {
			mx, s := start(t, smtptest.Script{Extensions: []string{"PIPELINING", "CHUNKING", "SIZE"}})
			tx := message(c.content, "a@b.example")
			tx.Conversion, tx.Message.Envelope.Body = c.conversion, mail.Body8BitMIME
			if stream {
				tx = streamed(tx)
			}
			got := s.Send(t.Context(), tx)
			if c.err != nil {
				if a := got.Answers[0]; !errors.Is(a.Err, c.err) || got.MailSent || !s.Usable() {
					t.Errorf("%s: %+v", name, a)
				}
				continue
			}
			if codes(got) != "dot 250" || string(mx.Messages()[0].Content) != c.want {
				t.Errorf("%s, stream %v: %s, content %q", name, stream, codes(got), mx.Messages()[0].Content)
			}
		}
	}
}

func TestConvertedIsTooBig(t *testing.T) {
	content := "MIME-Version: 1.0\r\n\r\n" + strings.Repeat("ü", 300) + "\r\n"
	_, s := start(t, smtptest.Script{Extensions: []string{"PIPELINING"}, MaxSize: int64(len(content)) + 50})
	if a := s.Send(t.Context(), message(content, "a@b.example")).Answers[0]; !errors.Is(a.Err, ErrTooBig) {
		t.Errorf("%+v", a)
	}
}

// A stream that breaks while it is converted is our trouble, not the host's.
func TestConvertedStreamThatBreaks(t *testing.T) {
	content := "MIME-Version: 1.0\r\n\r\n" + strings.Repeat("ü and more\r\n", 20000)
	opened := 0
	mx, s := start(t, smtptest.Script{Extensions: []string{"PIPELINING"}})
	tx := message(content, "a@b.example")
	tx.Content = nil
	tx.Open = func() (io.ReadCloser, error) {
		opened++
		r := io.Reader(strings.NewReader(content))
		if opened > 1 {
			r = io.MultiReader(strings.NewReader(content[:100000]), broken{})
		}
		return io.NopCloser(r), nil
	}
	if a := s.Send(t.Context(), tx).Answers[0]; !errors.Is(a.Err, ErrContent) || a.Uncertain || mx.Count() != 0 {
		t.Errorf("%+v", a)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// RFC 2033: LHLO, and one reply for each recipient behind the dot.
func TestLMTP(t *testing.T) {
	for _, extensions := range [][]string{{"PIPELINING", "8BITMIME"}, {"8BITMIME"}, chunking} {
		mx := smtptest.Start(t, smtptest.Script{LMTP: true, Extensions: extensions, Rules: []smtptest.Rule{
			{At: smtptest.Rcpt, Match: "gone", Do: smtptest.Reply(550, "5.1.1 no")},
			{At: smtptest.Dot, Match: "full", Do: smtptest.Reply(452, "4.2.2 full")},
		}})
		host, o := optionsFor(mx)
		o.LMTP = true
		s, failed := Dial(t.Context(), host, o)
		if s == nil {
			t.Fatal(failed)
		}
		defer s.Close()
		if got := s.Send(t.Context(), message(hello, "a@b.example", "gone@b.example", "full@b.example", "b@b.example")); codes(got) != "dot 250, rcpt 550, dot 452, dot 250" {
			t.Errorf("%v: %s", extensions, codes(got))
		}
		if got := s.Send(t.Context(), message(hello, "gone@b.example")); codes(got) != "rcpt 550" {
			t.Errorf("%v: %s", extensions, codes(got))
		}
		if got := s.Send(t.Context(), message(hello, "b@b.example")); codes(got) != "dot 250" {
			t.Errorf("%v: %s", extensions, codes(got))
		}
		if v := mx.Violations(); len(v) > 0 {
			t.Error(v)
		}
	}
}

// A host that goes away between its replies may have the rest.
func TestLMTPThatBreaksOff(t *testing.T) {
	mx := smtptest.Start(t, smtptest.Script{LMTP: true, Rules: []smtptest.Rule{{At: smtptest.Dot, Match: "b@", Do: smtptest.Drop()}}})
	host, o := optionsFor(mx)
	o.LMTP = true
	s, failed := Dial(t.Context(), host, o)
	if s == nil {
		t.Fatal(failed)
	}
	got := s.Send(t.Context(), message(hello, "a@b.example", "b@b.example", "c@b.example"))
	if codes(got) != "dot 250, dot -, dot -" || got.Answers[0].Uncertain || !got.Answers[1].Uncertain || !got.Answers[2].Uncertain || s.Usable() {
		t.Errorf("%+v", got)
	}
}

// A host that says 354 though it has accepted nobody gives no reply to the
// dot: there is nobody to reply for.
func TestLMTPWithNobodyAccepted(t *testing.T) {
	mx := smtptest.Start(t, smtptest.Script{LMTP: true, Rules: []smtptest.Rule{
		{At: smtptest.Rcpt, Do: smtptest.Reply(550, "5.1.1 no")}, {At: smtptest.Data, Do: smtptest.Reply(354, "go")},
	}})
	host, o := optionsFor(mx)
	o.LMTP = true
	s, failed := Dial(t.Context(), host, o)
	if s == nil {
		t.Fatal(failed)
	}
	if got := s.Send(t.Context(), message(hello, "a@b.example")); codes(got) != "rcpt 550" || s.Usable() {
		t.Errorf("%s, usable %v", codes(got), s.Usable())
	}
}
