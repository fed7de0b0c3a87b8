package smtpd

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/pkg/telemetry"
	"github.com/postrider/postrider/services/ingress/internal/access"
	"github.com/postrider/postrider/services/ingress/internal/commit"
	"github.com/postrider/postrider/services/ingress/internal/proxy"
)

// proxyTime bounds the wait for a PROXY header.
const proxyTime = 5 * time.Second

// session is one connection with a client. Only its goroutine uses it, but
// for wire, which looks after itself.
type session struct {
	server  *Server
	door    *Door
	cfg     *Config // of the door
	wire    *wire
	seat    *commit.Seat
	client  mail.Client
	counted netip.Addr // the client's address in the crowd
	inCrowd bool
	silent  bool // a health check of a proxy: nothing that it does is worth a line
	trusted bool // the peer may use XCLIENT and XFORWARD
	tls     *tls.ConnectionState
	id      access.Identity // who the client is; the zero value is nobody
	authed  bool            // by AUTH, on this connection

	esmtp    bool // EHLO rather than HELO
	messages int  // accepted on this connection
	rcpts    int  // accepted on this connection, of all transactions
	tried    efforts
	over     bool   // close after the replies
	pending  []byte // a command line that was read and not done
	mail     transaction
	dots     smtp.DotReader
	sub      mail.Submission // its memory is reused
}

func newSession(server *Server, conn net.Conn, door *Door) *session {
	cfg := &server.cfg
	if door.Config != nil {
		cfg = door.Config
	}
	return &session{
		server: server,
		door:   door,
		cfg:    cfg,
		wire:   newWire(conn, cfg),
		seat:   server.committer.Seat(),
		client: mail.Client{Address: clientAddress(conn)},
	}
}

// serve greets the client and does what it says until one of them leaves.
func (s *session) serve() {
	defer s.wire.hangUp()
	defer s.mail.clear()
	defer s.seat.Leave()
	defer s.leaveCrowd()
	if !s.arrive() {
		return
	}
	s.greet()
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
		if s.tried.errors >= s.cfg.MaxErrors && !s.over {
			s.end(replyErrors)
		}
	}
}

func (s *session) greet() {
	s.wire.reply(mail.Reply{Code: 220, Lines: []string{s.cfg.Hostname + " ESMTP postrider"}})
}

// proxied reports whether the peer is a load balancer.
func (s *session) proxied() bool {
	return contains(s.cfg.ProxyNetworks, s.client.Address)
}

// arrive finds out who has come. It returns false for those that may not
// stay.
func (s *session) arrive() bool {
	if s.proxied() && !s.readProxy() {
		return false
	}
	s.trusted = contains(s.cfg.XClientNetworks, s.client.Address)
	s.recognise()
	if s.door.ImplicitTLS {
		return s.secure()
	}
	if s.wire.talksFirst() { // RFC 5321 §3.1, §4.3.1: the client waits for the greeting
		s.end(replyEarly)
		return false
	}
	return true
}

// readProxy learns from a load balancer who the client is.
func (s *session) readProxy() bool {
	peer := s.client.Address
	s.wire.setDataDeadline(time.Now().Add(proxyTime))
	defer s.wire.setDataDeadline(time.Time{})
	if err := s.wire.setDeadline(); err != nil {
		return false
	}
	header, err := proxy.Read(s.wire.conn)
	if err != nil {
		// Checks that only open a port send nothing at all.
		if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			slog.Warn("connection dropped: no PROXY header", "peer", peer, "error", err)
		}
		return false
	}
	if s.silent = !header.Client.IsValid(); s.silent {
		return true
	}
	s.client.Address = header.Client
	refusal := s.enterCrowd()
	switch {
	case refusal.Code == 0:
		return true
	case s.door.ImplicitTLS: // as in refuse
		s.server.metrics.refused(refusal)
	default:
		s.end(refusal)
	}
	return false
}

// enterCrowd counts the client in, or returns the reply that refuses it.
func (s *session) enterCrowd() mail.Reply {
	refusal := s.server.crowd.enter(s.client.Address, s.cfg, time.Now())
	s.counted, s.inCrowd = s.client.Address, refusal.Code == 0
	return refusal
}

func (s *session) leaveCrowd() {
	if s.inCrowd {
		s.server.crowd.leave(s.counted, time.Now())
		s.inCrowd = false
	}
}

// recognise gives the client what its address alone is good for.
func (s *session) recognise() {
	s.id, s.authed = access.Identity{}, false
	if !s.door.Submission && !s.silent && contains(s.cfg.RelayNetworks, s.client.Address) {
		s.id = access.Network()
	}
}

// known reports whether somebody stands for what the client sends.
func (s *session) known() bool { return s.id.Method != "" }

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
	if needsIdentity(command.Verb) {
		switch {
		case s.door.NeedTLS && s.tls == nil: // RFC 3207 §4
			s.refuse(command.Verb, replyTLSFirst)
			return
		case s.door.Submission && !s.known():
			s.refuse(command.Verb, s.needIdentity())
			return
		}
	}
	s.tried.command(command.Verb)
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
	case "STARTTLS":
		s.doStartTLS(command)
	case "AUTH":
		s.doAuth(command.Args)
	case "XCLIENT":
		s.doXClient(command.Args)
	case "XFORWARD":
		s.doXForward(command.Args)
	case "EXPN", "ETRN", "TURN", "SEND", "SOML", "SAML":
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

// needsIdentity: RFC 4954 §6. BDAT is refused with its octets.
func needsIdentity(verb string) bool {
	switch verb {
	case "MAIL", "RCPT", "DATA", "VRFY", "EXPN", "ETRN":
		return true
	}
	return false
}

// needIdentity tells an unknown client of a submission door what to do first.
func (s *session) needIdentity() mail.Reply {
	if s.mayStartTLS() && !s.mayAuth() {
		return replyTLSFirst
	}
	return replyAuthFirst
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
	s.tried.refused(verb, reply)
	s.server.metrics.refused(reply)
	if s.silent {
		s.wire.reply(reply)
		return
	}
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
