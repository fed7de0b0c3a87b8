// Package servers relays mail to real mail servers of other makers, with TLS
// required, a small limit of size, policies that delay and refuse, and DSN
// parameters, and looks at what is in their mailboxes.
package servers

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

const (
	deadline = 60 * time.Second
	maxSize  = 20000 // that every server takes
)

var (
	shared    = &world.Shared{Options: world.Options{Env: map[string]string{"POSTRIDER_RETRY_SCHEDULE": "1s,1s,2s"}}}
	authority *smtptest.Authority
)

func TestMain(m *testing.M) {
	var err error
	if authority, err = smtptest.NewAuthority(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	shared.Options.Roots = authority.PEM()
	for _, name := range []string{"postfix", "exim", "opensmtpd"} {
		shared.Options.Shaping += fmt.Sprintf("[%q]\nmx_rollup = false\nenable_tls = \"Required\"\n", name+".test")
	}
	world.Main(m, shared)
}

// place is where a server runs.
type place struct {
	dir         string // its own, below a temporary one
	host        string // its name
	ip          string // and address; the port is world.RemotePort
	domain      string
	certificate string // files
	key         string
	sender      string // host:port that takes what the server sends itself
}

// server is one that has been started.
type server struct {
	place
	w       *world.World
	t       *testing.T
	pass    func() // ends the delay of later@
	brief   bool   // its reports do not repeat ENVID and ORCPT
	reports *smtptest.Server
}

// begin prepares the place of a server, and the mail exchanger of the sender.
func begin(t *testing.T, name string) *server {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mail servers must be started as root")
	}
	w := shared.Get(t)
	s := &server{w: w, t: t}
	s.domain, s.host = name+".test", "mx."+name+".test"
	address, err := w.Remote(s.host)
	if err != nil {
		t.Fatal(err)
	}
	s.ip = strings.TrimSuffix(address, fmt.Sprintf(":%d", world.RemotePort))
	w.MX(t, s.domain, "10 "+s.host)
	s.reports = w.Host(t, "mx."+name+"-sender.test", smtptest.Script{})
	w.MX(t, name+"-sender.test", "10 mx."+name+"-sender.test")
	s.sender = s.reports.Addr().String()
	if s.dir, err = os.MkdirTemp("", "postrider-"+name+"-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(s.dir) })
	if err := os.Chmod(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.certify()
	return s
}

// certify writes the certificate and its key.
func (s *server) certify() {
	s.t.Helper()
	config, err := authority.Server(s.host)
	if err != nil {
		s.t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(config.Certificates[0].PrivateKey)
	if err != nil {
		s.t.Fatal(err)
	}
	s.certificate, s.key = s.file("cert.pem"), s.file("key.pem")
	s.write(s.certificate, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: config.Certificates[0].Certificate[0]})))
	s.write(s.key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
}

func (s *server) file(name string) string { return filepath.Join(s.dir, name) }

func (s *server) write(path, text string) {
	s.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// waitListens waits until the server takes connections.
func (s *server) waitListens() {
	s.t.Helper()
	s.w.Eventually(s.t, deadline, s.host+" listens", func(ctx context.Context) error {
		c, err := submit.Dial(ctx, fmt.Sprintf("%s:%d", s.ip, world.RemotePort), "")
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// content has all that can break on its way: dots, octets over 127, long
// lines, white space at line ends, empty lines at the end.
func content(subject string) []byte {
	return []byte("From: Sender <me@sender.test>\r\nTo: you@example.test\r\nSubject: " + subject + "\r\n" +
		"Date: Mon, 02 Nov 2026 09:15:00 +0000\r\nMessage-ID: <" + strings.ReplaceAll(subject, " ", ".") + "@sender.test>\r\n" +
		"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" +
		".\r\n..\r\n.dot\r\nGrüße, 漢字\r\n" + strings.Repeat("x", 990) + "\r\ntrailing \t \r\n\r\nFrom here\r\n\r\n")
}

// send submits one message to a local part.
func (s *server) send(local, params string, text []byte) string {
	s.t.Helper()
	name, _, _ := strings.Cut(s.domain, ".")
	id, err := submit.Send(s.t.Context(), s.w.SMTP(0), submit.Message{
		From: "me@" + name + "-sender.test", To: []string{local + "@" + s.domain}, Params: params, Content: text,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// last is the last attempt at the one recipient of a message.
type last struct {
	state, status, tls, reply string
	tries                     int
}

func (s *server) last(ctx context.Context, id string) (last, error) {
	var l last
	err := s.w.DB.QueryRow(ctx, `SELECT r.state::text, r.tries, COALESCE(h.status, ''), COALESCE(h.tls, ''), COALESCE(h.reply, '')
		FROM postrider.recipients r LEFT JOIN postrider.history h USING (queue_id)
		WHERE r.queue_id = $1 ORDER BY h.attempt DESC LIMIT 1`, id).Scan(&l.state, &l.tries, &l.status, &l.tls, &l.reply)
	return l, err
}

// wait waits for the state of a message.
func (s *server) wait(id, state string) last {
	s.t.Helper()
	var l last
	s.w.Eventually(s.t, deadline, "message "+id+" "+state, func(ctx context.Context) (err error) {
		if l, err = s.last(ctx, id); err == nil && l.state != state {
			err = fmt.Errorf("it is %+v", l)
		}
		return err
	})
	return l
}

// delayed waits for an attempt that came to nothing.
func (s *server) delayed(id, status string) {
	s.t.Helper()
	s.w.Eventually(s.t, deadline, "a delay", func(ctx context.Context) error {
		l, err := s.last(ctx, id)
		if err == nil && (l.state != "queued" || l.tries == 0 || !strings.HasPrefix(l.status, status)) {
			err = fmt.Errorf("it is %+v", l)
		}
		return err
	})
}

// inMailbox waits until a message is in a mailbox of the server, and returns
// it as it was sent: with the line ends of the wire.
func (s *server) inMailbox(subject string) string {
	s.t.Helper()
	var found string
	s.w.Eventually(s.t, deadline, "the message in the mailbox", func(context.Context) error {
		files, err := filepath.Glob(s.file("mail/*/new/*"))
		if err != nil {
			return err
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				return err
			}
			if strings.Contains(string(text), "\nSubject: "+subject+"\n") {
				found = strings.ReplaceAll(string(text), "\n", "\r\n")
				return nil
			}
		}
		return errors.New("not there yet")
	})
	return found
}

// prove sends what shows that the server and we understand each other.
func (s *server) prove() {
	sent := content("intact " + s.domain)
	id := s.send("you", "BODY=8BITMIME", sent)
	if l := s.wait(id, "relayed"); !strings.HasPrefix(l.tls, "TLS1.") {
		s.t.Errorf("relayed with TLS %q", l.tls)
	}
	if got := s.inMailbox("intact " + s.domain); !strings.HasSuffix(got, string(sent)) {
		s.t.Errorf("the content changed:\n%q\n%q", got, sent)
	}

	large := append(content("large"), []byte(strings.Repeat("0123456789\r\n", maxSize/10))...)
	if l := s.wait(s.send("you", "", large), "failed"); l.status != "5.3.4" || !strings.Contains(l.reply, fmt.Sprint(maxSize)) {
		s.t.Errorf("too large: %+v, want 5.3.4 before it is sent", l)
	}
	if l := s.wait(s.send("gone", "", content("gone")), "failed"); !strings.HasPrefix(l.status, "5.") {
		s.t.Errorf("gone: %+v", l)
	}
	s.reports.WaitMessages(s.t, 2, deadline) // our DSNs of both

	id = s.send("later", "", content("later "+s.domain))
	s.delayed(id, "4.")
	s.pass()
	s.wait(id, "relayed")
	s.inMailbox("later " + s.domain)
	s.proveDSN()
}

// proveDSN: the server has heard what the sender wants to be told, and tells
// it by itself.
func (s *server) proveDSN() {
	had := s.reports.Count()
	c, err := submit.Dial(s.t.Context(), s.w.SMTP(0), "")
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	name, _, _ := strings.Cut(s.domain, ".")
	for _, line := range []string{
		"EHLO client.example", "MAIL FROM:<me@" + name + "-sender.test> RET=HDRS ENVID=envelope-1",
		"RCPT TO:<you@" + s.domain + "> NOTIFY=SUCCESS ORCPT=rfc822;original@" + s.domain,
	} {
		if r, err := c.Command("%s", line); err != nil || r.Code != 250 {
			s.t.Fatalf("%s: %s, %v", line, r, err)
		}
	}
	if r, err := c.Command("DATA"); err != nil || r.Code != 354 {
		s.t.Fatalf("DATA: %s, %v", r, err)
	}
	if r, err := c.Raw(submit.Wire(content("dsn " + s.domain))); err != nil || r.Code != 250 {
		s.t.Fatalf("final dot: %s, %v", r, err)
	}
	s.reports.WaitMessages(s.t, had+1, deadline)
	all := s.reports.Messages()
	report := string(all[len(all)-1].Content)
	wants := []string{"action: delivered", "original-envelope-id: envelope-1", "original@" + s.domain}
	if s.brief {
		wants = wants[:1]
	}
	for _, want := range wants {
		if !strings.Contains(strings.ToLower(report), want) {
			s.t.Errorf("the report of %s has no %q:\n%s", s.host, want, report)
		}
	}
}
