package proxy

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// headerTime bounds the wait for a header.
const headerTime = 5 * time.Second

// Listen returns a listener whose connections from the balancers are those of
// the clients that their headers name. All others pass as they are.
func Listen(l net.Listener, balancers []netip.Prefix) net.Listener {
	if len(balancers) == 0 {
		return l
	}
	return &listener{l, balancers}
}

type listener struct {
	net.Listener
	balancers []netip.Prefix
}

// Accept waits for no header: one slow balancer would stop all others.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	peer, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err == nil {
		for _, network := range l.balancers {
			if network.Contains(peer.Addr().Unmap()) {
				return &conn{Conn: c}, nil
			}
		}
	}
	return c, nil
}

// conn reads its header when it is first asked for anything.
type conn struct {
	net.Conn
	once   sync.Once
	client net.Addr // guarded by once, as err is
	err    error
}

func (c *conn) header() {
	c.once.Do(func() {
		c.client = c.Conn.RemoteAddr()
		if c.err = c.SetReadDeadline(time.Now().Add(headerTime)); c.err != nil {
			return
		}
		var h Header
		if h, c.err = Read(c.Conn); c.err != nil {
			c.err = &net.OpError{Op: "read", Net: "tcp", Addr: c.client, Err: c.err}
			_ = c.Close() // the error is what everybody gets
			return
		}
		if h.Client.IsValid() {
			c.client = net.TCPAddrFromAddrPort(netip.AddrPortFrom(h.Client, 0))
		}
		c.err = c.SetReadDeadline(time.Time{})
	})
}

// RemoteAddr is the client's address.
func (c *conn) RemoteAddr() net.Addr {
	c.header()
	return c.client
}

// Read reads what follows the header.
func (c *conn) Read(p []byte) (int, error) {
	if c.header(); c.err != nil {
		return 0, c.err
	}
	return c.Conn.Read(p)
}
