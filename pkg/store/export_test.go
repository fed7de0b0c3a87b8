package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

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

// BacklogStatement is a statement that looks at what waits, on the pool that
// runs it.
type BacklogStatement struct {
	pool   *pgxpool.Pool
	sql    string
	params []any
}

// BacklogStatements are those for a site of slot 3 with mail of tenants a and b.
func (s *Store) BacklogStatements(site mail.Site) map[string]BacklogStatement {
	slots := []int16{3}
	return map[string]BacklogStatement{
		"sites":  {s.plain, parkedSites, []any{slots}},
		"lag":    {s.plain, parkedLag, []any{slots}},
		"flows":  {s.plain, parkedFlows, []any{int16(3), site, false, int16(0), "", "", "", 100}},
		"pull":   {s.relaxed, pullRows, []any{1, site, []int16{0, 0}, []string{"", ""}, []string{"a", "b"}, []string{"", ""}, []int{5, 5}, int16(3)}},
		"ring":   {s.plain, ringRows, []any{10, time.Now(), Rearm, late, maxRepeats}},
		"lost":   {s.plain, takeLost, []any{10}},
		"unring": {s.plain, unringRows, []any{10}},
	}
}

// Analyze runs a statement and returns its plan with the rows that each step
// read, and takes back what it did.
func (b BacklogStatement) Analyze(ctx context.Context) (plan string, err error) {
	tx, err := b.pool.Begin(ctx)
	if err != nil {
		return "", err
	}
	defer tx.Rollback(ctx)
	rows, err := tx.Query(ctx, "EXPLAIN (ANALYZE, TIMING OFF) "+b.sql, b.params...)
	if err != nil {
		return "", err
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return strings.Join(lines, "\n"), err
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
