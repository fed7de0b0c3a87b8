package store

import (
	"context"
	"fmt"
	"time"
)

// EnsurePartitions makes the partitions that ids from one moment to another
// need.
func (s *Store) EnsurePartitions(ctx context.Context, from, to time.Time) error {
	const q = `SELECT ensure_partitions($1, $2)`
	var made int
	if err := s.plain.QueryRow(ctx, q, from, to).Scan(&made); err != nil {
		return fmt.Errorf("ensure partitions: %w", err)
	}
	return nil
}

// RetireContents drops the hours of contents that ended before the moment
// given and returns their number; what is still needed is kept elsewhere.
// before must be at least an hour ago (hotContents), which it enforces.
func (s *Store) RetireContents(ctx context.Context, before time.Time) (dropped int, err error) {
	const q = `SELECT retire_contents(least($1, now() - interval '1 hour'))`
	for {
		var n int
		if err := s.plain.QueryRow(ctx, q, before).Scan(&n); err != nil {
			return dropped, fmt.Errorf("retire contents: %w", err)
		}
		if n == 0 {
			return dropped, nil
		}
		dropped += n
	}
}

// RetireHistory drops the days of the queue and its history that ended before
// the moment given and returns their number. A day with a recipient that is
// not final, or not reported, stays.
func (s *Store) RetireHistory(ctx context.Context, before time.Time) (dropped int, err error) {
	const q = `SELECT retire_history($1)`
	if err := s.plain.QueryRow(ctx, q, before).Scan(&dropped); err != nil {
		return 0, fmt.Errorf("retire history: %w", err)
	}
	return dropped, nil
}
