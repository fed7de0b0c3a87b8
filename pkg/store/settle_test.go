package store_test

import (
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

// An answer that was lost is no second transaction: the history has one line,
// and nobody is told of a duplicate that there was not.
func TestSettleWhoseAnswerWasLost(t *testing.T) {
	f := setup(t)
	subs := []*mail.Submission{submission(2), submission(1), submission(1)}
	f.accept(t, subs...)
	w := f.worker(t)
	done := settlement(f.claim(t, w, subs[0]), relayed)
	open := settlement(f.claim(t, w, subs[1]), delayed(time.Now().Add(time.Hour)))
	taken := settlement(f.claim(t, w, subs[2]), relayed)
	f.settle(t, w, done)
	// Of the third somebody believes that its worker died.
	f.exec(t, `UPDATE recipients SET worker_id = NULL, attempt = attempt + 1 WHERE queue_id = $1`, subs[2].ID)
	f.exec(t, `INSERT INTO attempts (queue_id, recipient_nos, attempt, action, phase, uncertain, worker_id, started_at)
VALUES ($1, '{1}', 1, 'delayed', 'dot', true, $2, now())`, subs[2].ID, w)
	lost, err := f.Resettle(t.Context(), w, []mail.Settlement{done, open, taken})
	if err != nil || lost != 1 {
		t.Errorf("lost %d, %v; want the one that was taken back", lost, err)
	}
	for i, want := range []int{1, 1, 2} {
		if n := one[int](t, f, `SELECT count(*) FROM attempts WHERE queue_id = $1`, subs[i].ID); n != want {
			t.Errorf("message %d has %d lines of history, want %d", i, n, want)
		}
	}
	if n := one[int](t, f, `SELECT count(*) FROM attempts WHERE uncertain AND queue_id <> $1`, subs[2].ID); n != 0 {
		t.Errorf("%d lines say that the message may have been relayed twice", n)
	}
	if n := one[int](t, f, `SELECT count(*) FROM recipients WHERE queue_id = $1 AND tries = 1`, subs[1].ID); n != 1 {
		t.Error("what had not been settled is not settled now")
	}
	if lost, err := f.Resettle(t.Context(), w, []mail.Settlement{done, open}); err != nil || lost != 0 {
		t.Errorf("a third time: lost %d, %v", lost, err)
	}
	f.balanced(t)
}
