package delivery

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

// The faults that are remembered.
const (
	faultStartTLS = "starttls"
	faultHello    = "large hello"
)

// rereadBroken is how soon workers know what others saw, and what operators
// had forgotten.
const rereadBroken = 5 * time.Second

// sessionsKept is how many TLS sessions a process keeps to resume them.
const sessionsKept = 1024

// otherAttempt is how long after the first failure another one counts as one
// more: connections that break together have one cause.
const otherAttempt = time.Minute

// maxSuspects bounds what is suspected; suspectFor is for how long.
const (
	maxSuspects = 10_000
	suspectFor  = 24 * time.Hour
)

// brokenTLS is what the cluster remembers of addresses whose TLS is broken,
// and what this worker suspects of some more.
type brokenTLS struct {
	store *store.Store

	mu        sync.Mutex
	faults    map[netip.AddrPort]string // guarded by mu
	suspected map[suspect]time.Time     // guarded by mu: since when
}

// suspect is a fault that was seen at an address.
type suspect struct {
	addr  netip.AddrPort
	fault string
}

// seen notes a fault in an attempt that began at a time, and returns since
// when it is suspected.
func (b *brokenTLS) seen(addr netip.AddrPort, fault string, began time.Time) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := suspect{addr, fault}
	since, known := b.suspected[s]
	if known && began.Sub(since) < suspectFor {
		return since
	}
	if len(b.suspected) >= maxSuspects {
		maps.DeleteFunc(b.suspected, func(_ suspect, since time.Time) bool { return began.Sub(since) >= suspectFor })
	}
	if len(b.suspected) < maxSuspects {
		b.suspected[s] = began
	}
	return began
}

// well says that a fault is none.
func (b *brokenTLS) well(addr netip.AddrPort, fault string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.suspected, suspect{addr, fault})
}

// run rereads what is remembered until ctx is done.
func (b *brokenTLS) run(ctx context.Context) error {
	failing := false
	for ctx.Err() == nil {
		read, cancel := context.WithTimeout(ctx, storeWithin)
		all, err := b.store.BrokenTLS(read)
		cancel()
		if err == nil {
			faults := make(map[netip.AddrPort]string, len(all))
			for _, a := range all {
				faults[a.Address] = a.Fault
			}
			b.mu.Lock()
			b.faults = faults
			b.mu.Unlock()
		} else if !failing && ctx.Err() == nil {
			slog.Warn("what is remembered of broken TLS cannot be read; the last of it holds", "error", err)
		}
		failing = err != nil
		sleep(ctx, rereadBroken)
	}
	return nil
}

func (b *brokenTLS) at(addr netip.AddrPort) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.faults[addr]
}

// tlsRetry is how the TLS of one address has failed in this attempt.
type tlsRetry struct {
	small, plain bool
	evidence     error
}

func (r tlsRetry) again() bool { return r.small || r.plain }

// tlsOptions are the options of a dial under the session's demand. What is
// remembered of an address counts under no demand but mail.TLSMay; that a
// smaller ClientHello helps there takes nothing away.
func (a *attempt) tlsOptions(addr netip.AddrPort, retry tlsRetry) smtpclient.Options {
	fault := a.broken.at(addr)
	o := smtpclient.Options{
		TLS: a.demand.level, TLSA: a.demand.records, Names: a.demand.names, TLSConfig: a.tls,
		SmallHello: retry.small || fault == faultHello,
		Witness:    a.job.request.Route.Report != nil && a.job.request.Route.STS == mail.STSTesting,
	}
	if a.demand.level == mail.TLSMay && (retry.plain || fault == faultStartTLS) {
		o.TLS = mail.TLSNone
	}
	return o
}

// evidence says what TLS failed with.
func evidence(answer smtpclient.Answer) error {
	if answer.Err != nil {
		return answer.Err
	}
	return errors.New(answer.Reply.String())
}

// mayPlain reports whether the mail may leave in plaintext if TLS fails at an
// address: it is old enough, and TLS failed there in an earlier attempt.
func (a *attempt) mayPlain(addr netip.AddrPort, answer smtpclient.Answer, small bool) bool {
	if answer.Phase != mail.PhaseStartTLS || errors.Is(answer.Err, smtpclient.ErrHandshake) && !small {
		return false // a smaller ClientHello comes first
	}
	after := a.config.PlainAfter
	since := a.broken.seen(addr, faultStartTLS, a.began)
	return time.Since(a.job.request.Message.AcceptedAt) >= after && a.began.Sub(since) >= min(after, otherAttempt)
}

// rememberTLS remembers what had to be left out for the host to greet, once
// more than one attempt has shown it.
func (a *attempt) rememberTLS(t target, retry tlsRetry) {
	secure := a.conn.TLS() != ""
	if secure {
		a.broken.well(t.addr, faultStartTLS)
	}
	switch {
	case !retry.again() && secure:
		a.broken.well(t.addr, faultHello)
		return
	case !retry.again(), !retry.plain && !secure:
		return // STARTTLS was not offered this time: nothing was shown
	case !retry.plain && a.began.Sub(a.broken.seen(t.addr, faultHello, a.began)) < min(a.config.PlainAfter, otherAttempt):
		return
	}
	b := store.BrokenTLS{Address: t.addr, Host: t.host.Name, Fault: faultHello, Evidence: retry.evidence.Error()}
	if retry.plain {
		b.Fault = faultStartTLS
	}
	a.broken.mu.Lock()
	if a.broken.faults == nil {
		a.broken.faults = map[netip.AddrPort]string{}
	}
	a.broken.faults[t.addr] = b.Fault
	a.broken.mu.Unlock()
	ctx, cancel := context.WithTimeout(a.ctx, storeWithin)
	defer cancel()
	if err := a.broken.store.RememberBrokenTLS(ctx, b); err != nil {
		slog.WarnContext(ctx, "broken TLS of a host is not remembered", "worker_id", a.id, "host", b.Host, "error", err)
		return
	}
	slog.InfoContext(ctx, "TLS of a host is broken", "worker_id", a.id, "host", b.Host, "address", t.addr, "fault", b.Fault, "evidence", b.Evidence)
}

// forgetTLS forgets that TLS is broken where the host wants nothing else.
func (a *attempt) forgetTLS() {
	addr := a.target.addr
	a.broken.well(addr, faultStartTLS)
	a.broken.mu.Lock()
	_, remembered := a.broken.faults[addr]
	delete(a.broken.faults, addr)
	a.broken.mu.Unlock()
	if !remembered {
		return
	}
	ctx, cancel := context.WithTimeout(a.ctx, storeWithin)
	defer cancel()
	if err := a.broken.store.ForgetBrokenTLSAt(ctx, addr); err != nil {
		slog.WarnContext(ctx, "a host wants TLS, and that it was broken is not forgotten", "worker_id", a.id, "host", a.target.host.Name, "error", err)
	}
}
