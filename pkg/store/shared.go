package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// Holding is what a worker may use of a limit that sites share by name.
type Holding struct {
	Name        string
	Worker      mail.WorkerID
	Connections int // that it may have open at once
	Events      int // that it may begin in each period

	// In use beyond that: it has to become less first, and counts until then.
	OverConnections, OverEvents int

	// The limit itself, as the worker knows it; 0 sets no bound.
	AllConnections, AllEvents int
	Period                    time.Duration

	State []byte        // what it has begun, opaque to the store; nil: nothing that must be known
	Age   time.Duration // of State
	Gone  bool          // the worker is none any more: State is to be counted by another
}

// InUse is what a worker uses of a limit at the moment.
type InUse struct {
	Connections int
	Events      int             // counted in its window
	Counted     []mail.WorkerID // those that are gone, whose events are among them
}

// A worker uses what it holds until its lease on its slots ends; whatever it
// had open ends with that, but what it began is in the remote host's windows
// for one more period.
const (
	usesHolding  = `(w.ended_at IS NULL AND coalesce(w.home_until, w.lease_until) > now())`
	countsEvents = `(coalesce(w.home_until, w.lease_until) + h.period > now())`
)

// Holdings returns what workers hold, by the name of the limit and then by
// worker, those too that are gone, and the time of Postgres.
func (s *Store) Holdings(ctx context.Context) (all []Holding, now time.Time, err error) {
	const q = `SELECT h.name, h.worker_id, h.connections, h.events, h.over_connections, h.over_events, h.all_connections, h.all_events, h.period, h.state, now() - h.saved_at,
       NOT ` + usesHolding + `, now()
FROM shared_limits h JOIN workers w USING (worker_id)
WHERE ` + usesHolding + ` OR ` + countsEvents + ` ORDER BY h.name, h.worker_id`
	rows, err := s.plain.Query(ctx, q)
	if err != nil {
		return nil, now, fmt.Errorf("holdings: %w", err)
	}
	all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (h Holding, err error) {
		return h, row.Scan(&h.Name, &h.Worker, &h.Connections, &h.Events, &h.OverConnections, &h.OverEvents, &h.AllConnections, &h.AllEvents, &h.Period, &h.State, &h.Age, &h.Gone, &now)
	})
	if err != nil {
		return nil, now, fmt.Errorf("holdings: %w", err)
	}
	return all, now, nil
}

// Hold has a worker hold as much as it wants of a limit, or what others leave
// of that; what it holds already only becomes less where it wants less. What it
// uses beyond that is on record too, so that nobody else holds it. It must not
// begin more than it wants meanwhile.
func (s *Store) Hold(ctx context.Context, want Holding, uses InUse) (got Holding, err error) {
	// One after the other: each sees what the one before holds.
	const lock = `SELECT pg_advisory_xact_lock(hashtextextended($1, 28))`
	const forget = `DELETE FROM shared_limits h USING workers w
WHERE h.name = $1 AND w.worker_id = h.worker_id AND NOT ` + usesHolding + ` AND (h.worker_id = ANY ($2) OR NOT ` + countsEvents + `)`
	// Should such a worker come back, it holds nothing any more, and what it has
	// begun counts on.
	const void = `UPDATE shared_limits h SET connections = 0, over_connections = 0, events = 0, over_events = h.over_events + h.events
FROM workers w WHERE h.name = $1 AND w.worker_id = h.worker_id AND NOT ` + usesHolding + ` AND h.connections + h.over_connections + h.events > 0`
	const hold = `WITH others AS (
    SELECT coalesce(sum(h.connections + h.over_connections) FILTER (WHERE ` + usesHolding + `), 0)::integer AS connections,
           coalesce(sum(h.events + h.over_events) FILTER (WHERE ` + countsEvents + `), 0)::integer AS events
    FROM shared_limits h JOIN workers w USING (worker_id) WHERE h.name = $1 AND h.worker_id <> $2),
portion AS (
    SELECT greatest(least($3, $5 - o.connections), least($3, coalesce(h.connections, 0))) AS connections,
           greatest(least($4, $6 - o.events), least($4, coalesce(h.events, 0))) AS events
    FROM others o LEFT JOIN shared_limits h ON h.name = $1 AND h.worker_id = $2
    WHERE EXISTS (SELECT FROM workers w WHERE w.worker_id = $2 AND ` + usesHolding + `))
INSERT INTO shared_limits (name, worker_id, connections, events, over_connections, over_events, all_connections, all_events, period, state)
SELECT $1, $2, p.connections, p.events, greatest($8 - p.connections, 0), greatest($9 - p.events, 0), $5, $6, $7, $10 FROM portion p
ON CONFLICT (name, worker_id) DO UPDATE SET connections = excluded.connections, events = excluded.events,
    over_connections = excluded.over_connections, over_events = excluded.over_events,
    all_connections = excluded.all_connections, all_events = excluded.all_events, period = excluded.period, state = excluded.state, saved_at = now()
RETURNING connections, events, over_connections, over_events`
	got = want
	err = inTx(ctx, s.plain, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lock, want.Name); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, forget, want.Name, uses.Counted); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, void, want.Name); err != nil {
			return err
		}
		return tx.QueryRow(ctx, hold, want.Name, want.Worker, want.Connections, want.Events, want.AllConnections, want.AllEvents, want.Period,
			uses.Connections, uses.Events, want.State).
			Scan(&got.Connections, &got.Events, &got.OverConnections, &got.OverEvents)
	})
	if err != nil {
		return Holding{}, fmt.Errorf("hold of limit %q: %w", want.Name, err)
	}
	return got, nil
}

// Release gives up what a worker holds of a limit. It must use none of it, and
// its windows must have run out.
func (s *Store) Release(ctx context.Context, worker mail.WorkerID, name string) error {
	const q = `DELETE FROM shared_limits WHERE name = $1 AND worker_id = $2`
	if _, err := s.plain.Exec(ctx, q, name, worker); err != nil {
		return fmt.Errorf("release limit %q: %w", name, err)
	}
	return nil
}
