package smtptest

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// maxCommand bounds a command line: RFC 5321 §4.5.3.1.4 has 512 octets, to
// which the extensions that we offer add less than 2,000.
const maxCommand = 2512

// maxCommands bounds the list of verbs in the log of a connection.
const maxCommands = 1000

// session is the dialogue on one connection; its goroutine owns it.
type session struct {
	server *Server
	log    *Connection // written under server.mu
	tcp    net.Conn    // without TLS
	conn   net.Conn    // as now spoken on
	r      *bufio.Reader
	w      *bufio.Writer
	pace   *time.Duration // send single octets so far apart

	over         bool // the connection is closed or broken
	extended     bool // EHLO, so ESMTP parameters may follow
	greeted      bool
	secure       string // TLS version and suite
	offers       []string
	number       int          // of transactions on this connection
	tx           *Transaction // open since MAIL
	content      []byte       // reused
	chunked      bool         // the content comes by BDAT
	user         string       // who has authenticated
	hello, where string       // argument of the greeting; command for violations
}

// run speaks until the connection is over.
func (s *session) run() {
	if s.server.script.ImplicitTLS && !s.shakeHands() {
		return
	}
	s.act(Banner, "", "", func() int { return s.reply(220, s.server.script.Hostname+" ESMTP smtptest") })
	for !s.over {
		if s.r.Buffered() == 0 { // RFC 2920 §3.2: the replies of a group leave together
			s.flush()
		}
		line, ok := s.readLine()
		if !ok {
			break
		}
		s.command(line)
	}
	s.flush()
	if s.tx != nil {
		s.finish(0)
	}
}

// act answers by the first rule that applies, or as happy does.
func (s *session) act(at Phase, text, path string, happy func() int) int {
	do := s.server.rules().find(at, text, hitKey{connection: s.log.ID, transaction: s.number, path: path})
	if do == nil {
		return happy()
	}
	code := do(s)
	if code == 0 {
		s.over = true
	}
	return code
}

func (s *session) command(line string) {
	s.where = line
	verb, arg, _ := strings.Cut(line, " ")
	verb = strings.ToUpper(verb)
	s.server.update(func() {
		if len(s.log.Commands) < maxCommands {
			s.log.Commands = append(s.log.Commands, verb)
		}
	})
	// RFC 2920 §3.1: these end a group of commands, so nothing may follow
	// them before we reply; without PIPELINING that holds for all.
	last := slices.Contains([]string{"EHLO", "LHLO", "DATA", "VRFY", "EXPN", "TURN", "QUIT", "NOOP", "STARTTLS", "HELO"}, verb)
	if s.r.Buffered() > 0 && (last || !s.offered("PIPELINING")) && verb != "BDAT" {
		s.complain("%d octets sent ahead of the reply", s.r.Buffered())
	}
	switch verb {
	case "EHLO", "HELO", "LHLO":
		if (verb == "LHLO") != s.server.script.LMTP { // RFC 2033 §4.1
			s.complain("%s", verb)
		}
		s.hi(verb, arg)
	case "AUTH":
		s.auth(arg)
	case "*": // RFC 4954 §4: a cancelled exchange
		s.reply(501, "5.7.0 cancelled")
	case "BDAT":
		s.bdat(arg)
	case "STARTTLS":
		s.startTLS(arg)
	case "MAIL":
		s.mail(line)
	case "RCPT":
		s.rcpt(line)
	case "DATA":
		s.data()
	case "RSET":
		s.act(Rset, line, "", func() int { return s.reply(250, "2.0.0 reset") })
		if s.tx != nil {
			s.finish(0)
		}
	case "NOOP":
		s.act(Noop, line, "", func() int { return s.reply(250, "2.0.0 ok") })
	case "QUIT":
		s.act(Quit, line, "", func() int { return s.reply(221, "2.0.0 bye") })
		s.flush()
		s.close()
	default:
		s.complain("unknown command")
		s.reply(500, "5.5.2 unknown command")
	}
}

// hi answers EHLO and HELO.
func (s *session) hi(verb, arg string) {
	if arg == "" || strings.ContainsAny(arg, " \t") {
		s.complain("%s wants one argument", verb)
	}
	if s.tx != nil {
		s.finish(0) // RFC 5321 §4.1.4: as RSET
	}
	at, extended := Helo, false
	if verb != "HELO" {
		at, extended = Hello, true
	}
	code := s.act(at, s.where, "", func() int {
		if !extended {
			return s.reply(250, s.server.script.Hostname)
		}
		s.offers = slices.Clone(s.server.script.Extensions)
		if s.server.script.MaxSize > 0 {
			s.offers = append(s.offers, fmt.Sprintf("SIZE %d", s.server.script.MaxSize))
		}
		if s.server.script.TLS != nil && s.secure == "" {
			s.offers = append(s.offers, "STARTTLS")
		}
		return s.reply(250, append([]string{s.server.script.Hostname}, s.offers...)...)
	})
	if code/100 != 2 {
		return
	}
	s.greeted, s.extended, s.hello = true, extended, arg
	if !extended {
		s.offers = nil
	}
	s.server.update(func() { s.log.Hello, s.log.Extended = arg, extended })
}

func (s *session) startTLS(arg string) {
	if arg != "" {
		s.complain("STARTTLS has no argument")
	}
	if !s.offered("STARTTLS") {
		s.complain("STARTTLS was not offered")
	}
	code := s.act(StartTLS, s.where, "", func() int {
		if s.server.script.TLS == nil || s.secure != "" {
			return s.reply(503, "5.5.1 no TLS here")
		}
		return s.reply(220, "2.0.0 go ahead")
	})
	s.flush()
	if code != 220 || s.over || s.server.script.TLS == nil {
		return
	}
	if s.act(Handshake, "", "", func() int { return 220 }) != 220 || s.over {
		s.close()
		return
	}
	if !s.shakeHands() {
		return
	}
	// RFC 3207 §4.2: all that was said before is forgotten.
	s.greeted, s.extended, s.offers = false, false, nil
}

// shakeHands begins TLS.
func (s *session) shakeHands() bool {
	c := tls.Server(s.conn, s.server.script.TLS)
	if err := c.Handshake(); err != nil {
		// RFC 3207 §4.1: what a client does about a certificate that it does
		// not like is its affair, so this is no violation.
		s.close()
		return false
	}
	state := c.ConnectionState()
	s.conn, s.secure = c, strings.ReplaceAll(tls.VersionName(state.Version), " ", "")+" "+tls.CipherSuiteName(state.CipherSuite)
	s.r.Reset(c)
	s.w.Reset(c)
	s.server.update(func() { s.log.TLS = s.secure })
	return true
}

// readLine reads a command and checks its form.
func (s *session) readLine() (string, bool) {
	var line []byte
	for {
		part, err := s.r.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) || len(line) > 10*maxCommand {
			if len(line) > 0 && errors.Is(err, io.EOF) {
				s.complain("the connection ends inside a command: %q", line)
			}
			s.over = true
			return "", false
		}
	}
	text, ok := strings.CutSuffix(string(line), "\r\n")
	s.where = text
	if !ok || strings.ContainsAny(text, "\r\n\x00") {
		s.complain("bare CR, LF or NUL in a command")
	}
	if len(line) > maxCommand {
		s.complain("command line of %d octets", len(line))
	}
	return strings.TrimRight(text, "\r\n"), true
}

// reply writes a reply into the buffer, which leaves before the next read.
func (s *session) reply(code int, lines ...string) int { return Reply(code, lines...)(s) }

func (s *session) write(text string) { s.wrote(text) }

// wrote writes and reports whether the client is still there.
func (s *session) wrote(text string) bool {
	if s.over {
		return false
	}
	if s.pace == nil {
		_, err := s.w.WriteString(text)
		s.broken(err)
		return !s.over
	}
	for i := range len(text) {
		if i > 0 && *s.pace > 0 && !s.server.pause(*s.pace) {
			s.over = true
			return false
		}
		_, err := io.WriteString(s.conn, text[i:i+1])
		if s.broken(err); s.over {
			return false
		}
	}
	return true
}

func (s *session) flush() {
	if !s.over {
		s.broken(s.w.Flush())
	}
}

// broken ends the session if a write failed: clients may hang up.
func (s *session) broken(err error) {
	if err != nil {
		s.over = true
	}
}

// note records an error of a read, unless it only says that the connection
// is over.
func (s *session) note(err error) {
	s.over = true
	for _, usual := range []error{io.EOF, net.ErrClosed, syscall.ECONNRESET, os.ErrDeadlineExceeded} {
		if errors.Is(err, usual) {
			return
		}
	}
	s.server.note(err)
}

func (s *session) close() {
	s.over = true
	s.tcp.Close()
}

func (s *session) reset() {
	if tcp, ok := s.tcp.(*net.TCPConn); ok {
		s.server.note(tcp.SetLinger(0))
	}
	s.close()
}

func (s *session) offered(keyword string) bool {
	return slices.ContainsFunc(s.offers, func(o string) bool {
		word, _, _ := strings.Cut(o, " ")
		return strings.EqualFold(word, keyword)
	})
}

func (s *session) complain(format string, args ...any) {
	s.server.violation("connection %d, %q: %s", s.log.ID, s.where, fmt.Sprintf(format, args...))
}
