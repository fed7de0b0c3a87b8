package chaos

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

// TestKillEachService: kill -9 of one copy of each service in turn, in the
// middle of the load. The other copy goes on; the dead one comes back before
// the next is killed.
func TestKillEachService(t *testing.T) {
	s := newScene(t)
	n := messages(t) / len(world.Services)
	for i, name := range world.Services {
		victim := s.Service(name, i%2)
		s.waitShares() // or the victim may be one without work
		var at time.Time
		s.wave(fmt.Sprintf("kill%d-", i), n, func() {
			at = time.Now()
			if name == "delivery" {
				s.strike(victim.Kill)
			} else {
				victim.Kill() // no other has a word with remote hosts
			}
		})
		s.WaitIdle(t, drained) // the other copy does all the work
		s.wantTakenOver("kill -9 of "+victim.String(), at)
		s.restart(victim)
	}
	s.judge()
}

// waitShares waits until both delivery workers are home of a fair share of
// the slots.
func (s *scene) waitShares() {
	s.t.Helper()
	s.Eventually(s.t, drained, "fair shares of the slots", func(ctx context.Context) error {
		var workers, least int
		err := s.DB.QueryRow(ctx, `SELECT count(*), coalesce(min(n), 0) FROM (SELECT count(*) AS n FROM postrider.slots
			WHERE lease_until > now() GROUP BY worker_id) AS share`).Scan(&workers, &least)
		if err == nil && (workers != 2 || least < mail.Slots/4) {
			err = fmt.Errorf("%d workers are homes, one of %d slots", workers, least)
		}
		return err
	})
}

func (s *scene) restart(victim *world.Service) {
	s.t.Helper()
	if err := victim.Start(); err != nil {
		s.t.Fatal(err)
	}
	if err := victim.WaitReady(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// TestKillBothCopies: a whole service may be away; its work waits, and goes
// on when it is back.
func TestKillBothCopies(t *testing.T) {
	s := newScene(t)
	for i, name := range []string{"resolver", "delivery"} {
		s.wave(fmt.Sprintf("both%d-", i), messages(t)/3, func() {
			s.strike(func() {
				for c := range 2 {
					s.Service(name, c).Kill()
				}
			})
		})
		for c := range 2 {
			s.restart(s.Service(name, c))
		}
		at := time.Now()
		s.WaitIdle(t, drained)
		s.wantTakenOver("kill -9 of every "+name, at)
	}
	s.judge()
}

// TestKillInMidTransaction: the worker dies while the remote host has the
// whole message and has not answered. That is the one window of RFC 1047:
// the message comes twice, and its recipient is marked uncertain.
func TestKillInMidTransaction(t *testing.T) {
	s := newScene(t)
	const held = 5
	var atDot atomic.Int64
	release := make(chan struct{})
	host := s.Host(t, "mx.held.test", smtptest.Script{
		Discard: true,
		Label:   func([]byte) string { atDot.Add(1); return "" }, // called when the final dot was read
		Rules:   []smtptest.Rule{{At: smtptest.Dot, Times: held, Do: smtptest.Await(release, smtptest.Reply(250, "2.0.0 taken"))}},
	})
	s.hosts["held.test"] = host
	s.MX(t, "held.test", "10 mx.held.test")
	for i := range held {
		id, err := submit.Send(t.Context(), s.SMTP(i%2), submit.Message{
			From: from, To: []string{fmt.Sprintf("held%d@held.test", i)}, Content: []byte("Subject: held\r\n\r\nheld\r\n"),
		})
		if err != nil {
			t.Fatal(err)
		}
		s.ledger = append(s.ledger, id)
	}
	s.Eventually(t, drained, "all messages at the final dot", func(context.Context) error {
		if n := atDot.Load(); n < held {
			return fmt.Errorf("%d of %d", n, held)
		}
		return nil
	})
	victim := s.Service("delivery", s.home(held))
	at := time.Now()
	s.strike(victim.Kill)
	close(release)
	s.WaitIdle(t, drained)
	s.wantTakenOver("kill -9 of "+victim.String()+" in mid-transaction", at)
	uncertain := s.paths(t.Context(), `SELECT DISTINCT forward_path FROM postrider.history WHERE uncertain`)
	got, _ := s.arrived()
	for i := range held {
		path := fmt.Sprintf("held%d@held.test", i)
		if !uncertain[path] || got[path] != 2 {
			t.Errorf("%s arrived %d times, uncertain: %v; the host took it, so it has to come twice and be marked", path, got[path], uncertain[path])
		}
	}
	s.restart(victim)
	s.judge()
}

// home returns the copy of delivery that has claimed so many recipients in
// transactions.
func (s *scene) home(want int) int {
	s.t.Helper()
	var name string
	var n int
	if err := s.DB.QueryRow(s.t.Context(), `SELECT w.name, count(*) FROM postrider.recipients r JOIN postrider.workers w USING (worker_id)
		WHERE r.dispatched GROUP BY w.name`).Scan(&name, &n); err != nil {
		s.t.Fatalf("who has claimed the messages: %v", err)
	}
	if n != want {
		s.t.Errorf("%s has %d recipients in transactions, want %d", name, n, want)
	}
	for c := range 2 {
		// A worker's name has its process id in it.
		if strings.Contains(name, strconv.Itoa(s.Service("delivery", c).Process().PID())) {
			return c
		}
	}
	s.t.Fatalf("worker %s is no process of this world", name)
	return 0
}

// TestPostgresRestarts: a crash and an orderly restart of Postgres. Clients
// get 451 meanwhile, never a lie.
func TestPostgresRestarts(t *testing.T) {
	s := newScene(t)
	for _, tc := range []struct {
		name string
		stop func() error
	}{{"crash", s.PG.Kill}, {"halt", s.PG.Halt}} {
		var at time.Time
		s.wave(tc.name+"-", messages(t)/2, func() {
			s.strike(func() {
				if err := tc.stop(); err != nil {
					t.Fatal(err)
				}
			})
			if err := s.PG.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			at = time.Now() // it takes connections from here on
		})
		s.WaitIdle(t, drained)
		s.wantTakenOver(tc.name+" of Postgres", at)
	}
	s.judge()
}

// TestNATSLost: all of NATS's data are lost. While it is away mail is
// accepted and relayed by way of Postgres, slower.
func TestNATSLost(t *testing.T) {
	s := newScene(t)
	n := messages(t) / 3
	at := time.Now()
	s.wave("lost-", n, func() {
		at = time.Now()
		if err := s.LoseNATS(); err != nil {
			t.Fatal(err)
		}
		if err := s.StartNATS(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	s.WaitIdle(t, drained)
	s.wantTakenOver("loss of NATS and its data", at)

	s.wave("away-", n, func() {
		at = time.Now()
		if err := s.LoseNATS(); err != nil {
			t.Fatal(err)
		}
	})
	s.WaitIdle(t, drained)
	s.wantTakenOver("NATS away", at)

	if err := s.StartNATS(t.Context()); err != nil {
		t.Fatal(err)
	}
	at = time.Now()
	s.wave("back-", n, func() {})
	s.WaitIdle(t, drained)
	s.wantTakenOver("NATS back, empty", at)
	s.judge()
}
