package smtpd

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
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
	conn    net.Conn
	in      *bufio.Reader // reads through wire.Read
	out     []byte
	timeout time.Duration

	farewell bool // the client said QUIT, so nothing more is coming

	mu           sync.Mutex // guards what follows, and the read deadline
	dataDeadline time.Time  // while content is read; else zero
	drainAt      time.Time  // the end of the session's wait for a command; zero until the drain
}

func newWire(conn net.Conn, timeout time.Duration) *wire {
	w := &wire{conn: conn, timeout: timeout}
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
	return w.conn.Read(p)
}

// setDeadline bounds the next read.
func (w *wire) setDeadline() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	deadline, end := time.Now().Add(w.timeout), w.drainAt
	if !w.dataDeadline.IsZero() {
		end = w.dataDeadline
	}
	if !end.IsZero() && end.Before(deadline) {
		deadline = end
	}
	return w.conn.SetReadDeadline(deadline)
}

// drain ends the wait for commands soon. Content goes on.
func (w *wire) drain(at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drainAt = at
	if w.dataDeadline.IsZero() {
		// On a connection that is closed already there is nothing to end.
		_ = w.conn.SetReadDeadline(at)
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
	if err := w.conn.SetWriteDeadline(time.Now().Add(w.timeout)); err != nil {
		return err
	}
	_, err := w.conn.Write(w.out)
	w.out = w.out[:0]
	return err
}

// readLine returns the next command line without its CRLF. It is valid until
// the next read. After errLongLine the line is passed over and the next one
// can be read; after errBareLF nothing may be read: what follows could be
// content that somebody smuggles in as commands.
func (w *wire) readLine() ([]byte, error) {
	line, err := w.in.ReadSlice('\n')
	long := len(line) > smtp.MaxCommandLine
	for errors.Is(err, bufio.ErrBufferFull) {
		long = true
		line, err = w.in.ReadSlice('\n')
	}
	if err != nil {
		return nil, err
	}
	// A CR at the end of the last full buffer would be missed here; the line is
	// refused all the same.
	line, ok := bytes.CutSuffix(line, []byte("\r\n"))
	if !ok {
		return nil, errBareLF
	}
	if long {
		return nil, errLongLine
	}
	return line, nil
}

// hangUp sends what is left and closes the connection in a way that lets the
// client read it.
func (w *wire) hangUp() {
	defer w.conn.Close()
	if w.flush() != nil || w.farewell && w.in.Buffered() == 0 {
		return
	}
	half, ok := w.conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	if w.conn.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		// Whatever ends this, the connection is closed next.
		_, _ = io.CopyN(io.Discard, w.conn, lingerBytes)
	}
}
