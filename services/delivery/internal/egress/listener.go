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
	"slices"
	"sync"
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
	// Max is how many connections of clients with the key may be open at once.
	Max int
}

// maxStrangers is how many connections may be open that have not shown the
// key. One more has the oldest one closed of the address that has most: so who
// floods us makes room for itself, and who comes with the key finds some.
const maxStrangers = 512

// strangers are the connections that have not shown the key yet, oldest first.
type strangers struct {
	mu  sync.Mutex
	all []net.Conn // guarded by mu
}

// enter takes one in.
func (s *strangers) enter(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, c)
	if len(s.all) <= maxStrangers {
		return
	}
	of := map[netip.Addr]int{}
	most := ipOf(s.all[0])
	for _, other := range s.all {
		ip := ipOf(other)
		if of[ip]++; of[ip] > of[most] {
			most = ip
		}
	}
	oldest := slices.IndexFunc(s.all, func(other net.Conn) bool { return ipOf(other) == most })
	_ = s.all[oldest].Close()
	s.all = slices.Delete(s.all, oldest, oldest+1)
}

// leave takes one out: it has shown the key, or is gone.
func (s *strangers) leave(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = slices.DeleteFunc(s.all, func(other net.Conn) bool { return other == c })
}

func ipOf(c net.Conn) netip.Addr {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// Serve answers on l until ctx is done, then closes all connections.
func (l *Listener) Serve(ctx context.Context, on net.Listener) error {
	var clients errgroup.Group
	known := make(chan struct{}, l.Max) // holds a token for each client with the key
	var unknown strangers
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
		unknown.enter(c)
		clients.Go(func() error {
			l.serve(ctx, c, &unknown, known)
			return nil
		})
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

func (l *Listener) serve(ctx context.Context, c net.Conn, unknown *strangers, known chan struct{}) {
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	_ = c.SetDeadline(time.Now().Add(greetWithin))
	name, target, err := l.greet(c)
	unknown.leave(c)
	if err != nil {
		slog.Warn("egress: client refused", "client", c.RemoteAddr().String(), "error", err)
		return
	}
	_ = c.SetDeadline(time.Time{})
	select {
	case known <- struct{}{}:
		defer func() { <-known }()
	default:
		_, _ = c.Write(appendAddress([]byte{version, generalFailure, 0}, netip.AddrPortFrom(netip.IPv4Unspecified(), 0)))
		return
	}
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
