package store_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

const sharedName = "all of it"

// want is a holding of a limit of 10 connections and 20 events in a second.
func want(w mail.WorkerID, connections, events int) store.Holding {
	return store.Holding{Name: sharedName, Worker: w, Connections: connections, Events: events, AllConnections: 10, AllEvents: 20, Period: time.Second}
}

func (f *fixture) hold(t *testing.T, h store.Holding, uses store.InUse) store.Holding {
	t.Helper()
	got, err := f.Hold(t.Context(), h, uses)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestASharedLimitIsHeldInPortions(t *testing.T) {
	f := setup(t)
	a, b := f.worker(t), f.worker(t)
	expect := func(what string, got store.Holding, connections, events int) {
		t.Helper()
		if got.Connections != connections || got.Events != events {
			t.Errorf("%s: %d connections, %d events, want %d, %d", what, got.Connections, got.Events, connections, events)
		}
	}
	expect("alone", f.hold(t, want(a, 10, 20), store.InUse{}), 10, 20)
	expect("nothing is left", f.hold(t, want(b, 5, 10), store.InUse{}), 0, 0)
	less := f.hold(t, want(a, 5, 10), store.InUse{Connections: 7, Events: 12})
	expect("less", less, 5, 10)
	if less.OverConnections != 2 || less.OverEvents != 2 {
		t.Errorf("%+v, want what is used beyond that on record", less)
	}
	expect("what is left", f.hold(t, want(b, 5, 10), store.InUse{}), 3, 8)
	expect("of a limit that has become smaller nothing more, and nothing is taken from who uses it", f.hold(t, store.Holding{
		Name: sharedName, Worker: b, Connections: 5, Events: 10, AllConnections: 5, AllEvents: 5, Period: time.Second,
	}, store.InUse{Connections: 2, Events: 1}), 3, 8)

	// Connections end with the worker; its events count for a period more, or
	// until another one counts them.
	left := want(a, 0, 12)
	left.State, left.Period = []byte("what a has begun"), time.Hour
	f.hold(t, left, store.InUse{Events: 12})
	if err := f.EndWorker(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	expect("after the end of the other", f.hold(t, want(b, 10, 20), store.InUse{}), 10, 8)
	all, _, err := f.Holdings(t.Context())
	if err != nil || len(all) != 2 || !all[0].Gone || string(all[0].State) != "what a has begun" || all[1].Gone || all[1].Worker != b {
		t.Fatalf("holdings %+v, %v", all, err)
	}
	expect("when it is counted here", f.hold(t, want(b, 10, 20), store.InUse{Events: 12, Counted: []mail.WorkerID{a}}), 10, 20)
	if err := f.Release(t.Context(), b, sharedName); err != nil {
		t.Fatal(err)
	}
	if all, _, err := f.Holdings(t.Context()); err != nil || len(all) != 0 {
		t.Fatalf("holdings %+v, %v", all, err)
	}
	if _, err := f.Hold(t.Context(), want(a, 1, 1), store.InUse{}); err == nil {
		t.Error("a worker that has ended holds something again")
	}
}

// A worker whose lease on its slots has ended, and who comes back, holds
// nothing of what others may hold meanwhile.
func TestAWorkerThatComesBackHoldsNothing(t *testing.T) {
	f := setup(t)
	a, b := f.worker(t), f.worker(t)
	f.hold(t, want(a, 10, 20), store.InUse{})
	f.exec(t, "UPDATE workers SET home_until = now() - interval '1 ms' WHERE worker_id = $1", int32(a))
	if _, err := f.Hold(t.Context(), want(a, 10, 20), store.InUse{}); err == nil {
		t.Error("a worker without a lease holds something")
	}
	if got := f.hold(t, want(b, 10, 20), store.InUse{}); got.Connections != 10 || got.Events != 0 {
		t.Errorf("%+v, want all connections, and no events before a period is over", got)
	}
	f.exec(t, "UPDATE workers SET home_until = now() + interval '1 hour' WHERE worker_id = $1", int32(a))
	if got := f.hold(t, want(a, 5, 10), store.InUse{}); got.Connections != 0 || got.Events != 10 {
		t.Errorf("%+v, want only what the other one does not hold", got)
	}
}

// TestPortionsOnRecordNeverSumToMore: workers that want more and less at
// random, all at once.
func TestPortionsOnRecordNeverSumToMore(t *testing.T) {
	f := setup(t)
	var mu sync.Mutex
	used := map[mail.WorkerID]store.InUse{}
	over := time.Now().Add(2 * time.Second)
	steps := 0
	var g errgroup.Group
	for range 4 {
		id := f.worker(t)
		g.Go(func() error {
			for time.Now().Before(over) {
				h := want(id, rand.IntN(11), rand.IntN(21))
				mu.Lock()
				// Less is used before it is on record.
				now := used[id]
				now.Connections, now.Events = min(now.Connections, h.Connections), min(now.Events, h.Events)
				used[id] = now
				mu.Unlock()
				got, err := f.Hold(t.Context(), h, now)
				if err != nil {
					return err
				}
				mu.Lock()
				used[id] = store.InUse{Connections: got.Connections, Events: got.Events}
				connections, events := 0, 0
				for _, u := range used {
					connections, events = connections+u.Connections, events+u.Events
				}
				steps++
				mu.Unlock()
				if connections > 10 || events > 20 {
					t.Errorf("%d connections and %d events are used, the limit is 10 and 20", connections, events)
					return nil
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d steps", steps)
}
