package store_test

import (
	"testing"

	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
)

// TestMigrateAgain: the database is migrated already, by a role that has the
// name of the schema.
func TestMigrateAgain(t *testing.T) {
	url := storetest.New(t)
	for range 2 {
		if err := store.Migrate(t.Context(), url); err != nil {
			t.Fatal(err)
		}
	}
	steps, err := store.Migrations(t.Context(), url)
	if err != nil || len(steps) == 0 {
		t.Fatalf("%d migrations, %v", len(steps), err)
	}
	for _, s := range steps {
		if s.AppliedAt.IsZero() {
			t.Errorf("migration %d is pending", s.Version)
		}
	}
}
