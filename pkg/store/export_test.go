package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// HotStatements are the statements of the hot path for the leaf of an id.
func HotStatements(id mail.QueueID) map[string]string {
	return map[string]string{
		"claim":             fmt.Sprintf(claimRows, day(id)),
		"dispatch":          fmt.Sprintf(dispatchRows, day(id)),
		"give back":         fmt.Sprintf(giveBackRows, day(id)),
		"park":              fmt.Sprintf(parkRows, day(id)),
		"settle":            fmt.Sprintf(settleRows, day(id)),
		"settle and report": fmt.Sprintf(settleAndReport, day(id)),
		"read":              fmt.Sprintf(readHot, hour(id)),
	}
}

// Dialer makes the connections of all pools.
var Dialer = dialer

// SawClock lets the store believe that the clock of Postgres shows t.
func (s *Store) SawClock(t time.Time) { s.clock.saw(t) }

// Explain returns the generic plan of a statement on a session of the hot
// path.
func (s *Store) Explain(ctx context.Context, sql string, params int) (string, error) {
	conn, err := s.relaxed.Acquire(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, "PREPARE explained AS "+sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		return "", err
	}
	nulls := strings.TrimSuffix(strings.Repeat("NULL,", params), ",")
	rows, err := conn.Query(ctx, "EXPLAIN EXECUTE explained ("+nulls+")", pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return "", err
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return "", err
	}
	_, err = conn.Exec(ctx, "DEALLOCATE explained", pgx.QueryExecModeSimpleProtocol)
	return strings.Join(lines, "\n"), err
}
