package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// Home is the worker that a slot lives with.
type Home struct {
	Worker mail.WorkerID // the last one; 0 if there never was any
	Live   bool          // its lease on the slot has not ended
	Left   bool          // there never was any, or it released the slot in order
}

// SlotHomes returns the home of every slot.
func (s *Store) SlotHomes(ctx context.Context) (homes [mail.Slots]Home, err error) {
	const q = `SELECT slot, coalesce(worker_id, 0), worker_id IS NOT NULL AND lease_until > now(), lease_until = '-infinity' FROM slots`
	rows, err := s.plain.Query(ctx, q)
	if err != nil {
		return homes, fmt.Errorf("slot homes: %w", err)
	}
	var slot int16
	var h Home
	_, err = pgx.ForEachRow(rows, []any{&slot, &h.Worker, &h.Live, &h.Left}, func() error {
		if slot < 0 || int(slot) >= len(homes) {
			return fmt.Errorf("slot %d, want 0 to %d", slot, len(homes)-1)
		}
		homes[slot] = h
		return nil
	})
	if err != nil {
		return homes, fmt.Errorf("slot homes: %w", err)
	}
	return homes, nil
}

// RegisterWorker gives a delivery process its id for this life, and a lease
// on its claims. name is for people: host and process id.
func (s *Store) RegisterWorker(ctx context.Context, name string, lease time.Duration) (id mail.WorkerID, err error) {
	const q = `INSERT INTO workers (name, lease_until) VALUES ($1, now() + $2) RETURNING worker_id`
	if err := s.plain.QueryRow(ctx, q, name, lease).Scan(&id); err != nil {
		return 0, fmt.Errorf("register worker: %w", err)
	}
	return id, nil
}

// Lease is what a worker holds after a renewal.
type Lease struct {
	Slots []int16         // still this worker's, in order
	Live  []mail.WorkerID // all workers that may be homes, this one too, in order
	Next  time.Duration   // until one of the others is not, unless it renews; 0 if there is no other
	Gone  bool            // the worker was declared dead and its claims taken back: it must register anew

	// Session is which session of which start of Postgres answered. When it has
	// changed, Postgres may have crashed, or another server have taken over, and
	// what it had said before may be forgotten: see Reconcile.
	Session string
}

// Terms are for how long a worker holds what it has without renewal.
type Terms struct {
	Claims time.Duration
	Slots  time.Duration // not longer
}

// A slot whose lease has ended is not renewed: its next home may have looked
// already.
const renewLease = `WITH worker AS (
    UPDATE workers SET lease_until = now() + $2, home_until = now() + $3
    WHERE worker_id = $1 AND ended_at IS NULL
    RETURNING worker_id),
held AS (
    UPDATE slots SET lease_until = now() + $3
    WHERE worker_id = $1 AND lease_until > now() AND EXISTS (SELECT FROM worker)
    RETURNING slot),
others AS (
    SELECT w.worker_id, coalesce(w.home_until, w.lease_until) AS home_until FROM workers w
    WHERE w.ended_at IS NULL AND w.worker_id <> $1 AND w.lease_until > now() AND coalesce(w.home_until, w.lease_until) > now())
SELECT (SELECT array_agg(slot ORDER BY slot) FROM held),
       (SELECT array_agg(l.worker_id ORDER BY l.worker_id) FROM (SELECT $1::integer AS worker_id UNION ALL SELECT o.worker_id FROM others o) l),
       coalesce((SELECT min(o.home_until) FROM others o) - now(), '0'),
       NOT EXISTS (SELECT FROM worker),
       pg_postmaster_start_time() || ' ' || pg_backend_pid()`

// Renew extends the leases of a worker, on its claims and on all its slots, in
// one statement and on a connection that nothing else uses. The leases run on
// Postgres's clock from the moment of the statement; the worker must count its
// own time from before it called.
func (s *Store) Renew(ctx context.Context, worker mail.WorkerID, terms Terms) (l Lease, err error) {
	if err := s.pulse.QueryRow(ctx, renewLease, worker, terms.Claims, terms.Slots).Scan(&l.Slots, &l.Live, &l.Next, &l.Gone, &l.Session); err != nil {
		return Lease{}, fmt.Errorf("renew lease of worker %d: %w", worker, err)
	}
	if l.Gone {
		s.held.end(worker)
	}
	return l, nil
}

const takeSlots = `WITH free AS (
    SELECT slot FROM slots
    WHERE slot = ANY ($3) AND (worker_id IS NULL OR lease_until <= now())
    ORDER BY slot
    FOR UPDATE SKIP LOCKED)
UPDATE slots s SET worker_id = $1, epoch = s.epoch + 1, lease_until = now() + $2
FROM free
WHERE s.slot = free.slot
  AND EXISTS (SELECT FROM workers w WHERE w.worker_id = $1 AND w.ended_at IS NULL)
RETURNING s.slot`

// TakeSlots makes the worker the home of those wanted slots that are free or
// whose lease has ended, and returns them.
func (s *Store) TakeSlots(ctx context.Context, worker mail.WorkerID, lease time.Duration, want []int16) ([]int16, error) {
	rows, err := s.plain.Query(ctx, takeSlots, worker, lease, want)
	if err != nil {
		return nil, fmt.Errorf("take slots: %w", err)
	}
	taken, err := pgx.CollectRows(rows, pgx.RowTo[int16])
	if err != nil {
		return nil, fmt.Errorf("take slots: %w", err)
	}
	return taken, nil
}

// ReleaseSlots frees slots of the worker at once. It must hold no connection
// for their sites any more. The slots remember their last home: whoever takes
// them sees whose frames may be left on the bus. orderly says that the state
// of all their sites is saved as it is now.
func (s *Store) ReleaseSlots(ctx context.Context, worker mail.WorkerID, slots []int16, orderly bool) error {
	if len(slots) == 0 {
		return nil
	}
	const q = `UPDATE slots SET lease_until = CASE WHEN $3 THEN '-infinity' ELSE now() END WHERE worker_id = $1 AND slot = ANY ($2)`
	if _, err := s.plain.Exec(ctx, q, worker, slots, orderly); err != nil {
		return fmt.Errorf("release slots: %w", err)
	}
	return nil
}

const allClaims = `SELECT r.queue_id, r.recipient_no, r.dispatched
    FROM recipients r
    WHERE r.worker_id = $1
    ORDER BY r.queue_id, r.recipient_no
    FOR UPDATE`

// takeBack makes claims of a worker wait, due at once. A recipient that was in
// a transaction may have been relayed: its history says so, and why, in $2.
func takeBack(claims string) string {
	return `WITH mine AS (
    ` + claims + `),
freed AS (
    UPDATE recipients r
    SET worker_id = NULL, dispatched = false, rung = false, next_attempt_at = now()
    FROM mine
    WHERE r.queue_id = mine.queue_id AND r.recipient_no = mine.recipient_no
    RETURNING r.queue_id, r.recipient_no, r.attempt, r.site, mine.dispatched),
logged AS (
    INSERT INTO attempts (queue_id, recipient_nos, attempt, action, phase, status, uncertain, worker_id, started_at, next_attempt_at, site, reply)
    SELECT f.queue_id, array_agg(f.recipient_no ORDER BY f.recipient_no), f.attempt, 'delayed', 'dot', '4.3.0', true, $1, now(), now(),
           coalesce(f.site, ''), $2
    FROM freed f
    WHERE f.dispatched
    GROUP BY f.queue_id, f.attempt, f.site)
SELECT count(*), count(*) FILTER (WHERE f.dispatched) FROM freed f`
}

// EndWorker ends the life of a worker that has drained: frees its slots and
// gives back whatever it still claims.
func (s *Store) EndWorker(ctx context.Context, worker mail.WorkerID) error {
	err := inTx(ctx, s.plain, func(tx pgx.Tx) error {
		_, err := endWorker(ctx, tx, worker)
		return err
	})
	if err != nil {
		return fmt.Errorf("end worker %d: %w", worker, err)
	}
	s.held.end(worker)
	return nil
}

func endWorker(ctx context.Context, tx pgx.Tx, worker mail.WorkerID) (r Reclaimed, err error) {
	const end = `UPDATE workers SET ended_at = now() WHERE worker_id = $1 AND ended_at IS NULL`
	// Not as released: what the worker did last may be known to nobody.
	const free = `UPDATE slots SET lease_until = now() WHERE worker_id = $1 AND lease_until > now()`
	if _, err := tx.Exec(ctx, end, worker); err != nil {
		return r, err
	}
	if _, err := tx.Exec(ctx, free, worker); err != nil {
		return r, err
	}
	const why = "the delivery process ended during the transaction"
	err = tx.QueryRow(ctx, takeBack(allClaims), worker, why).Scan(&r.Recipients, &r.Uncertain)
	return r, err
}

// Reclaimed is what was taken back from dead workers.
type Reclaimed struct {
	Workers    []mail.WorkerID
	Recipients int
	Uncertain  int // of Recipients: in a transaction when their worker died
}

// A worker is dead when its lease has ended. Right after a start of Postgres
// every lease may have ended because nobody could renew: the workers get
// one lease of time to come back. A claim that was under way when its worker
// ended is seen when it has committed: the worker ends once more.
const deadWorkers = `SELECT w.worker_id FROM workers w
WHERE (w.ended_at IS NULL AND w.lease_until <= now()
       OR w.ended_at > now() - interval '1 day' AND EXISTS (SELECT FROM recipients r WHERE r.worker_id = w.worker_id))
  AND pg_postmaster_start_time() < now() - $1::interval
ORDER BY w.worker_id
FOR UPDATE SKIP LOCKED`

// A worker that is no home any more begins nothing with what it has claimed,
// so it waits again long before the worker is dead. If the worker lives it
// finds its fence gone.
const homelessWorkers = `SELECT w.worker_id FROM workers w
WHERE w.ended_at IS NULL AND w.home_until <= now() AND w.lease_until > now()
  AND pg_postmaster_start_time() < now() - $1::interval
ORDER BY w.worker_id`

const takeBackUntried = `WITH untried AS (
    SELECT r.queue_id, r.recipient_no
    FROM recipients r
    WHERE r.worker_id = $1 AND NOT r.dispatched
    ORDER BY r.queue_id, r.recipient_no
    FOR UPDATE SKIP LOCKED)
UPDATE recipients r
SET worker_id = NULL, rung = false, next_attempt_at = now()
FROM untried
WHERE r.queue_id = untried.queue_id AND r.recipient_no = untried.recipient_no`

// Reclaim takes back the claims of workers whose lease has ended, and those
// of workers that are no homes any more with which nothing was begun. grace is
// how long after a start of Postgres nobody is declared dead.
func (s *Store) Reclaim(ctx context.Context, grace time.Duration) (all Reclaimed, err error) {
	err = inTx(ctx, s.plain, func(tx pgx.Tx) error {
		homeless, err := workersBy(ctx, tx, homelessWorkers, grace)
		if err != nil {
			return err
		}
		for _, worker := range homeless {
			n, err := tx.Exec(ctx, takeBackUntried, worker)
			if err != nil {
				return err
			}
			all.Recipients += int(n.RowsAffected())
		}
		dead, err := workersBy(ctx, tx, deadWorkers, grace)
		if err != nil {
			return err
		}
		for _, worker := range dead {
			r, err := endWorker(ctx, tx, worker)
			if err != nil {
				return err
			}
			all.Workers = append(all.Workers, worker)
			all.Recipients += r.Recipients
			all.Uncertain += r.Uncertain
		}
		return nil
	})
	if err != nil {
		return Reclaimed{}, fmt.Errorf("reclaim: %w", err)
	}
	return all, nil
}

func workersBy(ctx context.Context, tx pgx.Tx, q string, grace time.Duration) ([]mail.WorkerID, error) {
	rows, err := tx.Query(ctx, q, grace)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[mail.WorkerID])
}

// Horizon is a moment in the order of Postgres's transactions: all that ended
// before it came before it.
type Horizon int64

// Horizon returns that of now.
func (s *Store) Horizon(ctx context.Context) (h Horizon, err error) {
	const q = `SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint`
	if err := s.plain.QueryRow(ctx, q).Scan(&h); err != nil {
		return 0, fmt.Errorf("horizon: %w", err)
	}
	return h, nil
}

// Overdue counts the recipients that have been in a transaction since before a
// horizon, which must be no older than 2^31 transactions. It reads the claimed
// recipients.
func (s *Store) Overdue(ctx context.Context, since Horizon) (n int64, err error) {
	const q = `SELECT count(*) FROM recipients WHERE worker_id IS NOT NULL AND dispatched AND age(xmin) > age($1::text::xid8::xid)`
	if err := s.plain.QueryRow(ctx, q, fmt.Sprint(since)).Scan(&n); err != nil {
		return 0, fmt.Errorf("overdue: %w", err)
	}
	return n, nil
}

// SiteState is what a home saves of a site, or of the part of it that lives in
// a slot, for the next home.
type SiteState struct {
	Site           mail.Site
	Slot           int16
	State          []byte        // opaque to the store
	Age            time.Duration // since it was saved, by the clock of Postgres; not younger than what it says
	SuspendedUntil time.Time
	SuspendReason  string
}

// SaveSites keeps the state of sites in slots of the worker; suspensions are
// left as they are. What it says of slots that have another home by now, or
// that it gave up in good order, is passed over: it would take away what is
// newer. The next home can take a slot only before or after.
func (s *Store) SaveSites(ctx context.Context, worker mail.WorkerID, states []SiteState) error {
	const owned = `
SELECT t.* FROM unnest($1::text[], $2::smallint[], $3::bytea[]) t (site, slot, state)
JOIN (SELECT slot FROM slots WHERE worker_id = $4 AND lease_until > '-infinity' AND slot = ANY ($2) FOR SHARE) own USING (slot)
`
	const first = `INSERT INTO sites (site, slot, state)` + owned + `ON CONFLICT (site) DO UPDATE SET state = excluded.state, saved_at = now()`
	const others = `INSERT INTO site_parts (site, slot, state)` + owned + `ON CONFLICT (site, slot) DO UPDATE SET state = excluded.state, saved_at = now()`
	// A crash must not lose it: the next home would count too little.
	isFirst := func(st SiteState) bool { return st.Slot == st.Site.Slot() }
	isOther := func(st SiteState) bool { return !isFirst(st) }
	return errors.Join(s.saveParts(ctx, first, worker, keepIf(states, isFirst)), s.saveParts(ctx, others, worker, keepIf(states, isOther)))
}

func keepIf[T any](all []T, wanted func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(all), func(t T) bool { return !wanted(t) })
}

func (s *Store) saveParts(ctx context.Context, q string, worker mail.WorkerID, states []SiteState) error {
	if len(states) == 0 {
		return nil
	}
	var sites []string
	var slots []int16
	var blobs [][]byte
	for _, st := range states {
		sites = append(sites, string(st.Site))
		slots = append(slots, st.Slot)
		blobs = append(blobs, st.State)
	}
	if _, err := s.plain.Exec(ctx, q, sites, slots, blobs, worker); err != nil {
		return fmt.Errorf("save sites: %w", err)
	}
	return nil
}

// ForgetSites removes what was saved of sites that nothing has gone to for a
// month, unless they are suspended.
func (s *Store) ForgetSites(ctx context.Context) (forgotten int64, err error) {
	const q = `WITH parts AS (DELETE FROM site_parts WHERE saved_at < now() - interval '30 days')
DELETE FROM sites
WHERE saved_at < now() - interval '30 days' AND (suspended_until IS NULL OR suspended_until < now())`
	tag, err := s.plain.Exec(ctx, q)
	if err != nil {
		return 0, fmt.Errorf("forget sites: %w", err)
	}
	return tag.RowsAffected(), nil
}

// LoadSites returns what is known of the sites, and of the parts of divided
// ones, in the given slots.
func (s *Store) LoadSites(ctx context.Context, slots []int16) ([]SiteState, error) {
	const q = `SELECT site, slot, state, now() - saved_at, CASE WHEN suspended_until > now() THEN suspended_until END, suspend_reason
FROM sites WHERE slot = ANY ($1)
UNION ALL
SELECT d.site, part.slot, p.state, coalesce(now() - p.saved_at, '0'), CASE WHEN s.suspended_until > now() THEN s.suspended_until END, coalesce(s.suspend_reason, '')
FROM divisions d
CROSS JOIN LATERAL (SELECT unnest(d.slots) UNION SELECT unnest(d.next)) part (slot)
LEFT JOIN site_parts p ON p.site = d.site AND p.slot = part.slot
LEFT JOIN sites s ON s.site = d.site
WHERE part.slot = ANY ($1) AND part.slot <> d.slots[1] AND (p.site IS NOT NULL OR s.suspended_until > now())`
	return s.collectSites(ctx, q, slots)
}

// Suspended returns the sites that are suspended now.
func (s *Store) Suspended(ctx context.Context) ([]SiteState, error) {
	const q = `SELECT site, slot, NULL::bytea, now() - saved_at, suspended_until, suspend_reason
FROM sites WHERE suspended_until > now()`
	return s.collectSites(ctx, q)
}

func (s *Store) collectSites(ctx context.Context, q string, args ...any) ([]SiteState, error) {
	rows, err := s.plain.Query(ctx, q, args...)
	if err != nil {
		return nil, fmt.Errorf("load sites: %w", err)
	}
	states, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (st SiteState, err error) {
		var until *time.Time
		err = row.Scan(&st.Site, &st.Slot, &st.State, &st.Age, &until, &st.SuspendReason)
		if until != nil {
			st.SuspendedUntil = *until
		}
		return st, err
	})
	if err != nil {
		return nil, fmt.Errorf("load sites: %w", err)
	}
	return states, nil
}
