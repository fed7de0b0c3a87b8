package scheduler

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// Mail that an application submits by SQL is rung for within a second of the
// commit of its transaction, and not before.
func TestSubmittedBySQL(t *testing.T) {
	w := newWorld(t)
	w.start(t)
	w.listen(t)
	db, err := pgx.Connect(t.Context(), w.url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.Background())
	submit := func(tx pgx.Tx) (id mail.QueueID) {
		const q = `SELECT postrider.submit('a@example.com', '{b@example.org,c@example.org}', E'From: a@example.com\n\nhello\n'::text)`
		if err := tx.QueryRow(t.Context(), q).Scan(&id); err != nil {
			t.Fatal(err)
		}
		return id
	}
	gone, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rolledBack := submit(gone)
	if err := gone.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		tx, err := db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		id := submit(tx)
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		committed := time.Now()
		for w.rungFor(id) < 2 {
			if time.Since(committed) > 5*time.Second {
				t.Fatalf("%d of 2 recipients are rung for", w.rungFor(id))
			}
			<-time.After(5 * time.Millisecond)
		}
		if took := time.Since(committed); took > time.Second {
			t.Errorf("rung for %s after the commit", took)
		}
	}
	if n := w.rungFor(rolledBack); n != 0 {
		t.Errorf("%d recipients of what was rolled back are rung for", n)
	}
}

func (w *world) rungFor(id mail.QueueID) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for r, times := range w.queued {
		if r.id == id {
			n += times
		}
	}
	return n
}
