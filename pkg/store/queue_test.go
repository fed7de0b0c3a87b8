package store_test

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

func (f *fixture) ring(t *testing.T, o store.RingOptions) []mail.QueuedMessage {
	t.Helper()
	o.Limit = 100
	ring, _, err := f.Ring(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func TestRing(t *testing.T) {
	f := setup(t)
	sub := submission(1)
	f.accept(t, sub)
	if n := len(f.ring(t, store.RingOptions{})); n != 0 {
		t.Errorf("a fresh message was rung: %d", n)
	}
	if n, err := f.Unring(t.Context(), 10); err != nil || n != 1 {
		t.Errorf("after the loss of the bus %d became due, %v; want 1", n, err)
	}
	if lag, err := f.Lag(t.Context()); err != nil || lag.Waiting <= 0 || lag.Parked != 0 || lag.Reports != 0 {
		t.Errorf("lag %+v, %v; want only waiting", lag, err)
	}
	if n := len(f.ring(t, store.RingOptions{})); n != 1 {
		t.Errorf("rung %d, want 1", n)
	}
	f.exec(t, "UPDATE recipients SET next_attempt_at = now() - interval '1 second'")
	if n := len(f.ring(t, store.RingOptions{OldestHint: time.Now().Add(-time.Hour)})); n != 0 {
		t.Error("rung although its hint may still wait on the bus")
	}
	if !one[bool](t, f, "SELECT next_attempt_at BETWEEN now() + interval '2 seconds' AND now() + interval '5 seconds' FROM recipients") {
		t.Error("a late hint is not looked at again 10 seconds after it was published")
	}
	f.exec(t, "UPDATE recipients SET next_attempt_at = now() - interval '1 second'")
	if n := len(f.ring(t, store.RingOptions{OldestHint: time.Now()})); n != 1 {
		t.Error("not rung although all hints of its time are gone")
	}
	if n := len(f.ring(t, store.RingOptions{})); n != 0 {
		t.Error("rung twice: it was not armed again")
	}
}

// A lost hint is repeated although older ones still wait: those of a worker
// that is slow. Time is moved by moving the rows.
func TestLostHintBesideASlowWorker(t *testing.T) {
	f := setup(t)
	f.accept(t, submission(1))
	const step = 500 * time.Millisecond
	var rung []time.Duration
	for now := time.Duration(0); now <= 100*time.Second; now += step {
		if len(f.ring(t, store.RingOptions{OldestHint: time.Now().Add(-15 * time.Second)})) > 0 {
			rung = append(rung, now)
		}
		f.exec(t, "UPDATE recipients SET next_attempt_at = next_attempt_at - $1::interval, rung_at = rung_at - $1::interval", step)
	}
	if len(rung) == 0 || rung[0] < 9*time.Second || rung[0] > 12*time.Second {
		t.Fatalf("a hint that may wait behind others was repeated after %v, want once after 10 s, and less and less often", rung)
	}
	// Out for longer than what waits, it is lost for sure, each time.
	for i := 1; i < len(rung); i++ {
		if d := rung[i] - rung[i-1]; d < store.Rearm || d > 15*time.Second {
			t.Errorf("repeated after %v: %v after the time before", rung, d)
		}
	}
}

// In a backlog hints are repeated less and less often, and few at a time, those
// that have been out the longest first.
func TestBacklogIsNotFed(t *testing.T) {
	f := setup(t)
	var subs []*mail.Submission
	for range 300 {
		subs = append(subs, submission(1))
	}
	lost := submission(1)
	f.accept(t, append(subs, lost)...)
	f.exec(t, "UPDATE recipients SET next_attempt_at = now() - interval '10 seconds'")
	f.exec(t, "UPDATE recipients SET next_attempt_at = now(), rung_at = now() - interval '30 seconds' WHERE queue_id = $1", lost.ID)
	ring, looked, err := f.Ring(t.Context(), store.RingOptions{Limit: 1000, OldestHint: time.Now().Add(-time.Minute)})
	if err != nil || looked != 301 || len(ring) != 100 {
		t.Fatalf("%d of %d were rung, %v; want 100 of 301", len(ring), looked, err)
	}
	if !slices.ContainsFunc(ring, func(m mail.QueuedMessage) bool { return m.ID == lost.ID }) {
		t.Error("the one that has been out the longest was not rung")
	}
	if n := one[int](t, f, "SELECT count(*) FROM recipients WHERE next_attempt_at < now() + interval '5 seconds'"); n != 0 {
		t.Errorf("%d are looked at again within 5 s", n)
	}
	if !one[bool](t, f, "SELECT next_attempt_at > now() + interval '25 seconds' FROM recipients WHERE queue_id = $1", lost.ID) {
		t.Error("what was out for 30 seconds is repeated sooner than after as long again")
	}
}

func TestRingSharesBetweenSchedulers(t *testing.T) {
	f := setup(t)
	var subs []*mail.Submission
	for range 200 {
		subs = append(subs, submission(1))
	}
	f.accept(t, subs...)
	f.exec(t, "UPDATE recipients SET next_attempt_at = now() - interval '1 second', rung = false")
	var mu sync.Mutex
	seen := map[mail.QueueID]int{}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				ring, looked, err := f.Ring(t.Context(), store.RingOptions{Limit: 20})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, m := range ring {
					seen[m.ID]++
				}
				done := looked == 0 && len(seen) == len(subs)
				mu.Unlock()
				if done || looked == 0 {
					return
				}
			}
		})
	}
	wg.Wait()
	for _, sub := range subs {
		if seen[sub.ID] != 1 {
			t.Errorf("%s was rung %d times, want once", sub.ID, seen[sub.ID])
		}
	}
}

func TestTakeLostWithoutTheBus(t *testing.T) {
	f := setup(t)
	sub := submission(2)
	f.accept(t, sub)
	queued, err := f.TakeLost(t.Context(), 10)
	if err != nil || len(queued) != 1 || len(queued[0].Recipients) != 2 {
		t.Fatalf("take lost: %+v, %v", queued, err)
	}
	if again, err := f.TakeLost(t.Context(), 10); err != nil || len(again) != 0 {
		t.Errorf("taken twice: %+v, %v", again, err)
	}
}

func TestParkAndPull(t *testing.T) {
	f := setup(t)
	low, high := submission(2), submission(1)
	high.Priority = 5
	f.accept(t, low, high)
	r := route("mx.example.org")
	reqs := []*mail.DeliveryRequest{request(low, r), request(high, r)}
	if err := f.Park(t.Context(), 0, reqs); err != nil {
		t.Fatal(err)
	}
	if len(reqs[0].Recipients) != 2 || len(reqs[1].Recipients) != 1 {
		t.Fatalf("parked %d and %d", len(reqs[0].Recipients), len(reqs[1].Recipients))
	}
	if lag, err := f.Lag(t.Context()); err != nil || lag.Parked <= 0 || lag.Waiting != 0 {
		t.Errorf("lag %+v, %v; want only parked", lag, err)
	}
	w := f.worker(t)
	if late := f.claim(t, w, low); len(late.Recipients) != 0 {
		t.Error("the hint of a parked recipient was claimed")
	}
	sites, err := f.ParkedSites(t.Context(), []int16{0, 1, r.Site.Slot()})
	if err != nil || len(sites) != 1 || sites[0].Site != r.Site {
		t.Fatalf("parked sites %+v, %v", sites, err)
	}
	flows, err := f.ParkedFlows(t.Context(), whole(r.Site), nil, 10)
	if err != nil || len(flows) != 2 || flows[0].Priority != 5 || flows[1].Priority != 0 {
		t.Fatalf("flows %+v, %v, want the urgent one, then the other", flows, err)
	}
	got := f.pull(t, w, r.Site, 1)
	if len(got) != 2 || got[0].Message.ID != high.ID || len(got[1].Recipients) != 1 {
		t.Fatalf("pulled %+v, want the urgent message, then one recipient of the other", got)
	}
	if !slices.EqualFunc(got[0].Route.Hosts, r.Hosts, func(a, b mail.Host) bool { return a.Name == b.Name && a.Port == b.Port }) {
		t.Errorf("route %+v, want %+v", got[0].Route, r)
	}
	if lost := f.settle(t, w, settlement(got[0], relayed)); lost != 0 {
		t.Error("a pulled recipient could not be settled")
	}
	if err := f.Park(t.Context(), w, got[1:]); err != nil || len(got[1].Recipients) != 1 {
		t.Fatalf("a worker could not park its claim: %v", err)
	}
	if got = f.pull(t, w, r.Site, 10); len(got) != 1 || len(got[0].Recipients) != 2 {
		t.Fatalf("pulled %+v; want both recipients in one request", got)
	}
	f.balanced(t)
}

func TestPullWithoutRouteGoesBackToTheResolver(t *testing.T) {
	f := setup(t)
	sub := submission(1)
	f.accept(t, sub)
	r := route("mx.example.org")
	r.ExpiresAt = time.Now().Add(-time.Second)
	if err := f.Park(t.Context(), 0, []*mail.DeliveryRequest{request(sub, r)}); err != nil {
		t.Fatal(err)
	}
	if got := f.pull(t, f.worker(t), r.Site, 10); len(got) != 0 {
		t.Fatalf("pulled %+v with an expired route", got)
	}
	if n := len(f.ring(t, store.RingOptions{})); n != 1 {
		t.Errorf("rung %d, want 1", n)
	}
}

func TestDelayedRecipientIsRungAgainInTime(t *testing.T) {
	f := setup(t)
	sub := submission(1)
	f.accept(t, sub)
	w := f.worker(t)
	f.settle(t, w, settlement(f.claim(t, w, sub), delayed(time.Now().Add(time.Hour))))
	if n := one[int](t, f, "SELECT tries FROM recipients"); n != 1 {
		t.Errorf("tries %d", n)
	}
	if n, err := f.Unring(t.Context(), 10); err != nil || n != 0 {
		t.Errorf("%d recipients that wait for their retry became due after a loss of the bus, %v", n, err)
	}
	if n := one[int](t, f, "SELECT retry_now(domain => 'example.org')"); n != 1 {
		t.Errorf("retry_now changed %d", n)
	}
	ring := f.ring(t, store.RingOptions{})
	if len(ring) != 1 || ring[0].Recipients[0].Tries != 1 {
		t.Errorf("ring %+v", ring)
	}
	if n := one[int](t, f, "SELECT count(*) FROM queue WHERE last_reply = '450 greylisted' AND place = 'waiting'"); n != 1 {
		t.Error("the view does not show the last reply")
	}
}

func TestExpireInEveryPlace(t *testing.T) {
	f := setup(t)
	var subs []*mail.Submission
	for range 6 {
		subs = append(subs, submission(1))
	}
	f.accept(t, subs...)
	w := f.worker(t)
	waiting, parked, claimed, held, inTransaction, fresh := subs[0], subs[1], subs[2], subs[3], subs[4], subs[5]
	if err := f.Park(t.Context(), 0, []*mail.DeliveryRequest{request(parked, route("x"))}); err != nil {
		t.Fatal(err)
	}
	lostClaim := f.claim(t, w, claimed)
	if n := one[int](t, f, "SELECT hold(queue_id => $1)", held.ID); n != 1 {
		t.Fatal("not held")
	}
	dispatched := f.claim(t, w, inTransaction)
	if _, err := f.Dispatch(t.Context(), w, []*mail.DeliveryRequest{dispatched}); err != nil {
		t.Fatal(err)
	}
	f.exec(t, `UPDATE recipients SET expires_at = now() - interval '1 second', next_attempt_at = now() - interval '1 second' WHERE queue_id <> $1`, fresh.ID)
	n, reports, err := f.Expire(t.Context(), 100)
	if err != nil || n != 4 || len(reports) != 4 {
		t.Fatalf("expired %d, reports %v, %v; want 4: all but the fresh one and the one in a transaction", n, reports, err)
	}
	if lost := f.settle(t, w, settlement(lostClaim, relayed)); lost != 1 {
		t.Error("a worker settled an expired claim")
	}
	if lost := f.settle(t, w, settlement(dispatched, relayed)); lost != 0 {
		t.Error("the transaction in progress could not be settled")
	}
	if a := f.balanced(t); a.Expired != 4 || a.Relayed != 1 || a.Queued != 1 {
		t.Errorf("accounting %+v", a)
	}
	_ = waiting
	f.exec(t, `UPDATE recipients SET expires_at = now() - interval '3 hours', next_attempt_at = now() - interval '3 hours', worker_id = $1, dispatched = true WHERE queue_id = $2`, w, fresh.ID)
	if n, _, err := f.Expire(t.Context(), 100); err != nil || n != 1 {
		t.Errorf("a transaction without end did not expire: %d, %v", n, err)
	}
}

// RFC 2852 §4: what comes back because its sender said so has a permanent
// status.
func TestExpireByTheSendersTime(t *testing.T) {
	f := setup(t)
	by, own := submission(1), submission(1)
	by.Envelope.DeliverBy = mail.DeliverBy{At: by.AcceptedAt.Add(-time.Second), Return: true}
	f.accept(t, by, own)
	f.exec(t, `UPDATE recipients SET expires_at = now() - interval '1 second', next_attempt_at = now() - interval '1 second'`)
	if n, _, err := f.Expire(t.Context(), 100); err != nil || n != 2 {
		t.Fatalf("expired %d, %v", n, err)
	}
	for id, want := range map[mail.QueueID]string{by.ID: "5.4.7", own.ID: "4.4.7"} {
		if got := one[string](t, f, `SELECT status FROM attempts WHERE queue_id = $1`, id); got != want {
			t.Errorf("status %s, want %s", got, want)
		}
	}
}

func TestSettleUnclaimed(t *testing.T) {
	f := setup(t)
	sub := submission(1)
	f.accept(t, sub)
	st := settlement(request(sub, route("x")), failed)
	for want := range 2 { // the second time is a repeated hint
		lost, err := f.SettleUnclaimed(t.Context(), []mail.Settlement{st})
		if err != nil || lost != want {
			t.Errorf("lost %d, %v; want %d", lost, err, want)
		}
	}
	if n := one[int](t, f, "SELECT count(*) FROM attempts"); n != 1 {
		t.Errorf("%d rows of history, want 1", n)
	}
	if a := f.balanced(t); a.Failed != 1 {
		t.Errorf("accounting %+v", a)
	}
}

func TestWorkersAndSlots(t *testing.T) {
	f := setup(t)
	a, b := f.worker(t), f.worker(t)
	all := make([]int16, mail.Slots)
	for i := range all {
		all[i] = int16(i)
	}
	if taken, err := f.TakeSlots(t.Context(), a, lease, all); err != nil || len(taken) != mail.Slots {
		t.Fatalf("took %d, %v", len(taken), err)
	}
	if taken, err := f.TakeSlots(t.Context(), b, lease, all); err != nil || len(taken) != 0 {
		t.Fatalf("the second worker took %v, %v", taken, err)
	}
	if err := f.ReleaseSlots(t.Context(), a, []int16{3, 4}, true); err != nil {
		t.Fatal(err)
	}
	if taken, err := f.TakeSlots(t.Context(), b, lease, all); err != nil || len(taken) != 2 {
		t.Fatalf("took %v, %v after a release", taken, err)
	}
	l, err := f.Renew(t.Context(), a, store.Terms{Claims: lease, Slots: lease})
	if err != nil || l.Gone || len(l.Slots) != mail.Slots-2 || !slices.Equal(l.Live, []mail.WorkerID{a, b}) {
		t.Fatalf("renewed %+v, %v", l, err)
	}
	homes, err := f.SlotHomes(t.Context())
	if err != nil || homes[3] != (store.Home{Worker: b, Live: true}) || homes[5].Worker != a {
		t.Fatalf("homes %+v, %v", homes, err)
	}
	if !homes[4].Live || homes[4].Left || homes[63].Worker != a {
		t.Errorf("homes %+v, want slot 4 taken, and the last one with the first worker", homes)
	}
	f.exec(t, "UPDATE workers SET lease_until = now() - interval '1 second' WHERE worker_id = $1", a)
	f.exec(t, "UPDATE slots SET lease_until = now() - interval '1 second' WHERE worker_id = $1", a)
	if taken, err := f.TakeSlots(t.Context(), b, lease, all); err != nil || len(taken) != mail.Slots-2 {
		t.Fatalf("took %d, %v after the lease ended", len(taken), err)
	}
	if l, err := f.Renew(t.Context(), a, store.Terms{Claims: lease, Slots: lease}); err != nil || l.Gone || len(l.Slots) != 0 {
		t.Fatalf("a late worker renewed %+v, %v; want its life, not its slots", l, err)
	}
}

func TestReclaim(t *testing.T) {
	f := setup(t)
	idle, sending := submission(1), submission(2)
	f.accept(t, idle, sending)
	w := f.worker(t)
	f.claim(t, w, idle)
	req := f.claim(t, w, sending)
	if _, err := f.Dispatch(t.Context(), w, []*mail.DeliveryRequest{req}); err != nil {
		t.Fatal(err)
	}
	if r, err := f.Reclaim(t.Context(), 0); err != nil || len(r.Workers) != 0 {
		t.Fatalf("reclaimed %+v, %v from a live worker", r, err)
	}
	f.exec(t, "UPDATE workers SET lease_until = now() - interval '1 second'")
	if r, err := f.Reclaim(t.Context(), time.Hour); err != nil || len(r.Workers) != 0 {
		t.Fatalf("reclaimed %+v, %v right after the start of Postgres", r, err)
	}
	r, err := f.Reclaim(t.Context(), 0)
	if err != nil || !slices.Equal(r.Workers, []mail.WorkerID{w}) || r.Recipients != 3 || r.Uncertain != 2 {
		t.Fatalf("reclaimed %+v, %v", r, err)
	}
	if n := one[int](t, f, "SELECT count(*) FROM history WHERE uncertain AND queue_id = $1", sending.ID); n != 2 {
		t.Errorf("%d recipients are uncertain, want the 2 in a transaction", n)
	}
	if l, err := f.Renew(t.Context(), w, store.Terms{Claims: lease, Slots: lease}); err != nil || !l.Gone {
		t.Errorf("a dead worker renewed %+v, %v", l, err)
	}
	if n := len(f.ring(t, store.RingOptions{})); n != 2 {
		t.Errorf("rung %d messages, want 2", n)
	}
	f.balanced(t)
}

// TestAWorkerThatIsNoHomeLosesWhatItHasNotBegun: its claims without a
// transaction wait again long before it is dead; those in one stay its own.
func TestAWorkerThatIsNoHomeLosesWhatItHasNotBegun(t *testing.T) {
	f := setup(t)
	idle, sending := submission(1), submission(2)
	f.accept(t, idle, sending)
	w, other := f.worker(t), f.worker(t)
	f.claim(t, w, idle)
	req := f.claim(t, w, sending)
	if _, err := f.Dispatch(t.Context(), w, []*mail.DeliveryRequest{req}); err != nil {
		t.Fatal(err)
	}
	terms := store.Terms{Claims: lease, Slots: lease / 2}
	if l, err := f.Renew(t.Context(), w, terms); err != nil || l.Gone {
		t.Fatalf("renewed %+v, %v", l, err)
	}
	l, err := f.Renew(t.Context(), other, terms)
	if err != nil || !slices.Equal(l.Live, []mail.WorkerID{w, other}) || l.Next <= 0 || l.Next > lease/2 {
		t.Fatalf("renewed %+v, %v; want both live, and the end of the first within %v", l, err, lease/2)
	}
	if r, err := f.Reclaim(t.Context(), 0); err != nil || r.Recipients != 0 {
		t.Fatalf("reclaimed %+v, %v from a home", r, err)
	}
	f.exec(t, "UPDATE workers SET home_until = now() - interval '1 second' WHERE worker_id = $1", w)
	if l, err := f.Renew(t.Context(), other, terms); err != nil || !slices.Equal(l.Live, []mail.WorkerID{other}) || l.Next != 0 {
		t.Fatalf("renewed %+v, %v; want to be alone", l, err)
	}
	if r, err := f.Reclaim(t.Context(), time.Hour); err != nil || r.Recipients != 0 {
		t.Fatalf("reclaimed %+v, %v right after the start of Postgres", r, err)
	}
	if r, err := f.Reclaim(t.Context(), 0); err != nil || len(r.Workers) != 0 || r.Recipients != 1 || r.Uncertain != 0 {
		t.Fatalf("reclaimed %+v, %v; want what was not begun", r, err)
	}
	if n := len(f.ring(t, store.RingOptions{})); n != 1 {
		t.Errorf("rung %d messages, want 1", n)
	}
	lost, err := f.Settle(t.Context(), w, []mail.Settlement{settlement(req, mail.Outcome{Action: mail.Relayed})})
	if err != nil || lost != 0 {
		t.Errorf("of what was begun %d are lost, %v", lost, err)
	}
	f.balanced(t)
}

func TestEndWorkerGivesBack(t *testing.T) {
	f := setup(t)
	sub := submission(1)
	f.accept(t, sub)
	w := f.worker(t)
	f.claim(t, w, sub)
	if _, err := f.TakeSlots(t.Context(), w, lease, []int16{1}); err != nil {
		t.Fatal(err)
	}
	if err := f.EndWorker(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if n := one[int](t, f, "SELECT count(*) FROM slots WHERE lease_until > now()"); n != 0 {
		t.Errorf("%d slots still have a home", n)
	}
	if n := len(f.ring(t, store.RingOptions{})); n != 1 {
		t.Errorf("rung %d, want 1", n)
	}
}

func TestSites(t *testing.T) {
	f := setup(t)
	site := mail.Site("mx.example.org")
	for _, s := range []mail.Site{site, site.OfProvider("big"), "provider:big", "provider:bücher/mx", "provided/by.us"} {
		if got, want := one[int16](t, f, "SELECT site_slot($1)", string(s)), s.Slot(); got != want {
			t.Errorf("site_slot of %q in SQL is %d, in Go %d", s, got, want)
		}
	}
	home := f.worker(t)
	if _, err := f.TakeSlots(t.Context(), home, time.Hour, []int16{site.Slot()}); err != nil {
		t.Fatal(err)
	}
	f.saves(t, home, site, "warm")
	f.exec(t, "SELECT suspend_site($1, '1 hour', 'they asked')", string(site))
	states, err := f.LoadSites(t.Context(), []int16{site.Slot()})
	if err != nil || len(states) != 1 || string(states[0].State) != "warm" || states[0].SuspendedUntil.IsZero() {
		t.Fatalf("states %+v, %v", states, err)
	}
	if s, err := f.Suspended(t.Context()); err != nil || len(s) != 1 || s[0].SuspendReason != "they asked" {
		t.Fatalf("suspended %+v, %v", s, err)
	}
	if n := one[int](t, f, "SELECT resume_site($1)", string(site)); n != 1 {
		t.Errorf("resume_site changed %d", n)
	}
}

// Operators name a provider and mean all of its sites.
func TestAProviderIsSuspendedAsAWhole(t *testing.T) {
	f := setup(t)
	for _, c := range []struct {
		site, named mail.Site
		want        bool
	}{
		{"provider:big/a.test", "provider:big", true}, {"provider:big/a.test", "provider:big/a.test", true}, {"provider:big", "provider:big", true},
		{"provider:bigger/a.test", "provider:big", false}, {"a.test", "a.test", true}, {"a.test/b", "a.test", false},
	} {
		if got := one[bool](t, f, "SELECT site_within($1, $2)", string(c.site), string(c.named)); got != c.want || got != c.site.Within(c.named) {
			t.Errorf("%q within %q: %v in SQL, %v in Go", c.site, c.named, got, c.site.Within(c.named))
		}
	}
	f.exec(t, "SELECT suspend_site('provider:big/a.test', '1 hour', 'one'), suspend_site('provider:big', '2 hours', 'all'), suspend_site('provider:bigger', '1 hour', 'else')")
	if n := one[int](t, f, "SELECT resume_site('provider:big')"); n != 2 {
		t.Errorf("resume_site ended %d suspensions, want that of the provider and that of its site", n)
	}
}

func (f *fixture) saves(t *testing.T, home mail.WorkerID, site mail.Site, state string) {
	t.Helper()
	if err := f.SaveSites(t.Context(), home, []store.SiteState{{Site: site, Slot: site.Slot(), State: []byte(state)}}); err != nil {
		t.Fatal(err)
	}
}

// A home that is none any more takes nothing away from the next one.
func TestAFormerHomeSavesNothing(t *testing.T) {
	f := setup(t)
	site := mail.Site("mx.example.org")
	slot := []int16{site.Slot()}
	former, next := f.worker(t), f.worker(t)
	holds := func(want string) {
		t.Helper()
		states, err := f.LoadSites(t.Context(), slot)
		if err != nil || len(states) != 1 || string(states[0].State) != want {
			t.Fatalf("states %+v, %v, want %s", states, err, want)
		}
	}
	if _, err := f.TakeSlots(t.Context(), former, time.Hour, slot); err != nil {
		t.Fatal(err)
	}
	f.saves(t, former, site, "left")
	if err := f.ReleaseSlots(t.Context(), former, slot, true); err != nil {
		t.Fatal(err)
	}
	f.saves(t, former, site, "late")
	holds("left")
	if taken, err := f.TakeSlots(t.Context(), next, time.Hour, slot); err != nil || len(taken) != 1 {
		t.Fatal(taken, err)
	}
	f.saves(t, next, site, "taken over")
	f.saves(t, former, site, "later")
	holds("taken over")
}

func TestReroute(t *testing.T) {
	f := setup(t)
	sub := submission(1)
	f.accept(t, sub)
	if n := one[int](t, f, "SELECT reroute('Example.org', '{relay.example.net:587}', 'encrypt')"); n != 1 {
		t.Errorf("reroute changed %d", n)
	}
	rules, err := f.Routing(t.Context())
	if err != nil || len(rules) != 1 || rules[0].Match.Domain != "example.org" || rules[0].TLS != mail.TLSEncrypt || rules[0].Hosts[0] != "relay.example.net:587" {
		t.Fatalf("routing %+v, %v", rules, err)
	}
}

func TestOperatorsMustSayWhat(t *testing.T) {
	f := setup(t)
	if _, err := f.db.Exec(t.Context(), "SELECT hold()"); err == nil {
		t.Error("hold() without a filter held the whole queue")
	}
}

func TestSettleOfAForgottenClaim(t *testing.T) {
	f := setup(t)
	forgotten, taken := submission(1), submission(1)
	f.accept(t, forgotten, taken)
	w, other := f.worker(t), f.worker(t)
	mine, late := f.claim(t, w, forgotten), f.claim(t, w, taken)
	// Postgres died before the commit of the claims was on disk.
	f.exec(t, "UPDATE recipients SET attempt = 0, worker_id = NULL, rung = true")
	f.claim(t, other, taken)
	if lost := f.settle(t, w, settlement(mine, relayed), settlement(late, relayed)); lost != 1 {
		t.Errorf("lost %d outcomes, want only that of the recipient that was claimed anew", lost)
	}
	if n := one[int](t, f, "SELECT count(*) FROM history WHERE uncertain AND queue_id = $1", taken.ID); n != 1 {
		t.Errorf("%d marks on the recipient that may be relayed twice, want 1", n)
	}
	if n := one[int](t, f, "SELECT count(*) FROM recipients WHERE state = 'relayed' AND attempt = 1 AND tries = 0"); n != 1 {
		t.Errorf("%d recipients relayed, want 1", n)
	}
}

func TestRepeatedHintsInOneBatch(t *testing.T) {
	f := setup(t)
	sub := submission(1)
	f.accept(t, sub)
	w := f.worker(t)
	r := route("example.org")
	twice := []*mail.DeliveryRequest{request(sub, r), request(sub, r)}
	if err := f.Claim(t.Context(), w, twice); err != nil {
		t.Fatal(err)
	}
	if len(twice[0].Recipients)+len(twice[1].Recipients) != 1 {
		t.Fatalf("one recipient was claimed %d times in one batch", len(twice[0].Recipients)+len(twice[1].Recipients))
	}
	if err := f.GiveBack(t.Context(), w, twice); err != nil {
		t.Fatal(err)
	}
	stale, fresh := request(sub, r), request(sub, r)
	fresh.Recipients[0].Attempt = 1
	if err := f.Claim(t.Context(), w, []*mail.DeliveryRequest{stale, fresh}); err != nil {
		t.Fatal(err)
	}
	if len(stale.Recipients) != 0 || len(fresh.Recipients) != 1 || fresh.Recipients[0].Attempt != 2 {
		t.Errorf("claimed %+v by the stale hint, %+v by the fresh one", stale.Recipients, fresh.Recipients)
	}
	if lost := f.settle(t, w, settlement(fresh, relayed)); lost != 0 {
		t.Errorf("lost %d", lost)
	}
	other := submission(1)
	f.accept(t, other)
	parked := []*mail.DeliveryRequest{request(other, r), request(other, r)}
	if err := f.Park(t.Context(), 0, parked); err != nil || len(parked[0].Recipients)+len(parked[1].Recipients) != 1 {
		t.Errorf("parked %+v, %v", parked, err)
	}
}

func TestReclaimOfAClaimThatCommittedLate(t *testing.T) {
	f := setup(t)
	sub := submission(1)
	f.accept(t, sub)
	w := f.worker(t)
	if err := f.EndWorker(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if late := f.claim(t, w, sub); len(late.Recipients) != 1 {
		t.Fatal("the claim of the ended worker did not commit")
	}
	if r, err := f.Reclaim(t.Context(), 0); err != nil || r.Recipients != 1 {
		t.Errorf("reclaimed %+v, %v; want the recipient", r, err)
	}
	if n := len(f.ring(t, store.RingOptions{})); n != 1 {
		t.Errorf("rung %d, want 1", n)
	}
}
