// Package submit is an SMTP client for tests that does what it is told: it
// sends content byte for byte, from any local address, and keeps every
// reply. It is written without our own SMTP packages.
package submit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Session is a connection to a server, with the greeting read.
type Session struct {
	Greeting Reply
	conn     net.Conn
	r        *bufio.Reader
}

// Reply is a reply of the server.
type Reply struct {
	Code int
	Text string // all lines, without code and CRLF, joined by newlines
}

func (r Reply) String() string { return fmt.Sprintf("%d %s", r.Code, r.Text) }

// Dial connects to addr; from is the local address, or "".
func Dial(ctx context.Context, addr, from string) (*Session, error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	// A test that waits longer for a reply is better told than left hanging.
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return nil, err
	}
	s := &Session{conn: conn, r: bufio.NewReader(conn)}
	s.Greeting, err = s.read()
	return s, err
}

// Close closes the connection without QUIT.
func (s *Session) Close() error { return s.conn.Close() }

// Command sends one line and reads its reply.
func (s *Session) Command(format string, args ...any) (Reply, error) {
	if _, err := fmt.Fprintf(s.conn, format+"\r\n", args...); err != nil {
		return Reply{}, err
	}
	return s.read()
}

// Raw sends bytes as they are and reads one reply.
func (s *Session) Raw(data []byte) (Reply, error) {
	if err := s.Send(data); err != nil {
		return Reply{}, err
	}
	return s.read()
}

// Send sends bytes as they are and reads nothing.
func (s *Session) Send(data []byte) error {
	_, err := s.conn.Write(data)
	return err
}

// Patience sets how long the session may go on from now.
func (s *Session) Patience(limit time.Duration) error {
	return s.conn.SetDeadline(time.Now().Add(limit))
}

func (s *Session) read() (Reply, error) {
	var r Reply
	var lines []string
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			return r, fmt.Errorf("read a reply (so far %q): %w", lines, err)
		}
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		if len(line) < 4 {
			return r, fmt.Errorf("not a reply: %q", line)
		}
		if r.Code, err = strconv.Atoi(line[:3]); err != nil {
			return r, fmt.Errorf("not a reply: %q", line)
		}
		lines = append(lines, line[4:])
		if line[3] == ' ' {
			r.Text = strings.Join(lines, "\n")
			return r, nil
		}
	}
}

// Message is a message to submit.
type Message struct {
	From    string   // "" is the null reverse-path
	To      []string // forward-paths
	Params  string   // of MAIL, such as "BODY=8BITMIME"
	Each    string   // of every RCPT, such as "NOTIFY=SUCCESS"
	Content []byte   // CRLF lines, not dot-stuffed; CRLF is added when the last line has none, as every client must
}

var queueID = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

// QueueID finds the queue id in the reply to the final dot.
func QueueID(text string) string { return queueID.FindString(text) }

// Send submits one message in a session of its own and returns its queue
// id. Every recipient has to be accepted.
func Send(ctx context.Context, addr string, m Message) (string, error) {
	s, err := Dial(ctx, addr, "")
	if err != nil {
		return "", err
	}
	defer s.Close()
	if err := s.Expect(250, "EHLO client.example"); err != nil {
		return "", err
	}
	if strings.Contains(m.Params, "REQUIRETLS") { // RFC 8689 §2: only there
		if err := s.StartTLS(ctx); err != nil {
			return "", err
		}
	}
	id, err := s.Submit(m)
	if err != nil {
		return "", err
	}
	err = s.Expect(221, "QUIT")
	return id, err
}

// Submit submits one message in the session and returns its queue id.
func (s *Session) Submit(m Message) (string, error) {
	if err := s.Expect(250, "%s", strings.TrimSpace("MAIL FROM:<"+m.From+"> "+m.Params)); err != nil {
		return "", err
	}
	for _, to := range m.To {
		if err := s.Expect(250, "%s", strings.TrimSpace("RCPT TO:<"+to+"> "+m.Each)); err != nil {
			return "", err
		}
	}
	content := Wire(m.Content)
	if strings.Contains(m.Params, "BINARYMIME") { // RFC 3030 §3: only by BDAT
		content = fmt.Appendf(nil, "BDAT %d LAST\r\n%s", len(m.Content), m.Content)
	} else if err := s.Expect(354, "DATA"); err != nil {
		return "", err
	}
	reply, err := s.Raw(content)
	if err != nil {
		return "", err
	}
	id := QueueID(reply.Text)
	if reply.Code != 250 || id == "" {
		return "", fmt.Errorf("final dot: %s", reply)
	}
	return id, nil
}

// StartTLS goes on in TLS, whoever the server is, and says EHLO again.
func (s *Session) StartTLS(ctx context.Context) error {
	if err := s.Expect(220, "STARTTLS"); err != nil {
		return err
	}
	c := tls.Client(s.conn, &tls.Config{InsecureSkipVerify: true})
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	s.conn, s.r = c, bufio.NewReader(c)
	return s.Expect(250, "EHLO client.example")
}

// Expect sends one line and wants a reply of this code.
func (s *Session) Expect(code int, format string, args ...any) error {
	reply, err := s.Command(format, args...)
	if err == nil && reply.Code != code {
		err = fmt.Errorf("%s: %s", fmt.Sprintf(format, args...), reply)
	}
	return err
}

// Wire returns the content as it is sent after 354: RFC 5321 §4.5.2.
func Wire(content []byte) []byte {
	var b bytes.Buffer
	for line := range bytes.Lines(content) {
		if line[0] == '.' {
			b.WriteByte('.')
		}
		b.Write(line)
	}
	if !bytes.HasSuffix(content, []byte("\r\n")) {
		b.WriteString("\r\n")
	}
	b.WriteString(".\r\n")
	return b.Bytes()
}
