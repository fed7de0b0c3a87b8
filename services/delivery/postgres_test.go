package delivery_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/devpg"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/pkg/storetest"
)

// Postgres goes away in the middle of everything and comes back: nothing is
// lost, and what arrives twice is marked.
func TestPostgresRestartsUnderLoad(t *testing.T) {
	t.Parallel()
	server := storetest.NewServer(t, devpg.Options{})
	r := newRigOn(t, server.URL())
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	const total = 600
	ids := r.accept(total, message{domain: "example.test"})
	shape := "[\"default\"]\nmax_ready = 50\nmax_message_rate = \"100/s\"\nmax_connection_rate = \"unlimited\""
	r.start(r.config(shape))
	r.start(r.config(shape))
	r.settled(2)
	r.ring()
	for n := range 3 {
		mx.WaitMessages(t, 50+100*n, 30*time.Second)
		halt := server.Halt
		if n == 1 {
			halt = server.Kill
		}
		if err := halt(); err != nil {
			t.Fatal(err)
		}
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r.db, r.bus = r.connect() // the connections of before are dead
	r.conduct()
	if a := r.drained(60 * time.Second); a.Relayed != total {
		t.Errorf("accounts %+v, want %d relayed", a, total)
	}
	r.mustArrive(mx, ids)
	// A settle whose answer was lost is no second transaction.
	db, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	var twice int
	if err := db.QueryRow(t.Context(), `SELECT count(*) FROM (SELECT FROM postrider.attempts
    GROUP BY queue_id, recipient_nos, attempt, worker_id, action, started_at HAVING count(*) > 1) twice`).Scan(&twice); err != nil || twice > 0 {
		t.Errorf("%d transactions stand twice in the history, %v", twice, err)
	}
	if err := db.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// Postgres comes back and takes a recipient for claimed by a worker that had
// parked or settled it, because what it had committed was lost with it. Nobody
// would ever look at it again: the worker lives.
func TestPostgresForgetsWhatEndedAClaim(t *testing.T) {
	t.Parallel()
	server := storetest.NewServer(t, devpg.Options{})
	r := newRigOn(t, server.URL())
	mx := smtptest.Start(t, smtptest.Script{})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.start(r.config(""))
	r.settled(1)
	ids := r.accept(3, message{domain: "example.test"})
	db, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), `UPDATE postrider.recipients SET attempt = 1, rung = false, next_attempt_at = expires_at,
    worker_id = (SELECT max(worker_id) FROM postrider.workers)`); err != nil {
		t.Fatal(err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.conduct()
	r.until("all are relayed", 30*time.Second, func() bool {
		a, err := r.db.Accounting(t.Context())
		return err == nil && a.Relayed == int64(len(ids))
	})
	r.mustArrive(mx, ids)
}
