package store

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5"
)

// BrokenTLS is an address whose TLS was seen to be broken.
type BrokenTLS struct {
	Address  netip.AddrPort
	Host     string
	Fault    string // starttls, or large hello: a smaller ClientHello helps
	Evidence string // what the last handshake failed with
	Times    int
	FailedAt time.Time
	Until    time.Time
}

// brokenFor is how long broken TLS is remembered.
const brokenFor = 3 * 24 * time.Hour

// maxBroken bounds how many addresses are read at a time.
const maxBroken = 10_000

// BrokenTLS returns what is remembered, latest first.
func (s *Store) BrokenTLS(ctx context.Context) ([]BrokenTLS, error) {
	const q = `SELECT address, port, host, fault, evidence, times, failed_at, until FROM broken_tls
WHERE until > now() ORDER BY failed_at DESC LIMIT $1`
	rows, err := s.plain.Query(ctx, q, maxBroken)
	if err != nil {
		return nil, fmt.Errorf("broken TLS: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (b BrokenTLS, err error) {
		var addr netip.Addr
		var port uint16
		err = row.Scan(&addr, &port, &b.Host, &b.Fault, &b.Evidence, &b.Times, &b.FailedAt, &b.Until)
		b.Address = netip.AddrPortFrom(addr, port)
		return b, err
	})
	if err != nil {
		return nil, fmt.Errorf("broken TLS: %w", err)
	}
	return all, nil
}

// RememberBrokenTLS keeps what was seen just now for 3 days, and drops what
// has ended.
func (s *Store) RememberBrokenTLS(ctx context.Context, b BrokenTLS) error {
	const q = `WITH ended AS (DELETE FROM broken_tls WHERE until <= now() AND (address, port) <> ($1, $2))
INSERT INTO broken_tls (address, port, host, fault, evidence, until) VALUES ($1, $2, lower($3), $4, $5, now() + $6)
ON CONFLICT (address, port) DO UPDATE SET host = excluded.host, fault = excluded.fault, evidence = excluded.evidence,
    times = broken_tls.times + 1, failed_at = now(), until = excluded.until`
	if _, err := s.plain.Exec(ctx, q, b.Address.Addr(), b.Address.Port(), b.Host, b.Fault, b.Evidence, brokenFor); err != nil {
		return fmt.Errorf("remember broken TLS: %w", err)
	}
	return nil
}

// ForgetBrokenTLS has TLS tried again at a host, of all hosts if it is "". It
// returns how many addresses were forgotten.
func (s *Store) ForgetBrokenTLS(ctx context.Context, host string) (forgotten int64, err error) {
	const q = `SELECT forget_broken_tls(host => nullif($1, ''))`
	if err := s.plain.QueryRow(ctx, q, host).Scan(&forgotten); err != nil {
		return 0, fmt.Errorf("forget broken TLS: %w", err)
	}
	return forgotten, nil
}

// ForgetBrokenTLSAt has TLS tried again at one address.
func (s *Store) ForgetBrokenTLSAt(ctx context.Context, at netip.AddrPort) error {
	if _, err := s.plain.Exec(ctx, `DELETE FROM broken_tls WHERE (address, port) = ($1, $2)`, at.Addr(), at.Port()); err != nil {
		return fmt.Errorf("forget broken TLS: %w", err)
	}
	return nil
}
