package httpd

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"

	"github.com/postrider/postrider/services/ingress/internal/proxy"
)

const (
	// freeHeader is how much of a header section costs nothing: what net/http
	// reads in any case.
	freeHeader = 4 << 10
	// headerFactor is the memory of the rest, for each octet: the buffer and
	// the values.
	headerFactor = 3
	// headerPart of the memory of requests may be header sections.
	headerPart = 4
)

// Doorkeeper bounds what clients hold of the server before anybody knows who
// they are: connections of an address and of its network, and memory of header
// sections, all listeners together.
type Doorkeeper struct {
	cfg     Config
	headers atomic.Int64 // octets of memory

	mu   sync.Mutex
	open map[netip.Prefix]int // guarded by mu: connections of clients and of networks
}

// NewDoorkeeper returns one without any client.
func NewDoorkeeper(cfg Config) *Doorkeeper {
	return &Doorkeeper{cfg: cfg, open: map[netip.Prefix]int{}}
}

// Listen bounds the connections of a listener, and finds out who comes through
// a load balancer. secure tells that TLS will be spoken on them.
func (d *Doorkeeper) Listen(l net.Listener, secure bool) net.Listener {
	return &guarded{proxy.Listen(netutil.LimitListener(l, d.cfg.MaxConnections), d.cfg.ProxyNetworks), d, secure}
}

type guarded struct {
	net.Listener
	by     *Doorkeeper
	secure bool
}

func (g *guarded) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &visitor{Conn: c, by: g.by, secure: g.secure}, nil
}

// enter counts a connection, or reports that it is one too many.
func (d *Doorkeeper) enter(client, network netip.Prefix) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := d.cfg.MaxConnectionsPerIP; n > 0 && d.open[client] >= n {
		return false
	}
	if n := d.cfg.MaxConnectionsPerNetwork; n > 0 && d.open[network] >= n {
		return false
	}
	d.open[client]++
	d.open[network]++
	return true
}

func (d *Doorkeeper) leave(prefixes ...netip.Prefix) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range prefixes {
		if d.open[p]--; d.open[p] == 0 {
			delete(d.open, p)
		}
	}
}

// visitor is one connection. Who it is may stand in a PROXY header, so nobody
// knows before it is read from.
type visitor struct {
	net.Conn
	by     *Doorkeeper
	secure bool

	mu              sync.Mutex
	known, gone     bool         // guarded by mu, as all below
	client, network netip.Prefix // counted, when they are valid
	inside          bool         // a request is being served: what is read is its body
	header          int64        // octets read of a header section
	held            int64        // memory for it
}

var (
	errTooMany  = errors.New("too many connections from this address")
	errNoMemory = errors.New("too many long header sections")
)

// Read reads for net/http, which closes the connection after an error.
func (v *visitor) Read(p []byte) (int, error) {
	if err := v.meet(); err != nil {
		return 0, v.turnAway(err)
	}
	n, err := v.Conn.Read(p)
	if took := v.charge(int64(n)); took != nil {
		return 0, v.turnAway(took)
	}
	return n, err
}

// meet finds out who it is, once.
func (v *visitor) meet() error {
	v.mu.Lock()
	known := v.known
	v.mu.Unlock()
	if known {
		return nil
	}
	client, network := netip.Prefix{}, netip.Prefix{}
	if remote, err := netip.ParseAddrPort(v.RemoteAddr().String()); err == nil { // it may wait for a PROXY header
		one, many := 32, 24
		addr := remote.Addr().Unmap().WithZone("")
		if addr.Is6() { // what a customer gets, and a site
			one, many = 64, 48
		}
		client, network = netip.PrefixFrom(addr, one).Masked(), netip.PrefixFrom(addr, many).Masked()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gone {
		return net.ErrClosed
	}
	if !v.by.enter(client, network) {
		return errTooMany
	}
	v.known, v.client, v.network = true, client, network
	return nil
}

// charge takes memory for n octets more of a header section.
func (v *visitor) charge(n int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.inside || v.gone {
		return nil
	}
	v.header += n
	more := headerFactor*(v.header-freeHeader) - v.held
	if more <= 0 {
		return nil
	}
	if v.by.headers.Add(more) > v.by.cfg.MemoryBytes/headerPart {
		v.by.headers.Add(-more)
		return errNoMemory
	}
	v.held += more
	return nil
}

// turnAway says why, where that can be read.
func (v *visitor) turnAway(why error) error {
	if !v.secure && v.SetWriteDeadline(time.Now().Add(time.Second)) == nil {
		_, _ = io.WriteString(v.Conn, "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
	}
	return &net.OpError{Op: "read", Net: "tcp", Addr: v.Conn.RemoteAddr(), Err: why}
}

// serve says that a request begins; what it returns, that it is over.
func (v *visitor) serve() (over func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.inside = true
	return func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.inside, v.header = false, 0
		v.release()
	}
}

// release gives the memory back. v.mu is held.
func (v *visitor) release() {
	v.by.headers.Add(-v.held)
	v.held = 0
}

// Close ends the connection and what it holds.
func (v *visitor) Close() error {
	v.mu.Lock()
	if !v.gone {
		v.gone = true
		v.release()
		if v.known {
			v.by.leave(v.client, v.network)
		}
	}
	v.mu.Unlock()
	return v.Conn.Close()
}

type visitorKey struct{}

// withVisitor puts the visitor, if there is one, where its requests find it.
func withVisitor(ctx context.Context, c net.Conn) context.Context {
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	if v, ok := c.(*visitor); ok {
		return context.WithValue(ctx, visitorKey{}, v)
	}
	return ctx
}

// counting has the header section of a request be charged until it is over.
func counting(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if v, ok := r.Context().Value(visitorKey{}).(*visitor); ok {
			defer v.serve()()
		}
		next.ServeHTTP(w, r)
	})
}
