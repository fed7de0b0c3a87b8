package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
)

const lease = 5 * time.Second

// fixture is a store on a database of its own, and a plain connection to
// look at its tables.
type fixture struct {
	*store.Store
	db  *pgx.Conn
	url string
}

func setup(t testing.TB) *fixture {
	t.Helper()
	url := storetest.New(t)
	s, err := store.Open(t.Context(), store.Config{URL: url, MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	db, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close(context.Background()) })
	if _, err := db.Exec(t.Context(), "SET search_path = postrider"); err != nil {
		t.Fatal(err)
	}
	return &fixture{s, db, url}
}

// one returns a single value of the database.
func one[T any](t *testing.T, f *fixture, sql string, args ...any) (v T) {
	t.Helper()
	if err := f.db.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func (f *fixture) exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	if _, err := f.db.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// submission returns a message for n recipients in example.org.
func submission(n int) *mail.Submission {
	id := mail.NewQueueID()
	sub := &mail.Submission{
		Message: mail.Message{
			ID:          id,
			Envelope:    mail.Envelope{ReversePath: "sender@example.com", Body: mail.Body8BitMIME},
			AcceptedAt:  time.Now(),
			Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		},
		Content:  []byte("Message-ID: <1@example.com>\r\nSubject: x\r\n\r\nbody " + id.String() + "\r\n"),
		HeaderID: "<1@example.com>",
	}
	sub.SizeBytes = int64(len(sub.Content))
	for i := range n {
		sub.Recipients = append(sub.Recipients, mail.Recipient{
			No: int32(i + 1), ForwardPath: mail.ForwardPath(fmt.Sprintf("r%d@example.org", i+1)),
			Domain: "example.org", ExpiresAt: time.Now().Add(5 * 24 * time.Hour),
		})
	}
	return sub
}

func (f *fixture) accept(t *testing.T, subs ...*mail.Submission) {
	t.Helper()
	if err := f.Accept(t.Context(), subs); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) worker(t *testing.T) mail.WorkerID {
	t.Helper()
	id, err := f.RegisterWorker(t.Context(), t.Name(), lease)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func route(site mail.Site) *mail.Route {
	return &mail.Route{Site: site, TLS: mail.TLSMay, ExpiresAt: time.Now().Add(time.Hour).Truncate(time.Microsecond),
		Hosts: []mail.Host{{Name: "mx." + string(site), Port: 25}}}
}

// request is what the resolver makes of a fresh submission.
func request(sub *mail.Submission, r *mail.Route) *mail.DeliveryRequest {
	req := &mail.DeliveryRequest{Message: sub.Message, Route: r}
	for _, rc := range sub.Recipients {
		req.Recipients = append(req.Recipients, mail.Pending{Recipient: rc})
	}
	return req
}

func (f *fixture) claim(t *testing.T, w mail.WorkerID, sub *mail.Submission) *mail.DeliveryRequest {
	t.Helper()
	req := request(sub, route("example.org"))
	if err := f.Claim(t.Context(), w, []*mail.DeliveryRequest{req}); err != nil {
		t.Fatal(err)
	}
	return req
}

// settlement gives every recipient of the request the same outcome.
func settlement(req *mail.DeliveryRequest, o mail.Outcome) mail.Settlement {
	st := mail.Settlement{Message: req.Message, Transaction: mail.Transaction{StartedAt: time.Now(), Duration: time.Millisecond, Host: "mx.example.org", Site: req.Route.Site}}
	for _, r := range req.Recipients {
		out := o
		out.RecipientNo, out.Attempt = r.No, r.Attempt
		out.PlanReport(req.Message, r, 4*time.Hour, mail.Promise{})
		st.Outcomes = append(st.Outcomes, out)
	}
	return st
}

var (
	relayed = mail.Outcome{Action: mail.Relayed, Phase: mail.PhaseDot, Status: mail.EnhancedCode{Class: 2}, Reply: mail.Reply{Code: 250, Lines: []string{"ok"}}}
	failed  = mail.Outcome{Action: mail.Failed, Phase: mail.PhaseRcpt, Status: mail.EnhancedCode{Class: 5, Subject: 1, Detail: 1}, Reply: mail.Reply{Code: 550, Lines: []string{"no such user"}}}
)

func delayed(next time.Time) mail.Outcome {
	return mail.Outcome{Action: mail.Delayed, Phase: mail.PhaseRcpt, Status: mail.EnhancedCode{Class: 4, Subject: 2, Detail: 1},
		Reply: mail.Reply{Code: 450, Lines: []string{"greylisted"}}, NextAttemptAt: next}
}

func (f *fixture) settle(t *testing.T, w mail.WorkerID, st ...mail.Settlement) (lost int) {
	t.Helper()
	lost, err := f.Settle(t.Context(), w, st)
	if err != nil {
		t.Fatal(err)
	}
	return lost
}

// balanced fails the test unless the accounts balance.
func (f *fixture) balanced(t *testing.T) store.Accounting {
	t.Helper()
	a, err := f.Accounting(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if a.Unaccounted != 0 {
		t.Errorf("accounting %+v: unaccounted is not 0", a)
	}
	return a
}

func TestWalkOfOneMessage(t *testing.T) {
	f := setup(t)
	sub := submission(2)
	f.accept(t, sub)
	w := f.worker(t)
	req := f.claim(t, w, sub)
	if len(req.Recipients) != 2 || req.Recipients[0].Attempt != 1 {
		t.Fatalf("claimed %+v, want both recipients with fence 1", req.Recipients)
	}
	contents, err := f.Dispatch(t.Context(), w, []*mail.DeliveryRequest{req})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(contents[0].Bytes, sub.Content) {
		t.Errorf("content %q, want %q", contents[0].Bytes, sub.Content)
	}
	if lost := f.settle(t, w, settlement(req, relayed)); lost != 0 {
		t.Errorf("lost %d", lost)
	}
	if a := f.balanced(t); a.Accepted != 2 || a.Relayed != 2 || a.Queued != 0 {
		t.Errorf("accounting %+v", a)
	}
	if n := one[int](t, f, "SELECT count(*) FROM history WHERE action = 'relayed' AND reply = 'ok' AND trace_id = '0af7651916cd43dd8448eb211c80319c'"); n != 2 {
		t.Errorf("%d rows of history, want 2", n)
	}
	if n := one[int](t, f, "SELECT count(*) FROM attempts"); n != 1 {
		t.Errorf("%d rows in attempts, want 1 for recipients treated alike", n)
	}
}

func TestClaimAndDispatch(t *testing.T) {
	f := setup(t)
	first, second, expired := submission(1), submission(1), submission(1)
	expired.Recipients[0].ExpiresAt = time.Now().Add(-time.Second)
	f.accept(t, first, second, expired)
	w := f.worker(t)
	r := route("example.org")
	reqs := []*mail.DeliveryRequest{request(first, r), request(second, r), request(expired, r)}
	contents, err := f.ClaimAndDispatch(t.Context(), w, reqs, []bool{true, false, true})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(contents[0].Bytes, first.Content) || contents[1].Bytes != nil {
		t.Errorf("contents %v", contents)
	}
	if len(reqs[0].Recipients) != 1 || len(reqs[1].Recipients) != 1 || len(reqs[2].Recipients) != 0 {
		t.Errorf("claimed %d, %d and %d recipients, want all but the expired one", len(reqs[0].Recipients), len(reqs[1].Recipients), len(reqs[2].Recipients))
	}
	if n := one[int](t, f, "SELECT count(*) FROM recipients WHERE dispatched AND queue_id = $1", first.ID); n != 1 {
		t.Error("the request that was to begin now is not dispatched")
	}
	if n := one[int](t, f, "SELECT count(*) FROM recipients WHERE dispatched"); n != 1 {
		t.Errorf("%d recipients are dispatched, want 1", n)
	}
	if lost := f.settle(t, w, settlement(reqs[0], relayed), settlement(reqs[1], relayed)); lost != 0 {
		t.Errorf("lost %d", lost)
	}
}

func TestClaimIsFenced(t *testing.T) {
	f := setup(t)
	sub := submission(1)
	f.accept(t, sub)
	a, b := f.worker(t), f.worker(t)
	first, second := f.claim(t, a, sub), f.claim(t, b, sub)
	if len(first.Recipients) != 1 || len(second.Recipients) != 0 {
		t.Fatalf("claims of one hint: %d and %d recipients, want 1 and 0", len(first.Recipients), len(second.Recipients))
	}
	if err := f.GiveBack(t.Context(), a, []*mail.DeliveryRequest{first}); err != nil {
		t.Fatal(err)
	}
	if again := f.claim(t, b, sub); len(again.Recipients) != 0 {
		t.Error("a hint from before the claim was taken")
	}
	ring, _, err := f.Ring(t.Context(), store.RingOptions{Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	if len(ring) != 1 || ring[0].Recipients[0].Attempt != 1 {
		t.Fatalf("ring %+v, want the recipient with fence 1", ring)
	}
	req := &mail.DeliveryRequest{Message: ring[0].Message, Route: route("example.org"), Recipients: ring[0].Recipients}
	if err := f.Claim(t.Context(), b, []*mail.DeliveryRequest{req}); err != nil {
		t.Fatal(err)
	}
	if lost := f.settle(t, a, settlement(first, relayed)); lost != 1 {
		t.Errorf("the former worker settled: lost %d, want 1", lost)
	}
	if lost := f.settle(t, b, settlement(req, relayed)); lost != 0 {
		t.Errorf("the new worker could not settle")
	}
	f.balanced(t)
}

func TestDispatchDropsWhatOperatorsTook(t *testing.T) {
	f := setup(t)
	held, cancelled, kept := submission(1), submission(1), submission(1)
	f.accept(t, held, cancelled, kept)
	w := f.worker(t)
	reqs := []*mail.DeliveryRequest{f.claim(t, w, held), f.claim(t, w, cancelled), f.claim(t, w, kept)}
	if n := one[int](t, f, "SELECT hold(queue_id => $1)", held.ID); n != 1 {
		t.Errorf("hold changed %d", n)
	}
	if n := one[int](t, f, "SELECT cancel('not wanted', queue_id => $1)", cancelled.ID); n != 1 {
		t.Errorf("cancel changed %d", n)
	}
	if _, err := f.Dispatch(t.Context(), w, reqs); err != nil {
		t.Fatal(err)
	}
	if len(reqs[0].Recipients) != 0 || len(reqs[1].Recipients) != 0 || len(reqs[2].Recipients) != 1 {
		t.Errorf("dispatched %d held, %d cancelled, %d other recipients", len(reqs[0].Recipients), len(reqs[1].Recipients), len(reqs[2].Recipients))
	}
	if n := one[int](t, f, "SELECT hold(queue_id => $1)", kept.ID); n != 0 {
		t.Error("a recipient in a transaction was held")
	}
	if n := one[int](t, f, "SELECT release(domain => 'example.org')"); n != 1 {
		t.Errorf("release changed %d", n)
	}
	f.balanced(t)
}

func TestAcceptIsolatesWhatPostgresRefuses(t *testing.T) {
	f := setup(t)
	good, bad := submission(1), submission(1)
	bad.Envelope.EnvID = "a\x00b"
	err := f.Accept(t.Context(), []*mail.Submission{bad, good})
	var partial *store.PartialError
	if !errors.As(err, &partial) || partial.Errors[0] == nil || partial.Errors[1] != nil {
		t.Fatalf("err %v, want a partial error for the first alone", err)
	}
	if a := f.balanced(t); a.Accepted != 1 {
		t.Errorf("accepted %d, want 1", a.Accepted)
	}
	f.accept(t, submission(1)) // the connection is fit for use again
}

func TestAcceptMakesMissingPartitions(t *testing.T) {
	f := setup(t)
	sub := submission(1)
	future := time.Now().Add(30 * 24 * time.Hour)
	sub.ID = mail.FirstQueueID(future)
	other := submission(1)
	f.accept(t, sub, other) // a group across leaves
	if a := f.balanced(t); a.Accepted != 2 || a.Queued != 2 {
		t.Errorf("accounting %+v", a)
	}
}

func TestAcceptStops(t *testing.T) {
	f := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Accept(ctx, []*mail.Submission{submission(1)}); err == nil {
		t.Error("accepted with a cancelled context")
	}
	f.accept(t, submission(1))
}

func TestLargeContentStreams(t *testing.T) {
	f := setup(t)
	sub := submission(1)
	content := bytes.Repeat([]byte("0123456789abcde\n"), 100_000) // 1.6 MB: several chunks
	sub.Content = nil
	if err := f.AcceptStream(t.Context(), sub, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	if sub.SizeBytes != int64(len(content)) {
		t.Errorf("size %d, want %d", sub.SizeBytes, len(content))
	}
	w := f.worker(t)
	req := f.claim(t, w, sub)
	out, err := f.Dispatch(t.Context(), w, []*mail.DeliveryRequest{req})
	if err != nil || !out[0].Large || out[0].Bytes != nil {
		t.Fatalf("dispatch %+v, %v: want large", out, err)
	}
	r, err := f.OpenContent(t.Context(), sub.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("read %d bytes, %v; want %d", len(got), err, len(content))
	}
	broken := submission(1)
	broken.Content = nil
	if err := f.AcceptStream(t.Context(), broken, io.MultiReader(bytes.NewReader(content), brokenReader{})); err == nil {
		t.Error("accepted content that broke off")
	}
	if a := f.balanced(t); a.Accepted != 1 {
		t.Errorf("accepted %d, want 1", a.Accepted)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestOpenContentOfNothing(t *testing.T) {
	f := setup(t)
	r, err := f.OpenContent(t.Context(), mail.NewQueueID())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); err == nil {
		t.Error("read content of a message that does not exist")
	}
}

func TestPing(t *testing.T) {
	f := setup(t)
	if err := f.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	f.exec(t, "DROP SCHEMA postrider CASCADE")
	if err := f.Ping(t.Context()); err == nil {
		t.Error("ready without the schema")
	}
}

func TestEnsurePartitions(t *testing.T) {
	f := setup(t)
	from := time.Now().Add(100 * 24 * time.Hour)
	for range 2 { // the second time there is nothing to do
		if err := f.EnsurePartitions(t.Context(), from, from.Add(24*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	leaf := "contents_" + from.UTC().Format("2006010215")
	if n := one[int](t, f, "SELECT count(*) FROM pg_class WHERE relname = $1", leaf); n != 1 {
		t.Errorf("%s was not made", leaf)
	}
}
