package access

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
)

func (w *world) limit(tenant, credential store.Limits) {
	w.t.Helper()
	w.must(w.store.ChangeTenant(w.t.Context(), "acme", func(t *store.Tenant) error { t.Limits = tenant; return nil }))
	w.must(w.store.ChangeCredential(w.t.Context(), "key", func(c *store.Credential) error { c.Limits = credential; return nil }))
}

func (w *world) identity(k *Keeper) Identity {
	w.t.Helper()
	id, err := k.APIKey(w.t.Context(), here, w.apiKey)
	w.must(err)
	return id
}

func overQuota(err error, text string) bool {
	var q *QuotaError
	return errors.As(err, &q) && strings.Contains(q.Error(), text) && q.RetryAfter > 0
}

func TestQuotas(t *testing.T) {
	w := setup(t, storetest.New(t))
	for name, c := range map[string]struct {
		tenant, credential store.Limits
		text               string
	}{
		"tenant recipients":     {store.Limits{RecipientsPerDay: 10}, store.Limits{}, "tenant's quota of 10 recipients"},
		"credential recipients": {store.Limits{RecipientsPerDay: 100}, store.Limits{RecipientsPerDay: 10}, "credential's quota of 10 recipients"},
		"tenant bytes":          {store.Limits{BytesPerDay: 1000}, store.Limits{}, "tenant's quota of 1000 bytes"},
		"credential bytes":      {store.Limits{}, store.Limits{BytesPerDay: 1000}, "credential's quota of 1000 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			w.exec("DELETE FROM postrider.usage")
			w.limit(c.tenant, c.credential)
			a, b := w.keeper(), w.keeper()
			id := w.identity(a)
			w.must(a.Take(t.Context(), id, 6, 600))
			if err := a.Take(t.Context(), id, 5, 500); !overQuota(err, c.text) {
				t.Errorf("over the quota: %v", err)
			}
			w.must(a.flush(t.Context()))
			if err := b.Take(t.Context(), id, 5, 500); !overQuota(err, c.text) {
				t.Errorf("over the quota at another ingress: %v", err)
			}
			w.must(b.Take(t.Context(), id, 4, 400))
			if err := b.Take(t.Context(), id, 1, 1); !overQuota(err, c.text) {
				t.Errorf("over the full quota: %v", err)
			}
			b.GiveBack(id, 4, 400)
			w.must(b.Take(t.Context(), id, 3, 300))
			w.must(b.flush(t.Context()))
			w.must(a.flush(t.Context()))
			if err := a.Take(t.Context(), id, 2, 200); !overQuota(err, c.text) {
				t.Errorf("what the other took is not seen: %v", err)
			}
			w.must(a.Take(t.Context(), id, 1, 100))
		})
	}
}

// What many sessions of several processes take is what Postgres says in the
// end, to the message.
func TestUsageIsExact(t *testing.T) {
	w := setup(t, storetest.New(t))
	ctx, stop := context.WithCancel(t.Context())
	var running, taking sync.WaitGroup
	for range 2 {
		k := w.keeper()
		id := w.identity(k)
		running.Go(func() {
			if err := k.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		for range 4 {
			taking.Go(func() {
				for range 60 {
					if err := k.Take(t.Context(), id, 2, 10); err != nil {
						t.Error(err)
					}
				}
				for range 10 {
					k.GiveBack(id, 2, 10)
				}
			})
		}
	}
	taking.Wait()
	stop()
	running.Wait()
	used, err := w.store.UsageOf(t.Context(), time.Now())
	w.must(err)
	if len(used) != 1 || used[0].Messages != 400 || used[0].Recipients != 800 || used[0].Bytes != 4000 {
		t.Errorf("taken 400, used %+v", used)
	}
}

func TestSuspension(t *testing.T) {
	w := setup(t, storetest.New(t))
	w.must(w.store.ChangeTenant(t.Context(), "acme", func(tn *store.Tenant) error {
		tn.SuspendedUntil, tn.SuspendReason = time.Now().Add(time.Hour), "secret\r\nreason"
		return nil
	}))
	k := w.keeper()
	err := k.Take(t.Context(), w.identity(k), 1, 1)
	if !overQuota(err, "suspended until 20") || strings.Contains(err.Error(), "reason") {
		t.Errorf("suspended: %v", err)
	}
	w.must(k.Take(t.Context(), Network(), 1, 1))
	k.GiveBack(Network(), 1, 1)
}

func TestRateOfMessages(t *testing.T) {
	w := setup(t, storetest.New(t))
	w.limit(store.Limits{MessagesPerSecond: 1000}, store.Limits{MessagesPerSecond: 0.01})
	k := w.keeper()
	id := w.identity(k)
	w.must(k.Take(t.Context(), id, 1, 1))
	err := k.Take(t.Context(), id, 1, 1)
	var q *QuotaError
	if !overQuota(err, "credential's rate of 0.01 messages a second") || !errors.As(err, &q) || q.RetryAfter > 100*time.Second || q.RetryAfter < 90*time.Second {
		t.Errorf("second message: %v", err)
	}
}

// In no window does a rate let more through than a second's worth and what
// the window allows; and it lets that much through.
func TestRateIsExact(t *testing.T) {
	for _, perSecond := range []float64{0.1, 0.5, 1, 2.5, 10, 1000} {
		var r rate
		start := time.Now()
		var taken []time.Time
		length := time.Duration(50 / perSecond * float64(time.Second))
		for now := start; now.Sub(start) < length; now = now.Add(time.Duration(rand.Float64() * 0.2 / perSecond * float64(time.Second))) {
			if r.wait(now, perSecond) == 0 {
				r.take(now, perSecond)
				taken = append(taken, now)
			}
		}
		if n := float64(len(taken)); n < 45 || n > 51+max(1, perSecond) {
			t.Errorf("%g a second: %d in 50 intervals", perSecond, len(taken))
		}
		for i := range taken {
			for j := i; j < len(taken); j++ {
				window := taken[j].Sub(taken[i]).Seconds()
				if n := float64(j - i + 1); n > window*perSecond+max(1, perSecond)+1e-6 {
					t.Fatalf("%g a second: %g in %gs", perSecond, n, window)
				}
			}
		}
	}
	var none rate
	if none.take(time.Now(), 0); none.wait(time.Now(), 0) != 0 {
		t.Error("no rate is a bound")
	}
}

func TestAccountsGo(t *testing.T) {
	w := setup(t, storetest.New(t))
	k := w.keeper()
	id := w.identity(k)
	w.must(k.Take(t.Context(), id, 1, 1))
	if n := len(k.meter.accounts); n != 2 {
		t.Fatalf("%d accounts, want those of the credential and the tenant", n)
	}
	for _, a := range k.meter.accounts {
		a.used = time.Now().Add(-2 * idleAfter)
	}
	w.must(k.flush(t.Context())) // writes them
	w.must(k.flush(t.Context()))
	if n := len(k.meter.accounts); n != 0 {
		t.Errorf("%d accounts left", n)
	}
	k.GiveBack(id, 1, 1)
	w.must(k.flush(t.Context()))
	used, err := w.store.UsageOf(t.Context(), time.Now())
	w.must(err)
	if len(used) != 1 || used[0].Messages != 0 || used[0].Recipients != 0 {
		t.Errorf("used %+v", used)
	}
}

// What no day has room for is told apart from what this day has none for.
func TestWhatNeverFits(t *testing.T) {
	id := Identity{grant: store.Grant{
		Credential: store.Credential{Limits: store.Limits{RecipientsPerDay: 10}},
		Tenant:     store.Tenant{Limits: store.Limits{RecipientsPerDay: 20, BytesPerDay: 1000}},
	}}
	for _, c := range []struct {
		recipients int
		bytes      int64
		fits       bool
	}{{10, 1000, true}, {11, 1, false}, {1, 1001, false}} {
		err := id.Fits(c.recipients, c.bytes)
		var quota *QuotaError
		if c.fits != (err == nil) || err != nil && (!errors.As(err, &quota) || !quota.Never) {
			t.Errorf("%d recipients, %d bytes: %v", c.recipients, c.bytes, err)
		}
	}
	if err := Network().Fits(1<<30, 1<<40); err != nil {
		t.Errorf("a network has no quota: %v", err)
	}
}
