package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// ShapingVersion is a shaping file that an operator has applied.
type ShapingVersion struct {
	Version   int64
	Text      string // "" in a history
	Bytes     int64
	Note, By  string
	AppliedAt time.Time
}

// ApplyShaping makes a text the version that counts, on all processes within
// a second or two. It is the caller who has seen that it can be read.
func (s *Store) ApplyShaping(ctx context.Context, text, note, by string) (version int64, err error) {
	const q = `INSERT INTO shaping_versions (text, note, applied_by) VALUES ($1, $2, $3) RETURNING version`
	if err := s.plain.QueryRow(ctx, q, text, note, by).Scan(&version); err != nil {
		return 0, fmt.Errorf("apply shaping: %w", err)
	}
	return version, nil
}

// Shaping returns a version of the shaping file; 0 is the one that counts.
// ErrNotFound says that there is none.
func (s *Store) Shaping(ctx context.Context, version int64) (ShapingVersion, error) {
	const q = `SELECT version, text, octet_length(text)::bigint, note, applied_by, applied_at
FROM shaping_versions WHERE $1::bigint IN (0, version) ORDER BY version DESC LIMIT 1`
	var v ShapingVersion
	err := s.plain.QueryRow(ctx, q, version).Scan(&v.Version, &v.Text, &v.Bytes, &v.Note, &v.By, &v.AppliedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return v, ErrNotFound
	}
	if err != nil {
		return v, fmt.Errorf("version of shaping: %w", err)
	}
	return v, nil
}

// ShapingHistory returns the last versions without their texts, newest first.
func (s *Store) ShapingHistory(ctx context.Context, limit int) ([]ShapingVersion, error) {
	const q = `SELECT version, '' AS text, octet_length(text)::bigint AS bytes, note, applied_by AS by, applied_at
FROM shaping_versions ORDER BY version DESC LIMIT $1`
	rows, err := s.plain.Query(ctx, q, limit)
	if err != nil {
		return nil, fmt.Errorf("history of shaping: %w", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[ShapingVersion])
	if err != nil {
		return nil, fmt.Errorf("history of shaping: %w", err)
	}
	return all, nil
}

// ShapingHead returns the number of the version that counts, 0 without one,
// and when the sites of domains last changed.
func (s *Store) ShapingHead(ctx context.Context) (version int64, sitesAt time.Time, err error) {
	const q = `SELECT coalesce((SELECT max(version) FROM shaping_versions), 0),
       coalesce((SELECT max(changed_at) FROM shaping_sites), 'epoch')`
	if err := s.plain.QueryRow(ctx, q).Scan(&version, &sitesAt); err != nil {
		return 0, time.Time{}, fmt.Errorf("head of shaping: %w", err)
	}
	return version, sitesAt, nil
}

// ShapingText returns the text of a version.
func (s *Store) ShapingText(ctx context.Context, version int64) (string, error) {
	v, err := s.Shaping(ctx, version)
	return v.Text, err
}

// ShapingSites returns the sites of domains that the shaping file names.
func (s *Store) ShapingSites(ctx context.Context) (map[mail.Domain]mail.Site, error) {
	const q = `SELECT domain, site FROM shaping_sites`
	rows, err := s.plain.Query(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("sites of shaping: %w", err)
	}
	sites := map[mail.Domain]mail.Site{}
	var domain, site string
	_, err = pgx.ForEachRow(rows, []any{&domain, &site}, func() error {
		sites[mail.Domain(domain)] = mail.Site(site)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("sites of shaping: %w", err)
	}
	return sites, nil
}

// SetShapingSite records the site of a domain that the shaping file names.
func (s *Store) SetShapingSite(ctx context.Context, domain mail.Domain, site mail.Site) error {
	const q = `INSERT INTO shaping_sites (domain, site) VALUES ($1, $2)
ON CONFLICT (domain) DO UPDATE SET site = excluded.site, changed_at = now()
WHERE shaping_sites.site <> excluded.site`
	if _, err := s.plain.Exec(ctx, q, domain, site); err != nil {
		return fmt.Errorf("site of %s: %w", domain, err)
	}
	return nil
}

// maxMeasures bounds what every process holds in memory.
const maxMeasures = 10_000

// Measures returns those that hold now, oldest first.
func (s *Store) Measures(ctx context.Context) (mail.Measures, error) {
	const q = `SELECT id, kind, site, source, tenant, campaign, domain, key, value, until, reason, ordered_by, created_at
FROM measures WHERE cancelled_at IS NULL AND until > now() ORDER BY id LIMIT $1`
	return s.measures(ctx, q)
}

func (s *Store) measures(ctx context.Context, q string) (mail.Measures, error) {
	rows, err := s.plain.Query(ctx, q, maxMeasures)
	if err != nil {
		return nil, fmt.Errorf("measures: %w", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[mail.Measure])
	if err != nil {
		return nil, fmt.Errorf("measures: %w", err)
	}
	return all, nil
}

// Suspensions returns the measures that hold now, and the sites that are
// suspended by name, which have no id.
func (s *Store) Suspensions(ctx context.Context) ([]mail.Measure, error) {
	const q = `SELECT coalesce(id, 0), kind, site, source, tenant, campaign, domain, key, value, until, reason, ordered_by, coalesce(created_at, 'epoch')
FROM suspensions ORDER BY id NULLS LAST, site LIMIT $1`
	return s.measures(ctx, q)
}

// Order begins measures, or prolongs those that cover the same mail. Until is
// read as a duration from now on Postgres's clock.
func (s *Store) Order(ctx context.Context, measures []mail.Measure) error {
	const q = `SELECT order_measure($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`
	batch := &pgx.Batch{}
	for _, m := range measures {
		batch.Queue(q, string(m.Kind), time.Until(m.Until).Round(time.Millisecond), m.Reason, m.By,
			string(m.Site), m.Source, m.Tenant, m.Campaign, string(m.Domain), m.Key, m.Value)
	}
	if err := s.plain.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("order measures: %w", err)
	}
	return nil
}

// CancelMeasure ends a measure; false says that it was not in force.
func (s *Store) CancelMeasure(ctx context.Context, id int64, by string) (ended bool, err error) {
	const q = `SELECT cancel_measure($1, $2)`
	if err := s.plain.QueryRow(ctx, q, id, by).Scan(&ended); err != nil {
		return false, fmt.Errorf("cancel measure %d: %w", id, err)
	}
	return ended, nil
}

// WakeSuspended has what waits for the end of a suspension that was cancelled
// looked at again, and returns how many recipients that were.
func (s *Store) WakeSuspended(ctx context.Context, id int64) (woken int64, err error) {
	const q = `SELECT wake_suspended($1)`
	if err := s.plain.QueryRow(ctx, q, id).Scan(&woken); err != nil {
		return 0, fmt.Errorf("wake what waits for measure %d: %w", id, err)
	}
	return woken, nil
}
