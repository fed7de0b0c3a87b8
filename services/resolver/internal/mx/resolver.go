package mx

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/inside"
	"github.com/postrider/postrider/pkg/mail"
)

// Config says whom to ask and what to refuse. The zero value of a field
// means its default.
type Config struct {
	Servers         []string       // "ip" or "ip:port"; none: /etc/resolv.conf
	OwnNames        []string       // of this mail system; MX records that lead back to one are loops
	OwnAddresses    []netip.Prefix // the same for addresses
	TrustAD         bool           // the servers validate DNSSEC, and nobody can forge what they say
	STS             Policies       // finds MTA-STS policies; nil: nobody looks
	TLSReports      bool           // find out which domains want reports on TLS
	Port            uint16         // of MX hosts; default 25
	Allow           []netip.Prefix // inside networks that may be relayed to all the same
	AddressLiterals bool           // relay to domains such as [192.0.2.1]
	Timeout         time.Duration  // of one query to one server; default 5 s; a look-up gives up after 6 times that
	Concurrency     int            // queries open at once; default 512
	CacheSize       int            // names kept; default 50,000
}

// Resolver finds plans. Its methods are safe for concurrent use.
type Resolver struct {
	cfg     Config
	self    self
	ttl     ttlBounds
	client  *client
	answers *memo[answer] // by type and name: hosts shared by many domains are asked for once
	plans   *memo[Result] // by domain
	alive   context.Context
	stop    context.CancelFunc
}

// New returns a Resolver. Errors: a server that is no address, or none at all.
func New(cfg Config) (*Resolver, error) {
	cfg.Port = or(cfg.Port, 25)
	cfg.Timeout = or(cfg.Timeout, 5*time.Second)
	cfg.Concurrency = or(cfg.Concurrency, 512)
	cfg.CacheSize = or(cfg.CacheSize, 50_000)
	client, err := newClient(cfg)
	if err != nil {
		return nil, err
	}
	answers, err := newMemo[answer](cfg.CacheSize)
	if err != nil {
		return nil, fmt.Errorf("cache of answers: %w", err)
	}
	plans, err := newMemo[Result](cfg.CacheSize)
	if err != nil {
		return nil, fmt.Errorf("cache of plans: %w", err)
	}
	r := &Resolver{
		cfg: cfg, self: newSelf(cfg.OwnNames, cfg.OwnAddresses), ttl: usualTTL,
		client: client, answers: answers, plans: plans,
	}
	r.alive, r.stop = context.WithCancel(context.Background())
	return r, nil
}

// Close ends look-ups that still run. A closed Resolver finds nothing.
func (r *Resolver) Close() {
	r.stop()
	r.answers.entries.StopAllGoroutines()
	r.plans.entries.StopAllGoroutines()
}

// Known returns the result of an earlier Lookup whose TTL has not ended.
func (r *Resolver) Known(domain mail.Domain) (Result, bool) { return r.plans.known(string(domain)) }

// KnownSmartHosts is Known for SmartHosts.
func (r *Resolver) KnownSmartHosts(hosts []string) (Result, bool) {
	return r.plans.known(smartHostsKey(hosts))
}

// No domain has a space.
func smartHostsKey(hosts []string) string { return "smart hosts " + strings.Join(hosts, " ") }

// Lookup finds the way to a domain. The error is that of ctx; what DNS says
// or fails to say is in the Result.
func (r *Resolver) Lookup(ctx context.Context, domain mail.Domain) (Result, error) {
	return r.result(ctx, string(domain), func(ctx context.Context) (Result, time.Time) { return r.find(ctx, domain) })
}

// SmartHosts finds the way to hosts that an operator chose, "host:port" or
// "[host]:port" in the order to be tried. MX records do not count. Every
// trouble with them is transient: a slip of the operator or of our DNS must
// not send mail back.
func (r *Resolver) SmartHosts(ctx context.Context, hosts []string) (Result, error) {
	return r.result(ctx, smartHostsKey(hosts), func(ctx context.Context) (Result, time.Time) { return r.findSmartHosts(ctx, hosts) })
}

// result finds what is not known yet, in a time that is bounded for all who
// wait for it.
func (r *Resolver) result(ctx context.Context, key string, find func(context.Context) (Result, time.Time)) (Result, error) {
	res, err := r.plans.get(ctx, key, func() (Result, time.Time) {
		ctx, cancel := context.WithTimeout(r.alive, 6*r.cfg.Timeout)
		defer cancel()
		return find(ctx)
	})
	if err == nil {
		err = r.alive.Err() // a look-up that was ended by Close found nothing out
	}
	return res, err
}

// ask returns the checked answer for a name and type, from memory or DNS,
// chasing aliases that the server did not.
func (r *Resolver) ask(ctx context.Context, name string, qtype uint16) answer {
	a := r.askOnce(ctx, name, qtype)
	expires, secure := a.expires, a.secure
	for hops := 0; a.verdict == alias; hops++ {
		if hops == maxAliases {
			return answer{why: tooManyAliases, expires: time.Now().Add(r.ttl.failure)}
		}
		a = r.askOnce(ctx, a.name, qtype)
		a.expires = earlier(expires, a.expires)
		a.secure = secure && a.secure
		expires, secure = a.expires, a.secure
	}
	return a
}

func (r *Resolver) askOnce(ctx context.Context, name string, qtype uint16) answer {
	a, err := r.answers.get(ctx, dns.TypeToString[qtype]+" "+name, func() (answer, time.Time) {
		begin := time.Now()
		reply, err := r.client.exchange(r.alive, name, qtype)
		a, keep := answer{}, r.ttl.failure
		if err != nil {
			a.why = err.Error()
		} else {
			a, keep = interpret(name, qtype, reply, r.ttl)
		}
		observe(qtype, a.verdict, time.Since(begin))
		a.expires = time.Now().Add(keep)
		return a, a.expires
	})
	if err != nil {
		return answer{why: "DNS did not answer in time", expires: time.Now().Add(r.ttl.failure)}
	}
	return a
}

// addresses is what DNS says of the addresses of one host.
type addresses struct {
	v4, v6  []netip.Addr // that may be connected to
	refused int          // that may not
	own     bool         // one of them is ours
	unknown string       // why a family could not be looked up; "" if both could
	name    string       // behind all aliases
	secure  bool         // DNSSEC vouches for every address that is known, and for the aliases
	expires time.Time    // when to look again
	valid   time.Time    // until when the addresses hold
}

// usable reports whether there is an address to connect to.
func (a addresses) usable() bool { return len(a.v4)+len(a.v6) > 0 }

// lookupHosts returns the addresses of each name, asking for all at once:
// the client bounds how many questions are open. An address has itself.
func (r *Resolver) lookupHosts(ctx context.Context, names []string) []addresses {
	hosts := make([]addresses, len(names))
	families := make([][2]answer, len(names))
	var g errgroup.Group
	for i, name := range names {
		if addr, ok := literal(name); ok {
			known := answer{verdict: found, name: name, addrs: []netip.Addr{addr}, expires: time.Now().Add(r.ttl.max)}
			families[i] = [2]answer{known, {verdict: noData, name: name, expires: known.expires}}
			continue
		}
		for f, qtype := range [2]uint16{dns.TypeA, dns.TypeAAAA} {
			g.Go(func() error {
				families[i][f] = r.ask(ctx, name, qtype)
				return nil
			})
		}
	}
	_ = g.Wait() // no function above fails
	for i, pair := range families {
		hosts[i].expires = earlier(pair[0].expires, pair[1].expires)
		hosts[i].name = pair[0].name
		if pair[0].verdict != found && pair[1].verdict == found {
			hosts[i].name = pair[1].name
		}
		// A family that could not be looked up says nothing of the other: if it
		// did, whoever spoils one answer would turn DANE off (RFC 7672 §2.1.1).
		hosts[i].secure = (pair[0].secure || pair[0].verdict == unknown) && (pair[1].secure || pair[1].verdict == unknown)
		hosts[i].valid = time.Now().Add(r.ttl.max)
		for _, a := range pair {
			if a.verdict == found {
				hosts[i].valid = earlier(hosts[i].valid, a.expires)
			}
			if a.verdict == unknown {
				hosts[i].unknown = a.why
			}
			for _, addr := range a.addrs {
				hosts[i].own = hosts[i].own || r.self.has(addr)
				hosts[i].take(addr, r.cfg.Allow)
			}
		}
	}
	return hosts
}

// take adds one address, or counts it as refused.
func (a *addresses) take(addr netip.Addr, allow []netip.Prefix) {
	switch addr = addr.Unmap(); {
	case inside.Refuses(addr, allow):
		a.refused++
	case addr.Is4():
		a.v4 = append(a.v4, addr)
	default:
		a.v6 = append(a.v6, addr)
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func or[T comparable](value, unset T) T {
	var zero T
	if value == zero {
		return unset
	}
	return value
}
