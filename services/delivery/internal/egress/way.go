package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"syscall"
)

// ErrEgress says that the way out is in trouble: the proxy cannot be reached,
// does not take us, or the address is not there.
var ErrEgress = errors.New("the source cannot be used")

// Kind is how connections are made.
type Kind string

// The kinds.
const (
	Direct  Kind = ""
	SOCKS5  Kind = "socks5"
	HAProxy Kind = "haproxy"
)

// Way is how connections leave from one address. The zero value is this
// machine as it is: the system chooses the address.
type Way struct {
	Kind           Kind
	Local          netip.Addr // of the source; may be invalid
	Proxy          string     // host:port
	User, Password string     // of a SOCKS5 proxy; both "": it asks for none
}

// Parse reads the way that an operator has named, such as
// "socks5://user:password@proxy.example.com:1080".
func Parse(text string) (Way, error) {
	u, err := url.Parse(text)
	if err != nil {
		return Way{}, errors.New("egress: want socks5://[user:password@]host:port or haproxy://host:port") // not what it is: it may have a password
	}
	w := Way{Kind: Kind(u.Scheme), Proxy: u.Host, User: u.User.Username()}
	w.Password, _ = u.User.Password()
	if _, _, err := net.SplitHostPort(w.Proxy); err != nil || u.Path != "" || w.Kind != SOCKS5 && w.Kind != HAProxy ||
		w.Kind == HAProxy && u.User != nil || len(w.User) > 255 || len(w.Password) > 255 {
		return Way{}, fmt.Errorf("egress of scheme %q: want socks5://[user:password@]host:port or haproxy://host:port", u.Scheme)
	}
	return w, nil
}

// Dial connects to a target. The context bounds it.
func (w Way) Dial(ctx context.Context, target netip.AddrPort) (net.Conn, error) {
	if w.Kind == Direct {
		return w.direct(ctx, target)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", w.Proxy)
	if err != nil {
		return nil, fmt.Errorf("%w: proxy %s: %w", ErrEgress, w.Proxy, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	through, err := w.through(c, target)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = c.Close()
		if ctx.Err() != nil {
			err = &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(target), Err: ctx.Err()}
		}
		return nil, err
	}
	return through, nil
}

// direct connects from an address of this machine.
func (w Way) direct(ctx context.Context, target netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	if w.Local.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(w.Local, 0))
	}
	c, err := d.DialContext(ctx, "tcp", target.String())
	if err != nil && w.Local.IsValid() && errors.Is(err, syscall.EADDRNOTAVAIL) && !Has(w.Local) {
		return nil, fmt.Errorf("%w: this machine does not have %s: %w", ErrEgress, w.Local, err)
	}
	return c, err
}

// through speaks to a proxy that has been reached.
func (w Way) through(c net.Conn, target netip.AddrPort) (net.Conn, error) {
	if w.Kind == HAProxy {
		if _, err := c.Write(header(netip.AddrPortFrom(w.Local, 0), target)); err != nil {
			return nil, fmt.Errorf("%w: proxy %s: %w", ErrEgress, w.Proxy, err)
		}
		return conn{c, net.TCPAddrFromAddrPort(netip.AddrPortFrom(w.Local, 0))}, nil
	}
	bound, err := w.connect(c, target)
	if err != nil {
		return nil, err
	}
	if !bound.Addr().IsValid() || bound.Addr().IsUnspecified() {
		bound = netip.AddrPortFrom(w.Local, bound.Port())
	}
	return conn{c, net.TCPAddrFromAddrPort(bound)}, nil
}

// conn is a connection through a proxy: its local address is the one that the
// target sees.
type conn struct {
	net.Conn
	local net.Addr
}

func (c conn) LocalAddr() net.Addr { return c.local }

// Has reports whether this machine has an address, by binding to it.
func Has(a netip.Addr) bool {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		return false
	}
	_ = l.Close()
	return true
}

// header is a PROXY protocol header of version 2 for a TCP connection, from
// the source to the target: haproxy.org, proxy-protocol.txt §2.2.
func header(from, to netip.AddrPort) []byte {
	h := []byte("\r\n\r\n\x00\r\nQUIT\n\x21")
	if to.Addr().Is4() {
		h = append(h, 0x11, 0, 12)
	} else {
		h = append(h, 0x21, 0, 36)
	}
	h = append(append(h, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	return append(h, byte(from.Port()>>8), byte(from.Port()), byte(to.Port()>>8), byte(to.Port()))
}
