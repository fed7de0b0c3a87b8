package delivery_test

import (
	"slices"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/pkg/store"
)

// Only what must move moves: to who has joined, and from who has left.
func TestSlotsAreSharedFairlyAndMoveAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.start(r.config(""))
	r.settled(1)
	r.start(r.config(""))
	r.settled(2)
	before := r.homes()
	was := r.slotHomes()
	third := r.start(r.config(""))
	r.settled(3)
	is := r.slotHomes()
	joined := mail.WorkerID(0)
	for w := range r.homes() {
		joined = max(joined, w)
	}
	for slot := range is {
		if is[slot] != was[slot] && is[slot].Worker != joined {
			t.Errorf("slot %d moved from worker %d to %d, which was there before", slot, was[slot].Worker, is[slot].Worker)
		}
	}
	for w, n := range r.homes() {
		if n > 22 {
			t.Errorf("worker %d has %d of 64 slots, want at most 22 (before: %v)", w, n, before)
		}
	}
	third.stop()
	r.settled(2)
	for slot, home := range r.slotHomes() {
		if is[slot].Worker != joined && home != is[slot] {
			t.Errorf("slot %d moved from worker %d to %d, and both have stayed", slot, is[slot].Worker, home.Worker)
		}
	}
	first.stop()
	r.settled(1)
}

func (r *rig) slotHomes() [mail.Slots]store.Home {
	r.t.Helper()
	homes, err := r.db.SlotHomes(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return homes
}

func TestRequestForASlotThatMovedIsPassedOn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.start(r.config(""))
	r.start(r.config(""))
	r.settled(2)
	r.accept(20, message{domain: "example.test"})
	if _, err := r.db.Operate(t.Context(), store.Retry, store.Filter{Domain: "example.test"}, ""); err != nil {
		t.Fatal(err)
	}
	requests, err := r.requests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	homes, err := r.db.SlotHomes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	home := homes[mail.Site("mx.example.test").Slot()].Worker
	for w := range r.homes() {
		if w != home {
			if err := r.bus.PublishReady(t.Context(), w, requests); err != nil {
				t.Fatal(err)
			}
		}
	}
	mx.WaitMessages(t, 20, 5*time.Second)
	r.drained(5 * time.Second)
}

func TestShutdownGivesBackAndFreesTheSlots(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{
		{At: smtptest.Dot, Do: smtptest.Later(700*time.Millisecond, smtptest.Reply(250, "2.0.0 at last"))},
	}})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.accept(50, message{domain: "example.test"})
	p := r.start(r.config("[\"default\"]\nconnection_limit = 2"))
	r.settled(1)
	r.ring()
	r.until("transactions are in progress", 5*time.Second, func() bool { return mx.Open() == 2 })
	p.stop()
	rows, err := r.db.Queue(t.Context(), store.Filter{}, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if row.Place != "waiting" && row.Place != "parked" {
			t.Errorf("%s is %s after the shutdown", row.ID, row.Place)
		}
		if row.LastStatus != "" {
			t.Errorf("%s has status %s %s: it was cut off", row.ID, row.LastStatus, row.LastReply)
		}
	}
	if n := len(r.homes()); n != 0 {
		t.Errorf("%d workers still hold slots", n)
	}
	a, err := r.db.Accounting(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := int64(mx.Count()); a.Relayed != got || got == 0 {
		t.Errorf("%d messages arrived, %d are relayed: want the same, and some", got, a.Relayed)
	}
	mx.SetRules()
	r.start(r.config(""))
	r.conduct()
	r.drained(20 * time.Second)
	if n := mx.Count(); n != 50 {
		t.Errorf("%d messages arrived, want 50: each once", n)
	}
}

// TestAWorkerThatIsDeclaredDeadLivesAgain: it finds out at its next renewal,
// drops what it has in hand, which others have now, and begins anew.
func TestAWorkerThatIsDeclaredDeadLivesAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{
		{At: smtptest.Mail, Do: smtptest.Later(time.Minute, smtptest.Reply(250, "2.1.0 at last"))},
	}})
	r.route("example.test", "mx.example.test", mx.Addr())
	ids := r.accept(20, message{domain: "example.test"})
	r.start(r.config("[\"default\"]\nconnection_limit = 2"))
	r.settled(1)
	r.ring()
	r.until("transactions are in progress", 5*time.Second, func() bool { return mx.Open() == 2 })
	mx.SetRules()
	for id := range r.homes() {
		if err := r.db.EndWorker(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	r.conduct()
	r.drained(20 * time.Second)
	r.mustArrive(mx, ids)
}

// TestANewHomeStartsWarm: what slow start had reached is where the next home
// begins. That is saved in order, so no lease may end on a busy machine.
func TestANewHomeStartsWarm(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	c := r.config(unlimited + "connection_limit = 20\n")
	c.Lease, c.HomeLease = time.Minute, time.Minute
	first := r.start(c)
	r.settled(1)
	r.accept(100, message{domain: "example.test"})
	r.conduct()
	r.drained(20 * time.Second)
	first.stop()
	release := make(chan struct{})
	mx.SetRules(smtptest.Rule{At: smtptest.Dot, Do: smtptest.Await(release, smtptest.Reply(250, "2.0.0 taken"))})
	r.accept(20, message{domain: "example.test"})
	r.start(c)
	// None has succeeded here by then.
	r.until("the new home opens more connections than a slow start does", 20*time.Second, func() bool { return mx.Open() > 15 })
	close(release)
	r.drained(20 * time.Second)
}

// Promise 5 with the worst kind of neighbour: a worker that loses Postgres
// and goes on until its lease ends, while the other takes over its sites.
func TestLimitsHoldWhileAHomeIsCutOffAndReplaced(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true, Rules: []smtptest.Rule{
		{At: smtptest.Dot, Do: smtptest.Later(100*time.Millisecond, smtptest.Reply(250, "2.0.0 taken"))},
	}})
	r.route("example.test", "mx.example.test", mx.Addr())
	// Limits of a domain: a new home that finds parked mail knows the site
	// before it has seen the domain.
	shape := "[\"example.test\"]\nconnection_limit = 3\nmax_message_rate = \"20/s\""
	const total = 160
	ids := r.accept(total, message{domain: "example.test"})
	first := r.start(r.config(shape))
	r.settled(1)
	second := r.start(r.config(shape))
	r.settled(2)
	r.conduct()
	r.ring()
	mx.WaitMessages(t, 30, 20*time.Second)
	homes, err := r.db.SlotHomes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	home, cutAt := homes[mail.Site("mx.example.test").Slot()].Worker, time.Now()
	if home == 1 { // ids begin at 1 in a fresh database
		first.cut()
	} else {
		second.cut()
	}
	r.until("the other worker holds all slots", 15*time.Second, func() bool {
		n := r.homes()
		return len(n) == 1 && n[home] == 0
	})
	t.Logf("taken over after %v", time.Since(cutAt))
	r.start(r.config(shape))
	r.drained(60 * time.Second)
	mustHold(t, mx, 3, 20)
	r.mustArrive(mx, ids)
}

// TestWhatADeadHomeDidCountsForTheHomeAfterTheNext: the next home has no mail
// for the site, so it knows nothing of it, and ends in order.
func TestWhatADeadHomeDidCountsForTheHomeAfterTheNext(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	shape := "[\"example.test\"]\nmax_message_rate = \"30/h,max_burst=30\""
	first := r.start(r.config(shape))
	r.settled(1)
	r.accept(20, message{domain: "example.test"})
	r.ring()
	mx.WaitMessages(t, 20, 20*time.Second)
	first.cut() // before it has saved them all
	second := r.start(r.config(shape))
	r.until("the second worker holds all slots", 15*time.Second, func() bool { return r.homes()[2] == mail.Slots })
	second.stop()
	r.mustNotExceed(mx, shape, 3)
}

// TestWhatAHomeDidCountsForTheHomeAfterTheNext: the next home knows the site
// only because it is suspended, and ends in order.
func TestWhatAHomeDidCountsForTheHomeAfterTheNext(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	shape := "[\"example.test\"]\nmax_message_rate = \"30/h,max_burst=30\""
	first := r.start(r.config(shape))
	r.settled(1)
	r.accept(20, message{domain: "example.test"})
	r.ring()
	r.drained(20 * time.Second)
	first.stop()
	if _, err := r.db.SuspendSite(t.Context(), "mx.example.test", time.Hour, "they asked"); err != nil {
		t.Fatal(err)
	}
	second := r.start(r.config(shape))
	r.until("the second worker holds all slots", 15*time.Second, func() bool { return r.homes()[2] == mail.Slots })
	r.until("the second worker has looked twice", 5*time.Second, sinceThen(2*time.Second))
	second.stop()
	if _, err := r.db.ResumeSite(t.Context(), "mx.example.test"); err != nil {
		t.Fatal(err)
	}
	r.mustNotExceed(mx, shape, 3)
}

// mustNotExceed has a worker, whose id is known, go on with a site that has a
// limit of 30 messages in an hour, and part of them behind it.
func (r *rig) mustNotExceed(mx *smtptest.Server, shape string, id mail.WorkerID) {
	t := r.t
	t.Helper()
	r.start(r.config(shape))
	r.until("the third worker holds all slots", 15*time.Second, func() bool { return r.homes()[id] == mail.Slots })
	ids := r.accept(30, message{domain: "example.test"})
	r.ring()
	r.until("all is claimed", 20*time.Second, func() bool {
		rows, err := r.db.Queue(t.Context(), store.Filter{}, 100)
		if err != nil {
			t.Fatal(err)
		}
		waiting := 0
		for _, row := range rows {
			if slices.Contains(ids, row.ID) && row.Place == "waiting" {
				waiting++
			}
		}
		return waiting == 0
	})
	r.until("the third worker has looked twice", 5*time.Second, sinceThen(2*time.Second))
	if n := len(mx.Transactions()); n > 30 {
		t.Errorf("%d messages in an hour, the limit is 30", n)
	}
}

// sinceThen is true when so much time has passed.
func sinceThen(d time.Duration) func() bool {
	began := time.Now()
	return func() bool { return time.Since(began) > d }
}
