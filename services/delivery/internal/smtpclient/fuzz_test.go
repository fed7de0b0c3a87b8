package smtpclient

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/mail"
)

// FuzzHostile lets the remote host say anything at all. Whatever it is, each
// recipient gets one answer, success needs a reply to the final dot, and the
// session never goes on after it has lost step.
func FuzzHostile(f *testing.F) {
	const greeting = "220 mx\r\n250-mx\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 1000\r\n"
	for _, s := range []string{
		"", "220 mx\r\n", "554 no\r\n", greeting,
		greeting + "250 ok\r\n250 ok\r\n550 no\r\n354 go\r\n250 ok\r\n",
		greeting + "250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n",
		greeting + "250 ok\r\n452 4.5.3 no\r\n421 bye\r\n",
		greeting + "550 no\r\n503 no\r\n503 no\r\n354 go\r\n250 ok\r\n",
		"220 mx\r\n500 what\r\n250 mx\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n451 no\r\n",
		"220-mx\n220 mx\n250 mx\n250 \n250\n250 ok\n354-\n354 \n2500 ok\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		ours, theirs := net.Pipe()
		var g errgroup.Group
		defer func() {
			if err := g.Wait(); err != nil {
				t.Error(err)
			}
		}()
		defer ours.Close()
		g.Go(func() error { // as if it were typed by someone who does not listen
			defer theirs.Close()
			_, err := theirs.Write(said)
			return expected(err)
		})
		g.Go(func() error {
			_, err := io.Copy(io.Discard, theirs)
			return expected(err)
		})
		timeouts := hasty
		timeouts.Mail, timeouts.Rcpt, timeouts.Data, timeouts.Dot = time.Second, time.Second, time.Second, time.Second
		s := &Session{timeouts: orDefault(timeouts), tcp: ours}
		s.speakOn(ours)
		if failed := s.open(t.Context(), Options{Hello: "client.example", TLS: mail.TLSNone}); failed.Phase != "" {
			return
		}
		for range 2 {
			got := s.Send(t.Context(), message(hello, "a@b.example", "b@b.example"))
			for i, a := range got.Answers {
				switch {
				case a.Phase == "":
					t.Errorf("recipient %d has no answer", i)
				case a.Err == nil && a.Reply.Code == 0:
					t.Errorf("recipient %d: answer without reply or reason: %+v", i, a)
				case a.Err == nil && a.Reply.Positive() && a.Phase != mail.PhaseDot:
					t.Errorf("recipient %d: success at %s", i, a.Phase)
				case a.Err != nil && !errors.Is(a.Err, ErrTooBig) && s.Usable():
					t.Errorf("recipient %d: the session goes on after %v", i, a.Err)
				}
			}
			if !s.Usable() {
				return
			}
		}
	})
}

// expected: either side may hang up first.
func expected(err error) error {
	if errors.Is(err, io.ErrClosedPipe) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
