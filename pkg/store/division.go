package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// Divisions returns the divisions of all sites that have one.
func (s *Store) Divisions(ctx context.Context) (mail.Divisions, error) {
	const q = `SELECT site, slots, next, agreed, epoch, known FROM divisions`
	rows, err := s.plain.Query(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("divisions: %w", err)
	}
	all := mail.Divisions{}
	var d mail.Division
	var known []byte
	_, err = pgx.ForEachRow(rows, []any{&d.Site, &d.Slots, &d.Next, &d.Agreed, &d.Epoch, &known}, func() error {
		d.Known = nil
		if err := json.Unmarshal(known, &d.Known); err != nil {
			return err
		}
		all[d.Site] = d
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("divisions: %w", err)
	}
	return all, nil
}

// A slot is the worker's only while its lease runs. What a worker says of it
// after that is void, so its successor, which reads after it has taken the
// slot, knows of everything that was said.
const holdsSlot = `EXISTS (SELECT FROM slots h WHERE h.slot = $2 AND h.worker_id = $1 AND h.lease_until > now())`

// Divide begins to change the division that d says is in force to next, with
// what d knows. It does nothing, and reports so, if another one is in force,
// a change is under way, or the worker is not the home of the first part.
func (s *Store) Divide(ctx context.Context, worker mail.WorkerID, d mail.Division, next []int16) (begun bool, err error) {
	const q = `INSERT INTO divisions AS d (site, slots, next, epoch, known)
SELECT $3, ARRAY[$2::smallint], $4, 1, $5 WHERE ` + holdsSlot + `
ON CONFLICT (site) DO UPDATE SET next = excluded.next, agreed = '{}', epoch = d.epoch + 1, known = excluded.known
WHERE d.next IS NULL AND d.epoch = $6`
	known, err := json.Marshal(d.Known)
	if err != nil {
		return false, err
	}
	done, err := s.plain.Exec(ctx, q, worker, d.Site.Slot(), d.Site, next, known, d.Epoch)
	if err != nil {
		return false, fmt.Errorf("divide %s: %w", d.Site, err)
	}
	return done.RowsAffected() > 0, nil
}

// TellParts has all parts of a divided site know what its first part does.
func (s *Store) TellParts(ctx context.Context, worker mail.WorkerID, d mail.Division) error {
	const q = `UPDATE divisions SET known = $4 WHERE site = $3 AND ` + holdsSlot
	known, err := json.Marshal(d.Known)
	if err != nil {
		return err
	}
	if _, err := s.plain.Exec(ctx, q, worker, d.Site.Slot(), d.Site, known); err != nil {
		return fmt.Errorf("tell parts of %s: %w", d.Site, err)
	}
	return nil
}

// Agree says that a part keeps to the smaller of its portions from now on,
// and counts no more than that. When all parts have agreed, the next division
// is in force: then the answer is true.
func (s *Store) Agree(ctx context.Context, worker mail.WorkerID, slot int16, d mail.Division) (inForce bool, err error) {
	const q = `UPDATE divisions d SET
    agreed = CASE WHEN d.slots <@ (d.agreed || $2::smallint) THEN '{}' ELSE d.agreed || $2::smallint END,
    epoch  = CASE WHEN d.slots <@ (d.agreed || $2::smallint) THEN d.epoch + 1 ELSE d.epoch END,
    slots  = CASE WHEN d.slots <@ (d.agreed || $2::smallint) THEN d.next ELSE d.slots END,
    next   = CASE WHEN d.slots <@ (d.agreed || $2::smallint) THEN NULL ELSE d.next END
WHERE d.site = $3 AND d.epoch = $4 AND d.next IS NOT NULL AND NOT $2 = ANY (d.agreed) AND ` + holdsSlot + `
RETURNING d.next IS NULL`
	rows, err := s.plain.Query(ctx, q, worker, slot, d.Site, d.Epoch)
	if err != nil {
		return false, fmt.Errorf("agree to division of %s: %w", d.Site, err)
	}
	done, err := pgx.CollectRows(rows, pgx.RowTo[bool])
	if err != nil {
		return false, fmt.Errorf("agree to division of %s: %w", d.Site, err)
	}
	return len(done) > 0 && done[0], nil
}

// MoveParked hands mail that is parked in a slot, in which its site has no
// part, to the slots of its parts. It moves a bounded number, and returns it.
func (s *Store) MoveParked(ctx context.Context, from ParkedSite, to []int16) (moved int64, err error) {
	const q = `UPDATE recipients r SET slot = ($3::smallint[])[1 + (hashtextextended(r.queue_id::text, 0) & 2147483647) % cardinality($3::smallint[])]
FROM (SELECT p.queue_id, p.recipient_no FROM recipients p WHERE p.slot = $1 AND p.site = $2
      ORDER BY p.slot, p.site, p.priority, p.pool, p.tenant, p.campaign, p.queue_id LIMIT ` + maxPull + ` FOR UPDATE SKIP LOCKED) parked
WHERE r.queue_id = parked.queue_id AND r.recipient_no = parked.recipient_no`
	done, err := s.plain.Exec(ctx, q, from.Slot, from.Site, to)
	if err != nil {
		return 0, fmt.Errorf("move what is parked for %s: %w", from.Site, err)
	}
	return done.RowsAffected(), nil
}
