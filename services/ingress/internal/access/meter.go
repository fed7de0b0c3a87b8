package access

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/postrider/postrider/pkg/store"
)

const (
	flushEvery  = time.Second
	forgetEvery = 10 * time.Minute
	scramEvery  = 5 * time.Second
	idleAfter   = time.Minute // an account that nobody used is read again when somebody does
	flushWithin = 5 * time.Second
)

// meter counts what is taken from tenants and their credentials.
type meter struct {
	store accessStore

	// writing is held by who talks to Postgres about usage, so that a sum
	// that was read never holds what is still counted as not written.
	writing chan struct{}

	mu       sync.Mutex
	accounts map[accountKey]*account // guarded by mu
}

// accountKey names an account: of a credential, or of a whole tenant.
type accountKey struct {
	day        time.Time
	tenant     string
	credential string // "": of the tenant
}

// account is what was taken on a day.
type account struct {
	written store.Usage // by all processes, as Postgres said last
	flying  amount      // being written
	pending amount      // to be written
	rate    *rate       // outlives the day
	used    time.Time
	loaded  bool // written is known
}

type amount struct{ messages, recipients, bytes int64 }

func (a amount) plus(b amount) amount {
	return amount{a.messages + b.messages, a.recipients + b.recipients, a.bytes + b.bytes}
}

func newMeter(db accessStore) *meter {
	return &meter{store: db, writing: make(chan struct{}, 1), accounts: map[accountKey]*account{}}
}

// Take counts one message against the rates and quotas of the identity, or
// returns a *QuotaError and counts nothing. Of an identity without a tenant
// nothing is counted.
func (k *Keeper) Take(ctx context.Context, id Identity, recipients int, bytes int64) error {
	if id.Tenant == "" {
		return nil
	}
	err := id.Fits(recipients, bytes)
	if err == nil {
		err = k.meter.take(ctx, id.grant, amount{1, int64(recipients), bytes})
	}
	k.metrics.take(err)
	return err
}

// GiveBack undoes Take for a message that was not accepted after all, but for
// the rates.
func (k *Keeper) GiveBack(id Identity, recipients int, bytes int64) {
	if id.Tenant == "" {
		return
	}
	m := k.meter
	m.mu.Lock()
	defer m.mu.Unlock()
	own, tenant := m.pair(time.Now(), id.grant)
	back := amount{-1, -int64(recipients), -bytes}
	own.pending, tenant.pending = own.pending.plus(back), tenant.pending.plus(back)
}

func (m *meter) take(ctx context.Context, g store.Grant, want amount) error {
	now := time.Now()
	if g.Tenant.Suspended(now) {
		return &QuotaError{
			Text:       "sending is suspended until " + g.Tenant.SuspendedUntil.UTC().Format("2006-01-02 15:04:05 MST"),
			RetryAfter: g.Tenant.SuspendedUntil.Sub(now),
		}
	}
	if err := m.load(ctx, now, g); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	own, tenant := m.pair(now, g)
	own.used, tenant.used = now, now
	for _, c := range []struct {
		account *account
		limits  store.Limits
		of      string
	}{{own, g.Credential.Limits, "credential"}, {tenant, g.Tenant.Limits, "tenant"}} {
		if err := c.account.refuse(now, c.limits, want, c.of); err != nil {
			return err
		}
	}
	own.rate.take(now, g.Credential.Limits.MessagesPerSecond)
	tenant.rate.take(now, g.Tenant.Limits.MessagesPerSecond)
	own.pending, tenant.pending = own.pending.plus(want), tenant.pending.plus(want)
	return nil
}

// refuse says why the account has no room for want, or nil.
func (a *account) refuse(now time.Time, limits store.Limits, want amount, of string) error {
	local := a.flying.plus(a.pending).plus(want)
	tomorrow := day(now).Add(24 * time.Hour).Sub(now)
	switch wait := a.rate.wait(now, limits.MessagesPerSecond); {
	case limits.RecipientsPerDay > 0 && a.written.Recipients+local.recipients > limits.RecipientsPerDay:
		return &QuotaError{Text: fmt.Sprintf("over the %s's quota of %d recipients a day", of, limits.RecipientsPerDay), RetryAfter: tomorrow}
	case limits.BytesPerDay > 0 && a.written.Bytes+local.bytes > limits.BytesPerDay:
		return &QuotaError{Text: fmt.Sprintf("over the %s's quota of %d bytes a day", of, limits.BytesPerDay), RetryAfter: tomorrow}
	case wait > 0:
		return &QuotaError{Text: fmt.Sprintf("over the %s's rate of %g messages a second", of, limits.MessagesPerSecond), RetryAfter: wait}
	}
	return nil
}

// pair returns the accounts of a credential and its tenant. m.mu is held.
func (m *meter) pair(now time.Time, g store.Grant) (own, tenant *account) {
	key := accountKey{day(now), g.Tenant.Name, g.Credential.Name}
	return m.account(key), m.account(key.ofTenant())
}

// account returns an account, new if need be. m.mu is held.
func (m *meter) account(key accountKey) *account {
	a := m.accounts[key]
	if a == nil {
		a = &account{rate: &rate{}, used: time.Now()}
		yesterday := key
		yesterday.day = key.day.Add(-24 * time.Hour)
		if before := m.accounts[yesterday]; before != nil {
			a.rate = before.rate
		}
		m.accounts[key] = a
	}
	return a
}

func (k accountKey) ofTenant() accountKey { return accountKey{k.day, k.tenant, ""} }

func (k accountKey) usage(a amount) store.Usage {
	return store.Usage{Day: k.day, Tenant: k.tenant, Credential: k.credential, Messages: a.messages, Recipients: a.recipients, Bytes: a.bytes}
}

// load reads the accounts of a credential that is used for the first time.
func (m *meter) load(ctx context.Context, now time.Time, g store.Grant) error {
	loaded := func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		own, tenant := m.pair(now, g)
		return own.loaded && tenant.loaded
	}
	if loaded() {
		return nil
	}
	return m.alone(ctx, func() error {
		if loaded() { // by another session, while we waited
			return nil
		}
		return m.write(ctx, []accountKey{{day(now), g.Tenant.Name, g.Credential.Name}}, []amount{{}})
	})
}

// alone runs f while nobody else talks to Postgres about usage.
func (m *meter) alone(ctx context.Context, f func() error) error {
	select {
	case m.writing <- struct{}{}:
		defer func() { <-m.writing }()
		return f()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// write adds amounts to accounts of credentials, and keeps the sums.
func (m *meter) write(ctx context.Context, keys []accountKey, amounts []amount) error {
	add := make([]store.Usage, len(keys))
	for i, key := range keys {
		add[i] = key.usage(amounts[i])
	}
	own, tenants, err := m.store.AddUsage(ctx, add)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, key := range keys {
		for key, sum := range map[accountKey]store.Usage{key: own[i], key.ofTenant(): tenants[i]} {
			a := m.account(key)
			a.written, a.loaded, a.flying = sum, true, amount{}
		}
	}
	return nil
}

// flush writes what was taken, reads what other processes took, and drops the
// accounts that nobody uses.
func (m *meter) flush(ctx context.Context) error {
	return m.alone(ctx, func() error {
		keys, amounts := m.depart()
		if len(keys) == 0 {
			return nil
		}
		err := m.write(ctx, keys, amounts)
		if err != nil {
			m.stay()
		}
		return err
	})
}

// depart moves what is pending to flying.
func (m *meter) depart() (keys []accountKey, amounts []amount) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, a := range m.accounts {
		if a.pending == (amount{}) && now.Sub(a.used) > idleAfter && a.rate.due.Before(now) {
			delete(m.accounts, key)
			continue
		}
		a.flying, a.pending = a.pending, amount{}
		if key.credential != "" {
			keys, amounts = append(keys, key), append(amounts, a.flying)
		}
	}
	return keys, amounts
}

// stay undoes depart.
func (m *meter) stay() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.accounts {
		a.pending, a.flying = a.pending.plus(a.flying), amount{}
	}
}

// Run writes what was taken to Postgres until ctx is done, and once more
// then: it must outlive the sessions.
func (k *Keeper) Run(ctx context.Context) error {
	flush, forget, scram := time.NewTicker(flushEvery), time.NewTicker(forgetEvery), time.NewTicker(scramEvery)
	defer flush.Stop()
	defer forget.Stop()
	defer scram.Stop()
	k.lookForSCRAM(ctx)
	failing := false
	for {
		select {
		case <-ctx.Done():
			if err := k.flush(context.WithoutCancel(ctx)); err != nil {
				slog.Error("access: usage since the last second is not counted", "error", err)
			}
			return nil
		case <-flush.C:
			err := k.flush(ctx)
			if err != nil && !failing && ctx.Err() == nil {
				slog.Warn("access: usage cannot be written; it is kept", "error", err)
			}
			failing = err != nil
		case <-scram.C:
			k.lookForSCRAM(ctx)
		case <-forget.C:
			if _, err := k.store.ForgetAuth(ctx, time.Now().Add(-knownFor)); err != nil && ctx.Err() == nil {
				slog.Warn("access: old failures to authenticate cannot be dropped", "error", err)
			}
		}
	}
}

func (k *Keeper) flush(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, flushWithin)
	defer cancel()
	return k.meter.flush(ctx)
}

// day is the day of a moment, UTC.
func day(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }
