package smtpd

import (
	"errors"
	"fmt"
	"io"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/ingress/internal/spool"
)

// errInterrupted says that another command came where the next chunk was due.
var errInterrupted = errors.New("BDAT was given up")

// chunks is the content of a sequence of BDAT commands: RFC 3030 §2. Read
// replies to each chunk but the last, and reads the command of the next one.
type chunks struct {
	s       *session
	size    int64 // of the chunk
	left    int64 // octets of it that are still to come
	last    bool
	check   smtp.LineCheck
	refusal mail.Reply // to each further chunk, once it has a code
}

// doBDAT receives content in chunks and has the message accepted.
func (s *session) doBDAT(arguments string) {
	size, last, err := smtp.ParseBDAT(arguments)
	if err != nil || size > s.discardable() {
		// Where the chunk ends is not known, or too far away: its octets must
		// not be taken for commands.
		s.refuse("BDAT", replyChunk)
		s.over = true
		return
	}
	refusal := s.noContent()
	var buf *spool.Buffer
	if refusal.Code == 0 {
		var ok bool
		if buf, ok = s.newBuffer(max(size, s.mail.args.SizeBytes)); !ok {
			refusal = replyMemory
		}
	}
	if refusal.Code != 0 { // RFC 3030 §2: the chunk is read all the same
		if _, err := io.CopyN(io.Discard, s.wire.in, size); err != nil {
			s.over = true
			return
		}
		s.refuse("BDAT", refusal)
		return
	}
	s.take("BDAT", buf, &chunks{s: s, size: size, left: size, last: last})
}

// discardable is how much is read of content that is refused.
func (s *session) discardable() int64 { return 2 * s.cfg.MaxMessageBytes }

// Read reads content up to the end of a chunk. At the end of the last one it
// returns io.EOF or smtp.ErrBareNewline.
func (c *chunks) Read(p []byte) (int, error) {
	for c.left == 0 {
		if c.last {
			if err := c.check.Err(); err != nil && c.s.mail.args.Body != mail.BodyBinaryMIME && !c.s.cfg.NormalizeNewlines {
				return 0, err
			}
			return 0, io.EOF
		}
		if err := c.next(); err != nil {
			return 0, notTheEnd(err)
		}
	}
	n, err := c.s.wire.in.Read(p[:min(int64(len(p)), c.left)])
	c.check.Look(p[:n])
	c.left -= int64(n)
	return n, notTheEnd(err)
}

// notTheEnd keeps the end of the connection apart from that of the content.
func notTheEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// next replies to a chunk and reads commands up to the next one.
func (c *chunks) next() error {
	if c.refusal.Code != 0 {
		c.s.wire.reply(c.refusal)
	} else {
		c.s.wire.reply(say(250, 0, 0, fmt.Sprintf("%d octets received", c.size)))
	}
	for {
		line, err := c.s.wire.readLine()
		if err != nil {
			return err
		}
		command, err := smtp.ParseCommand(line)
		if err != nil {
			return c.interrupt(line)
		}
		switch command.Verb {
		case "BDAT":
			c.size, c.last, err = smtp.ParseBDAT(command.Args)
			if err != nil || c.size > c.s.discardable() {
				return c.interrupt(line)
			}
			c.left = c.size
			return nil
		case "MAIL", "RCPT", "DATA": // RFC 3030 §2: only BDAT goes on with the message
			c.s.refuse(command.Verb, replyInChunks)
		case "NOOP", "HELP", "VRFY":
			c.s.command(line)
		default:
			return c.interrupt(line)
		}
		if c.s.tried.errors >= c.s.cfg.MaxErrors {
			return errInterrupted
		}
	}
}

// interrupt leaves the command to the session.
func (c *chunks) interrupt(line []byte) error {
	c.s.pending = append(c.s.pending[:0], line...)
	return errInterrupted
}
