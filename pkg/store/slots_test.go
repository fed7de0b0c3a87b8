package store_test

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// tenure is a time in which a worker believes that a slot is its own.
type tenure struct {
	worker      mail.WorkerID
	slot        int16
	from, until time.Time
}

// TestNoSlotHasTwoHomes: workers take, renew and release slots while their
// clocks and Postgres stall at random, some of them for longer than the lease.
// Each counts its own time from before it asked. At no time do two believe in
// the same slot.
func TestNoSlotHasTwoHomes(t *testing.T) {
	f := setup(t)
	const workers, slots = 5, 8
	terms := store.Terms{Claims: time.Hour, Slots: 60 * time.Millisecond}
	want := make([]int16, slots)
	for i := range want {
		want[i] = int16(i)
	}
	stall := func() {
		d := time.Duration(rand.IntN(15)) * time.Millisecond
		if rand.IntN(8) == 0 {
			d = time.Duration(rand.IntN(150)) * time.Millisecond
		}
		<-time.After(d)
	}
	var mu sync.Mutex
	var all []tenure
	over := time.Now().Add(4 * time.Second)
	var g errgroup.Group
	for range workers {
		id := f.worker(t)
		g.Go(func() error {
			held := map[int16]*tenure{}
			end := func(slot int16) {
				mu.Lock()
				defer mu.Unlock()
				all = append(all, *held[slot])
				delete(held, slot)
			}
			for time.Now().Before(over) {
				asked := time.Now()
				stall() // before it is sent
				l, err := f.Renew(t.Context(), id, terms)
				if err != nil {
					return err
				}
				stall() // before it is read
				for slot, h := range held {
					if slices.Contains(l.Slots, slot) && time.Now().Before(h.until) {
						h.until = asked.Add(terms.Slots)
					} else {
						end(slot)
					}
				}
				if slot := int16(rand.IntN(slots)); held[slot] != nil && rand.IntN(3) == 0 {
					if now := time.Now(); now.Before(held[slot].until) {
						held[slot].until = now
					}
					end(slot)
					if err := f.ReleaseSlots(t.Context(), id, []int16{slot}, true); err != nil {
						return err
					}
				}
				asked = time.Now()
				stall()
				taken, err := f.TakeSlots(t.Context(), id, terms.Slots, want)
				if err != nil {
					return err
				}
				for _, slot := range taken {
					if held[slot] != nil {
						end(slot)
					}
					held[slot] = &tenure{id, slot, time.Now(), asked.Add(terms.Slots)}
				}
			}
			for slot := range held {
				end(slot)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(a tenure) bool { return !a.from.Before(a.until) })
	slices.SortFunc(all, func(a, b tenure) int { return cmp.Or(cmp.Compare(a.slot, b.slot), a.from.Compare(b.from)) })
	changes := 0
	for i := range all[1:] {
		a, b := all[i], all[i+1]
		if a.slot != b.slot || a.worker == b.worker {
			continue
		}
		changes++
		if b.from.Before(a.until) {
			t.Fatalf("slot %d: worker %d believes in it until %v, worker %d from %v before that", a.slot, a.worker, a.until, b.worker, a.until.Sub(b.from))
		}
	}
	if changes < 20 {
		t.Errorf("slots changed their home %d times: too few to show anything", changes)
	}
}
