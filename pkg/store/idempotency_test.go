package store_test

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

func keyed(key, tenant string) *mail.Submission {
	sub := submission(1)
	sub.IdempotencyKey, sub.Tenant = key, tenant
	sub.Fingerprint, sub.Receipt = []byte("request 1"), []byte("receipt of "+sub.ID.String())
	return sub
}

func wantRepeat(t *testing.T, err error, first *mail.Submission) {
	t.Helper()
	var repeat *store.RepeatError
	if !errors.As(err, &repeat) || repeat.First != first.ID || !bytes.Equal(repeat.Receipt, first.Receipt) {
		t.Fatalf("got %v, want a repeat of %s with its receipt", err, first.ID)
	}
}

func TestIdempotencyKeyOfAGroup(t *testing.T) {
	f := setup(t)
	first, other, plain := keyed("k", "a"), keyed("k", "b"), submission(2)
	if err := f.Accept(t.Context(), []*mail.Submission{first, plain, other}); err != nil {
		t.Fatal(err)
	}
	again, changed, fresh := keyed("k", "a"), keyed("k", "b"), submission(1)
	changed.Fingerprint = []byte("request 2")
	twice := []*mail.Submission{keyed("new", "a"), keyed("new", "a")}
	group := append([]*mail.Submission{again, fresh, changed}, twice...)
	err := f.Accept(t.Context(), group)
	var partial *store.PartialError
	if !errors.As(err, &partial) || len(partial.Errors) != len(group) {
		t.Fatalf("got %v, want an error for each of the group", err)
	}
	wantRepeat(t, partial.Errors[0], first)
	if partial.Errors[1] != nil || !errors.Is(partial.Errors[2], store.ErrKeyReused) ||
		partial.Errors[3] != nil || !errors.Is(partial.Errors[4], store.ErrKeyBusy) {
		t.Fatalf("got %v", partial.Errors)
	}
	if n := one[int](t, f, "SELECT count(*) FROM messages"); n != 5 {
		t.Errorf("%d messages, want 5", n)
	}
	if n := one[int](t, f, "SELECT count(*) FROM contents"); n != 5 {
		t.Errorf("%d contents, want 5", n)
	}
}

// A key counts for 24 hours, then it is free, and is removed.
func TestIdempotencyKeyAges(t *testing.T) {
	f := setup(t)
	first := keyed("k", "")
	if err := f.Accept(t.Context(), []*mail.Submission{first}); err != nil {
		t.Fatal(err)
	}
	f.exec(t, "UPDATE idempotency SET accepted_at = now() - interval '23 hours 59 minutes'")
	if n, err := f.RetireIdempotency(t.Context(), 10); n != 0 || err != nil {
		t.Fatalf("%d removed, %v", n, err)
	}
	wantRepeat(t, f.Accept(t.Context(), []*mail.Submission{keyed("k", "")}), first)
	f.exec(t, "UPDATE idempotency SET accepted_at = now() - interval '24 hours'")
	second := keyed("k", "")
	second.Fingerprint = []byte("another")
	if err := f.Accept(t.Context(), []*mail.Submission{second}); err != nil {
		t.Fatal(err)
	}
	f.exec(t, "UPDATE idempotency SET accepted_at = now() - interval '24 hours 1 second'")
	if n, err := f.RetireIdempotency(t.Context(), 10); n != 1 || err != nil {
		t.Fatalf("%d removed, %v", n, err)
	}
}

// Without a fingerprint the envelope belongs to the key: a relay that splits
// a message by recipients loses nothing.
func TestIdempotencyKeyOfTheEnvelope(t *testing.T) {
	f := setup(t)
	smtp := func(paths ...mail.ForwardPath) *mail.Submission {
		sub := submission(len(paths))
		sub.IdempotencyKey = "k"
		for i, path := range paths {
			sub.Recipients[i].ForwardPath = path
		}
		return sub
	}
	first := smtp("a@example.org", "b@example.org")
	if err := f.Accept(t.Context(), []*mail.Submission{first}); err != nil {
		t.Fatal(err)
	}
	wantRepeat(t, f.Accept(t.Context(), []*mail.Submission{smtp("b@example.org", "a@example.org")}), first)
	if err := f.Accept(t.Context(), []*mail.Submission{smtp("a@example.org")}); err != nil {
		t.Errorf("a part of the recipients: %v", err)
	}
	from := smtp("a@example.org", "b@example.org")
	from.Envelope.ReversePath = "other@example.com"
	if err := f.Accept(t.Context(), []*mail.Submission{from}); err != nil {
		t.Errorf("another reverse-path: %v", err)
	}
}

// Of many submissions at once with one key, one is accepted.
func TestIdempotencyKeyAtOnce(t *testing.T) {
	f := setup(t)
	const clients = 8
	errs := make([]error, clients)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			if i%2 == 0 {
				errs[i] = f.Accept(t.Context(), []*mail.Submission{submission(1), keyed("k", "")})
				return
			}
			streamed := keyed("k", "")
			streamed.Content = nil
			errs[i] = f.AcceptStream(t.Context(), streamed, strings.NewReader("Subject: x\r\n\r\nx\r\n"))
		})
	}
	wg.Wait()
	accepted := 0
	for _, err := range errs {
		var repeat *store.RepeatError
		switch {
		case err == nil:
			accepted++
		case !errors.As(err, &repeat) && !errors.Is(err, store.ErrKeyBusy):
			t.Errorf("got %v", err)
		}
	}
	if n := one[int](t, f, "SELECT count(*) FROM messages WHERE queue_id IN (SELECT queue_id FROM idempotency)"); accepted != 1 || n != 1 {
		t.Errorf("%d accepted, %d stored under the key, want 1", accepted, n)
	}
	if n := one[int](t, f, "SELECT count(*) FROM messages"); n != 1+clients/2 {
		t.Errorf("%d messages, want %d", n, 1+clients/2)
	}
}

// A transaction that holds a key delays nobody, and when it is rolled back
// the key is free.
func TestIdempotencyKeyBusy(t *testing.T) {
	f := setup(t)
	tx, err := f.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT submit('a@example.com', '{b@example.org}', $1::text, idempotency_key => 'k')`, content); err != nil {
		t.Fatal(err)
	}
	if err := f.Accept(t.Context(), []*mail.Submission{keyed("k", ""), submission(1)}); !errors.Is(err, store.ErrKeyBusy) {
		t.Errorf("got %v, want ErrKeyBusy", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.Accept(t.Context(), []*mail.Submission{keyed("k", "")}); err != nil {
		t.Error(err)
	}
}

// What is accepted together is accepted in one transaction, under one key.
func TestAcceptTogether(t *testing.T) {
	f := setup(t)
	head := keyed("k", "")
	head.With = []*mail.Submission{submission(1), submission(2)}
	if err := f.Accept(t.Context(), []*mail.Submission{head, submission(1)}); err != nil {
		t.Fatal(err)
	}
	if n := one[int](t, f, "SELECT count(*) FROM messages"); n != 4 {
		t.Errorf("%d messages, want 4", n)
	}
	again := keyed("k", "")
	again.With = []*mail.Submission{submission(1)}
	wantRepeat(t, f.Accept(t.Context(), []*mail.Submission{again}), head)

	broken := keyed("broken", "")
	broken.With = []*mail.Submission{submission(1)}
	broken.With[0].Envelope.EnvID = "\x00" // Postgres refuses it
	err := f.Accept(t.Context(), []*mail.Submission{broken, submission(1)})
	var partial *store.PartialError
	if !errors.As(err, &partial) || partial.Errors[0] == nil || partial.Errors[1] != nil {
		t.Fatalf("got %v, want the first refused and the second accepted", err)
	}
	if n := one[int](t, f, "SELECT count(*) FROM messages"); n != 5 {
		t.Errorf("%d messages, want 5", n)
	}
	broken.With = nil
	if err := f.Accept(t.Context(), []*mail.Submission{broken}); err != nil {
		t.Errorf("the key of what was refused: %v", err)
	}
}

func TestHeldUntilRelease(t *testing.T) {
	f := setup(t)
	sub := submission(2)
	sub.ReleaseAt = sub.AcceptedAt.Add(time.Hour)
	if err := f.Accept(t.Context(), []*mail.Submission{sub}); err != nil {
		t.Fatal(err)
	}
	rows, err := f.db.Query(t.Context(), "SELECT next_attempt_at, rung FROM recipients")
	if err != nil {
		t.Fatal(err)
	}
	var next time.Time
	var rung bool
	n := 0
	if _, err := pgx.ForEachRow(rows, []any{&next, &rung}, func() error {
		n++
		if rung || next.Sub(sub.ReleaseAt).Abs() > time.Millisecond {
			t.Errorf("rung %t, looked at again %s, want %s", rung, next, sub.ReleaseAt)
		}
		return nil
	}); err != nil || n != 2 {
		t.Fatal(n, err)
	}
}
