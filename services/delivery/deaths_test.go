package delivery_test

import (
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
)

// TestHomesThatDieInARowDoNotStopASite: homes of a busy site die one after
// another, each losing Postgres and going on until its lease ends. What each may
// have done unsaved is counted, and yet the site never stands still for longer
// than a take-over takes.
func TestHomesThatDieInARowDoNotStopASite(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{})
	const site, limit, deaths = mail.Site("mx.example.test"), 20, 6
	r.route("example.test", site, mx.Addr())
	c := r.config("[\"example.test\"]\nmax_connection_rate = \"20/min\"\nconnection_limit = 10\n")
	c.HomeLease, c.DrainTimeout = time.Second, time.Second
	r.conduct()
	running := map[mail.WorkerID]*process{}
	begin := func() {
		before := r.homes()
		p := r.start(c)
		r.until("the worker has slots", 20*time.Second, func() bool {
			for id := range r.homes() {
				if before[id] == 0 && running[id] == nil {
					running[id] = p
					return true
				}
			}
			return false
		})
	}
	begin()
	begin()
	var dead errgroup.Group
	for range deaths {
		was := mx.Count()
		r.accept(20, message{domain: "example.test"})
		mx.WaitMessages(t, was+10, 20*time.Second)
		// Or what it assumed of the one before it dies with it.
		began := time.Now()
		r.until("the home has saved its state", 20*time.Second, func() bool {
			states, err := r.db.LoadSites(t.Context(), []int16{site.Slot()})
			return err == nil && len(states) == 1 && states[0].Age < time.Since(began)
		})
		home := r.slotHomes()[site.Slot()].Worker
		victim := running[home]
		delete(running, home)
		victim.cut()
		was = mx.Count()
		r.accept(20, message{domain: "example.test"})
		r.until("the site has another home", 20*time.Second, func() bool {
			h := r.slotHomes()[site.Slot()]
			return h.Live && h.Worker != home
		})
		// A site that waits for its limit does so for the rest of the minute.
		mx.WaitMessages(t, was+10, 10*time.Second)
		dead.Go(func() error { victim.stop(); return nil })
		begin()
	}
	if err := dead.Wait(); err != nil {
		t.Fatal(err)
	}
	opened := mx.Connections()
	for i := limit; i < len(opened); i++ {
		if gap := opened[i].OpenedAt.Sub(opened[i-limit].OpenedAt); gap <= time.Minute {
			t.Errorf("%d connections within %v, the limit is %d a minute", limit+1, gap, limit)
		}
	}
}

// TestHomesThatDieBeforeTheySaveAreCounted: each sends a burst and loses
// Postgres before anything of it is on record.
func TestHomesThatDieBeforeTheySaveAreCounted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	const site, limit = mail.Site("mx.example.test"), 30
	r.route("example.test", site, mx.Addr())
	c := r.config("[\"example.test\"]\nmax_message_rate = \"30/h,max_burst=10\"\n")
	c.HomeLease, c.DrainTimeout = time.Second, time.Second
	r.conduct()
	r.accept(80, message{domain: "example.test"})
	for n := range 4 {
		home := r.start(c)
		r.until("the worker has the slot", 20*time.Second, func() bool {
			h := r.slotHomes()[site.Slot()]
			return h.Live && int(h.Worker) == n+1 // ids begin at 1 in a fresh database
		})
		r.ring()
		was, long := mx.Count(), sinceThen(3*time.Second)
		r.until("it has sent what it may", 20*time.Second, func() bool { return mx.Count() >= was+10 || long() })
		home.cut()
		defer home.stop()
	}
	if n := len(mx.Transactions()); n > limit || n < 10 {
		t.Errorf("%d messages in a minute, the limit is %d an hour", n, limit)
	}
}
