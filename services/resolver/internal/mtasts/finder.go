package mtasts

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/postrider/postrider/pkg/store"
)

const (
	// failedFor is how long a fetch that failed is not repeated: RFC 8461
	// §3.3.
	failedFor = 5 * time.Minute
	// maxFailed bounds how many failures are remembered.
	maxFailed = 10_000
	// refreshEvery is how often policies are looked for that are to be
	// fetched again, refreshAtOnce how many are taken then.
	refreshEvery  = time.Minute
	refreshAtOnce = 20
)

// Finding is what is known of the policy of a domain.
type Finding struct {
	Policy    Policy    // Mode is "" or none if there is nothing to obey
	Fault     string    // why the policy that the domain has now could not be had: a word of RFC 8460 §4.3, for reports
	LookAgain time.Time // zero: with the next look at the TXT record
}

// keeper is the store.
type keeper interface {
	STSPolicy(ctx context.Context, domain string) (store.STSPolicy, error)
	SaveSTSPolicy(ctx context.Context, p store.STSPolicy) (time.Time, error)
	StaleSTSPolicies(ctx context.Context, limit int) ([]store.STSPolicy, error)
}

// Finder finds policies. Its methods are safe for concurrent use.
type Finder struct {
	keeper  keeper
	fetcher fetcher

	mu     sync.Mutex
	failed map[string]failure // guarded by mu; by domain and id
}

type failure struct {
	fault string
	until time.Time
}

// New returns a Finder that keeps policies in db and fetches them as cfg says.
func New(db *store.Store, cfg FetchConfig) *Finder {
	return &Finder{keeper: db, fetcher: newFetcher(cfg), failed: map[string]failure{}}
}

// Policy implements mx.Policies.
func (f *Finder) Policy(ctx context.Context, domain, id string) (Finding, error) {
	kept, err := f.keeper.STSPolicy(ctx, domain)
	have := err == nil
	switch {
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return Finding{}, err
	case id == "" && !have:
		return Finding{}, nil
	case have && (id == "" || id == kept.ID):
		return found(kept), nil
	}
	fresh, fault := f.fetch(ctx, domain, id)
	switch {
	case fault == nil:
		return f.keep(ctx, domain, id, fresh)
	case have: // RFC 8461 §3.3: the one from before holds
		finding := found(kept)
		finding.Fault, finding.LookAgain = fault.fault, fault.until
		return finding, nil
	}
	return Finding{Fault: fault.fault, LookAgain: fault.until}, nil
}

func found(p store.STSPolicy) Finding {
	return Finding{Policy: Policy{Mode: Mode(p.Mode), MX: p.MX, MaxAge: p.MaxAge, Text: p.Text}, LookAgain: p.ExpiresAt}
}

func (f *Finder) keep(ctx context.Context, domain, id string, p Policy) (Finding, error) {
	expires, err := f.keeper.SaveSTSPolicy(ctx, store.STSPolicy{Domain: domain, ID: id, Mode: string(p.Mode), MX: p.MX, Text: p.Text, MaxAge: p.MaxAge})
	return Finding{Policy: p, LookAgain: expires}, err
}

// fetch fetches a policy unless that has failed a moment ago.
func (f *Finder) fetch(ctx context.Context, domain, id string) (Policy, *failure) {
	key := domain + " " + id
	f.mu.Lock()
	last, again := f.failed[key]
	f.mu.Unlock()
	if again && time.Now().Before(last.until) {
		return Policy{}, &last
	}
	p, err := f.fetcher.fetch(ctx, domain)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		delete(f.failed, key)
		return p, nil
	}
	slog.InfoContext(ctx, "MTA-STS policy cannot be had", "domain", domain, "error", err)
	if len(f.failed) >= maxFailed {
		clear(f.failed) // asked again too early at worst
	}
	last = failure{fault: faultOf(err), until: time.Now().Add(failedFor)}
	f.failed[key] = last
	return Policy{}, &last
}

// Refresh fetches kept policies again, day by day, until ctx is done.
func (f *Finder) Refresh(ctx context.Context) error {
	ticker := time.NewTicker(refreshEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := f.refreshOnce(ctx); err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "MTA-STS policies cannot be refreshed", "error", err)
		}
	}
}

func (f *Finder) refreshOnce(ctx context.Context) error {
	stale, err := f.keeper.StaleSTSPolicies(ctx, refreshAtOnce)
	if err != nil {
		return err
	}
	for _, old := range stale {
		fresh, err := f.fetcher.fetch(ctx, old.Domain)
		if err != nil {
			slog.InfoContext(ctx, "MTA-STS policy cannot be refreshed; the one from before holds", "domain", old.Domain, "expires_at", old.ExpiresAt, "error", err)
			continue
		}
		if _, err := f.keep(ctx, old.Domain, old.ID, fresh); err != nil {
			return fmt.Errorf("refresh: %w", err)
		}
	}
	return nil
}
