package smtpclient

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
)

// Session is a greeted connection to one host. It has one owner at a time;
// no method may be called while another runs.
type Session struct {
	host     Host
	timeouts Timeouts
	observe  func(Step) // of the call under way; may be nil
	offers   offers
	lmtp     bool // the host speaks LMTP
	lockstep bool // no command is sent ahead
	secure   string
	verified bool // TLS, and the policy of the route vouches for the certificate
	distrust error

	tcp, conn net.Conn // without and with TLS; the same in plaintext
	r         *bufio.Reader
	w         *bufio.Writer // writes through out
	out       blockWriter
	command   []byte    // reused: the commands about to be written
	copying   []byte    // reused: a block of streamed content
	chunks    bool      // the host has taken a chunk: BDAT works
	sentAt    time.Time // the last group of commands left

	used      int  // transactions begun
	owesReset bool // the last transaction failed, so RSET comes first
	over      bool // the connection is closed
}

// Host returns the host as given to Dial.
func (s *Session) Host() Host { return s.host }

// Local returns our end of the connection.
func (s *Session) Local() netip.AddrPort {
	if a, ok := s.tcp.LocalAddr().(*net.TCPAddr); ok {
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// TLS returns the version and cipher suite, such as
// "TLS1.3 TLS_AES_128_GCM_SHA256", or "" in plaintext.
func (s *Session) TLS() string { return s.secure }

// LeftTLSOut reports that the host offers STARTTLS and the session is in
// plaintext all the same: as it was told to be, or because the host refused
// for good what it offers.
func (s *Session) LeftTLSOut() bool { return s.secure == "" && s.offers.startTLS }

// Distrust returns why the certificate would not have verified for the name
// of the host, if Options.Witness wanted to know; nil if it would have.
func (s *Session) Distrust() error { return s.distrust }

// Pipelines reports whether commands are sent ahead of their replies.
func (s *Session) Pipelines() bool { return s.offers.pipelining }

// Used returns the number of transactions that were begun.
func (s *Session) Used() int { return s.used }

// Usable reports whether Send can be called once more.
func (s *Session) Usable() bool { return !s.over }

// Close says QUIT, does not wait for the reply, and closes the connection.
// It has nothing to report: all that matters was settled before.
func (s *Session) Close() {
	if s.over {
		return
	}
	s.over = true
	if s.conn.SetDeadline(time.Now().Add(quitTimeout)) == nil {
		// RFC 5321 §4.1.1.10 wants the reply waited for; Postfix and others
		// do not: a host that has gone away would cost a connection for
		// minutes, and no host minds.
		_, _ = io.WriteString(s.conn, "QUIT\r\n")
	}
	_ = s.conn.Close()
}

// Part is Close for a host that counts connections: it waits until the host
// has said goodbye, for a second at most, and has closed the connection soon
// after, so that the next one does not come to it beside this one.
func (s *Session) Part() {
	if s.over {
		return
	}
	s.over = true
	if s.conn.SetDeadline(time.Now().Add(quitTimeout)) == nil {
		// RFC 5321 §4.1.1.10: the host answers, and closes the connection.
		_, err := io.WriteString(s.conn, "QUIT\r\n")
		if err == nil {
			_, err = s.conn.Read(make([]byte, 1))
		}
		if err == nil && s.conn.SetDeadline(time.Now().Add(closeTimeout)) == nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(s.conn, readBuffer))
		}
	}
	_ = s.conn.Close()
}

// abort closes the connection without another word.
func (s *Session) abort() {
	s.over = true
	_ = s.tcp.Close()
}

// dropUnsent has the end of the connection throw away what was written and
// has not left.
func (s *Session) dropUnsent() {
	if c, ok := s.tcp.(*net.TCPConn); ok {
		_ = c.SetLinger(0) // it fails on a connection that is gone
	}
}

// bind makes the end of the context close the connection until release is
// called. release returns ErrStopped if that has happened.
func (s *Session) bind(ctx context.Context) (release func() error) {
	stop := context.AfterFunc(ctx, func() { _ = s.tcp.Close() })
	return func() error {
		if stop() {
			return nil
		}
		s.over = true
		return stopped(ctx)
	}
}

// fault returns ErrStopped in place of an error that the end of the context
// has brought about.
func fault(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return stopped(ctx)
	}
	return err
}

func stopped(ctx context.Context) error { return fmt.Errorf("%w: %w", ErrStopped, context.Cause(ctx)) }

// ask sends one command and waits for its reply.
func (s *Session) ask(phase mail.Phase, timeout time.Duration, command string) (mail.Reply, error) {
	s.command = append(append(s.command[:0], command...), "\r\n"...)
	if err := s.flushCommands(timeout); err != nil {
		return s.lastWords(err)
	}
	return s.await(phase, timeout)
}

// flushCommands writes the commands that were collected.
func (s *Session) flushCommands(timeout time.Duration) error {
	// A reply that is there already was not asked for, and every later one
	// would be taken for the answer to the wrong command.
	if s.r.Buffered() > 0 {
		return ErrOutOfStep
	}
	s.out.timeout = timeout
	s.sentAt = time.Now()
	_, err := s.out.Write(s.command)
	return err
}

// await reads the reply that is due within the timeout.
func (s *Session) await(phase mail.Phase, timeout time.Duration) (mail.Reply, error) {
	err := s.conn.SetReadDeadline(time.Now().Add(timeout))
	var reply mail.Reply
	switch {
	case err != nil:
	case phase == mail.PhaseHello:
		reply, err = smtp.ReadHelloReply(s.r)
	default:
		reply, err = smtp.ReadReply(s.r)
	}
	s.saw(Step{Phase: phase, Reply: reply.Within(smtp.MaxReplyText), Err: err, Took: time.Since(s.sentAt)})
	return reply, err
}

// lastWords looks for a reply after a write failed: a host that hangs up
// often says why, such as 421 on an idle connection or 552 in the middle of
// content that is too big. Without one it returns the error of the write.
func (s *Session) lastWords(writeErr error) (mail.Reply, error) {
	s.over = true
	if s.conn.SetReadDeadline(time.Now().Add(time.Second)) == nil {
		if reply, err := smtp.ReadReply(s.r); err == nil && !reply.Positive() {
			return reply, nil
		}
	}
	return mail.Reply{}, writeErr
}

func (s *Session) saw(step Step) {
	if s.observe != nil {
		s.observe(step)
	}
}

// maxBlock is how much one write may carry: each has its own deadline, so a
// host that takes content slowly but steadily is not cut off.
const maxBlock = 64 << 10

// blockWriter writes to the connection with a deadline for each block:
// RFC 5321 §4.5.3.2.5.
type blockWriter struct {
	conn    net.Conn
	timeout time.Duration
}

func (w *blockWriter) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		if err := w.conn.SetWriteDeadline(time.Now().Add(w.timeout)); err != nil {
			return written, err
		}
		n, err := w.conn.Write(p[written:min(len(p), written+maxBlock)])
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}
