package delivery

import (
	"context"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
)

// TestRebalancingMovesOnlyWhatMustMove: workers join, leave in order and die
// at random, on a real Postgres. After each change the shares are fair again,
// every slot has one home, and only slots of who has left, or for who has
// joined, have moved.
func TestRebalancingMovesOnlyWhatMustMove(t *testing.T) {
	t.Parallel()
	db, err := store.Open(t.Context(), store.Config{URL: storetest.New(t), MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	rapid.Check(t, func(t *rapid.T) {
		b := &balancer{t: t, ctx: context.Background(), db: db}
		defer b.endAll()
		b.join()
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			before := b.settle()
			change := rapid.SampledFrom([]string{"join", "leave", "die"}).Draw(t, "change")
			var who mail.WorkerID
			if change == "join" || len(b.live) == 1 {
				who = b.join()
			} else {
				who = b.live[rapid.IntRange(0, len(b.live)-1).Draw(t, "who")]
				b.end(who, change == "leave")
			}
			for slot, home := range b.settle() {
				if home != before[slot] && home != who && before[slot] != who {
					t.Fatalf("slot %d moved from worker %d to %d, and it was worker %d that came or went", slot, before[slot], home, who)
				}
			}
		}
	})
}

// balancer is the workers of a cluster that have nothing to do.
type balancer struct {
	t    *rapid.T
	ctx  context.Context
	db   *store.Store
	live []mail.WorkerID // in order
}

func (b *balancer) must(err error) {
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *balancer) join() mail.WorkerID {
	id, err := b.db.RegisterWorker(b.ctx, "balancer", time.Hour)
	b.must(err)
	b.live = append(b.live, id)
	return id
}

// end ends a worker, which may have released its slots before.
func (b *balancer) end(id mail.WorkerID, inOrder bool) {
	if inOrder {
		l := b.renew(id)
		b.must(b.db.ReleaseSlots(b.ctx, id, l.Slots, true))
	}
	b.must(b.db.EndWorker(b.ctx, id))
	b.live = slices.DeleteFunc(b.live, func(w mail.WorkerID) bool { return w == id })
}

func (b *balancer) endAll() {
	for _, id := range slices.Clone(b.live) {
		b.end(id, true)
	}
}

func (b *balancer) renew(id mail.WorkerID) store.Lease {
	l, err := b.db.Renew(b.ctx, id, store.Terms{Claims: time.Hour, Slots: time.Hour})
	b.must(err)
	return l
}

// settle has each worker do what it would after a renewal, until nothing moves
// any more, and returns the home of each slot.
func (b *balancer) settle() (homes [mail.Slots]mail.WorkerID) {
	for round := range 4 {
		moved := false
		for _, id := range b.live {
			l := b.renew(id)
			if !slices.Equal(l.Live, b.live) {
				b.t.Fatalf("worker %d knows of %v, and %v live", id, l.Live, b.live)
			}
			switch want := share(l.Live, id); {
			case len(l.Slots) > want:
				b.must(b.db.ReleaseSlots(b.ctx, id, l.Slots[want:], true))
				moved = true
			case len(l.Slots) < want:
				moved = b.take(id, want-len(l.Slots)) > 0 || moved
			}
		}
		if !moved {
			return b.homes()
		}
		if round == 3 {
			b.t.Fatal("slots move on and on")
		}
	}
	return homes
}

func (b *balancer) take(id mail.WorkerID, n int) int {
	now, err := b.db.SlotHomes(b.ctx)
	b.must(err)
	var want []int16
	for slot, h := range now {
		if !h.Live && len(want) < n {
			want = append(want, int16(slot))
		}
	}
	taken, err := b.db.TakeSlots(b.ctx, id, time.Hour, want)
	b.must(err)
	return len(taken)
}

// homes returns the home of each slot, if the shares are fair.
func (b *balancer) homes() (homes [mail.Slots]mail.WorkerID) {
	now, err := b.db.SlotHomes(b.ctx)
	b.must(err)
	n := map[mail.WorkerID]int{}
	for slot, h := range now {
		if !h.Live || !slices.Contains(b.live, h.Worker) {
			b.t.Fatalf("slot %d has no home: %+v", slot, h)
		}
		homes[slot] = h.Worker
		n[h.Worker]++
	}
	for _, id := range b.live {
		if n[id] != mail.Slots/len(b.live) && n[id] != mail.Slots/len(b.live)+1 {
			b.t.Fatalf("worker %d of %d has %d slots", id, len(b.live), n[id])
		}
	}
	return homes
}

// Of a divided site each worker has its share of the parts, if slots are
// chosen for it, and those that have a home that is not crowded stay.
func TestSlotsOfPartsAreSpread(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		workers := rapid.IntRange(1, 8).Draw(t, "workers")
		var homes [mail.Slots]store.Home
		for slot := range homes {
			// As they are after rebalancing: each has its share, anywhere.
			homes[slot] = store.Home{Worker: mail.WorkerID(1 + slot%workers), Live: true}
		}
		order := rapid.Permutation(homes[:]).Draw(t, "homes")
		copy(homes[:], order)
		are := rapid.SliceOfNDistinct(rapid.Int16Range(0, mail.Slots-1), 1, 16, rapid.ID[int16]).Draw(t, "are")
		parts := rapid.IntRange(1, 16).Draw(t, "parts")
		next := chooseSlots(are, parts, &homes)
		if len(next) != parts || next[0] != are[0] {
			t.Fatalf("%d parts in slots %v, where %v were", parts, next, are)
		}
		n := map[mail.WorkerID]int{}
		for i, slot := range next {
			if slices.Contains(next[:i], slot) {
				t.Fatalf("slot %d has two parts: %v", slot, next)
			}
			n[homes[slot].Worker]++
		}
		for w, has := range n {
			if has > (parts+workers-1)/workers {
				t.Fatalf("worker %d has %d of %d parts, there are %d workers: %v", w, has, parts, workers, next)
			}
		}
		if again := chooseSlots(next, parts, &homes); !slices.Equal(again, next) {
			t.Fatalf("%v, and then %v", next, again)
		}
	})
}
