// Package store keeps the queue in Postgres. It owns all SQL, the schema's
// migrations and every transaction; nothing else of postrider imports pgx.
//
// One file holds one step of the walk: accept.go, claim.go, settle.go,
// park.go, ring.go, report.go, worker.go, retire.go, inspect.go. Who may relay
// is in tenant.go, credential.go, guard.go and usage.go.
//
// Statements on the hot path name the leaf partition of the ids they touch
// (a plan on the parent pays for every partition) and run on sessions whose
// plans are pinned. A batch that spans a partition boundary is split.
package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrNotFound says that no such message is kept.
var ErrNotFound = errors.New("no such message")

// Config says which Postgres keeps the queue. MaxConns bounds each of the
// three pools of a process.
type Config struct {
	URL      string `envconfig:"POSTGRES_URL" required:"true" desc:"Postgres 15 or newer that keeps the queue, as a URL or key=value list." secret:"true"`
	MaxConns int    `envconfig:"POSTGRES_MAX_CONNS" default:"4" desc:"Connections per process and pool (a process has up to three pools: durable, relaxed, plain; a delivery worker has one connection more, for its lease)."`
}

// Validate reports a configuration that cannot work.
func (c Config) Validate() error {
	if c.MaxConns < 1 || c.MaxConns > 1000 {
		return fmt.Errorf("POSTRIDER_POSTGRES_MAX_CONNS is %d, want 1 to 1000", c.MaxConns)
	}
	if c.URL == "" {
		return nil
	}
	if _, err := pgxpool.ParseConfig(c.URL); err != nil {
		return fmt.Errorf("POSTRIDER_POSTGRES_URL: %w", err)
	}
	return nil
}

// Store is a connection to the queue. Its methods are safe for concurrent
// use, and harmless when repeated: each is fenced.
type Store struct {
	durable *pgxpool.Pool // accept, settle, park and return of claims: COMMIT waits for the disk
	relaxed *pgxpool.Pool // claim, dispatch, park of what nobody claimed: losing one only repeats a step
	plain   *pgxpool.Pool // everything that is not on the hot path
	pulse   *pgxpool.Pool // one connection: a renewal waits for nothing else
	clock   clock
	held    *held
}

// Open prepares the pools. It does not wait for Postgres: a service starts,
// and says that it is not ready, while Postgres is away.
func Open(ctx context.Context, c Config) (*Store, error) {
	pinned := map[string]string{
		"plan_cache_mode": "force_generic_plan",
		// On a fresh, empty partition the planner would otherwise cache a
		// sequential scan, and keep it when the partition has grown.
		"enable_seqscan":   "off",
		"enable_hashjoin":  "off",
		"enable_mergejoin": "off",
		// One look-up by key for each row of a batch, and nothing cleverer.
		"enable_bitmapscan": "off",
		"enable_material":   "off",
	}
	// A statement with a join of partitions looks expensive enough for the
	// compiler as soon as much mail waits, though it reads a few hundred rows,
	// and it would be compiled anew each time.
	interpreted := map[string]string{"jit": "off"}
	s := &Store{held: newHeld()}
	for _, p := range []struct {
		pool   **pgxpool.Pool
		conns  int
		params []map[string]string
	}{
		{&s.durable, c.MaxConns, []map[string]string{interpreted, pinned}},
		{&s.relaxed, c.MaxConns, []map[string]string{interpreted, pinned, {"synchronous_commit": "off"}}},
		{&s.plain, c.MaxConns, []map[string]string{interpreted}},
		{&s.pulse, 1, []map[string]string{interpreted}},
	} {
		cfg, err := pgxpool.ParseConfig(c.URL)
		if err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
		cfg.MaxConns = int32(p.conns)
		cfg.MinConns = 0
		cfg.MaxConnIdleTime = 5 * time.Minute
		cfg.ConnConfig.ConnectTimeout = 5 * time.Second
		cfg.ConnConfig.DialFunc = dialer().DialContext
		if cfg.ConnConfig.RuntimeParams["application_name"] == "" {
			cfg.ConnConfig.RuntimeParams["application_name"] = "postrider"
		}
		cfg.ConnConfig.RuntimeParams["search_path"] = "postrider"
		for _, params := range p.params {
			for k, v := range params {
				cfg.ConnConfig.RuntimeParams[k] = v
			}
		}
		if *p.pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	return s, nil
}

// Close ends all connections. Calls in progress fail.
func (s *Store) Close() {
	for _, p := range []*pgxpool.Pool{s.durable, s.relaxed, s.plain, s.pulse} {
		if p != nil {
			p.Close()
		}
	}
}

// Ping reports whether Postgres answers and holds our schema.
func (s *Store) Ping(ctx context.Context) error {
	const q = `SELECT count(*) FROM slots`
	var n int
	if err := s.plain.QueryRow(ctx, q).Scan(&n); err != nil {
		return fmt.Errorf("ping store: %w", err)
	}
	return nil
}

// inTx runs f in a transaction of the pool.
func inTx(ctx context.Context, pool *pgxpool.Pool, f func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, pool, f)
}

// undefinedTable is the SQLSTATE of a leaf partition that is not there.
const undefinedTable = "42P01"

func hasCode(err error, code string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == code
}

// aboutData reports whether the error blames the values that were sent and
// not the server: SQLSTATE classes 22 (data exception) and 23 (integrity).
func aboutData(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && len(pg.Code) == 5 && (pg.Code[:2] == "22" || pg.Code[:2] == "23")
}
