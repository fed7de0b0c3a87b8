package store_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/devpg"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
)

// What ends a claim is still so when Postgres crashes right after it has
// answered: its worker lives and has forgotten the claim, and nobody else would
// ever touch the recipient.
func TestWhatEndsAClaimOutlivesACrash(t *testing.T) {
	t.Parallel()
	// Nothing but a commit that waits for it is on disk for ten seconds.
	server := storetest.NewServer(t, devpg.Options{Settings: map[string]string{"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}})
	s, err := store.Open(t.Context(), store.Config{URL: server.URL(), MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	id, err := s.RegisterWorker(t.Context(), t.Name(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name string
		end  func(*mail.DeliveryRequest) error
		want string
	}{
		{"park", func(r *mail.DeliveryRequest) error { return s.Park(t.Context(), id, []*mail.DeliveryRequest{r}) }, "parked"},
		{"return", func(r *mail.DeliveryRequest) error { return s.GiveBack(t.Context(), id, []*mail.DeliveryRequest{r}) }, "waiting"},
		{"settle", func(r *mail.DeliveryRequest) error {
			_, err := s.Settle(t.Context(), id, []mail.Settlement{settlement(r, relayed)})
			return err
		}, "relayed"},
	} {
		sub := submission(1)
		if err := s.Accept(t.Context(), []*mail.Submission{sub}); err != nil {
			t.Fatal(err)
		}
		req := request(sub, route("example.org"))
		if err := s.Claim(t.Context(), id, []*mail.DeliveryRequest{req}); err != nil || len(req.Recipients) != 1 {
			t.Fatalf("%s: claim: %v", step.name, err)
		}
		// The next message to be accepted has the claim on disk.
		if err := s.Accept(t.Context(), []*mail.Submission{submission(1)}); err != nil {
			t.Fatal(err)
		}
		if err := step.end(req); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		db, err := pgx.Connect(t.Context(), server.URL())
		if err != nil {
			t.Fatal(err)
		}
		const q = `SELECT CASE WHEN worker_id IS NOT NULL THEN 'claimed' WHEN slot IS NOT NULL THEN 'parked' WHEN state = 'queued' THEN 'waiting' ELSE state::text END
FROM postrider.recipients WHERE queue_id = $1`
		var got string
		if err := db.QueryRow(t.Context(), q, sub.ID).Scan(&got); err != nil || got != step.want {
			t.Errorf("after a %s and a crash the recipient is %s, %v; want %s", step.name, got, err, step.want)
		}
		if err := db.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

// A standby that was behind takes over: what had ended is claimed again, by a
// worker that lives.
func TestReconcile(t *testing.T) {
	f := setup(t)
	subs := []*mail.Submission{submission(1), submission(1), submission(1), submission(1), submission(1)}
	f.accept(t, subs...)
	w := f.worker(t)
	held, parked, given, relayedOnce, moved := subs[0], subs[1], subs[2], subs[3], subs[4]
	f.claim(t, w, held)
	if err := f.Park(t.Context(), w, []*mail.DeliveryRequest{f.claim(t, w, parked)}); err != nil {
		t.Fatal(err)
	}
	if err := f.GiveBack(t.Context(), w, []*mail.DeliveryRequest{f.claim(t, w, given)}); err != nil {
		t.Fatal(err)
	}
	inTransaction := f.claim(t, w, relayedOnce)
	if _, err := f.Dispatch(t.Context(), w, []*mail.DeliveryRequest{inTransaction}); err != nil {
		t.Fatal(err)
	}
	f.settle(t, w, settlement(inTransaction, relayed))
	f.claim(t, w, moved)
	if got, err := f.Reconcile(t.Context(), w); err != nil || got.Recipients != 0 {
		t.Fatalf("reconciled %+v, %v; want nothing: both sides agree", got, err)
	}
	f.exec(t, `UPDATE recipients SET state = 'queued', final_at = NULL, worker_id = $1, slot = NULL, attempt = 1, next_attempt_at = expires_at,
    dispatched = queue_id = $2 WHERE queue_id = ANY ($3)`, w, relayedOnce.ID, []mail.QueueID{parked.ID, given.ID, relayedOnce.ID})
	f.exec(t, `UPDATE recipients SET attempt = 0 WHERE queue_id = $1`, moved.ID)
	if got, err := f.Reconcile(t.Context(), w); err != nil || got.Recipients != 4 || got.Uncertain != 1 {
		t.Errorf("reconciled %+v, %v; want 4, of them 1 that may have been relayed", got, err)
	}
	if n := one[int](t, f, `SELECT count(*) FROM recipients WHERE worker_id IS NULL AND next_attempt_at <= now()`); n != 4 {
		t.Errorf("%d are due, want 4", n)
	}
	if id := one[mail.QueueID](t, f, `SELECT queue_id FROM recipients WHERE worker_id = $1`, w); id != held.ID {
		t.Errorf("%s is claimed, want %s, which the worker knows of", id, held.ID)
	}
	if id := one[mail.QueueID](t, f, `SELECT queue_id FROM attempts WHERE uncertain`); id != relayedOnce.ID {
		t.Errorf("%s is marked, want %s", id, relayedOnce.ID)
	}
	f.balanced(t)
}

// A claim whose answer is on its way is nobody's to give back.
func TestReconcileBesideClaims(t *testing.T) {
	f := setup(t)
	w := f.worker(t)
	over, stop := context.WithCancel(t.Context())
	defer stop()
	var claims errgroup.Group
	for range 4 {
		claims.Go(func() error {
			defer stop()
			for range 50 {
				sub := submission(1)
				if err := f.Accept(t.Context(), []*mail.Submission{sub}); err != nil {
					return err
				}
				req := request(sub, route("example.org"))
				if err := f.Claim(t.Context(), w, []*mail.DeliveryRequest{req}); err != nil {
					return err
				}
				if lost, err := f.Settle(t.Context(), w, []mail.Settlement{settlement(req, relayed)}); err != nil || lost != 0 {
					t.Errorf("lost %d, %v", lost, err)
				}
			}
			return nil
		})
	}
	for over.Err() == nil {
		if got, err := f.Reconcile(t.Context(), w); err != nil || got.Recipients != 0 {
			t.Fatalf("reconciled %+v, %v; want nothing", got, err)
		}
	}
	if err := claims.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestOverdue(t *testing.T) {
	f := setup(t)
	old, fresh, waits := submission(1), submission(1), submission(1)
	f.accept(t, old, fresh, waits)
	w := f.worker(t)
	dispatch := func(sub *mail.Submission) {
		if _, err := f.Dispatch(t.Context(), w, []*mail.DeliveryRequest{f.claim(t, w, sub)}); err != nil {
			t.Fatal(err)
		}
	}
	dispatch(old)
	f.claim(t, w, waits)
	since, err := f.Horizon(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dispatch(fresh)
	if n, err := f.Overdue(t.Context(), since); err != nil || n != 1 {
		t.Errorf("%d are overdue, %v; want the one that was in a transaction before", n, err)
	}
}
