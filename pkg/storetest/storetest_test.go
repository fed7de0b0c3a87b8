package storetest

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/devpg"
)

func queued(t *testing.T, url string) int {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var n int
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM postrider.messages").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNewIsMigratedAndSeparate(t *testing.T) {
	a, b := New(t), New(t)
	if a == b {
		t.Fatalf("two tests share %s", a)
	}
	for _, url := range []string{a, b} {
		if n := queued(t, url); n != 0 {
			t.Errorf("%s: %d messages, want none", url, n)
		}
	}
}

func TestNewServerSurvivesRestart(t *testing.T) {
	s := NewServer(t, devpg.Options{})
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := queued(t, s.URL()); n != 0 {
		t.Errorf("%d messages, want none", n)
	}
}
