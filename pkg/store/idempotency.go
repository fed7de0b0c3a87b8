package store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// RepeatError says that a submission has the idempotency key of one that was
// accepted before. Nothing was accepted; the client is to be told what it was
// told then.
type RepeatError struct {
	First   mail.QueueID
	Receipt []byte // of the first submission; empty if it had none
}

// Error names the message that was accepted.
func (e *RepeatError) Error() string { return "repeats the submission of " + e.First.String() }

// The ways in which a submission with an idempotency key is refused.
var (
	ErrKeyBusy   = errors.New("another submission with this idempotency key is under way") // try again
	ErrKeyReused = errors.New("this idempotency key was used for another request")         // for good
)

// keyName is what a key is unique by.
type keyName struct{ tenant, key string }

func (a keyName) compare(b keyName) int {
	return cmp.Or(cmp.Compare(a.tenant, b.tenant), cmp.Compare(a.key, b.key))
}

// nameOf returns what the key of a submission is unique by. A client of SMTP
// may send one message in several transactions, each to some of the
// recipients: without a fingerprint of the whole request the envelope tells
// them apart.
func nameOf(sub *mail.Submission) keyName {
	if sub.Fingerprint != nil {
		return keyName{sub.Tenant, sub.IdempotencyKey}
	}
	paths := make([]string, len(sub.Recipients))
	for i := range sub.Recipients {
		paths[i] = string(sub.Recipients[i].ForwardPath)
	}
	slices.Sort(paths)
	h := sha256.New()
	fmt.Fprintf(h, "%s\n", sub.Envelope.ReversePath) // a hash takes everything
	for _, path := range paths {
		fmt.Fprintf(h, "%s\n", path)
	}
	return keyName{sub.Tenant, sub.IdempotencyKey + " " + hex.EncodeToString(h.Sum(nil)[:16])}
}

// withKeys reports whether the group has a submission with a key.
func withKeys(group []*mail.Submission) bool {
	return slices.ContainsFunc(group, func(sub *mail.Submission) bool { return sub.IdempotencyKey != "" })
}

// takeKeys makes the keys of a group its own, in the transaction that accepts
// it. It returns the submissions to be accepted, and for each submission of
// the group why it is not, or nil. It waits for nobody: of a key that another
// transaction holds it says ErrKeyBusy.
func takeKeys(ctx context.Context, tx pgx.Tx, group []*mail.Submission) (fresh []*mail.Submission, errs []error, err error) {
	errs = make([]error, len(group))
	first := map[keyName]*mail.Submission{}
	for _, sub := range group {
		if sub.IdempotencyKey != "" {
			if name := nameOf(sub); first[name] == nil {
				first[name] = sub
			}
		}
	}
	taken, err := lockKeys(ctx, tx, first)
	if err != nil {
		return nil, nil, err
	}
	for i, sub := range group {
		if sub.IdempotencyKey == "" {
			fresh = append(fresh, sub)
			continue
		}
		name := nameOf(sub)
		row, known := taken[name]
		switch {
		case known:
			errs[i] = row.judge(sub)
		case first[name] != sub: // twice in this group: the other one is ahead
			errs[i] = ErrKeyBusy
		default:
			fresh = append(fresh, sub)
		}
	}
	return fresh, errs, nil
}

// takenKey is a key that is not free.
type takenKey struct {
	busy        bool
	first       mail.QueueID
	fingerprint []byte
	receipt     []byte
}

func (k takenKey) judge(sub *mail.Submission) error {
	switch {
	case k.busy:
		return ErrKeyBusy
	case !bytes.Equal(k.fingerprint, sub.Fingerprint):
		return ErrKeyReused
	}
	return &RepeatError{First: k.first, Receipt: k.receipt}
}

// Whoever takes a key holds its advisory lock until its transaction ends, so
// the INSERT below never waits for a transaction that lasts.
const tryKeys = `SELECT k.no, pg_try_advisory_xact_lock(idempotency_lock(k.tenant, k.key))
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (tenant, key, no)`

// A row that is older than 24 hours is as good as none.
const insertKeys = `INSERT INTO idempotency AS i (tenant, idempotency_key, queue_id, accepted_at, fingerprint, receipt)
SELECT k.tenant, k.key, k.queue_id, now(), k.fingerprint, k.receipt
FROM unnest($1::text[], $2::text[], $3::uuid[], $4::bytea[], $5::bytea[]) AS k (tenant, key, queue_id, fingerprint, receipt)
ON CONFLICT (tenant, idempotency_key) DO UPDATE
SET queue_id = excluded.queue_id, accepted_at = excluded.accepted_at, fingerprint = excluded.fingerprint, receipt = excluded.receipt
WHERE i.accepted_at <= now() - interval '24 hours'
RETURNING i.tenant, i.idempotency_key`

const readKeys = `SELECT i.tenant, i.idempotency_key, i.queue_id, i.fingerprint, i.receipt
FROM unnest($1::text[], $2::text[]) AS k (tenant, key)
JOIN idempotency i ON i.tenant = k.tenant AND i.idempotency_key = k.key`

// lockKeys inserts the keys of the submissions, and returns those that were
// not free.
func lockKeys(ctx context.Context, tx pgx.Tx, subs map[keyName]*mail.Submission) (map[keyName]takenKey, error) {
	names := make([]keyName, 0, len(subs))
	for name := range subs {
		names = append(names, name)
	}
	slices.SortFunc(names, keyName.compare)
	taken := map[keyName]takenKey{}
	free, err := tryLocks(ctx, tx, names, taken)
	if err != nil || len(free) == 0 {
		return taken, err
	}
	left, err := insertFree(ctx, tx, free, subs)
	if err != nil || len(left) == 0 {
		return taken, err
	}
	tenants, keys := split(left)
	rows, err := tx.Query(ctx, readKeys, tenants, keys)
	if err != nil {
		return nil, err
	}
	var name keyName
	var row takenKey
	_, err = pgx.ForEachRow(rows, []any{&name.tenant, &name.key, &row.first, &row.fingerprint, &row.receipt}, func() error {
		row.fingerprint, row.receipt = nilIfEmpty(row.fingerprint), nilIfEmpty(row.receipt)
		taken[name] = row
		return nil
	})
	if err == nil && len(taken) < len(names)-len(free)+len(left) {
		err = errors.New("an idempotency key was there, and is not")
	}
	return taken, err
}

func tryLocks(ctx context.Context, tx pgx.Tx, names []keyName, taken map[keyName]takenKey) (free []keyName, err error) {
	tenants, keys := split(names)
	rows, err := tx.Query(ctx, tryKeys, tenants, keys)
	if err != nil {
		return nil, err
	}
	var no int
	var ours bool
	_, err = pgx.ForEachRow(rows, []any{&no, &ours}, func() error {
		if ours {
			free = append(free, names[no-1])
		} else {
			taken[names[no-1]] = takenKey{busy: true}
		}
		return nil
	})
	return free, err
}

// insertFree returns the keys that have a row already.
func insertFree(ctx context.Context, tx pgx.Tx, free []keyName, subs map[keyName]*mail.Submission) (left []keyName, err error) {
	ids := make([]mail.QueueID, len(free))
	fingerprints, receipts := make([][]byte, len(free)), make([][]byte, len(free))
	for i, name := range free {
		sub := subs[name]
		ids[i] = sub.ID
		fingerprints[i], receipts[i] = emptyIfNil(sub.Fingerprint), emptyIfNil(sub.Receipt)
	}
	tenants, keys := split(free)
	rows, err := tx.Query(ctx, insertKeys, tenants, keys, ids, fingerprints, receipts)
	if err != nil {
		return nil, err
	}
	won := map[keyName]bool{}
	var name keyName
	if _, err := pgx.ForEachRow(rows, []any{&name.tenant, &name.key}, func() error {
		won[name] = true
		return nil
	}); err != nil {
		return nil, err
	}
	for _, name := range free {
		if !won[name] {
			left = append(left, name)
		}
	}
	return left, nil
}

func split(names []keyName) (tenants, keys []string) {
	for _, name := range names {
		tenants, keys = append(tenants, name.tenant), append(keys, name.key)
	}
	return tenants, keys
}

// A fingerprint or receipt that was not given is empty in Postgres.
func emptyIfNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func nilIfEmpty(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return bytes.Clone(b)
}

// takeKey takes the key of one submission, if it has one.
func takeKey(ctx context.Context, tx pgx.Tx, sub *mail.Submission) error {
	if sub.IdempotencyKey == "" {
		return nil
	}
	_, errs, err := takeKeys(ctx, tx, []*mail.Submission{sub})
	if err != nil {
		return err
	}
	return errs[0]
}

// RetireIdempotency removes up to limit keys whose 24 hours are over. It
// returns their number: less than the limit means that none is left.
func (s *Store) RetireIdempotency(ctx context.Context, limit int) (int, error) {
	const q = `SELECT retire_idempotency($1)`
	var n int
	if err := s.plain.QueryRow(ctx, q, limit).Scan(&n); err != nil {
		return 0, fmt.Errorf("retire idempotency: %w", err)
	}
	return n, nil
}
