package store

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// Source is an address that mail leaves from.
type Source struct {
	Name           string // lower-case letters, digits, "._-", at most 63
	IPv4, IPv6     netip.Addr
	Hello          string    // in EHLO; "": that of the installation
	Egress         string    // "socks5://[user:password@]host:port" or "haproxy://host:port"; "": the worker that has the address
	WarmUp         string    // a schedule; "": none
	WarmUpFrom     time.Time // its first day; zero: it has not begun
	WarmUpPaused   int32     // days since then that do not count, because it was blocked
	SuspendedUntil time.Time
	SuspendReason  string
}

// Member is the share of a source in a pool.
type Member struct {
	Pool   string
	Source string
	Weight int32
}

// WarmUpDay is how many messages a source may send to a provider in 24 hours,
// from a day of its life on.
type WarmUpDay struct {
	Schedule, Provider string
	Day, Messages      int32
}

// SourceBlock is a source that a site does not want.
type SourceBlock struct {
	Source string
	Site   mail.Site
	At     time.Time
	Until  time.Time
	Reason string
}

// Listener is a worker that others may send through.
type Listener struct {
	Worker    mail.WorkerID
	Address   string // host:port
	Key       string
	Addresses []netip.Addr // of sources, that it has
}

// Sources is everything that says where mail leaves from.
type Sources struct {
	Sources   []Source          // by name
	Members   []Member          // by pool and source
	Tenants   map[string]string // the pool of those that have one
	WarmUps   []WarmUpDay
	Blocks    []SourceBlock // that hold now
	Listeners []Listener    // of live workers
}

const sourceColumns = `s.source, s.ipv4, s.ipv6, s.hello, s.egress, s.warm_up, s.warm_up_from, s.warm_up_paused, s.suspended_until, s.suspend_reason`

func scanSource(row pgx.CollectableRow) (src Source, err error) {
	var four, six *netip.Prefix
	var from, until *time.Time
	err = row.Scan(&src.Name, &four, &six, &src.Hello, &src.Egress, &src.WarmUp, &from, &src.WarmUpPaused, &until, &src.SuspendReason)
	if four != nil {
		src.IPv4 = four.Addr()
	}
	if six != nil {
		src.IPv6 = six.Addr()
	}
	src.WarmUpFrom, src.SuspendedUntil = timeOf(from), timeOf(until)
	return src, err
}

// Sources reads everything that says where mail leaves from, in one round
// trip.
func (s *Store) Sources(ctx context.Context) (all Sources, err error) {
	batch := all.read("sources")
	collect(batch, &all.Listeners, func(row pgx.CollectableRow) (l Listener, err error) {
		var addresses []netip.Prefix
		err = row.Scan(&l.Worker, &l.Address, &l.Key, &addresses)
		for _, p := range addresses {
			l.Addresses = append(l.Addresses, p.Addr())
		}
		return l, err
	}, `SELECT w.worker_id, w.egress, k.key, w.addresses FROM workers w JOIN egress_keys k USING (worker_id)
WHERE w.ended_at IS NULL AND w.lease_until > now() AND w.egress <> '' ORDER BY w.worker_id`)
	if err := s.plain.SendBatch(ctx, batch).Close(); err != nil {
		return Sources{}, fmt.Errorf("sources: %w", err)
	}
	return all, nil
}

// SourceList is Sources for people: without passwords and listeners.
func (s *Store) SourceList(ctx context.Context) (all Sources, err error) {
	if err := s.plain.SendBatch(ctx, all.read("source_list")).Close(); err != nil {
		return Sources{}, fmt.Errorf("sources: %w", err)
	}
	return all, nil
}

// read returns a batch that reads all but the listeners, the sources from a
// table that is like sources.
func (all *Sources) read(table string) *pgx.Batch {
	batch := &pgx.Batch{}
	collect(batch, &all.Sources, scanSource, `SELECT `+sourceColumns+` FROM `+table+` s ORDER BY s.source`)
	collect(batch, &all.Members, pgx.RowToStructByPos[Member], `SELECT pool, source, weight FROM pools ORDER BY pool, source`)
	all.Tenants = map[string]string{}
	batch.Queue(`SELECT tenant, pool FROM tenants WHERE pool <> ''`).Query(func(rows pgx.Rows) error {
		var tenant, pool string
		_, err := pgx.ForEachRow(rows, []any{&tenant, &pool}, func() error {
			all.Tenants[tenant] = pool
			return nil
		})
		return err
	})
	collect(batch, &all.WarmUps, pgx.RowToStructByPos[WarmUpDay], `SELECT warm_up, provider, day, messages FROM warm_ups ORDER BY warm_up, provider, day`)
	collect(batch, &all.Blocks, pgx.RowToStructByPos[SourceBlock],
		`SELECT source, site, blocked_at, blocked_until, reason FROM source_blocks WHERE blocked_until > now() ORDER BY source, site`)
	return batch
}

// collect has a batch read rows into a slice.
func collect[T any](batch *pgx.Batch, into *[]T, scan pgx.RowToFunc[T], q string, args ...any) {
	batch.Queue(q, args...).Query(func(rows pgx.Rows) (err error) {
		*into, err = pgx.CollectRows(rows, scan)
		return err
	})
}

// SetSource adds a source, or changes the one of that name.
func (s *Store) SetSource(ctx context.Context, src Source) error {
	const q = `INSERT INTO sources (source, ipv4, ipv6, hello, egress, warm_up, warm_up_from, suspended_until, suspend_reason)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (source) DO UPDATE SET ipv4 = excluded.ipv4, ipv6 = excluded.ipv6, hello = excluded.hello, egress = excluded.egress,
    warm_up = excluded.warm_up, warm_up_from = excluded.warm_up_from,
    warm_up_paused = CASE WHEN sources.warm_up_from IS NOT DISTINCT FROM excluded.warm_up_from THEN sources.warm_up_paused ELSE 0 END,
    suspended_until = excluded.suspended_until, suspend_reason = excluded.suspend_reason`
	_, err := s.plain.Exec(ctx, q, src.Name, nullAddress(src.IPv4), nullAddress(src.IPv6), src.Hello, src.Egress, src.WarmUp,
		nullTime(src.WarmUpFrom), nullTime(src.SuspendedUntil), src.SuspendReason)
	if err != nil {
		return refused("set source "+src.Name, err)
	}
	return nil
}

func nullAddress(a netip.Addr) *netip.Addr {
	if !a.IsValid() {
		return nil
	}
	return &a
}

// Source returns one source. ErrNotFound: there is none of this name.
func (s *Store) Source(ctx context.Context, name string) (Source, error) {
	rows, err := s.plain.Query(ctx, `SELECT `+sourceColumns+` FROM sources s WHERE s.source = $1`, name)
	if err != nil {
		return Source{}, fmt.Errorf("source %s: %w", name, err)
	}
	found, err := pgx.CollectRows(rows, scanSource)
	if err != nil {
		return Source{}, fmt.Errorf("source %s: %w", name, err)
	}
	if len(found) == 0 {
		return Source{}, fmt.Errorf("source %s: %w", name, ErrNotFound)
	}
	return found[0], nil
}

// RemoveSource removes a source. ErrInUse: a pool has it. ErrNotFound: there
// is none.
func (s *Store) RemoveSource(ctx context.Context, name string) error {
	return s.removed(ctx, "remove source "+name, `DELETE FROM sources WHERE source = $1`, name)
}

func (s *Store) removed(ctx context.Context, what, q string, args ...any) error {
	tag, err := s.plain.Exec(ctx, q, args...)
	if hasCode(err, foreignKeyViolation) {
		return fmt.Errorf("%s: %w", what, ErrInUse)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	return nil
}

// SetPool gives a pool its members, in place of those that it had. Without
// any the pool is gone.
func (s *Store) SetPool(ctx context.Context, name string, members []Member) error {
	err := inTx(ctx, s.plain, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `DELETE FROM pools WHERE pool = $1`, name); err != nil {
			return err
		}
		for _, m := range members {
			if _, err := tx.Exec(ctx, `INSERT INTO pools (pool, source, weight) VALUES ($1, $2, $3)`, name, m.Source, m.Weight); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return refused("set pool "+name, err)
	}
	return nil
}

// SetTenantPool has the mail of a tenant leave from a pool; "" is the default
// one.
func (s *Store) SetTenantPool(ctx context.Context, tenant, pool string) error {
	return s.removed(ctx, "pool of tenant "+tenant, `UPDATE tenants SET pool = $2 WHERE tenant = $1`, tenant, pool)
}

// BlockSource says that a site does not want a source for a while. The warm-up
// of the source pauses meanwhile.
func (s *Store) BlockSource(ctx context.Context, b SourceBlock) error {
	const q = `SELECT block_source($1, $2, $3, $4)`
	if _, err := s.plain.Exec(ctx, q, b.Source, b.Site, b.Until, validText(b.Reason, maxReplyBytes)); err != nil {
		return fmt.Errorf("block source %s at %s: %w", b.Source, b.Site, err)
	}
	return nil
}

// UnblockSource ends a block. ErrNotFound: there is none.
func (s *Store) UnblockSource(ctx context.Context, source string, site mail.Site) error {
	return s.removed(ctx, "unblock source "+source, `DELETE FROM source_blocks WHERE source = $1 AND site = $2`, source, site)
}

// Advertise says which addresses of sources a worker has, and where and by
// what key others reach them through it; at is "" if they do not.
func (s *Store) Advertise(ctx context.Context, l Listener) error {
	const addresses = `UPDATE workers SET addresses = $2, egress = $3 WHERE worker_id = $1`
	const key = `INSERT INTO egress_keys (worker_id, key) VALUES ($1, $2) ON CONFLICT (worker_id) DO UPDATE SET key = excluded.key`
	batch := &pgx.Batch{}
	if l.Addresses == nil {
		l.Addresses = []netip.Addr{}
	}
	batch.Queue(addresses, l.Worker, l.Addresses, l.Address)
	if l.Address != "" {
		batch.Queue(key, l.Worker, l.Key)
	}
	if err := s.plain.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("advertise worker %d: %w", l.Worker, err)
	}
	return nil
}
