package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/postrider/postrider/migrations"
)

// Migration is one step of the schema.
type Migration struct {
	Version   int64
	Name      string
	AppliedAt time.Time // zero while pending
}

// Migrate brings the schema up to date, and makes the partitions of now. It
// holds an advisory lock meanwhile: any number of processes may call it at
// once. url must reach Postgres directly, not through a pooler.
func Migrate(ctx context.Context, url string) error {
	return withProvider(url, func(p *goose.Provider, db *sql.DB) error {
		if _, err := p.Up(ctx); err != nil {
			return err
		}
		_, err := db.ExecContext(ctx, `SELECT postrider.ensure_partitions(now() - interval '1 hour', now() + interval '1 day')`)
		return err
	})
}

// Migrations returns all steps, oldest first.
func Migrations(ctx context.Context, url string) ([]Migration, error) {
	var steps []Migration
	err := withProvider(url, func(p *goose.Provider, _ *sql.DB) error {
		status, err := p.Status(ctx)
		for _, s := range status {
			steps = append(steps, Migration{Version: s.Source.Version, Name: s.Source.Path, AppliedAt: s.AppliedAt})
		}
		return err
	})
	return steps, err
}

func withProvider(url string, f func(*goose.Provider, *sql.DB) error) error {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	// By default Postgres looks into the schema named like the role first. A
	// role "postrider" would have goose's table in public at the first run,
	// and look for it in our schema at the second.
	cfg.RuntimeParams["search_path"] = "public"
	db := stdlib.OpenDB(*cfg)
	defer db.Close()
	// One lock for the installation: the session lock of goose.
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, migrations.Files, goose.WithSessionLocker(locker))
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	if err := f(p, db); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}
