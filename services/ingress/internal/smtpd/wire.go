package smtpd

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
)

const (
	readBuffer = 8 << 10
	// drainGrace is how long a silent session has for its next command after
	// the signal to stop: it then hears 421 as the reply to that command.
	drainGrace = time.Second
	// lingerTime and lingerBytes bound what is still read from a client after
	// our last reply, so that a reset does not take the reply away from it.
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 256 << 10
	// handshakeTime bounds a TLS handshake.
	handshakeTime = 30 * time.Second
)

// The ways in which a line is no command line.
var (
	errBareLF   = errors.New("bare LF in a command")
	errLongLine = errors.New("command line too long")
)

// wire is the connection of a session. Replies wait until the client must be
// heard again, so those of a pipelined group leave in one write: RFC 2920
// §3.2.
type wire struct {
	conn    net.Conn      // the TCP connection
	talk    net.Conn      // what is spoken on: conn, or TLS on it
	in      *bufio.Reader // reads through wire.Read
	out     []byte
	long    []byte // a line that does not fit the buffer of in
	timeout time.Duration
	lenient bool // an LF alone ends a line, too

	begun    bool      // octets of a line were waited for: its deadline stands
	farewell bool      // the client said QUIT, so nothing more is coming
	writeBy  time.Time // the write deadline of conn

	mu           sync.Mutex // guards what follows, and the read deadline of conn
	readBy       time.Time  // that deadline
	dataDeadline time.Time  // while content is read; else zero
	drainAt      time.Time  // the end of the session's wait for a command; zero until the drain
}

func newWire(conn net.Conn, cfg *Config) *wire {
	w := &wire{conn: conn, talk: conn, timeout: cfg.IdleTimeout, lenient: cfg.NormalizeNewlines}
	w.in = bufio.NewReaderSize(w, readBuffer)
	return w
}

// reply queues a reply.
func (w *wire) reply(r mail.Reply) { w.out = smtp.AppendReply(w.out, r) }

// Read reads octets of the client, after the replies that it waits for have
// left. It is for w.in only.
func (w *wire) Read(p []byte) (int, error) {
	if err := w.flush(); err != nil {
		return 0, err
	}
	if err := w.setDeadline(); err != nil {
		return 0, err
	}
	return w.talk.Read(p)
}

// setDeadline bounds the next read.
func (w *wire) setDeadline() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	now, end := time.Now(), w.drainAt
	if !w.dataDeadline.IsZero() {
		end = w.dataDeadline
	}
	deadline := w.readBy
	if !w.begun || !w.dataDeadline.IsZero() {
		deadline = w.later(w.readBy, now)
	}
	w.begun = true
	if !end.IsZero() && end.Before(deadline) {
		deadline = end
	}
	if deadline.Equal(w.readBy) {
		return nil
	}
	w.readBy = deadline
	return w.conn.SetReadDeadline(deadline)
}

// later returns the deadline of something that begins now and may take the
// timeout, or up to a sixty-fourth more: the one that stands, if it is so.
// Each new one is a call to the timers of the runtime, a thirtieth of all
// that a busy session costs.
func (w *wire) later(standing, now time.Time) time.Time {
	least, most := now.Add(w.timeout), now.Add(w.timeout+w.timeout/64)
	if standing.Before(least) || standing.After(most) {
		return most
	}
	return standing
}

// drain ends the wait for commands soon. Content goes on.
func (w *wire) drain(at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drainAt = at
	if w.dataDeadline.IsZero() {
		// On a connection that is closed already there is nothing to end.
		_ = w.conn.SetReadDeadline(at)
		w.readBy = at
	}
}

// setDataDeadline says that content is read until then, or with zero that
// commands are read again.
func (w *wire) setDataDeadline(t time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dataDeadline = t
}

func (w *wire) draining() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.drainAt.IsZero()
}

func (w *wire) flush() error {
	if len(w.out) == 0 {
		return nil
	}
	if deadline := w.later(w.writeBy, time.Now()); !deadline.Equal(w.writeBy) {
		w.writeBy = deadline
		if err := w.conn.SetWriteDeadline(deadline); err != nil {
			return err
		}
	}
	_, err := w.talk.Write(w.out)
	w.out = w.out[:0]
	return err
}

// secure speaks TLS from here on. Nothing that came before is used any more.
func (w *wire) secure(config *tls.Config) (tls.ConnectionState, error) {
	if err := w.flush(); err != nil {
		return tls.ConnectionState{}, err
	}
	w.setDataDeadline(time.Now().Add(handshakeTime))
	defer w.setDataDeadline(time.Time{})
	if err := w.setDeadline(); err != nil {
		return tls.ConnectionState{}, err
	}
	w.writeBy = time.Now().Add(handshakeTime)
	if err := w.conn.SetWriteDeadline(w.writeBy); err != nil {
		return tls.ConnectionState{}, err
	}
	server := tls.Server(w.conn, config)
	if err := server.Handshake(); err != nil {
		return tls.ConnectionState{}, err
	}
	w.talk = server
	w.in.Reset(w)
	return server.ConnectionState(), nil
}

// talksFirst reports whether the client has sent something already.
func (w *wire) talksFirst() bool { return w.in.Buffered() > 0 || w.talk == w.conn && hasInput(w.conn) }

// readLine returns the next command line without its CRLF. It is valid until
// the next read. After errLongLine the line is passed over and the next one
// can be read; after errBareLF nothing may be read: what follows could be
// content that somebody smuggles in as commands.
func (w *wire) readLine() ([]byte, error) {
	line, err := w.readUpTo(smtp.MaxAuthLine)
	if err == nil && len(line)+len("\r\n") > smtp.MaxCommandLine && !isAuth(line) {
		err = errLongLine
	}
	return line, err
}

// isAuth: RFC 4954 §3 makes this command longer than the others.
func isAuth(line []byte) bool {
	const verb = "AUTH "
	return len(line) >= len(verb) && strings.EqualFold(string(line[:len(verb)]), verb)
}

// readUpTo is readLine for lines of up to limit octets with their CRLF. The
// whole of a line must be there within the timeout.
func (w *wire) readUpTo(limit int) ([]byte, error) {
	w.begun = false
	line, err := w.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		w.long = append(w.long[:0], line...)
		defer func() { w.long = w.long[:0] }()
	}
	tooLong := false
	for errors.Is(err, bufio.ErrBufferFull) {
		line, err = w.in.ReadSlice('\n')
		if tooLong = tooLong || len(w.long)+len(line) > limit; tooLong {
			w.long = append(w.long[:0], w.long[len(w.long)-1]) // it may be the CR of the end
		}
		w.long = append(w.long, line...)
	}
	if err != nil {
		return nil, err
	}
	if len(w.long) > 0 {
		line = w.long
	}
	line, ok := bytes.CutSuffix(line, []byte("\r\n"))
	if !ok && w.lenient {
		line, ok = bytes.CutSuffix(line, []byte("\n"))
	}
	switch {
	case !ok:
		return nil, errBareLF
	case tooLong:
		return nil, errLongLine
	}
	return line, nil
}

// hangUp sends what is left and closes the connection in a way that lets the
// client read it.
func (w *wire) hangUp() {
	defer w.conn.Close()
	if w.flush() != nil || w.farewell && w.in.Buffered() == 0 && w.talk == w.conn {
		return
	}
	half, ok := w.talk.(interface{ CloseWrite() error }) // under TLS it says close_notify
	if !ok || half.CloseWrite() != nil {
		return
	}
	if w.conn.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		// Whatever ends this, the connection is closed next.
		_, _ = io.CopyN(io.Discard, w.conn, lingerBytes)
	}
}
