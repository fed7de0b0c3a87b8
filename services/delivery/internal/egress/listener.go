package egress

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// greetWithin bounds what a client says before it is connected.
	greetWithin = 10 * time.Second
	// dialWithin is how long a target may take to answer: no longer than our
	// own clients wait.
	dialWithin = 5 * time.Minute
	// copyBuffer is the memory of one direction of a connection.
	copyBuffer = 16 << 10
)

// Listener is what a worker offers to others.
type Listener struct {
	Key string
	// Source returns the address of a source from which to reach a target; ok
	// is false if this machine has none, or may not use it.
	Source func(name string, target netip.Addr) (local netip.Addr, ok bool)
	// MayReach reports whether a target may be connected to.
	MayReach func(target netip.AddrPort) bool
	// Max is how many connections may be open at once.
	Max int
}

// Serve answers on l until ctx is done, then closes all connections.
func (l *Listener) Serve(ctx context.Context, on net.Listener) error {
	var clients errgroup.Group
	clients.SetLimit(l.Max)
	stop := context.AfterFunc(ctx, func() { _ = on.Close() })
	defer stop()
	for {
		c, err := on.Accept()
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, net.ErrClosed) {
			return errors.Join(err, clients.Wait())
		}
		if err != nil {
			slog.Warn("egress: connection not accepted", "error", err)
			pause(ctx, time.Second)
			continue
		}
		if !clients.TryGo(func() error {
			l.serve(ctx, c)
			return nil
		}) {
			_ = c.Close()
		}
	}
	return clients.Wait()
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (l *Listener) serve(ctx context.Context, c net.Conn) {
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	_ = c.SetDeadline(time.Now().Add(greetWithin))
	name, target, err := l.greet(c)
	if err != nil {
		slog.Warn("egress: client refused", "client", c.RemoteAddr().String(), "error", err)
		return
	}
	_ = c.SetDeadline(time.Time{})
	out, code := l.dial(ctx, name, target)
	bound := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if out != nil {
		defer func() { _ = out.Close() }()
		if a, ok := out.LocalAddr().(*net.TCPAddr); ok {
			bound = netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), a.AddrPort().Port())
		}
	}
	if _, err := c.Write(appendAddress([]byte{version, code, 0}, bound)); err != nil || out == nil {
		return
	}
	relay(ctx, c, out)
}

// greet authenticates a client and returns the source and the target that it
// wants.
func (l *Listener) greet(c net.Conn) (source string, target netip.AddrPort, err error) {
	methods, err := readList(c, version)
	if err != nil {
		return "", target, err
	}
	answer := byte(unacceptable)
	for _, m := range methods {
		if m == withPassword {
			answer = withPassword
		}
	}
	if _, err := c.Write([]byte{version, answer}); err != nil || answer == unacceptable {
		return "", target, errors.Join(err, errors.New("it does not authenticate"))
	}
	user, err := readList(c, 1)
	if err != nil {
		return "", target, err
	}
	key, err := readField(c)
	if err != nil {
		return "", target, err
	}
	if subtle.ConstantTimeCompare(key, []byte(l.Key)) != 1 {
		_, _ = c.Write([]byte{1, 1})
		return "", target, errors.New("wrong key")
	}
	if _, err := c.Write([]byte{1, 0}); err != nil {
		return "", target, err
	}
	var head [3]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return "", target, err
	}
	if head[0] != version {
		return "", target, errSOCKS
	}
	if target, err = readAddress(c); err != nil {
		return "", target, err
	}
	if head[1] != connect || !target.Addr().IsValid() {
		code := byte(noSuchCommand)
		if head[1] == connect {
			code = noSuchAddress
		}
		_, _ = c.Write(appendAddress([]byte{version, code, 0}, netip.AddrPortFrom(netip.IPv4Unspecified(), 0)))
		return "", target, fmt.Errorf("command %d to an address of ours", head[1])
	}
	return string(user), target, nil
}

// readList reads a version and a field.
func readList(r io.Reader, want byte) ([]byte, error) {
	var v [1]byte
	if _, err := io.ReadFull(r, v[:]); err != nil {
		return nil, err
	}
	if v[0] != want {
		return nil, errSOCKS
	}
	return readField(r)
}

// readField reads a field of up to 255 octets behind its length.
func readField(r io.Reader) ([]byte, error) {
	var n [1]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	b := make([]byte, n[0])
	_, err := io.ReadFull(r, b)
	return b, err
}

// dial connects from a source, or says with a reply of RFC 1928 §6 why not.
func (l *Listener) dial(ctx context.Context, name string, target netip.AddrPort) (net.Conn, byte) {
	if !l.MayReach(target) {
		return nil, notAllowed
	}
	local, ok := l.Source(name, target.Addr())
	if !ok {
		return nil, generalFailure
	}
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	c, err := Way{Local: local}.Dial(ctx, target)
	switch {
	case err == nil:
		return c, succeeded
	case errors.Is(err, ErrEgress):
		return nil, generalFailure
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, refused
	case errors.Is(err, syscall.ENETUNREACH):
		return nil, networkUnreachable
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, context.DeadlineExceeded):
		return nil, ttlExpired
	}
	return nil, hostUnreachable
}

// relay copies both ways until one side is done, then lets the other one end.
func relay(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = b.Close() })
	defer stop()
	var both errgroup.Group
	both.Go(func() error { return pass(a, b) })
	both.Go(func() error { return pass(b, a) })
	if err := both.Wait(); err != nil && ctx.Err() == nil {
		slog.Debug("egress: connection ended", "error", err)
	}
}

// pass copies what comes on from to to, and then its end. A connection that
// breaks takes the other one with it: each side sees what the other did.
func pass(from, to net.Conn) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, copyBuffer))
	if end, ok := to.(*net.TCPConn); ok && err == nil {
		return end.CloseWrite()
	}
	_ = from.Close()
	_ = to.Close()
	return err
}
