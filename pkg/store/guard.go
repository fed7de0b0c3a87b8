package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// FailureHalfLife is the time in which half of the failures to authenticate
// are forgotten.
const FailureHalfLife = 15 * time.Minute

// Standing is what is remembered of a client, an address or a user that
// tries to authenticate.
type Standing struct {
	Score       float64   // failures, each halved every FailureHalfLife
	SucceededAt time.Time // zero: never, or forgotten
}

// decayed is the score of row f of auth_failures as it is now.
const decayed = `f.score * power(0.5::float8, extract(epoch FROM greatest(now() - f.failed_at, '0'))::float8 / @halflife)`

// Standings returns the standing of each key, in their order.
func (s *Store) Standings(ctx context.Context, keys []string) ([]Standing, error) {
	const q = `
		SELECT coalesce(` + decayed + `, 0), f.succeeded_at
		FROM unnest(@keys::text[]) WITH ORDINALITY AS k (key, no)
		LEFT JOIN auth_failures f ON f.key = k.key
		ORDER BY k.no`
	rows, err := s.plain.Query(ctx, q, guardArgs(keys))
	if err != nil {
		return nil, fmt.Errorf("standings: %w", err)
	}
	standings, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (st Standing, err error) {
		var at *time.Time
		err = row.Scan(&st.Score, &at)
		st.SucceededAt = timeOf(at)
		return st, err
	})
	if err != nil {
		return nil, fmt.Errorf("standings: %w", err)
	}
	return standings, nil
}

// AuthFailed adds a failure to each key, and returns the scores, in their
// order. Concurrent failures are all counted.
func (s *Store) AuthFailed(ctx context.Context, keys []string) ([]float64, error) {
	// Rows are locked in the order of their keys, so that two calls never
	// wait for each other.
	const q = `
		INSERT INTO auth_failures AS f (key, score)
		SELECT k, 1 FROM unnest(@keys::text[]) k ORDER BY k
		ON CONFLICT (key) DO UPDATE
		SET score = ` + decayed + ` + 1,
		    failed_at = now()
		RETURNING f.key, f.score`
	scores := make([]float64, len(keys))
	rows, err := s.plain.Query(ctx, q, guardArgs(keys))
	if err != nil {
		return nil, fmt.Errorf("authentication failed: %w", err)
	}
	var key string
	var score float64
	_, err = pgx.ForEachRow(rows, []any{&key, &score}, func() error {
		scores[slices.Index(keys, key)] = score
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("authentication failed: %w", err)
	}
	return scores, nil
}

// AuthForgiven takes so many failures back from each key: they were no guesses.
func (s *Store) AuthForgiven(ctx context.Context, keys []string, failures int) error {
	const q = `
		UPDATE auth_failures f
		SET score = greatest(0, ` + decayed + ` - @failures::float8),
		    failed_at = now()
		WHERE f.key IN (SELECT key FROM auth_failures WHERE key = ANY (@keys) ORDER BY key FOR UPDATE)`
	args := guardArgs(keys)
	args["failures"] = failures
	if _, err := s.plain.Exec(ctx, q, args); err != nil {
		return fmt.Errorf("authentication forgiven: %w", err)
	}
	return nil
}

// AuthSucceeded remembers a client that was authenticated, and forgets its
// failures.
func (s *Store) AuthSucceeded(ctx context.Context, key string) error {
	const q = `
		INSERT INTO auth_failures (key, succeeded_at) VALUES ($1, now())
		ON CONFLICT (key) DO UPDATE
		SET score = 0,
		    failed_at = now(),
		    succeeded_at = now()`
	if _, err := s.plain.Exec(ctx, q, key); err != nil {
		return fmt.Errorf("authentication succeeded: %w", err)
	}
	return nil
}

func guardArgs(keys []string) pgx.NamedArgs {
	return pgx.NamedArgs{"keys": keys, "halflife": FailureHalfLife.Seconds()}
}

// ForgetAuth removes what no longer matters: failures of more than a day ago
// and clients that were last authenticated before the given moment.
func (s *Store) ForgetAuth(ctx context.Context, clients time.Time) (forgotten int64, err error) {
	const q = `
		DELETE FROM auth_failures
		WHERE failed_at < now() - interval '1 day'
		  AND (succeeded_at IS NULL OR succeeded_at < $1)`
	tag, err := s.plain.Exec(ctx, q, clients)
	if err != nil {
		return 0, fmt.Errorf("forget authentication: %w", err)
	}
	return tag.RowsAffected(), nil
}

// Decoy returns the secret from which users who do not exist get their SCRAM
// salts: the same in all processes, for ever.
func (s *Store) Decoy(ctx context.Context) ([]byte, error) {
	const q = `SELECT value FROM secrets WHERE name = 'decoy'`
	var secret []byte
	if err := s.plain.QueryRow(ctx, q).Scan(&secret); err != nil {
		return nil, fmt.Errorf("decoy: %w", err)
	}
	return secret, nil
}
