// Package sink is the demo destination of postrider dev: a small SMTP server
// on loopback that stores each message as a file.
//
// Two local-parts show what a destination may do: the first RCPT for "later"
// gets 451 and the next one is accepted, and so on in turn; "nobody" always
// gets 550. All others are accepted.
package sink

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
)

const (
	idleTimeout  = 5 * time.Minute // RFC 5321 §4.5.3.2.7
	maxSizeBytes = 64 << 20
	maxConns     = 100
)

// Arrival is a message that the sink took.
type Arrival struct {
	QueueID     string // that postrider gave it; "" if there is none
	ReversePath mail.ReversePath
	ForwardPath []mail.ForwardPath
	SizeBytes   int64
	File        string
}

// Sink is a listening destination.
type Sink struct {
	listener net.Listener
	dir      string
	arrived  func(Arrival)

	mu      sync.Mutex // guards what follows
	refused map[mail.ForwardPath]bool
	count   int
}

// Listen opens the sink at an address. It stores messages in dir, made if
// missing, and calls arrived for each, from several goroutines at once.
func Listen(address, dir string, arrived func(Arrival)) (*Sink, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return &Sink{listener: l, dir: dir, arrived: arrived, refused: map[mail.ForwardPath]bool{}}, nil
}

// Address is where the sink listens.
func (s *Sink) Address() string { return s.listener.Addr().String() }

// Serve takes mail until ctx is done, then cuts the connections: a client
// that waits for its 250 tries again.
func (s *Sink) Serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxConns + 1)
	stop := context.AfterFunc(ctx, func() { s.listener.Close() })
	defer stop()
	for {
		conn, err := s.listener.Accept()
		if ctx.Err() != nil {
			return g.Wait()
		}
		if err != nil {
			return errors.Join(fmt.Errorf("demo destination: %w", err), g.Wait())
		}
		g.Go(func() error {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			c := &session{sink: s, conn: conn, r: bufio.NewReaderSize(conn, 16<<10), w: bufio.NewWriter(conn)}
			c.run()
			return nil // how a client leaves is its own affair
		})
	}
}

// session is one connection. Its fields belong to its goroutine.
type session struct {
	sink *Sink
	conn net.Conn
	r    *bufio.Reader
	w    *bufio.Writer

	mail *smtp.MailArgs // nil outside a transaction
	to   []mail.ForwardPath
}

func (c *session) run() {
	c.say(220, "2.0.0", "demo destination of postrider dev")
	for {
		// A group of pipelined commands gets its replies in one write: RFC 2920 §3.2.
		if c.r.Buffered() == 0 {
			if c.conn.SetDeadline(time.Now().Add(idleTimeout)) != nil || c.w.Flush() != nil {
				return
			}
		}
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return
		}
		cmd, err := smtp.ParseCommand([]byte(strings.TrimRight(string(line), "\r\n")))
		if err != nil {
			c.say(500, "5.5.2", "malformed command")
			continue
		}
		if !c.handle(cmd) {
			return
		}
	}
}

// handle answers a command, and reports whether the session goes on.
func (c *session) handle(cmd smtp.Command) bool {
	switch cmd.Verb {
	case "EHLO":
		c.reset()
		fmt.Fprintf(c.w, "250-demo.test\r\n250-PIPELINING\r\n250-SIZE %d\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES\r\n", maxSizeBytes)
	case "HELO":
		c.reset()
		c.say(250, "", "demo.test")
	case "MAIL":
		c.begin(cmd.Args)
	case "RCPT":
		c.recipient(cmd.Args)
	case "DATA":
		return c.data()
	case "RSET":
		c.reset()
		c.say(250, "2.0.0", "reset")
	case "NOOP":
		c.say(250, "2.0.0", "ok")
	case "QUIT":
		c.say(221, "2.0.0", "bye")
		_ = c.w.Flush() // the client may have gone already
		return false
	default:
		c.say(502, "5.5.1", "not here")
	}
	return true
}

func (c *session) reset() { c.mail, c.to = nil, nil }

func (c *session) begin(args string) {
	m, err := smtp.ParseMail(args)
	switch {
	case c.mail != nil:
		c.say(503, "5.5.1", "there is a transaction already")
	case err != nil:
		c.say(501, "5.5.4", err.Error())
	case m.SizeBytes > maxSizeBytes:
		c.say(552, "5.3.4", "too large")
	default:
		c.mail = &m
		c.say(250, "2.1.0", "ok")
	}
}

func (c *session) recipient(args string) {
	if c.mail == nil {
		c.say(503, "5.5.1", "MAIL first")
		return
	}
	r, err := smtp.ParseRcpt(args, c.mail.SMTPUTF8)
	if err != nil {
		c.say(501, "5.5.4", err.Error())
		return
	}
	local, _, _ := strings.Cut(strings.ToLower(string(r.ForwardPath)), "@")
	switch {
	case local == "nobody":
		c.say(550, "5.1.1", "no such user here (demo)")
	case local == "later" && c.sink.refuseInTurn(r.ForwardPath):
		c.say(451, "4.2.1", "come back later (demo: the next attempt is accepted)")
	default:
		c.to = append(c.to, r.ForwardPath)
		c.say(250, "2.1.5", "ok")
	}
}

// refuseInTurn reports true for every second call with a path.
func (s *Sink) refuseInTurn(p mail.ForwardPath) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refused[p] {
		delete(s.refused, p)
		return false
	}
	s.refused[p] = true
	return true
}

func (c *session) data() bool {
	if len(c.to) == 0 {
		c.say(503, "5.5.1", "no recipient")
		return true
	}
	c.say(354, "", "end with a dot")
	if c.w.Flush() != nil {
		return false
	}
	var content smtp.DotReader
	content.Reset(c.r)
	arrival, err := c.sink.store(c.mail.ReversePath, c.to, deadlined{&content, c.conn})
	if err != nil {
		// Take the rest, so that the next command is read as one.
		if _, drain := io.Copy(io.Discard, deadlined{&content, c.conn}); drain != nil && !errors.Is(drain, smtp.ErrBareNewline) {
			return false
		}
	}
	c.reset()
	switch {
	case errors.Is(err, smtp.ErrBareNewline):
		c.say(550, "5.6.0", err.Error())
	case errors.Is(err, errTooLarge):
		c.say(552, "5.3.4", err.Error())
	case err != nil:
		c.say(451, "4.3.0", err.Error())
	default:
		c.say(250, "2.0.0", "taken as "+filepath.Base(arrival.File))
		c.sink.arrived(arrival)
	}
	return true
}

func (c *session) say(code int, status, text string) {
	if status != "" {
		status += " "
	}
	fmt.Fprintf(c.w, "%d %s%s\r\n", code, status, text)
}

// deadlined gives each read of content its own time.
type deadlined struct {
	io.Reader
	conn net.Conn
}

func (d deadlined) Read(p []byte) (int, error) {
	if err := d.conn.SetDeadline(time.Now().Add(idleTimeout)); err != nil {
		return 0, err
	}
	return d.Reader.Read(p)
}

var errTooLarge = errors.New("content is too large")

// store writes the content to a file, behind a Return-Path field (RFC 5321
// §4.4) and one Delivered-To field for each recipient.
func (s *Sink) store(from mail.ReversePath, to []mail.ForwardPath, content io.Reader) (a Arrival, err error) {
	s.mu.Lock()
	s.count++
	name := fmt.Sprintf("%s-%04d-%s.eml", time.Now().UTC().Format("20060102T150405"), s.count, outside.ReplaceAllString(string(to[0]), "_"))
	s.mu.Unlock()
	a = Arrival{ReversePath: from, ForwardPath: to, File: filepath.Join(s.dir, name)}
	f, err := os.CreateTemp(s.dir, ".part-")
	if err != nil {
		return a, err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
			return
		}
		err = os.Rename(f.Name(), a.File)
	}()
	var head strings.Builder
	fmt.Fprintf(&head, "Return-Path: %s\r\n", from)
	for _, path := range to {
		fmt.Fprintf(&head, "Delivered-To: %s\r\n", string(path))
	}
	begin := &keep{}
	if _, err := io.WriteString(f, head.String()); err != nil {
		return a, err
	}
	a.SizeBytes, err = io.Copy(io.MultiWriter(f, begin), io.LimitReader(content, maxSizeBytes+1))
	if err == nil && a.SizeBytes > maxSizeBytes {
		err = errTooLarge
	}
	a.QueueID = queueID(begin.text)
	return a, err
}

// outside are the characters that a file name does not get.
var outside = regexp.MustCompile(`[^A-Za-z0-9@._-]+`)

// queueID returns the id that postrider gave a message, by how it begins: it
// is in the Received field on top, or, when postrider wrote the message itself
// (a DSN), in its Message-ID. What the body quotes does not count.
func queueID(begin []byte) string {
	header, _, _ := bytes.Cut(begin, []byte("\r\n\r\n"))
	for _, field := range []*regexp.Regexp{receivedID, messageID} {
		if m := field.FindSubmatch(header); m != nil {
			return string(m[1])
		}
	}
	return ""
}

const uuid7 = `([0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12})`

var (
	receivedID = regexp.MustCompile(`\bid ` + uuid7 + `\b`)
	messageID  = regexp.MustCompile(`(?mi)^Message-ID: <` + uuid7 + `@`)
)

// keep remembers the first 2 KiB written to it.
type keep struct{ text []byte }

func (k *keep) Write(p []byte) (int, error) {
	k.text = append(k.text, p[:min(len(p), 2048-len(k.text))]...)
	return len(p), nil
}
