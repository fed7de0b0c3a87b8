package sink

import (
	"context"
	"errors"
	"net/smtp"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
)

// serve runs a sink for the test and returns its address and its arrivals.
func serve(t *testing.T) (address, dir string, arrivals func() []Arrival) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "arrivals")
	var mu sync.Mutex
	var all []Arrival
	s, err := Listen("127.0.0.1:0", dir, func(a Arrival) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, a)
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return s.Serve(ctx) })
	t.Cleanup(func() {
		stop()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
	return s.Address(), dir, func() []Arrival {
		mu.Lock()
		defer mu.Unlock()
		return all
	}
}

func code(err error) int {
	var reply *textproto.Error
	switch {
	case err == nil:
		return 250
	case errors.As(err, &reply):
		return reply.Code
	}
	return 0
}

const id = "019aa8d2-6c1e-7b4f-8a3e-1f2d3c4b5a69"

func TestStoresWhatArrives(t *testing.T) {
	address, dir, arrivals := serve(t)
	content := "Received: from x by y\r\n\twith ESMTP id " + id + ";\r\n\tnow\r\nSubject: dots\r\n\r\n.\r\n..two\r\nend\r\n"
	if err := smtp.SendMail(address, nil, "a@example.com", []string{`"../../c"@demo.test`, "d@demo.test"}, []byte(content)); err != nil {
		t.Fatal(err)
	}
	got := arrivals()
	if len(got) != 1 || got[0].QueueID != id || got[0].ReversePath != "a@example.com" || len(got[0].ForwardPath) != 2 || got[0].SizeBytes != int64(len(content)) {
		t.Fatalf("arrivals %+v", got)
	}
	text, err := os.ReadFile(got[0].File)
	if err != nil {
		t.Fatal(err)
	}
	want := "Return-Path: <a@example.com>\r\nDelivered-To: \"../../c\"@demo.test\r\nDelivered-To: d@demo.test\r\n" + content
	if string(text) != want {
		t.Errorf("file has\n%q, want\n%q", text, want)
	}
	if filepath.Dir(got[0].File) != dir {
		t.Errorf("file %s is not in %s", got[0].File, dir)
	}
}

func TestDemoRecipients(t *testing.T) {
	address, dir, arrivals := serve(t)
	for i, tc := range []struct {
		to   string
		code int
	}{
		{"nobody@demo.test", 550},
		{"Later@demo.test", 451},
		{"Later@demo.test", 250},
		{"Later@demo.test", 451},
		{"friend@demo.test", 250},
	} {
		err := smtp.SendMail(address, nil, "a@example.com", []string{tc.to}, []byte("\r\nx\r\n"))
		if got := code(err); got != tc.code {
			t.Errorf("%d %s: %d (%v), want %d", i, tc.to, got, err, tc.code)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 || len(arrivals()) != 2 {
		t.Errorf("%d files, %d arrivals, %v, want 2", len(files), len(arrivals()), err)
	}
}

func TestOrderAndGrammar(t *testing.T) {
	address, dir, _ := serve(t)
	c, err := textproto.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, _, err := c.ReadResponse(220); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		say  string
		code int
	}{
		{"RCPT TO:<a@demo.test>", 503},
		{"DATA", 503},
		{"MAIL FROM:nonsense", 501},
		{"MAIL FROM:<a@b.test> SIZE=999999999", 552},
		{"MAIL FROM:<>", 250},
		{"MAIL FROM:<>", 503},
		{"RCPT TO:<>", 501},
		{"RCPT TO:<a@demo.test>", 250},
		{"DATA", 354},
		{"bare\nnewline\r\n.", 550},
		{"RCPT TO:<a@demo.test>", 503},
		{"EXPN staff", 502},
		{"\x01", 500},
		{"HELO x", 250},
		{"NOOP", 250},
		{"RSET", 250},
		{"QUIT", 221},
	} {
		if _, err := c.W.WriteString(step.say + "\r\n"); err != nil {
			t.Fatal(err)
		}
		if err := c.W.Flush(); err != nil {
			t.Fatal(err)
		}
		if got, text, err := c.ReadResponse(step.code); err != nil {
			t.Errorf("%q: %d %s (%v), want %d", step.say, got, text, err, step.code)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 0 {
		t.Errorf("files %v, %v, want none: refused content leaves nothing", files, err)
	}
}

func TestEHLOOffersWhatItKeeps(t *testing.T) {
	address, _, _ := serve(t)
	c, err := smtp.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var missing []string
	for _, ext := range []string{"PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"} {
		if ok, _ := c.Extension(ext); !ok {
			missing = append(missing, ext)
		}
	}
	if len(missing) > 0 {
		t.Errorf("EHLO has no %s", strings.Join(missing, ", "))
	}
}

func TestArrivalHasTheQueueIDOfTheMessage(t *testing.T) {
	const own, other = "01a20178-6513-7000-b5c7-764a9352dc6b", "01a20178-6513-7000-b5c7-000000000000"
	for name, tc := range map[string]struct{ header, want string }{
		"relayed": {"Received: from x by y with ESMTP id " + own + ";\r\n\tnow\r\nMessage-ID: <" + other + "@x>\r\n", own},
		"a DSN":   {"From: MAILER-DAEMON\r\nMessage-ID: <" + own + "@y>\r\n", own},
		"neither": {"Subject: x\r\n", ""},
	} {
		if got := queueID([]byte(tc.header + "\r\nReceived: from x by y id " + other + "\r\nMessage-ID: <" + other + "@z>\r\n")); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
