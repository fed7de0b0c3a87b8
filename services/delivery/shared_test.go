package delivery_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
)

// sharedBy is the shape of sites that share limits by name.
func sharedBy(connections int, rate string) string {
	return fmt.Sprintf("[\"default\"]\nconnection_limit = 5\nmax_message_rate = \"unlimited\"\nmax_connection_rate = \"unlimited\"\nmax_deliveries_per_connection = 5\nidle_timeout = \"5m\"\n"+
		"additional_connection_limits = {\"all of it\" = %d}\nadditional_message_rate_throttles = {\"all of it\" = %q}\n", connections, rate)
}

// apart routes two domains to one host by sites that live with different
// workers, and returns the worker of each.
func (r *rig) apart(mx *smtptest.Server, domains ...mail.Domain) (workers []mail.WorkerID) {
	r.t.Helper()
	homes := r.slotHomes()
	for _, d := range domains {
		for i := 0; ; i++ {
			site := mail.Site(fmt.Sprintf("mx%d.%s", i, d))
			if w := homes[site.Slot()].Worker; !slices.Contains(workers, w) {
				workers = append(workers, w)
				r.route(d, site, mx.Addr())
				break
			}
		}
	}
	return workers
}

// mustKeepWindow checks every window of a period.
func mustKeepWindow(t *testing.T, mx *smtptest.Server, events int, period time.Duration) {
	t.Helper()
	var at []time.Time
	for _, m := range mx.Transactions() {
		at = append(at, m.MailAt)
	}
	slices.SortFunc(at, time.Time.Compare)
	fastest := time.Hour
	for i := events; i < len(at); i++ {
		fastest = min(fastest, at[i].Sub(at[i-events]))
	}
	t.Logf("%d transactions in %v; %d of them take at least %v", len(at), at[len(at)-1].Sub(at[0]), events+1, fastest)
	if fastest <= period {
		t.Errorf("%d messages within %v, the limit is %d in %v", events+1, fastest, events, period)
	}
}

// TestSitesOfTwoWorkersShareALimit: a limit by name holds for all sites that
// have it, whatever worker is their home, and while one is cut off and
// replaced.
func TestSitesOfTwoWorkersShareALimit(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true, Rules: []smtptest.Rule{
		{At: smtptest.Dot, Do: smtptest.Later(50*time.Millisecond, smtptest.Reply(250, "2.0.0 taken"))},
	}})
	shape := sharedBy(3, "60/3s")
	first := r.start(r.named("first", shape))
	r.settled(1)
	r.start(r.named("second", shape))
	r.settled(2)
	r.apart(mx, "a.test", "b.test")
	ids := slices.Concat(r.accept(300, message{domain: "a.test"}), r.accept(300, message{domain: "b.test"}))
	r.conduct()
	r.ring()
	var at time.Time
	r.until("both workers relay", 30*time.Second, func() bool { return from(mx, "first", at) > 10 && from(mx, "second", at) > 10 })
	first.cut()
	r.until("the other worker holds all slots", 15*time.Second, func() bool {
		homes := r.homes()
		return len(homes) == 1 && homes[1] == 0 // ids begin at 1 in a fresh database
	})
	at = time.Now()
	r.until("what the first one held is used again", 20*time.Second, func() bool { return from(mx, "second", at) > 30 })
	r.start(r.named("third", shape))
	r.drained(90 * time.Second)
	if n := mx.HighWater(); n != 3 {
		t.Errorf("%d connections at once, want 3, the limit", n)
	}
	mustKeepWindow(t, mx, 60, 3*time.Second)
	r.mustArrive(mx, ids)
}

// TestALimitThatIsTooSmallForAllIsHeldByTurns: one connection for two
// workers, one of which would have none.
func TestALimitThatIsTooSmallForAllIsHeldByTurns(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	shape := sharedBy(1, "20/s")
	r.start(r.named("first", shape))
	r.settled(1)
	r.start(r.named("second", shape))
	r.settled(2)
	r.apart(mx, "a.test", "b.test")
	ids := slices.Concat(r.accept(250, message{domain: "a.test"}), r.accept(250, message{domain: "b.test"}))
	r.conduct()
	r.ring()
	r.until("each worker has had its turn", 60*time.Second, func() bool {
		return from(mx, "first", time.Time{}) > 0 && from(mx, "second", time.Time{}) > 0
	})
	r.drained(90 * time.Second)
	if n := mx.HighWater(); n != 1 {
		t.Errorf("%d connections at once, want 1", n)
	}
	mustKeepWindow(t, mx, 20, time.Second)
	r.mustArrive(mx, ids)
}

// TestSitesOfOneWorkerShareALimit: a site that has all the connections gives
// them up when another one waits.
func TestSitesOfOneWorkerShareALimit(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("a.test", "mx.a.test", mx.Addr())
	r.route("b.test", "mx.b.test", mx.Addr())
	r.start(r.config(sharedBy(1, "unlimited")))
	r.settled(1)
	r.conduct()
	r.accept(8, message{domain: "a.test"}) // the second connection is left with room
	r.ring()
	mx.WaitMessages(t, 8, 20*time.Second)
	r.until("the connection idles", 5*time.Second, func() bool { return mx.Open() == 1 })
	r.accept(300, message{domain: "a.test"})
	r.accept(30, message{domain: "b.test"})
	r.ring()
	r.drained(60 * time.Second) // an idle connection does not end by itself in that time
	if n := mx.HighWater(); n != 1 {
		t.Errorf("%d connections at once, want 1", n)
	}
}
