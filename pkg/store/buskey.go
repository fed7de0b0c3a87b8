package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// BusKeys returns the keys for the bus that are valid now. There is one at
// least from the first migration on.
func (s *Store) BusKeys(ctx context.Context) (mail.BusKeys, error) {
	const q = `
		SELECT id, secret, clock_timestamp()
		FROM bus_keys
		WHERE valid_until IS NULL OR valid_until > clock_timestamp()
		ORDER BY valid_until IS NULL DESC, id DESC`
	rows, err := s.plain.Query(ctx, q)
	if err != nil {
		return mail.BusKeys{}, fmt.Errorf("bus keys: %w", err)
	}
	var found mail.BusKeys
	var key mail.BusKey
	_, err = pgx.ForEachRow(rows, []any{&key.ID, &key.Secret, &found.At}, func() error {
		found.Keys = append(found.Keys, key)
		key.Secret = nil
		return nil
	})
	if err != nil {
		return mail.BusKeys{}, fmt.Errorf("bus keys: %w", err)
	}
	return found, nil
}

// RotateBusKey makes a new key, which signs from now on, and returns its id;
// the keys before it stay valid for the overlap. While the one that signs is
// younger than olderThan it does nothing and returns 0.
func (s *Store) RotateBusKey(ctx context.Context, overlap, olderThan time.Duration) (int32, error) {
	const q = `SELECT coalesce(rotate_bus_key(@overlap, @older_than), 0)`
	var id int32
	err := s.plain.QueryRow(ctx, q, pgx.NamedArgs{"overlap": overlap, "older_than": olderThan}).Scan(&id)
	if err != nil {
		return 0, fmt.Errorf("rotate bus key: %w", err)
	}
	return id, nil
}
