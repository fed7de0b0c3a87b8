// Package storetest gives tests a real, migrated Postgres. All tests of one
// process share one server; each test has a database of its own, copied from
// a migrated template, so tests may run in parallel.
package storetest

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/devpg"
	"github.com/postrider/postrider/pkg/store"
)

const template = "postrider_template"

// shared is the server of this process. Nothing stops it but the end of the
// process: devpg's reaper removes it then.
var shared = sync.OnceValues(func() (*devpg.Server, error) {
	s, err := devpg.Start(context.Background(), devpg.Options{})
	if err != nil {
		return nil, err
	}
	return s, makeTemplate(context.Background(), s.URL())
})

// mu makes the copies one after another: Postgres refuses two copies of one
// template at a time.
var mu sync.Mutex

var count int // guarded by mu

// New returns the URL of a fresh migrated database on the shared server. The
// database goes when the test ends.
func New(t testing.TB) string {
	t.Helper()
	server, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	admin := server.URL()
	mu.Lock()
	defer mu.Unlock()
	count++
	name := fmt.Sprintf("test_%d", count)
	if err := run(t.Context(), admin, "CREATE DATABASE "+name+" TEMPLATE "+template); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The context of a test is over when its clean-up runs.
		if err := run(context.Background(), admin, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	return withDatabase(t, admin, name)
}

// NewServer returns a server of the test's own with a migrated database at
// its URL, for tests that restart, kill or tune Postgres.
func NewServer(t testing.TB, o devpg.Options) *devpg.Server {
	t.Helper()
	server, err := devpg.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := store.Migrate(t.Context(), server.URL()); err != nil {
		t.Fatal(err)
	}
	return server
}

func makeTemplate(ctx context.Context, admin string) error {
	if err := run(ctx, admin, "CREATE DATABASE "+template); err != nil {
		return err
	}
	u, err := url.Parse(admin)
	if err != nil {
		return err
	}
	u.Path = "/" + template
	return store.Migrate(ctx, u.String())
}

func withDatabase(t testing.TB, admin, name string) string {
	t.Helper()
	u, err := url.Parse(admin)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

func run(ctx context.Context, url, sql string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}
