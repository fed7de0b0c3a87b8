package delivery_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/pkg/store"
)

// blackHole returns an address that answers nothing.
func blackHole(t *testing.T) netip.AddrPort {
	t.Helper()
	at := closedPort(t)
	smtptest.Unanswered(t, at.String())
	return at
}

const oneProvider = `
["default"]
max_connection_rate = "unlimited"
[provider."big"]
match = [{MXSuffix=".test"}]
provider_connection_limit = %d
provider_max_message_rate = "unlimited"
`

// tenants routes so many domains to a host, each by a set of exchangers of its
// own.
func (r *rig) tenants(prefix string, n int, at netip.AddrPort) (domains []mail.Domain) {
	for i := range n {
		d := mail.Domain(fmt.Sprintf("%s%d.test", prefix, i))
		r.route(d, mail.Site("mx."+d).OfProvider("big"), at)
		domains = append(domains, d)
	}
	return domains
}

// TestOneDeadTenantStopsNobody: domains at one provider, which allows five
// connections. The hosts of some answer nothing, those of some refuse. The
// mail of the others leaves while that of the dead waits, and the provider
// never sees more than five.
func TestOneDeadTenantStopsNobody(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	hole := r.tenants("hole", 8, blackHole(t))
	refused := r.tenants("refused", 8, closedPort(t))
	alive := r.tenants("alive", 20, mx.Addr())
	r.start(r.config(fmt.Sprintf(oneProvider, 5)))
	r.settled(1)
	r.conduct()
	for _, d := range append(hole, refused...) {
		r.accept(20, message{domain: d})
	}
	r.ring()
	r.until("the hosts that refuse are known", 30*time.Second, func() bool { return r.parkedFor("refused") > 100 })
	for _, d := range alive {
		r.accept(10, message{domain: d})
	}
	r.ring()
	mx.WaitMessages(t, 200, 30*time.Second)
	if n := mx.HighWater(); n > 5 {
		t.Errorf("the provider saw %d connections at once, the limit is 5", n)
	}
	r.until("200 are relayed and 320 wait", 10*time.Second, func() bool {
		a, err := r.db.Accounting(t.Context())
		return err == nil && a.Relayed == 200 && a.Queued == 320 && a.Unaccounted == 0
	})
	r.until("what is dead is found out with mail that waits for it", 60*time.Second, func() bool {
		rows, err := r.db.Queue(t.Context(), store.Filter{Domain: "hole0.test"}, 100)
		return err == nil && len(rows) == 20 && r.parkedFor("no answer") > 0
	})
}

// TestADeadTenantHasItsTurnUnderALimitOfOne: of a provider that allows one
// connection most mail goes out although hosts of a tenant answer nothing,
// which is tried again and again; and it goes out itself when they are back.
func TestADeadTenantHasItsTurnUnderALimitOfOne(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	flaky := smtptest.Start(t, smtptest.Script{Discard: true, Rules: []smtptest.Rule{{At: smtptest.Banner, Do: smtptest.Drop()}}})
	r.tenants("hole", 3, blackHole(t))
	flakies := r.tenants("flaky", 1, flaky.Addr())
	alive := r.tenants("alive", 5, mx.Addr())
	r.start(r.config(fmt.Sprintf(oneProvider, 1)))
	r.settled(1)
	r.conduct()
	for i := range 3 {
		r.accept(5, message{domain: mail.Domain(fmt.Sprintf("hole%d.test", i))})
	}
	r.accept(5, message{domain: flakies[0]})
	r.ring()
	r.until("the hosts that hang up are known", 30*time.Second, func() bool { return r.parkedFor("closed by the remote host") > 2 })
	for _, d := range alive {
		r.accept(20, message{domain: d})
	}
	r.ring()
	mx.WaitMessages(t, 100, 60*time.Second)
	flaky.SetRules()
	flaky.WaitMessages(t, 5, 60*time.Second)
	if n := mx.HighWater() + flaky.HighWater(); n != 2 {
		t.Errorf("%d connections at once at %d and %d, the limit is 1", n, mx.HighWater(), flaky.HighWater())
	}
}

// TestAHostThatAnswersNothingHoldsUpNoSlot: a worker that ends, or gives up a
// slot, does not wait for dials that nobody answers.
func TestAHostThatAnswersNothingHoldsUpNoSlot(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.route("hole.test", "mx.hole.test", blackHole(t))
	c := r.config("")
	c.DrainTimeout = time.Hour
	p := r.start(c)
	r.settled(1)
	r.conduct()
	ids := r.accept(3, message{domain: "hole.test"})
	r.ring()
	r.until("it is tried", 20*time.Second, func() bool {
		rows, err := r.db.Queue(t.Context(), store.Filter{Domain: "hole.test"}, 10)
		return err == nil && len(rows) == 3 && rows[0].Place == "claimed"
	})
	stopped := make(chan struct{})
	go func() {
		p.stop()
		close(stopped)
	}()
	r.until("the worker has ended", 20*time.Second, func() bool {
		select {
		case <-stopped:
			return true
		default:
			return false
		}
	})
	for _, id := range ids {
		if s := r.show(id); len(s.Attempts) > 0 {
			t.Errorf("%s has a history: %s", id, describe(s.Attempts))
		}
	}
}
