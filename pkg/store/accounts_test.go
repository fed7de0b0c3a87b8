package store_test

import (
	"testing"
)

// The accounts by hour say what the view says, whatever has become final
// since, and an hour that is finished is not counted again.
func TestCountAccounts(t *testing.T) {
	f := setup(t)
	w := f.worker(t)
	agree := func() {
		t.Helper()
		got, err := f.CountAccounts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if want := f.balanced(t); got != want {
			t.Errorf("by hour %+v, all together %+v", got, want)
		}
	}
	agree()
	sub, other := submission(2), submission(1)
	f.accept(t, sub, other)
	agree()
	f.settle(t, w, settlement(f.claim(t, w, sub), relayed))
	agree()

	// An hour of long ago: what waits in it is counted again after 10 minutes,
	// what is finished is not.
	f.exec(t, `SELECT ensure_partitions(now() - interval '2 days', now())`)
	const id = `overlay(first_id(now() - interval '2 days')::text PLACING '7' FROM 15 FOR 1)::uuid`
	f.exec(t, `INSERT INTO messages (queue_id, accepted_at, recipient_count, size_bytes, reverse_path) VALUES (`+id+`, now(), 1, 1, '')`)
	f.exec(t, `INSERT INTO recipients (queue_id, recipient_no, next_attempt_at, expires_at, domain, forward_path)
        SELECT queue_id, 1, now(), now(), 'example.org', 'a@example.org' FROM messages WHERE size_bytes = 1`)
	agree()
	f.exec(t, `UPDATE recipients SET state = 'expired', next_attempt_at = NULL, final_at = now() WHERE queue_id IN (SELECT queue_id FROM messages WHERE size_bytes = 1)`)
	f.exec(t, `UPDATE accounts SET counted_at = counted_at - interval '11 minutes'`)
	agree()
	counted := `SELECT count(*) FROM accounts WHERE counted_at > now() - interval '1 minute'`
	f.exec(t, `UPDATE accounts SET counted_at = counted_at - interval '1 hour'`)
	agree()
	if n := one[int](t, f, counted); n != 3 && n != 4 { // the latest hours, and the one to come
		t.Errorf("%d hours were counted again", n)
	}
}

func TestForgetSites(t *testing.T) {
	f := setup(t)
	f.exec(t, `INSERT INTO sites (site, slot, saved_at, suspended_until) VALUES
        ('old', 1, now() - interval '31 days', NULL), ('suspended', 1, now() - interval '31 days', now() + interval '1 day'),
        ('fresh', 1, now() - interval '29 days', NULL)`)
	if n, err := f.as(t, "postrider_scheduler").ForgetSites(t.Context()); err != nil || n != 1 {
		t.Errorf("forgot %d, %v, want 1", n, err)
	}
}
