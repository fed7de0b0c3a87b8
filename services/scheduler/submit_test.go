package scheduler

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/telemetry"
)

// Mail that an application submits by SQL is rung for within a second of the
// commit of its transaction, and not before.
func TestSubmittedBySQL(t *testing.T) {
	w := newWorld(t)
	w.start(t)
	w.listen(t)
	db, err := pgx.Connect(t.Context(), w.url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.Background())
	submit := func(tx pgx.Tx) (id mail.QueueID) {
		const q = `SELECT postrider.submit('a@example.com', '{b@example.org,c@example.org}', E'From: a@example.com\n\nhello\n'::text)`
		if err := tx.QueryRow(t.Context(), q).Scan(&id); err != nil {
			t.Fatal(err)
		}
		return id
	}
	gone, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rolledBack := submit(gone)
	if err := gone.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		tx, err := db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		id := submit(tx)
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		committed := time.Now()
		for w.rungFor(id) < 2 {
			if time.Since(committed) > 5*time.Second {
				t.Fatalf("%d of 2 recipients are rung for", w.rungFor(id))
			}
			<-time.After(5 * time.Millisecond)
		}
		if took := time.Since(committed); took > time.Second {
			t.Errorf("rung for %s after the commit", took)
		}
	}
	if n := w.rungFor(rolledBack); n != 0 {
		t.Errorf("%d recipients of what was rolled back are rung for", n)
	}
}

// lines keeps what is logged.
type lines struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

func (l *lines) find(text string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []string
	for line := range strings.Lines(l.all.String()) {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

// Mail by SQL is in the log as accepted once, as what comes by SMTP is, and
// has a trace: its submitter's, if there is one.
func TestSubmittedBySQLIsSeen(t *testing.T) {
	sdk, err := telemetry.Setup(t.Context(), telemetry.Options{Service: "scheduler"})
	if err != nil {
		t.Fatal(err)
	}
	defer sdk.Shutdown(context.Background())
	logged, before := &lines{}, slog.Default()
	slog.SetDefault(slog.New(telemetry.NewLogHandler(logged, slog.LevelInfo)))
	defer slog.SetDefault(before)
	w := newWorld(t)
	w.start(t)
	w.start(t) // of two schedulers, one
	w.listen(t)
	db, err := pgx.Connect(t.Context(), w.url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.Background())
	for _, trace := range []string{"", "0af7651916cd43dd8448eb211c80319c"} {
		traceparent := ""
		if trace != "" {
			traceparent = "00-" + trace + "-b7ad6b7169203331-01"
		}
		var id mail.QueueID
		if err := db.QueryRow(t.Context(), `SELECT postrider.submit('a@example.com', '{b@example.org,c@example.org}', E'From: a@example.com\n\nhello\n'::text, traceparent => $1)`, traceparent).Scan(&id); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(10 * time.Second)
		var kept string
		for w.rungFor(id) < 2 || len(logged.find(id.String())) == 0 || kept == traceparent {
			if time.Now().After(deadline) {
				t.Fatalf("rung for %d, traceparent %q, logged %q", w.rungFor(id), kept, logged.find(id.String()))
			}
			if err := db.QueryRow(t.Context(), `SELECT traceparent FROM postrider.messages WHERE queue_id = $1`, id).Scan(&kept); err != nil {
				t.Fatal(err)
			}
			<-time.After(5 * time.Millisecond)
		}
		found := logged.find(id.String())
		if len(found) != 1 || !strings.Contains(found[0], `"accepted"`) || !strings.Contains(found[0], `"recipients":2`) || !strings.Contains(found[0], `"protocol":"SQL"`) ||
			!strings.Contains(found[0], `"trace_id":"`+kept[3:35]+`"`) {
			t.Errorf("logged %q, traceparent %s", found, kept)
		}
		if trace != "" && kept[3:35] != trace {
			t.Errorf("traceparent %s, want one in %s", kept, trace)
		}
	}
	var left int
	if err := db.QueryRow(t.Context(), `SELECT count(*) FROM postrider.submitted`).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d left, %v", left, err)
	}
}

func (w *world) rungFor(id mail.QueueID) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for r, times := range w.queued {
		if r.id == id {
			n += times
		}
	}
	return n
}
