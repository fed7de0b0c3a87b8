package store_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// Every step names the attempt and the worker that it speaks for. Each of the
// two is tried alone: the same worker with an older attempt, and another worker
// with the attempt of now.
func TestFences(t *testing.T) {
	f := setup(t)
	w, other := f.worker(t), f.worker(t)
	steps := map[string]func(id mail.WorkerID, r *mail.DeliveryRequest) (changed int){
		"claim": func(id mail.WorkerID, r *mail.DeliveryRequest) int {
			must(t, f.Claim(t.Context(), id, []*mail.DeliveryRequest{r}))
			return len(r.Recipients)
		},
		"dispatch": func(id mail.WorkerID, r *mail.DeliveryRequest) int {
			_, err := f.Dispatch(t.Context(), id, []*mail.DeliveryRequest{r})
			must(t, err)
			return len(r.Recipients)
		},
		"settle": func(id mail.WorkerID, r *mail.DeliveryRequest) int {
			return 1 - f.settle(t, id, settlement(r, relayed))
		},
		"settle unclaimed": func(_ mail.WorkerID, r *mail.DeliveryRequest) int {
			lost, err := f.SettleUnclaimed(t.Context(), []mail.Settlement{settlement(r, relayed)})
			must(t, err)
			return 1 - lost
		},
		"park": func(id mail.WorkerID, r *mail.DeliveryRequest) int {
			must(t, f.Park(t.Context(), id, []*mail.DeliveryRequest{r}))
			return len(r.Recipients)
		},
		"park unclaimed": func(_ mail.WorkerID, r *mail.DeliveryRequest) int {
			must(t, f.Park(t.Context(), 0, []*mail.DeliveryRequest{r}))
			return len(r.Recipients)
		},
		"give back": func(id mail.WorkerID, r *mail.DeliveryRequest) int {
			must(t, f.GiveBack(t.Context(), id, []*mail.DeliveryRequest{r}))
			return 0 // the row tells
		},
	}
	for name, step := range steps {
		t.Run(name, func(t *testing.T) {
			sub := submission(1)
			f.accept(t, sub)
			older := f.claim(t, w, sub)
			must(t, f.GiveBack(t.Context(), w, []*mail.DeliveryRequest{copyOf(older)}))
			now := copyOf(older)
			must(t, f.Claim(t.Context(), w, []*mail.DeliveryRequest{now}))
			if len(now.Recipients) != 1 || now.Recipients[0].Attempt != 2 {
				t.Fatalf("claimed %+v, want attempt 2", now.Recipients)
			}
			const row = `SELECT concat_ws(' ', state, attempt, worker_id, dispatched, slot) FROM recipients WHERE queue_id = $1`
			before := one[string](t, f, row, sub.ID)
			for who, try := range map[string]struct {
				id mail.WorkerID
				r  *mail.DeliveryRequest
			}{"the same worker with an older attempt": {w, copyOf(older)}, "another worker with the attempt of now": {other, copyOf(now)}} {
				if changed := step(try.id, try.r); changed != 0 {
					t.Errorf("%s has changed %d recipients", who, changed)
				}
				if got := one[string](t, f, row, sub.ID); got != before {
					t.Errorf("%s made it %q, it was %q", who, got, before)
				}
			}
		})
	}
}

func copyOf(r *mail.DeliveryRequest) *mail.DeliveryRequest {
	c := *r
	c.Recipients = slices.Clone(r.Recipients)
	return &c
}

// One recipient in each state and place, and both ways of counting see it.
func TestAccountingOfEveryState(t *testing.T) {
	f := setup(t)
	var subs []*mail.Submission
	for range 8 {
		subs = append(subs, submission(1))
	}
	f.accept(t, subs...)
	w := f.worker(t)
	// The first waits.
	must(t, f.Park(t.Context(), 0, []*mail.DeliveryRequest{request(subs[1], route("example.org"))}))
	f.claim(t, w, subs[2])
	for op, sub := range map[store.Operation]*mail.Submission{store.Hold: subs[3], store.Cancel: subs[4], store.Fail: subs[5]} {
		if n, err := f.Operate(t.Context(), op, store.Filter{ID: sub.ID}, "test"); err != nil || n != 1 {
			t.Fatalf("%s: %d, %v", op, n, err)
		}
	}
	f.settle(t, w, settlement(f.claim(t, w, subs[6]), relayed))
	f.exec(t, `UPDATE recipients SET expires_at = now() - interval '1 second', next_attempt_at = now() - interval '1 second' WHERE queue_id = $1`, subs[7].ID)
	if n, _, err := f.Expire(t.Context(), 10); err != nil || n != 1 {
		t.Fatalf("expired %d, %v", n, err)
	}
	if n := one[int](t, f, `SELECT count(DISTINCT state) FROM recipients`); n != one[int](t, f, `SELECT cardinality(enum_range(NULL::recipient_state))`) {
		t.Errorf("%d states were tried, want all", n)
	}
	want := store.Accounting{Accepted: 8, Queued: 4, Relayed: 1, Failed: 1, Expired: 1, Cancelled: 1}
	if got := f.balanced(t); got != want {
		t.Errorf("the view says %+v, want %+v", got, want)
	}
	if got, err := f.CountAccounts(t.Context()); err != nil || got != want {
		t.Errorf("the counts are %+v, %v; want %+v", got, err, want)
	}
}

// A row that somebody has locked holds up nobody.
func TestRingPassesWhatIsLocked(t *testing.T) {
	f := setup(t)
	locked, free := submission(1), submission(1)
	f.accept(t, locked, free)
	f.exec(t, `UPDATE recipients SET next_attempt_at = now() - interval '1 second', rung = false`)
	tx, err := f.db.Begin(t.Context())
	must(t, err)
	defer func() { must(t, tx.Rollback(context.Background())) }()
	_, err = tx.Exec(t.Context(), `SELECT FROM recipients WHERE queue_id = $1 FOR UPDATE`, locked.ID)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ring, _, err := f.Ring(ctx, store.RingOptions{Limit: 10})
	if err != nil || len(ring) != 1 || ring[0].ID != free.ID {
		t.Errorf("rung %+v, %v; want the one that is not locked", ring, err)
	}
}
