package scheduler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/bustest"
	"github.com/postrider/postrider/pkg/devpg"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
	"github.com/postrider/postrider/pkg/telemetry"
)

var testConfig = Config{
	HistoryRetention:   retry.Duration(7 * 24 * time.Hour),
	AccountingInterval: retry.Duration(time.Second),
}

// world is a real Postgres and a real JetStream, and what was heard there.
type world struct {
	url  string // of Postgres
	nats *bustest.Server
	db   *store.Store
	nc   *bus.Bus

	mu     sync.Mutex // guards what follows
	queued map[recipient]int
	failed map[mail.QueueID]int
}

type recipient struct {
	id mail.QueueID
	no int32
}

func newWorld(t *testing.T) *world { return newWorldAt(t, storetest.New(t)) }

func newWorldAt(t *testing.T, url string) *world {
	t.Helper()
	w := &world{url: url, nats: bustest.Start(t), queued: map[recipient]int{}, failed: map[mail.QueueID]int{}}
	w.db, w.nc = w.connect(t)
	if err := w.db.EnsurePartitions(t.Context(), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	return w
}

// connect opens a store and a bus as a process of its own would.
func (w *world) connect(t *testing.T) (*store.Store, *bus.Bus) {
	t.Helper()
	db, err := store.Open(t.Context(), store.Config{URL: w.url, MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	nc, err := bus.Connect(t.Context(), bus.Config{URL: w.nats.URL()}, db)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return db, nc
}

// start runs a scheduler until the test ends or stop is called.
func (w *world) start(t *testing.T) (stop func()) {
	t.Helper()
	db, nc := w.connect(t)
	return background(t, func(ctx context.Context) error { return Run(ctx, testConfig, db, nc) })
}

// listen counts the hints that arrive.
func (w *world) listen(t *testing.T) (stop func()) {
	t.Helper()
	stopQueued := background(t, func(ctx context.Context) error {
		return w.nc.ConsumeQueued(ctx, func(_ context.Context, ms []mail.QueuedMessage) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, m := range ms {
				for _, r := range m.Recipients {
					w.queued[recipient{m.ID, r.No}]++
				}
			}
			return nil
		})
	})
	stopFailed := background(t, func(ctx context.Context) error {
		return w.nc.ConsumeFailed(ctx, func(_ context.Context, ids []mail.QueueID) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, id := range ids {
				w.failed[id]++
			}
			return nil
		})
	})
	return func() { stopQueued(); stopFailed() }
}

func background(t *testing.T, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// rung returns how often the recipients of a message were rung: the least
// and the most of any of them.
func (w *world) rung(subs ...*mail.Submission) (least, most int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	least = 1 << 30
	for _, sub := range subs {
		for _, r := range sub.Recipients {
			n := w.queued[recipient{sub.ID, r.No}]
			least, most = min(least, n), max(most, n)
		}
	}
	return least, most
}

func (w *world) waitRung(t *testing.T, times int, subs ...*mail.Submission) {
	t.Helper()
	eventually(t, fmt.Sprintf("each recipient is rung %d times", times), func() bool {
		least, _ := w.rung(subs...)
		return least >= times
	})
}

func (w *world) reportHints(id mail.QueueID) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed[id]
}

// submission is a message to n recipients, accepted at the given time: they
// are armed until store.Rearm after it.
func submission(n int, acceptedAt time.Time) *mail.Submission {
	sub := &mail.Submission{
		Message: mail.Message{
			ID: mail.NewQueueID(), AcceptedAt: acceptedAt, SizeBytes: 15,
			Envelope: mail.Envelope{ReversePath: "alice@sender.example"},
		},
		Content: []byte("Subject: x\r\n\r\nx"),
	}
	for i := range n {
		sub.Recipients = append(sub.Recipients, mail.Recipient{
			No: int32(i + 1), ForwardPath: mail.ForwardPath(fmt.Sprintf("bob%d@remote.example", i)),
			Domain: "remote.example", ExpiresAt: time.Now().Add(time.Hour),
		})
	}
	return sub
}

// due is when a message must have been accepted to be due now.
func due() time.Time { return time.Now().Add(-store.Rearm) }

func (w *world) accept(t *testing.T, subs ...*mail.Submission) {
	t.Helper()
	if err := w.db.Accept(t.Context(), subs); err != nil {
		t.Fatal(err)
	}
}

// request is a delivery request for recipients of a message as a resolver
// made it from the first hint.
func request(sub *mail.Submission, nos ...int32) *mail.DeliveryRequest {
	req := &mail.DeliveryRequest{Message: sub.Message, Route: &mail.Route{
		Site: "remote.example", Hosts: []mail.Host{{Name: "mx.remote.example"}}, TLS: mail.TLSMay, ExpiresAt: time.Now().Add(time.Hour),
	}}
	for _, no := range nos {
		req.Recipients = append(req.Recipients, mail.Pending{Recipient: sub.Recipients[no-1]})
	}
	return req
}

func (w *world) claim(t *testing.T, worker mail.WorkerID, req *mail.DeliveryRequest) {
	t.Helper()
	want := len(req.Recipients)
	if err := w.db.Claim(t.Context(), worker, []*mail.DeliveryRequest{req}); err != nil || len(req.Recipients) != want {
		t.Fatalf("claimed %d of %d: %v", len(req.Recipients), want, err)
	}
}

func (w *world) worker(t *testing.T, lease time.Duration) mail.WorkerID {
	t.Helper()
	id, err := w.db.RegisterWorker(t.Context(), "test", lease)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// states returns the state of each recipient of a message.
func (w *world) states(t *testing.T, sub *mail.Submission) string {
	t.Helper()
	story, err := w.db.Show(t.Context(), sub.ID)
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, r := range story.Recipients {
		states = append(states, r.State)
	}
	return strings.Join(states, " ")
}

// eventually waits for a condition, for at most 30 s.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(30 * time.Second)
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("not within 30 s: %s", what)
		case <-ticker.C:
		}
	}
}

func TestEachDueRecipientIsRungOnceByManySchedulers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.listen(t)
	var subs []*mail.Submission
	for range 100 {
		subs = append(subs, submission(30, due()))
	}
	armed := submission(1, time.Now().Add(time.Hour)) // its own hint is on the way
	w.accept(t, append(subs, armed)...)
	began := time.Now()
	for range 3 {
		w.start(t)
	}
	w.waitRung(t, 1, subs...)
	if _, most := w.rung(subs...); most > 1 && time.Since(began) < store.Rearm {
		t.Errorf("a recipient was rung %d times, want once", most)
	}
	if _, most := w.rung(armed); most != 0 {
		t.Error("a recipient was rung that is not due")
	}
}

// A hint that had no effect is rung again after the arming; one that still
// waits on the bus is late, not lost.
func TestLostHintIsRungAgainAndALateOneIsNot(t *testing.T) {
	t.Parallel()
	lost, late := newWorld(t), newWorld(t)
	lost.listen(t) // takes hints and does nothing with them
	sub := submission(1, due())
	began := time.Now()
	lost.accept(t, sub)
	late.accept(t, sub)
	lost.start(t)
	late.start(t) // nobody takes its hint
	lost.waitRung(t, 2, sub)
	if d := time.Since(began); d < store.Rearm {
		t.Errorf("rung again after %v, want at least %v", d, store.Rearm)
	}
	eventually(t, "the late hint has been looked at", func() bool {
		row, err := late.db.Queue(t.Context(), store.Filter{ID: sub.ID}, 1)
		return err == nil && row[0].NextAttemptAt.Sub(began) > 2*store.Rearm
	})
	late.listen(t)
	late.waitRung(t, 1, sub)
	if _, most := late.rung(sub); most != 1 {
		t.Errorf("the late hint was published %d times, want once", most)
	}
}

// A worker that is slow keeps hints on the bus that are older than any other.
// One that was lost is rung all the same.
func TestLostHintBesideASlowWorker(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.listen(t)
	eventually(t, "the bus is up", w.nc.Up)
	other := submission(1, time.Now())
	publish := func() bool {
		return w.nc.PublishReady(t.Context(), 9, []*mail.DeliveryRequest{request(other, 1)}) == nil
	}
	eventually(t, "a hint waits for the worker", publish)
	sub := submission(1, time.Now()) // whoever accepted it did not publish its hint
	w.accept(t, sub)
	began := time.Now()
	w.start(t)
	eventually(t, "the hint is repeated", func() bool {
		publish() // there is always an old one
		least, _ := w.rung(sub)
		return least > 0
	})
	if d := time.Since(began); d > 15*time.Second {
		t.Errorf("a lost hint was repeated after %v, want 15 s at most", d)
	}
}

func TestLossOfTheBusRingsEverythingAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var subs []*mail.Submission
	for range 50 {
		subs = append(subs, submission(30, time.Now().Add(5*time.Minute))) // more than a page, armed for longer than the test
	}
	w.accept(t, subs...)
	w.start(t)
	eventually(t, "the bus is up", w.nc.Up)
	w.nats.Restart(true)
	began := time.Now()
	w.listen(t)
	w.waitRung(t, 1, subs...)
	if d := time.Since(began); d > store.Rearm-time.Second {
		t.Errorf("rung after %v: that was the arming, not the loss", d)
	}
}

func TestClaimsOfTheDeadAreRungAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.listen(t)
	w.start(t)
	w.start(t)
	sub := submission(4, time.Now().Add(time.Hour))
	w.accept(t, sub)
	live, dead := w.worker(t, time.Hour), w.worker(t, 2*time.Second)
	w.claim(t, live, request(sub, 1))
	w.claim(t, dead, request(sub, 2, 3))
	inTransaction := request(sub, 4)
	w.claim(t, dead, inTransaction)
	if _, err := w.db.Dispatch(t.Context(), dead, []*mail.DeliveryRequest{inTransaction}); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	eventually(t, "the claims of the dead are rung", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.queued[recipient{sub.ID, 2}] > 0 && w.queued[recipient{sub.ID, 3}] > 0 && w.queued[recipient{sub.ID, 4}] > 0
	})
	if d := time.Since(died); d > 10*time.Second {
		t.Errorf("taken back after %v, want at most 10 s", d)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.queued[recipient{sub.ID, 1}] > 0 {
		t.Error("a claim of a living worker was rung")
	}
	story, err := w.db.Show(t.Context(), sub.ID)
	if err != nil {
		t.Fatal(err)
	}
	if len(story.Attempts) != 1 || !story.Attempts[0].Uncertain || story.Attempts[0].RecipientNos[0] != 4 {
		t.Errorf("history %+v, want recipient 4 alone, uncertain", story.Attempts)
	}
}

// DESIGN.md §3.2: expiry holds in any state.
func TestExpiresInEveryState(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.listen(t)
	sub := submission(5, time.Now())
	for i := range sub.Recipients {
		sub.Recipients[i].ExpiresAt = time.Now().Add(3 * time.Second)
	}
	held, null := submission(1, time.Now()), submission(1, time.Now())
	held.Recipients[0].ExpiresAt, null.Recipients[0].ExpiresAt = sub.Recipients[0].ExpiresAt, sub.Recipients[0].ExpiresAt
	null.Envelope.ReversePath = ""
	w.accept(t, sub, held, null)
	worker := w.worker(t, time.Hour)
	w.claim(t, worker, request(sub, 2))
	if err := w.db.Park(t.Context(), 0, []*mail.DeliveryRequest{request(sub, 3)}); err != nil {
		t.Fatal(err)
	}
	inTransaction := request(sub, 4)
	w.claim(t, worker, inTransaction)
	if _, err := w.db.Dispatch(t.Context(), worker, []*mail.DeliveryRequest{inTransaction}); err != nil {
		t.Fatal(err)
	}
	delayed := request(sub, 5)
	w.claim(t, worker, delayed)
	if _, err := w.db.Settle(t.Context(), worker, []mail.Settlement{{Message: sub.Message, Outcomes: []mail.Outcome{{
		RecipientNo: 5, Attempt: delayed.Recipients[0].Attempt, Action: mail.Delayed, NextAttemptAt: time.Now().Add(24 * time.Hour),
	}}}}); err != nil {
		t.Fatal(err)
	}
	if n, err := w.db.Operate(t.Context(), store.Hold, store.Filter{ID: held.ID}, ""); err != nil || n != 1 {
		t.Fatalf("hold: %d, %v", n, err)
	}
	w.start(t)
	// Number 4 is in a transaction: its worker has the say for 20 minutes.
	eventually(t, "all but the one in a transaction expire", func() bool {
		return w.states(t, sub) == "expired expired expired queued expired" && w.states(t, held) == "expired" && w.states(t, null) == "expired"
	})
	eventually(t, "bounce is told", func() bool { return w.reportHints(sub.ID) > 0 && w.reportHints(held.ID) > 0 })
	if w.reportHints(null.ID) > 0 {
		t.Error("bounce is told of mail with a null reverse-path")
	}
}

func TestDelayNoticeIsAskedFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.listen(t)
	w.start(t)
	sub := submission(1, due())
	w.accept(t, sub)
	w.waitRung(t, 1, sub)
	worker := w.worker(t, time.Hour)
	req := request(sub, 1)
	w.claim(t, worker, req)
	o := mail.Outcome{RecipientNo: 1, Attempt: req.Recipients[0].Attempt, Action: mail.Delayed, NextAttemptAt: time.Now().Add(time.Hour)}
	o.PlanReport(sub.Message, req.Recipients[0], store.Rearm+2*time.Second, mail.Promise{})
	if _, err := w.db.Settle(t.Context(), worker, []mail.Settlement{{Message: sub.Message, Outcomes: []mail.Outcome{o}}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "bounce is told of the delay", func() bool { return w.reportHints(sub.ID) > 0 })
}

func TestSurvivesPostgresAndNATS(t *testing.T) {
	t.Parallel()
	pg := storetest.NewServer(t, devpg.Options{})
	w := newWorldAt(t, pg.URL())
	w.listen(t)
	w.start(t)
	eventually(t, "the bus is up", w.nc.Up)

	w.nats.Stop()
	during := submission(1, due())
	w.accept(t, during)
	w.nats.Restart(true)
	w.waitRung(t, 1, during)

	if err := pg.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Postgres starts after a crash", func() bool { return pg.Restart(t.Context()) == nil })
	after := submission(1, due())
	eventually(t, "Postgres takes mail again", func() bool { return w.db.Accept(t.Context(), []*mail.Submission{after}) == nil })
	w.waitRung(t, 1, after)
}

func (w *world) hasTable(t *testing.T, name string) (there bool) {
	t.Helper()
	db, err := pgx.Connect(t.Context(), w.url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(t.Context())
	if err := db.QueryRow(t.Context(), `SELECT to_regclass('postrider.' || $1) IS NOT NULL`, name).Scan(&there); err != nil {
		t.Fatal(err)
	}
	return there
}

func TestPartitionsComeAndGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	finished, held := submission(1, time.Now()), submission(1, time.Now())
	recent, unreported := submission(1, time.Now()), submission(1, time.Now())
	at(finished, time.Now().Add(-9*24*time.Hour))
	at(held, time.Now().Add(-10*24*time.Hour))
	at(unreported, time.Now().Add(-11*24*time.Hour))
	at(recent, time.Now().Add(-6*24*time.Hour)) // younger than the retention
	for _, sub := range []*mail.Submission{finished, held, recent, unreported} {
		if err := w.db.EnsurePartitions(t.Context(), sub.ID.Time(), sub.ID.Time()); err != nil {
			t.Fatal(err)
		}
		w.accept(t, sub)
	}
	for sub, op := range map[*mail.Submission]store.Operation{finished: store.Cancel, held: store.Hold, recent: store.Cancel, unreported: store.Fail} {
		if n, err := w.db.Operate(t.Context(), op, store.Filter{ID: sub.ID}, "test"); err != nil || n != 1 {
			t.Fatalf("%s: %d, %v", op, n, err)
		}
	}
	w.start(t)
	w.start(t)
	eventually(t, "finished mail leaves the history", func() bool {
		_, err := w.db.Show(t.Context(), finished.ID)
		return errors.Is(err, store.ErrNotFound)
	})
	for sub, want := range map[*mail.Submission]string{held: "held", recent: "cancelled", unreported: "failed"} {
		if got := w.states(t, sub); got != want {
			t.Errorf("mail that is to stay %s has state %q", want, got)
		}
	}
	content, err := w.db.OpenContent(t.Context(), held.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	if got, err := io.ReadAll(content); err != nil || string(got) != string(held.Content) {
		t.Errorf("its content is %q, %v", got, err)
	}
	// Made for longer ahead than one scheduler that is down can matter, and by
	// the scheduler: the migration makes those of the first 24 hours.
	later := time.Now().Add(25 * time.Hour).UTC()
	eventually(t, "the partitions of the hour after this one tomorrow are there", func() bool {
		return w.hasTable(t, "contents_"+later.Format("2006010215")) && w.hasTable(t, "recipients_"+later.Format("20060102"))
	})
}

// at gives a submission an id of another time.
func at(sub *mail.Submission, moment time.Time) {
	first := mail.FirstQueueID(moment)
	copy(sub.ID[:6], first[:6])
}

func TestAccountsAreMetrics(t *testing.T) {
	// Not parallel: the SDK is of the process.
	sdk, err := telemetry.Setup(t.Context(), telemetry.Options{Service: "scheduler"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sdk.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	w := newWorld(t)
	w.accept(t, submission(3, due()), submission(2, due()))
	w.start(t)
	want := []string{
		`postrider_accepted_recipients 5`, `postrider_queue_recipients{state="queued"} 5`, `postrider_queue_recipients{state="failed"} 0`,
		`postrider_unaccounted 0`, `postrider_rung_total 5`,
		`postrider_stage_lag_seconds{stage="resolver"}`, `postrider_stage_lag_seconds{stage="bounce"} 0`,
		`postrider_stage_lag_seconds{stage="scheduler"}`, `postrider_stage_lag_seconds{stage="delivery"}`,
	}
	var page string
	eventually(t, "the metrics are there", func() bool {
		answer := httptest.NewRecorder()
		sdk.MetricsHandler().ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
		page = answer.Body.String()
		for _, line := range want {
			if !strings.Contains(page, line) {
				return false
			}
		}
		return true
	})
}

func TestConfig(t *testing.T) {
	if err := testConfig.Validate(); err != nil {
		t.Error(err)
	}
	err := Config{HistoryRetention: 1, AccountingInterval: 1}.Validate()
	if err == nil || !strings.Contains(err.Error(), "HISTORY_RETENTION") || !strings.Contains(err.Error(), "ACCOUNTING_INTERVAL") {
		t.Errorf("error %v, want both variables named", err)
	}
}

// Right after a start of Postgres every lease may have ended because nobody
// could renew: nobody is declared dead before the workers had time to.
func TestNobodyIsDeadRightAfterAStartOfPostgres(t *testing.T) {
	t.Parallel()
	pg := storetest.NewServer(t, devpg.Options{})
	w := newWorldAt(t, pg.URL())
	id := w.worker(t, time.Millisecond)
	s := &scheduler{db: w.db, metrics: newMetrics(), wake: make(chan struct{}, 1)}
	t.Cleanup(s.metrics.unregister)
	for range 5 { // on a slow machine the time may be over before we look
		if err := pg.Kill(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "Postgres starts after a crash", func() bool { return pg.Restart(t.Context()) == nil })
		eventually(t, "the step succeeds", func() bool { return s.reclaim(t.Context()) == nil })
		db, err := pgx.Connect(t.Context(), pg.URL())
		if err != nil {
			t.Fatal(err)
		}
		var early, dead bool
		const q = `SELECT now() - pg_postmaster_start_time() < $1::interval, (SELECT ended_at IS NOT NULL FROM postrider.workers WHERE worker_id = $2)`
		if err := db.QueryRow(t.Context(), q, grace, id).Scan(&early, &dead); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if early {
			if dead {
				t.Error("a worker was declared dead before it could renew")
			}
			return
		}
	}
	t.Error("Postgres never took so little time to start that this could be seen")
}

// What is only for the log and the trace holds up no mail.
func TestRingsAlthoughNothingCanBeAdopted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	db, err := pgx.Connect(t.Context(), w.url)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), `ALTER TABLE postrider.submitted RENAME TO elsewhere`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(t.Context()); err != nil {
		t.Error(err)
	}
	w.listen(t)
	sub := submission(1, due())
	w.accept(t, sub)
	w.start(t)
	w.waitRung(t, 1, sub)
}
