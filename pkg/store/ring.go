package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// RingOptions says which recipients to ring.
type RingOptions struct {
	Limit int // of recipients, at least 1

	// OldestHint is when the oldest hint was published that still waits on the
	// bus; zero if none does. The hint of a recipient that was rung after it may
	// wait too: it is late, not lost, and only repeated after late.
	OldestHint time.Time
}

const (
	// late is how long a hint may be on its way before it is repeated: another
	// one that is older shows only that somebody is slow, not where this one is.
	late = 10 * time.Second
	// maxRepeats bounds the hints that one call repeats, so that a backlog does
	// not feed itself. Those that have been out the longest go first: where all
	// wait for long, one that was lost has waited longest.
	maxRepeats = 100
)

// What is late is looked at again at the end of that time. Of what is repeated
// the next repetition comes after twice as long, and of what finds no room
// the next look after half as long again: a long backlog costs few updates and
// few hints.
const ringRows = `WITH due AS (
    SELECT r.queue_id, r.recipient_no,
           CASE WHEN r.rung AND coalesce(r.rung_at, r.next_attempt_at - $3::interval) >= $2::timestamptz - interval '2 seconds'
                THEN coalesce(r.rung_at, r.next_attempt_at - $3::interval) END AS out_since
    FROM recipients r
    WHERE r.next_attempt_at <= now()
      AND r.state = 'queued' AND r.worker_id IS NULL AND r.slot IS NULL
      AND r.expires_at > now()
    ORDER BY r.next_attempt_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED),
decided AS (
    SELECT d.*, d.out_since IS NOT NULL
           AND (d.out_since > now() - $4::interval OR row_number() OVER (ORDER BY d.out_since) > $5) AS skip
    FROM due d),
rung AS (
    UPDATE recipients r
    SET rung = true,
        rung_at = d.out_since,
        next_attempt_at = CASE
            WHEN d.out_since IS NULL THEN now() + $3::interval
            WHEN NOT d.skip THEN now() + least(now() - d.out_since, interval '2 minutes')
            WHEN d.out_since > now() - $4::interval THEN d.out_since + $4::interval
            ELSE now() + least((now() - d.out_since) / 2, interval '2 minutes') END
    FROM decided d
    WHERE r.queue_id = d.queue_id AND r.recipient_no = d.recipient_no
    RETURNING d.skip, r.*)
SELECT c.skip, ` + pendingColumns + `, ` + messageColumns + `
FROM rung c
JOIN messages m ON m.queue_id = c.queue_id
ORDER BY m.priority DESC, c.queue_id, c.recipient_no`

// Ring arms the recipients that are due again and returns those for which a
// hint is to be published. looked counts all recipients it touched: less
// than the limit means that nothing more is due.
func (s *Store) Ring(ctx context.Context, o RingOptions) (ring []mail.QueuedMessage, looked int, err error) {
	oldest := o.OldestHint
	if oldest.IsZero() {
		oldest = time.Now().Add(time.Hour) // no hint waits: none is late
	}
	rows, err := s.plain.Query(ctx, ringRows, o.Limit, oldest, Rearm, late, maxRepeats)
	if err != nil {
		return nil, 0, fmt.Errorf("ring: %w", err)
	}
	ring, looked, err = collectQueued(rows)
	if err != nil {
		return nil, 0, fmt.Errorf("ring: %w", err)
	}
	return ring, looked, nil
}

// collectQueued groups rows of (skip, pending, message) by message and leaves
// out those to be skipped.
func collectQueued(rows pgx.Rows) (queued []mail.QueuedMessage, looked int, err error) {
	var skip bool
	var p mail.Pending
	var m mail.Message
	fields := append([]any{&skip}, append(pendingFields(&p), messageFields(&m)...)...)
	_, err = pgx.ForEachRow(rows, fields, func() error {
		looked++
		switch n := len(queued); {
		case skip:
		case n > 0 && queued[n-1].ID == m.ID:
			queued[n-1].Recipients = append(queued[n-1].Recipients, p)
		default:
			queued = append(queued, mail.QueuedMessage{Message: m, Recipients: []mail.Pending{p}})
		}
		return nil
	})
	return queued, looked, err
}

// A rung row is armed for seconds, or for minutes after a long backlog; the
// bound keeps the statement from reading all that waits for a retry.
const unringRows = `WITH out AS (
    SELECT r.queue_id, r.recipient_no
    FROM recipients r
    WHERE r.next_attempt_at > now() AND r.next_attempt_at <= now() + interval '10 minutes' AND r.rung
      AND r.state = 'queued' AND r.worker_id IS NULL AND r.slot IS NULL
    ORDER BY r.next_attempt_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED)
UPDATE recipients r
SET rung = false, next_attempt_at = now()
FROM out
WHERE r.queue_id = out.queue_id AND r.recipient_no = out.recipient_no`

// Unring makes up to limit recipients whose hint is on the bus due at once,
// for use when the bus has lost its data. It returns their number: less than
// the limit means that none is left.
func (s *Store) Unring(ctx context.Context, limit int) (int, error) {
	tag, err := s.plain.Exec(ctx, unringRows, limit)
	if err != nil {
		return 0, fmt.Errorf("unring: %w", err)
	}
	return int(tag.RowsAffected()), nil
}

const takeLost = `WITH due AS (
    SELECT r.queue_id, r.recipient_no
    FROM recipients r
    WHERE r.next_attempt_at <= now() + interval '1 minute'
      AND (r.next_attempt_at <= now() OR r.rung)
      AND r.state = 'queued' AND r.worker_id IS NULL AND r.slot IS NULL
      AND r.expires_at > now()
    ORDER BY r.next_attempt_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED),
taken AS (
    UPDATE recipients r
    SET rung = false, next_attempt_at = now() + interval '1 minute'
    FROM due d
    WHERE r.queue_id = d.queue_id AND r.recipient_no = d.recipient_no
    RETURNING r.*)
SELECT false, ` + pendingColumns + `, ` + messageColumns + `
FROM taken c
JOIN messages m ON m.queue_id = c.queue_id
ORDER BY m.priority DESC, c.queue_id, c.recipient_no`

// TakeLost returns recipients that are due, or whose hint may be lost, for a
// resolver that works without the bus. They are not returned to anybody
// again for a minute.
func (s *Store) TakeLost(ctx context.Context, limit int) ([]mail.QueuedMessage, error) {
	rows, err := s.plain.Query(ctx, takeLost, limit)
	if err != nil {
		return nil, fmt.Errorf("take lost: %w", err)
	}
	queued, _, err := collectQueued(rows)
	if err != nil {
		return nil, fmt.Errorf("take lost: %w", err)
	}
	return queued, nil
}

// Status 4.4.7: RFC 3463 §3.5, delivery time expired; 5.4.7 when it was the
// sender who set it (RFC 2852 §4, mode R). A claimed recipient
// expires like any other, by the fence; one that is in a transaction with
// the remote host is left to its worker for longer than any transaction takes.
const expireRows = `WITH due AS (
    SELECT r.queue_id, r.recipient_no
    FROM recipients r
    WHERE r.next_attempt_at <= now() AND r.expires_at <= now()
      AND (NOT r.dispatched OR r.expires_at <= now() - interval '2 hours')
    ORDER BY r.next_attempt_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED),
expired AS (
    UPDATE recipients r
    SET state = 'expired', attempt = r.attempt + 1, next_attempt_at = NULL, final_at = now(),
        worker_id = NULL, slot = NULL, rung = false, dispatched = false,
        -- RFC 3461 §4.1: without NOTIFY a failure is reported.
        final_reported = m.reverse_path = '' OR (r.notify <> 0 AND r.notify & 4 = 0)
    FROM due d
    JOIN messages m ON m.queue_id = d.queue_id
    WHERE r.queue_id = d.queue_id AND r.recipient_no = d.recipient_no
    RETURNING r.queue_id, r.recipient_no, r.attempt, r.final_reported, coalesce(r.site, '') AS site,
              CASE WHEN m.deliver_by_mode LIKE 'R%' AND m.deliver_by <= now() THEN '5.4.7' ELSE '4.4.7' END AS status),
logged AS (
    INSERT INTO attempts (queue_id, recipient_nos, attempt, action, phase, status, started_at, site, reply)
    SELECT e.queue_id, array_agg(e.recipient_no ORDER BY e.recipient_no), e.attempt, 'expired', 'queue', e.status, now(), e.site,
           'the message was not delivered within its lifetime'
    FROM expired e
    GROUP BY e.queue_id, e.attempt, e.site, e.status),
due_reports AS (
    INSERT INTO reports (queue_id, kind, due_at)
    SELECT DISTINCT e.queue_id, 'final', now() FROM expired e WHERE NOT e.final_reported)
SELECT e.queue_id, e.recipient_no, e.final_reported FROM expired e ORDER BY 1, 2`

// Expire ends up to limit recipients whose time has come, in whatever state
// they are. It returns their number and the messages that a report is due
// for.
func (s *Store) Expire(ctx context.Context, limit int) (expired int, reports []mail.QueueID, err error) {
	rows, err := s.plain.Query(ctx, expireRows, limit)
	if err != nil {
		return 0, nil, fmt.Errorf("expire: %w", err)
	}
	var k rowKey
	var reported bool
	_, err = pgx.ForEachRow(rows, []any{&k.id, &k.no, &reported}, func() error {
		expired++
		if n := len(reports); !reported && (n == 0 || reports[n-1] != k.id) {
			reports = append(reports, k.id)
		}
		return nil
	})
	if err != nil {
		return 0, nil, fmt.Errorf("expire: %w", err)
	}
	return expired, reports, nil
}

// Lag is how long the oldest work of a stage has been due: zero when nothing
// is.
type Lag struct {
	Waiting time.Duration // recipients that are due and not rung: scheduler
	Parked  time.Duration // age of the oldest message that waits in a flow of the highest priority of its site: delivery
	Reports time.Duration // reports that are due: bounce
}

// Of the flow that is highest in the index, so that nothing is sorted: rows
// are compared as in pullRows.
const parkedLag = parkedIn + `SELECT oldest.queue_id
FROM found f
CROSS JOIN LATERAL (SELECT r.priority, r.pool, r.tenant, r.campaign FROM recipients r WHERE r.slot = f.slot AND r.site = f.site
                    ORDER BY r.priority DESC, r.pool DESC, r.tenant DESC, r.campaign DESC LIMIT 1) flow
CROSS JOIN LATERAL (SELECT r.queue_id FROM recipients r WHERE r.slot = f.slot AND r.site = f.site
                      AND (r.priority, r.pool, r.tenant, r.campaign) >= (flow.priority, flow.pool, flow.tenant, flow.campaign)
                      AND (r.priority, r.pool, r.tenant, r.campaign) <= (flow.priority, flow.pool, flow.tenant, flow.campaign)
                    ORDER BY r.priority, r.pool, r.tenant, r.campaign, r.queue_id LIMIT 1) oldest
ORDER BY oldest.queue_id
LIMIT 1`

// Lag reads the ends of indexes: its cost grows with the number of sites that
// have parked recipients, not with the number of recipients.
func (s *Store) Lag(ctx context.Context) (l Lag, err error) {
	const q = `SELECT
    coalesce((SELECT now() - min(next_attempt_at) FROM recipients
              WHERE next_attempt_at <= now() AND state = 'queued' AND worker_id IS NULL AND slot IS NULL), '0'),
    coalesce((SELECT now() - min(due_at) FROM reports WHERE due_at <= now()), '0')`
	if err := s.plain.QueryRow(ctx, q).Scan(&l.Waiting, &l.Reports); err != nil {
		return Lag{}, fmt.Errorf("lag: %w", err)
	}
	slots := make([]int16, mail.Slots)
	for i := range slots {
		slots[i] = int16(i)
	}
	var parked mail.QueueID
	switch err := s.plain.QueryRow(ctx, parkedLag, slots).Scan(&parked); {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return Lag{}, fmt.Errorf("lag: %w", err)
	default:
		l.Parked = max(time.Since(parked.Time()), 0)
	}
	return l, nil
}

// Accounting is counts of recipients in the retained history.
type Accounting struct {
	Accepted, Queued, Relayed, Failed, Expired, Cancelled int64
	Unaccounted                                           int64 // always 0
}

// Accounting is the view postrider.accounting. Its cost grows with the queue
// and its history.
func (s *Store) Accounting(ctx context.Context) (a Accounting, err error) {
	const q = `SELECT accepted, queued, relayed, failed, expired, cancelled, unaccounted FROM accounting`
	err = s.plain.QueryRow(ctx, q).Scan(&a.Accepted, &a.Queued, &a.Relayed, &a.Failed, &a.Expired, &a.Cancelled, &a.Unaccounted)
	if err != nil {
		return a, fmt.Errorf("accounting: %w", err)
	}
	return a, nil
}

// CountAccounts counts the hours that may have changed, unless another
// scheduler does, and returns the sum of what was counted last of each: of
// mail that has waited for hours that may be 10 minutes ago.
func (s *Store) CountAccounts(ctx context.Context) (a Accounting, err error) {
	const count, sum = `SELECT count_accounts()`,
		`SELECT coalesce(sum(accepted), 0)::bigint, coalesce(sum(queued), 0)::bigint, coalesce(sum(relayed), 0)::bigint,
    coalesce(sum(failed), 0)::bigint, coalesce(sum(expired), 0)::bigint, coalesce(sum(cancelled), 0)::bigint FROM accounts`
	if _, err := s.plain.Exec(ctx, count); err != nil {
		return a, fmt.Errorf("count accounts: %w", err)
	}
	if err := s.plain.QueryRow(ctx, sum).Scan(&a.Accepted, &a.Queued, &a.Relayed, &a.Failed, &a.Expired, &a.Cancelled); err != nil {
		return a, fmt.Errorf("count accounts: %w", err)
	}
	a.Unaccounted = a.Accepted - a.Queued - a.Relayed - a.Failed - a.Expired - a.Cancelled
	return a, nil
}
