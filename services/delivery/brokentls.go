package delivery

import (
	"context"
	"log/slog"
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

// brokenTLS is what the cluster remembers of addresses whose TLS is broken.
type brokenTLS struct {
	store *store.Store

	mu     sync.Mutex
	faults map[netip.AddrPort]string // guarded by mu
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

// rememberTLS remembers what had to be left out for the host to greet.
func (a *attempt) rememberTLS(t target, retry tlsRetry) {
	if !retry.again() {
		return
	}
	b := store.BrokenTLS{Address: t.addr, Host: t.host.Name, Fault: faultHello, Evidence: retry.evidence.Error()}
	if retry.plain {
		b.Fault = faultStartTLS
	} else if a.conn.TLS() == "" {
		return // STARTTLS was not offered this time: nothing was shown
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
