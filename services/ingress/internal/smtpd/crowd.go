package smtpd

import (
	"net/netip"
	"sync"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

// crowd counts what clients do at this process: connections at a time, and
// new connections and messages in a minute.
type crowd struct {
	mu    sync.Mutex                   // guards what follows
	known map[netip.Prefix]*attendance // by client, and by network
	sweep int                          // known is looked through at this size
}

// attendance is what is counted of one client or network.
type attendance struct {
	connections int
	arrivals    pace
	messages    pace
}

const leastSweep = 1024

func newCrowd() *crowd {
	return &crowd{known: map[netip.Prefix]*attendance{}, sweep: leastSweep}
}

// prefixes of an address: what counts as one client, and its network. A /64
// of IPv6 is what one customer gets, and a /48 what one site gets.
func clientOf(a netip.Addr) (client, network netip.Prefix) {
	one, many := 32, 24
	if a.Is6() {
		one, many = 64, 48
	}
	// An address that is not valid has the zero Prefix: one client of its own.
	client, _ = a.WithZone("").Prefix(one)
	network, _ = a.WithZone("").Prefix(many)
	return client, network
}

// enter counts a connection, or returns the reply that refuses it at a door
// with these limits.
func (c *crowd) enter(a netip.Addr, limits *Config, now time.Time) mail.Reply {
	client, network := clientOf(a)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tidy(now)
	one, many := c.of(client), c.of(network)
	switch {
	case one.connections >= limits.MaxConnectionsPerIP:
		return replyConnectionIP
	case limits.MaxConnectionsPerNetwork > 0 && many.connections >= limits.MaxConnectionsPerNetwork:
		return replyConnectionNetwork
	case !one.arrivals.take(now, limits.ConnectionRate):
		return replyConnectionRate
	}
	one.connections++
	many.connections++
	return mail.Reply{}
}

// leave undoes enter.
func (c *crowd) leave(a netip.Addr, now time.Time) {
	client, network := clientOf(a)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range []netip.Prefix{client, network} {
		c.known[p].connections--
		c.forget(p, now)
	}
}

// message counts a message, or reports that it is one too many.
func (c *crowd) message(a netip.Addr, limits *Config, now time.Time) bool {
	client, _ := clientOf(a)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tidy(now)
	return c.of(client).messages.take(now, limits.MessageRate)
}

// of returns the counts of a prefix. c.mu is held.
func (c *crowd) of(p netip.Prefix) *attendance {
	if a, ok := c.known[p]; ok {
		return a
	}
	a := &attendance{}
	c.known[p] = a
	return a
}

// tidy bounds what is known to about twice what says something. c.mu is held.
func (c *crowd) tidy(now time.Time) {
	if len(c.known) < c.sweep {
		return
	}
	for p := range c.known {
		c.forget(p, now)
	}
	c.sweep = max(leastSweep, 2*len(c.known))
}

// forget drops counts that say nothing any more. c.mu is held.
func (c *crowd) forget(p netip.Prefix, now time.Time) {
	if a := c.known[p]; a.connections == 0 && !a.arrivals.due.After(now) && !a.messages.due.After(now) {
		delete(c.known, p)
	}
}

// pace is a GCRA (ITU-T I.371): n in a minute on average, and up to n at once.
type pace struct{ due time.Time }

// take counts one, or reports that it is one too many. 0 a minute: no limit.
func (p *pace) take(now time.Time, perMinute int) bool {
	if perMinute == 0 {
		return true
	}
	interval := time.Minute / time.Duration(perMinute)
	if p.due.Before(now) {
		p.due = now
	}
	if p.due.Add(interval).Sub(now) > time.Minute {
		return false
	}
	p.due = p.due.Add(interval)
	return true
}
