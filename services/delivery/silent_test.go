package delivery_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/devpg"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
)

// TestASilentHostKeepsOnlyItsOwnSiteWaiting: all slots are lost while Postgres
// is away, and one host says nothing to a final dot meanwhile. The other sites
// of its slot go on when Postgres is back; its own has no more connections than
// its limit, and goes on when the host has answered.
func TestASilentHostKeepsOnlyItsOwnSiteWaiting(t *testing.T) {
	t.Parallel()
	server := storetest.NewServer(t, devpg.Options{})
	r := newRigOn(t, server.URL())
	release := make(chan struct{})
	var asked atomic.Bool
	silent := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{
		{At: smtptest.Dot, Times: 1, Do: smtptest.Then(smtptest.Signal(func() { asked.Store(true) }), smtptest.Await(release, smtptest.Reply(250, "2.0.0 at last")))},
	}})
	well := smtptest.Start(t, smtptest.Script{})
	const site = mail.Site("mx.silent.test")
	neighbour := sameSlot(site)
	r.route("silent.test", site, silent.Addr())
	r.route("well.test", neighbour, well.Addr())
	c := r.config("[\"default\"]\nconnection_limit = 1\n")
	c.HomeLease, c.Lease = time.Second, 5*time.Minute // what was claimed before stays so
	r.start(c)
	r.settled(1)
	r.accept(1, message{domain: "silent.test"})
	r.ring()
	r.until("the host has the message", 20*time.Second, asked.Load)
	if err := server.Halt(); err != nil {
		t.Fatal(err)
	}
	r.until("the lease on the slots is over", 20*time.Second, sinceThen(2*c.HomeLease))
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.conduct()
	r.accept(1, message{domain: "well.test"})
	r.accept(3, message{domain: "silent.test"})
	well.WaitMessages(t, 1, 30*time.Second)
	r.settled(1)
	r.until("the mail of the silent host is claimed", 30*time.Second, func() bool {
		rows, err := r.db.Queue(t.Context(), store.Filter{Domain: "silent.test"}, 10)
		claimed := 0
		for _, row := range rows {
			if row.Place == "claimed" || row.Place == "in transaction" {
				claimed++
			}
		}
		return err == nil && claimed == 4
	})
	if n := silent.HighWater(); n != 1 {
		t.Errorf("%d connections to the silent host, the limit is 1", n)
	}
	close(release)
	silent.WaitMessages(t, 4, 30*time.Second)
	if n := silent.HighWater(); n != 1 {
		t.Errorf("%d connections to the silent host in the end, the limit is 1", n)
	}
	r.drained(30 * time.Second)
	if n := silent.Count(); n != 4 {
		t.Errorf("%d messages arrived, want each of 4 once", n)
	}
}

// sameSlot returns another site of the slot of one.
func sameSlot(of mail.Site) mail.Site {
	for i := 0; ; i++ {
		if s := mail.Site(fmt.Sprintf("mx%d.well.test", i)); s.Slot() == of.Slot() {
			return s
		}
	}
}

// TestASlotWithAConnectionIsNotGivenUp: a worker that ends in order waits for
// the answer to a final dot. The next home never sees its limit used by both.
func TestASlotWithAConnectionIsNotGivenUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	release := make(chan struct{})
	var asked atomic.Bool
	mx := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{
		{At: smtptest.Dot, Times: 1, Do: smtptest.Then(smtptest.Signal(func() { asked.Store(true) }), smtptest.Await(release, smtptest.Reply(250, "2.0.0 at last")))},
	}})
	const site = mail.Site("mx.example.test")
	r.route("example.test", site, mx.Addr())
	c := r.config("[\"default\"]\nconnection_limit = 1\n")
	c.DrainTimeout = time.Minute
	first := r.start(c)
	r.settled(1)
	r.accept(1, message{domain: "example.test"})
	r.ring()
	r.until("the host has the message", 20*time.Second, asked.Load)
	home := r.slotHomes()[site.Slot()].Worker
	r.start(c)
	var ending errgroup.Group
	ending.Go(func() error { first.stop(); return nil })
	r.accept(1, message{domain: "example.test"})
	r.conduct()
	r.until("the first worker has given up all other slots", 30*time.Second, func() bool { return r.homes()[home] <= 1 })
	if now := r.slotHomes()[site.Slot()]; now.Worker != home || !now.Live {
		t.Errorf("the slot has home %+v while worker %d has a connection open", now, home)
	}
	close(release)
	r.drained(30 * time.Second)
	if err := ending.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := mx.HighWater(); n != 1 || mx.Count() != 2 {
		t.Errorf("%d connections at once for %d messages, the limit is 1", n, mx.Count())
	}
}
