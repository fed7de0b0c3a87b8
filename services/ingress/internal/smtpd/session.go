package smtpd

import (
	"errors"
	"net"
	"net/netip"
	"os"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/pkg/telemetry"
	"github.com/postrider/postrider/services/ingress/internal/commit"
)

// session is one connection with a client. Only its goroutine uses it, but
// for wire, which looks after itself.
type session struct {
	server   *Server
	wire     *wire
	seat     *commit.Seat
	client   mail.Client
	mayRelay bool

	esmtp    bool   // EHLO rather than HELO
	messages int    // accepted on this connection
	errors   int    // commands that were refused for good
	over     bool   // close after the replies
	pending  []byte // a command line that was read and not done
	mail     transaction
	dots     smtp.DotReader
	sub      mail.Submission // its memory is reused
}

func newSession(server *Server, conn net.Conn, client netip.Addr) *session {
	return &session{
		server:   server,
		wire:     newWire(conn, server.cfg.IdleTimeout),
		seat:     server.committer.Seat(),
		client:   mail.Client{Address: client},
		mayRelay: server.cfg.mayRelay(client),
	}
}

// serve greets the client and does what it says until one of them leaves.
func (s *session) serve() {
	defer s.wire.hangUp()
	defer s.seat.Leave()
	s.wire.reply(mail.Reply{Code: 220, Lines: []string{s.server.cfg.Hostname + " ESMTP postrider"}})
	for !s.over {
		line, err := s.nextLine()
		switch {
		case err != nil:
			s.broken(err)
		case s.wire.draining():
			s.end(replyDraining)
		default:
			s.command(line)
		}
		if s.errors >= s.server.cfg.MaxErrors && !s.over {
			s.end(replyErrors)
		}
	}
}

// nextLine returns the next command line.
func (s *session) nextLine() ([]byte, error) {
	if len(s.pending) > 0 {
		line := s.pending
		s.pending = s.pending[:0]
		return line, nil
	}
	return s.wire.readLine()
}

// broken is what to do when no line or no content could be read.
func (s *session) broken(err error) {
	switch {
	case errors.Is(err, errLongLine):
		s.refuse("", replyLongLine)
	case errors.Is(err, errBareLF):
		s.end(replyBareLF)
	case errors.Is(err, os.ErrDeadlineExceeded) && s.wire.draining():
		s.end(replyDraining)
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.end(replyIdle)
	default:
		s.over = true // the client has gone: there is nobody to tell
	}
}

// command does one command line.
func (s *session) command(line []byte) {
	command, err := smtp.ParseCommand(line)
	if err != nil {
		s.refuse("", malformed(line))
		return
	}
	switch command.Verb {
	case "MAIL":
		s.doMail(command.Args)
	case "RCPT":
		s.doRcpt(command.Args)
	case "DATA":
		s.doData(command.Args)
	case "BDAT":
		s.doBDAT(command.Args)
	case "EHLO", "HELO":
		s.doHello(command)
	case "RSET":
		s.simple(command, replyReset, s.reset)
	case "QUIT":
		s.simple(command, replyBye, func() { s.over, s.wire.farewell = true, true })
	case "NOOP": // RFC 5321 §4.1.1.9: a parameter is ignored
		s.wire.reply(replyNoop)
	case "HELP":
		s.wire.reply(replyHelp)
	case "VRFY":
		s.doVerify(command)
	case "EXPN", "ETRN", "STARTTLS", "AUTH", "TURN", "SEND", "SOML", "SAML":
		s.refuse(command.Verb, replyNotHere)
	case "GET", "HEAD", "POST", "PUT", "CONNECT", "OPTIONS":
		// A browser or a proxy that was made to talk to us: its header fields
		// must not be tried as commands.
		s.refuse(command.Verb, replyUnknown)
		s.over = true
	default:
		s.refuse(command.Verb, replyUnknown)
	}
}

func malformed(line []byte) mail.Reply {
	for _, c := range line {
		if c == '\r' {
			return replyBareCR
		}
	}
	return replySyntax
}

// simple is for commands that take no argument and cannot fail.
func (s *session) simple(command smtp.Command, reply mail.Reply, do func()) {
	if command.Args != "" {
		s.refuse(command.Verb, replyNoArguments)
		return
	}
	do()
	s.wire.reply(reply)
}

// reset ends the transaction: RFC 5321 §4.1.1.5.
func (s *session) reset() {
	if s.mail.open {
		s.seat.Leave()
	}
	s.mail.clear()
}

// refuse gives a negative reply, and notes it.
func (s *session) refuse(verb string, reply mail.Reply) {
	s.refusePath(verb, "", reply)
}

func (s *session) refusePath(verb string, path mail.ForwardPath, reply mail.Reply) {
	if reply.Permanent() {
		s.errors++
	}
	s.server.metrics.refused(reply)
	telemetry.Refused(telemetry.Refusal{
		Client: s.client, Command: verb, ReversePath: s.mail.args.ReversePath, ForwardPath: path, Reply: reply,
	})
	s.wire.reply(reply)
}

// end gives the last reply of a session that we end: RFC 5321 §3.8, §4.2.1.
func (s *session) end(reply mail.Reply) {
	s.refuse("", reply)
	s.over = true
}
