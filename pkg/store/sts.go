package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// STSPolicy is the MTA-STS policy of a domain as it is kept: RFC 8461.
type STSPolicy struct {
	Domain    string
	ID        string // of the TXT record that it was fetched for
	Mode      string // none, testing, enforce
	MX        []string
	Text      []string // the lines as they were published
	MaxAge    time.Duration
	ExpiresAt time.Time
}

// stsIdle is how long a policy is refreshed after it was last asked for. It
// then ends by its max_age, as if nobody had ever known it.
const stsIdle = 30 * 24 * time.Hour

const stsColumns = `domain, id, mode, mx, policy, max_age, expires_at`

func scanSTSPolicy(row pgx.CollectableRow) (p STSPolicy, err error) {
	return p, row.Scan(&p.Domain, &p.ID, &p.Mode, &p.MX, &p.Text, &p.MaxAge, &p.ExpiresAt)
}

// STSPolicy returns the policy of a domain that was kept and has not ended.
// ErrNotFound: there is none.
func (s *Store) STSPolicy(ctx context.Context, domain string) (STSPolicy, error) {
	const q = `WITH used AS (UPDATE sts_policies SET used_at = now() WHERE domain = $1 AND used_at < now() - interval '1 day')
SELECT ` + stsColumns + ` FROM sts_policies WHERE domain = $1 AND expires_at > now()`
	rows, err := s.plain.Query(ctx, q, domain)
	if err != nil {
		return STSPolicy{}, fmt.Errorf("MTA-STS policy of %s: %w", domain, err)
	}
	p, err := pgx.CollectExactlyOneRow(rows, scanSTSPolicy)
	if errors.Is(err, pgx.ErrNoRows) {
		return p, ErrNotFound
	}
	if err != nil {
		return p, fmt.Errorf("MTA-STS policy of %s: %w", domain, err)
	}
	return p, nil
}

// STSPolicies returns the policies that are kept and have not ended.
func (s *Store) STSPolicies(ctx context.Context, limit int) ([]STSPolicy, error) {
	const q = `SELECT ` + stsColumns + ` FROM sts_policies WHERE expires_at > now() ORDER BY domain LIMIT $1`
	rows, err := s.plain.Query(ctx, q, limit)
	if err != nil {
		return nil, fmt.Errorf("MTA-STS policies: %w", err)
	}
	all, err := pgx.CollectRows(rows, scanSTSPolicy)
	if err != nil {
		return nil, fmt.Errorf("MTA-STS policies: %w", err)
	}
	return all, nil
}

// SaveSTSPolicy keeps a policy that was fetched just now for its MaxAge, and
// returns when it ends.
func (s *Store) SaveSTSPolicy(ctx context.Context, p STSPolicy) (expires time.Time, err error) {
	const q = `INSERT INTO sts_policies (domain, id, mode, mx, policy, max_age, expires_at, refresh_at)
VALUES ($1, $2, $3, $4, $5, $6, now() + $6, now() + interval '1 day')
ON CONFLICT (domain) DO UPDATE SET id = excluded.id, mode = excluded.mode, mx = excluded.mx, policy = excluded.policy,
    max_age = excluded.max_age, expires_at = excluded.expires_at, refresh_at = excluded.refresh_at, fetched_at = now()
RETURNING expires_at`
	if p.MX == nil {
		p.MX = []string{}
	}
	if err := s.plain.QueryRow(ctx, q, p.Domain, p.ID, p.Mode, p.MX, p.Text, p.MaxAge).Scan(&expires); err != nil {
		return expires, fmt.Errorf("keep MTA-STS policy of %s: %w", p.Domain, err)
	}
	return expires, nil
}

// StaleSTSPolicies takes up to limit policies that are to be fetched again,
// and puts them off by an hour in case that fails. Policies that have ended
// are deleted.
func (s *Store) StaleSTSPolicies(ctx context.Context, limit int) ([]STSPolicy, error) {
	const (
		drop = `DELETE FROM sts_policies WHERE expires_at <= now()`
		take = `UPDATE sts_policies p SET refresh_at = now() + interval '1 hour'
FROM (SELECT domain FROM sts_policies WHERE refresh_at <= now() AND used_at > now() - $2::interval
      ORDER BY refresh_at LIMIT $1 FOR UPDATE SKIP LOCKED) stale (name)
WHERE p.domain = stale.name
RETURNING ` + stsColumns
	)
	if _, err := s.plain.Exec(ctx, drop); err != nil {
		return nil, fmt.Errorf("stale MTA-STS policies: %w", err)
	}
	rows, err := s.plain.Query(ctx, take, limit, stsIdle)
	if err != nil {
		return nil, fmt.Errorf("stale MTA-STS policies: %w", err)
	}
	stale, err := pgx.CollectRows(rows, scanSTSPolicy)
	if err != nil {
		return nil, fmt.Errorf("stale MTA-STS policies: %w", err)
	}
	return stale, nil
}
