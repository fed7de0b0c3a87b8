package bounce

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	netmail "net/mail"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/bustest"
	"github.com/postrider/postrider/pkg/devpg"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
)

const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

var testConfig = Config{Hostname: "mx.postrider.example", Lifetime: retry.Duration(time.Hour)}

// world is a real Postgres and a real JetStream, with a store and a bus of
// the test's own to look and act with.
type world struct {
	url  string // of Postgres
	nats *bustest.Server
	db   *store.Store
	nc   *bus.Bus
}

func newWorld(t *testing.T) *world { return newWorldAt(t, storetest.New(t)) }

func newWorldAt(t *testing.T, url string) *world {
	t.Helper()
	w := &world{url: url, nats: bustest.Start(t)}
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

// start runs a bounce service until the test ends or stop is called.
func (w *world) start(t *testing.T) (stop func()) {
	t.Helper()
	return w.startAs(t, testConfig)
}

func (w *world) startAs(t *testing.T, cfg Config) (stop func()) {
	t.Helper()
	db, nc := w.connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg, db, nc) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// submission is a message of a sender to one recipient for each Notify.
func submission(from mail.ReversePath, notify ...mail.Notify) *mail.Submission {
	content := []byte("From: alice@sender.example\r\nSubject: Your order\r\nMessage-ID: <order-17@sender.example>\r\n\r\nDear Bob\r\n")
	sub := &mail.Submission{
		Message: mail.Message{
			ID:          mail.NewQueueID(),
			Envelope:    mail.Envelope{ReversePath: from, EnvID: "order-17"},
			Tenant:      "shop",
			SizeBytes:   int64(len(content)),
			AcceptedAt:  time.Now().Add(-10 * time.Minute),
			Traceparent: traceparent,
		},
		Content:  content,
		HeaderID: "<order-17@sender.example>",
	}
	for i, n := range notify {
		sub.Recipients = append(sub.Recipients, mail.Recipient{
			No: int32(i + 1), ForwardPath: mail.ForwardPath(fmt.Sprintf("bob%d@remote.example", i+1)),
			Domain: "remote.example", Notify: n, ExpiresAt: time.Now().Add(time.Hour),
		})
	}
	return sub
}

func (w *world) accept(t *testing.T, subs ...*mail.Submission) {
	t.Helper()
	if err := w.db.Accept(t.Context(), subs); err != nil {
		t.Fatal(err)
	}
}

// settle gives the recipients of a message their outcome, as delivery would:
// the n-th gets action n, the others the last one.
func (w *world) settle(t *testing.T, sub *mail.Submission, actions ...mail.Action) {
	t.Helper()
	st := mail.Settlement{
		Message:     sub.Message,
		Transaction: mail.Transaction{StartedAt: time.Now(), Duration: time.Second, Host: "mx1.remote.example", Site: "remote.example"},
	}
	for i, r := range sub.Recipients {
		o := mail.Outcome{RecipientNo: r.No, Action: actions[min(i, len(actions)-1)], Phase: mail.PhaseRcpt}
		switch o.Action {
		case mail.Relayed:
			o.Status, o.Reply = mail.EnhancedCode{Class: 2}, mail.Reply{Code: 250, Lines: []string{"OK"}}
		case mail.Delayed:
			o.Status, o.Reply = mail.EnhancedCode{Class: 4, Subject: 2, Detail: 2}, mail.Reply{Code: 452, Lines: []string{"Mailbox full"}}
			o.NextAttemptAt = time.Now().Add(time.Minute)
		default:
			o.Status = mail.EnhancedCode{Class: 5, Subject: 1, Detail: 1}
			o.Reply = mail.Reply{Code: 550, Enhanced: o.Status, Lines: []string{"No such user here"}}
		}
		o.PlanReport(sub.Message, mail.Pending{Recipient: r}, 5*time.Minute, mail.Promise{})
		st.Outcomes = append(st.Outcomes, o)
	}
	lost, err := w.db.SettleUnclaimed(t.Context(), []mail.Settlement{st})
	if err != nil || lost > 0 {
		t.Fatalf("settle: %d lost, %v", lost, err)
	}
}

// hint rings for messages, again and again until the bus takes it.
func (w *world) hint(t *testing.T, subs ...*mail.Submission) {
	t.Helper()
	var ids []mail.QueueID
	for _, sub := range subs {
		ids = append(ids, sub.ID)
	}
	eventually(t, "the bus takes a hint", func() bool { return w.nc.PublishFailed(t.Context(), ids) == nil })
}

func (w *world) reports(t *testing.T, sub *mail.Submission) []mail.QueueID {
	t.Helper()
	story, err := w.db.Show(t.Context(), sub.ID)
	if err != nil {
		t.Fatal(err)
	}
	return story.Reports
}

// waitReports waits until a message has n reports.
func (w *world) waitReports(t *testing.T, sub *mail.Submission, n int) []mail.QueueID {
	t.Helper()
	var ids []mail.QueueID
	eventually(t, fmt.Sprintf("%d reports", n), func() bool { ids = w.reports(t, sub); return len(ids) >= n })
	if len(ids) != n {
		t.Fatalf("%d reports, want %d", len(ids), n)
	}
	return ids
}

// settled waits until every bounce service has had the chance to repeat
// itself: a message reported on later, and nothing left to do.
func (w *world) settled(t *testing.T) {
	t.Helper()
	last := submission("barrier@sender.example", 0)
	w.accept(t, last)
	w.settle(t, last, mail.Failed)
	w.hint(t, last)
	w.waitReports(t, last, 1)
	eventually(t, "no report is due", func() bool {
		ids, err := w.db.DueReports(t.Context(), 1)
		return err == nil && len(ids) == 0
	})
}

func (w *world) content(t *testing.T, id mail.QueueID) string {
	t.Helper()
	r, err := w.db.OpenContent(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	content, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// eventually waits for a condition, for at most 20 s.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(20 * time.Second)
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("not within 20 s: %s", what)
		case <-ticker.C:
		}
	}
}

func TestOneReportForRecipientsThatFailTogether(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	queued := make(chan mail.QueuedMessage, 100)
	var g errgroup.Group
	ctx, cancel := context.WithCancel(t.Context())
	g.Go(func() error {
		return w.nc.ConsumeQueued(ctx, func(_ context.Context, ms []mail.QueuedMessage) error {
			for _, m := range ms {
				queued <- m
			}
			return nil
		})
	})
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
	w.start(t)
	w.start(t)

	sub := submission("alice@sender.example", 0, 0, 0)
	w.accept(t, sub)
	w.settle(t, sub, mail.Failed)
	for range 10 {
		w.hint(t, sub)
	}
	id := w.waitReports(t, sub, 1)[0]
	for range 10 {
		w.hint(t, sub)
	}
	w.settled(t)
	w.waitReports(t, sub, 1)

	story, err := w.db.Show(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if !story.Message.Envelope.ReversePath.IsNull() || story.ReportOf != sub.ID || story.Message.Tenant != "shop" {
		t.Errorf("the report is %+v", story.Message)
	}
	// A tenant pays for what it sends, not for what it is told of that.
	if used, err := w.db.UsageOf(t.Context(), time.Now()); err != nil || len(used) != 0 {
		t.Errorf("the report counts against a quota: %+v, %v", used, err)
	}
	if len(story.Recipients) != 1 || story.Recipients[0].ForwardPath != "alice@sender.example" {
		t.Errorf("the report goes to %+v", story.Recipients)
	}
	if !strings.Contains(story.Message.Traceparent, "4bf92f3577b34da6a3ce929d0e0e4736") {
		t.Errorf("the report has trace %q, want that of the message", story.Message.Traceparent)
	}
	content := w.content(t, id)
	for _, want := range []string{
		"To: <alice@sender.example>\r\n", "<bob1@remote.example>", "<bob2@remote.example>", "<bob3@remote.example>",
		"Original-Envelope-Id: order-17\r\n", "In-Reply-To: <order-17@sender.example>\r\n", "Subject: Your order\r\n",
		"Diagnostic-Code: smtp; 550 5.1.1 No such user here\r\n (in reply to RCPT command)\r\n", "Remote-MTA: dns; mx1.remote.example\r\n",
	} {
		if !strings.Contains(content, want) {
			t.Errorf("the report lacks %q:\n%s", want, content)
		}
	}
	if strings.Contains(content, "Dear Bob") {
		t.Error("the report returns the body, which was not asked for")
	}
	if int64(len(content)) != story.Message.SizeBytes {
		t.Errorf("SizeBytes is %d, want %d", story.Message.SizeBytes, len(content))
	}

	// Commit, then publish: the report leaves at once.
	for {
		select {
		case m := <-queued:
			if m.ID != id {
				continue
			}
			if len(m.Recipients) != 1 || m.Recipients[0].Attempt != 0 || m.Recipients[0].ForwardPath != "alice@sender.example" {
				t.Errorf("hint %+v", m)
			}
			return
		case <-time.After(10 * time.Second):
			t.Fatal("no hint for the report")
		}
	}
}

// Processes that die in the middle of a report, at any point of the
// transaction, leave either the whole of it or nothing.
func TestExactlyOneWhenProcessesRaceAndDie(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var subs []*mail.Submission
	for range 60 {
		subs = append(subs, submission("alice@sender.example", 0, 0))
	}
	w.accept(t, subs...)
	for _, sub := range subs {
		w.settle(t, sub, mail.Failed)
	}
	dying := func(db *store.Store, nc *bus.Bus) func() error {
		b := newBounce(testConfig, db, nc)
		return func() error {
			for _, i := range rand.Perm(len(subs)) {
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(15*time.Millisecond))
				err := b.report(ctx, subs[i].ID)
				cancel()
				if err != nil && ctx.Err() == nil {
					return err
				}
			}
			return nil
		}
	}
	var g errgroup.Group
	for range 3 {
		g.Go(dying(w.connect(t)))
	}
	w.start(t)
	w.start(t)
	for range 5 {
		w.hint(t, subs...)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, sub := range subs {
		w.waitReports(t, sub, 1)
	}
	w.settled(t)
	for _, sub := range subs {
		w.waitReports(t, sub, 1)
	}
}

// RFC 3461 §4.1, RFC 5321 §6.1.
func TestWhoHears(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(t)
	cases := []struct {
		name   string
		from   mail.ReversePath
		notify mail.Notify
		action mail.Action
		want   int
	}{
		// Who sends a spammer's mail back to the address that it names spams
		// for him.
		{"failure, stranger", "stranger@sender.example", 0, mail.Failed, 0},
		{"delay, stranger", "stranger@sender.example", 0, mail.Delayed, 0},
		{"success, stranger", "stranger@sender.example", mail.NotifySuccess, mail.Relayed, 0},
		{"failure, NOTIFY not given", "a@sender.example", 0, mail.Failed, 1},
		{"failure, NOTIFY=FAILURE", "a@sender.example", mail.NotifyFailure, mail.Failed, 1},
		{"failure, NOTIFY=NEVER", "a@sender.example", mail.NotifyNever, mail.Failed, 0},
		{"failure, NOTIFY=SUCCESS,DELAY", "a@sender.example", mail.NotifySuccess | mail.NotifyDelay, mail.Failed, 0},
		{"failure, null reverse-path", "", 0, mail.Failed, 0},
		{"delay, NOTIFY not given", "a@sender.example", 0, mail.Delayed, 1},
		{"delay, NOTIFY=FAILURE", "a@sender.example", mail.NotifyFailure, mail.Delayed, 0},
		{"delay, NOTIFY=DELAY", "a@sender.example", mail.NotifyDelay, mail.Delayed, 1},
		{"delay, null reverse-path", "", 0, mail.Delayed, 0},
		{"success, NOTIFY not given", "a@sender.example", 0, mail.Relayed, 0},
		{"success, NOTIFY=SUCCESS", "a@sender.example", mail.NotifySuccess, mail.Relayed, 1},
		{"success, NOTIFY=NEVER", "a@sender.example", mail.NotifyNever, mail.Relayed, 0},
		{"failure, reverse-path without a domain", "postmaster", 0, mail.Failed, 0},
	}
	subs := make([]*mail.Submission, len(cases))
	for i, c := range cases {
		subs[i] = submission(c.from, c.notify)
		subs[i].Client.Trust = "network"
		if strings.HasPrefix(string(c.from), "stranger@") {
			subs[i].Client.Trust = mail.Stranger
		}
		w.accept(t, subs[i])
		w.settle(t, subs[i], c.action)
	}
	w.hint(t, subs...)
	w.settled(t)
	for i, c := range cases {
		if got := len(w.reports(t, subs[i])); got != c.want {
			t.Errorf("%s: %d reports, want %d", c.name, got, c.want)
		}
	}
}

// A backup exchanger whose operator takes the reports for a duty sends them.
func TestStrangersHearIfTheyAreTo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := testConfig
	cfg.Strangers = true
	w.startAs(t, cfg)
	sub := submission("stranger@sender.example", 0)
	sub.Client.Trust = mail.Stranger
	w.accept(t, sub)
	w.settle(t, sub, mail.Failed)
	w.hint(t, sub)
	w.waitReports(t, sub, 1)
}

// An operator may fail any mail, also such as must not be reported on.
func TestOperatorsFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(t)
	ordinary, null, never := submission("a@sender.example", 0), submission("", 0), submission("a@sender.example", mail.NotifyNever)
	for _, sub := range []*mail.Submission{ordinary, null, never} {
		w.accept(t, sub)
		if n, err := w.db.Operate(t.Context(), store.Fail, store.Filter{ID: sub.ID}, "customer left"); err != nil || n != 1 {
			t.Fatalf("fail: %d, %v", n, err)
		}
	}
	content := w.content(t, w.waitReports(t, ordinary, 1)[0])
	if !strings.Contains(content, "customer left") || strings.Contains(content, "Last-Attempt-Date") {
		t.Errorf("report of an operator's failure:\n%s", content)
	}
	w.settled(t)
	w.waitReports(t, null, 0)
	w.waitReports(t, never, 0)
}

// RFC 2852 §4: in mode N the sender hears at the time of BY of what has not
// left by then; with a trace, of every relay, without one of a relay to a host that does not
// know BY; in mode R of the expiry.
func TestDeliverBy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(t)
	by := func(by mail.DeliverBy, notify ...mail.Notify) *mail.Submission {
		sub := submission("alice@sender.example", notify...)
		by.At = sub.AcceptedAt.Add(5 * time.Minute) // accepted 10 minutes ago
		sub.Envelope.DeliverBy = by
		w.accept(t, sub)
		return sub
	}
	late := by(mail.DeliverBy{}, 0, mail.NotifyFailure, mail.NotifyDelay, mail.NotifyNever)
	w.settle(t, late, mail.Delayed, mail.Delayed, mail.Delayed, mail.Relayed)
	traced := by(mail.DeliverBy{Return: true, Trace: true}, 0, mail.NotifyNever)
	w.settle(t, traced, mail.Relayed)
	relayed := by(mail.DeliverBy{}, 0, mail.NotifyNever)
	w.settle(t, relayed, mail.Relayed)

	notice := w.content(t, w.waitReports(t, late, 1)[0])
	for _, want := range []string{"Action: delayed", "Status: 4.4.7", "Deliver-By-Date: ", "bob1@", "bob3@"} {
		if !strings.Contains(notice, want) {
			t.Errorf("the notice lacks %q:\n%s", want, notice)
		}
	}
	if strings.Contains(notice, "bob2@") || strings.Contains(notice, "bob4@") {
		t.Errorf("the notice tells of who wants none, or of what has left:\n%s", notice)
	}
	trace := w.content(t, w.waitReports(t, traced, 1)[0])
	if !strings.Contains(trace, "Action: relayed") || strings.Contains(trace, "bob2@") {
		t.Errorf("the trace:\n%s", trace)
	}
	untold := w.content(t, w.waitReports(t, relayed, 1)[0])
	if !strings.Contains(untold, "Action: relayed") || strings.Contains(untold, "bob2@") {
		t.Errorf("the report of a relay to a host that will tell of no delay:\n%s", untold)
	}
	w.hint(t, late, traced, relayed)
	w.settled(t)
	w.waitReports(t, late, 1)
	w.waitReports(t, traced, 1)
	w.waitReports(t, relayed, 1)
}

func TestOneDelayNoticeThenTheFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(t)
	sub := submission("alice@sender.example", 0, 0, mail.NotifyFailure)
	w.accept(t, sub)
	w.settle(t, sub, mail.Delayed, mail.Relayed, mail.Delayed) // accepted 10 minutes ago, notice after 5
	content := w.content(t, w.waitReports(t, sub, 1)[0])
	for _, want := range []string{"Action: delayed", "<bob1@remote.example>", "Will-Retry-Until: "} {
		if !strings.Contains(content, want) {
			t.Errorf("the notice lacks %q:\n%s", want, content)
		}
	}
	for _, word := range []string{"bob2", "bob3"} {
		if strings.Contains(content, word) {
			t.Errorf("the notice tells of %s, who was relayed or wants no notice:\n%s", word, content)
		}
	}
	w.hint(t, sub)
	w.settled(t)
	w.waitReports(t, sub, 1)

	if n, err := w.db.Operate(t.Context(), store.Fail, store.Filter{ID: sub.ID}, "enough"); err != nil || n != 2 {
		t.Fatalf("fail: %d, %v", n, err)
	}
	content = w.content(t, w.waitReports(t, sub, 2)[1])
	if !strings.Contains(content, "Action: failed") || !strings.Contains(content, "<bob3@remote.example>") {
		t.Errorf("the failure:\n%s", content)
	}
}

// Recipients of one message that fail at different times, before and after a
// delay notice, each stand in one report of their failure.
func TestNobodyIsReportedTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(t)
	sub := submission("alice@sender.example", 0, 0, 0)
	w.accept(t, sub)
	w.settle(t, sub, mail.Failed, mail.Delayed, mail.Delayed) // accepted 10 minutes ago, notice after 5
	w.waitReports(t, sub, 2)
	for i, path := range []string{"bob3@remote.example", "bob2@remote.example"} {
		if n, err := w.db.Operate(t.Context(), store.Fail, store.Filter{ID: sub.ID, ForwardPath: path}, "enough"); err != nil || n != 1 {
			t.Fatalf("fail: %d, %v", n, err)
		}
		w.hint(t, sub)
		w.waitReports(t, sub, 3+i)
	}
	w.settled(t)
	failed, notices := map[string]int{}, map[string]int{}
	for _, id := range w.waitReports(t, sub, 4) {
		for _, fields := range strings.Split(w.content(t, id), "Final-Recipient: rfc822; ")[1:] {
			recipient, rest, _ := strings.Cut(fields, "\r\n")
			if strings.HasPrefix(rest, "Action: failed") {
				failed[recipient]++
			} else {
				notices[recipient]++
			}
		}
	}
	for _, bob := range []string{"bob1@remote.example", "bob2@remote.example", "bob3@remote.example"} {
		want := 1
		if bob == "bob1@remote.example" {
			want = 0
		}
		if failed[bob] != 1 || notices[bob] != want {
			t.Errorf("%s stands in %d reports of failure and %d notices, want 1 and %d", bob, failed[bob], notices[bob], want)
		}
	}
}

func TestWithoutTheBus(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(t)
	w.nats.Stop()
	sub := submission("alice@sender.example", 0)
	w.accept(t, sub)
	w.settle(t, sub, mail.Failed)
	w.waitReports(t, sub, 1)
	w.nats.Resume()
	w.settled(t)
	w.waitReports(t, sub, 1)
}

func TestPostgresRestarts(t *testing.T) {
	t.Parallel()
	pg := storetest.NewServer(t, devpg.Options{})
	w := newWorldAt(t, pg.URL())
	w.start(t)
	var subs []*mail.Submission
	for range 30 {
		subs = append(subs, submission("alice@sender.example", 0))
	}
	w.accept(t, subs...)
	for _, sub := range subs {
		w.settle(t, sub, mail.Failed)
	}
	w.hint(t, subs...)
	if err := pg.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Postgres starts after a crash", func() bool { return pg.Restart(t.Context()) == nil })
	eventually(t, "Postgres is back", func() bool { return w.db.Ping(t.Context()) == nil })
	for _, sub := range subs {
		w.waitReports(t, sub, 1)
	}
	w.settled(t)
	for _, sub := range subs {
		w.waitReports(t, sub, 1)
	}
}

func TestReportWhoseOriginalIsGone(t *testing.T) {
	in := store.ReportInput{Kind: store.ReportFailure, Message: submission("alice@sender.example", 0).Message}
	in.Recipients = []store.ReportRecipient{{Recipient: mail.Recipient{No: 1, ForwardPath: "bob@remote.example"}, State: "expired"}}
	sub := newBounce(testConfig, nil, nil).write(in)
	m, err := netmail.ReadMessage(bytes.NewReader(sub.Content))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(m.Body)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(body, []byte("rfc822-headers")) || !bytes.Contains(body, []byte("Status: 4.4.7")) {
		t.Errorf("body:\n%s", body)
	}
	if r := sub.Recipients[0]; r.Domain != "sender.example" || r.Notify != mail.NotifyNever || time.Until(r.ExpiresAt) > time.Hour {
		t.Errorf("recipient %+v", r)
	}
}

func TestParseStatus(t *testing.T) {
	for text, want := range map[string]mail.EnhancedCode{
		"5.1.1":     {Class: 5, Subject: 1, Detail: 1},
		"4.7.999":   {Class: 4, Subject: 7, Detail: 999},
		"":          {},
		"5.1":       {},
		"5.1.1.1":   {},
		"5.x.1":     {},
		"5.1.99999": {},
	} {
		if got := parseStatus(text); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func TestConfig(t *testing.T) {
	if err := testConfig.Validate(); err != nil {
		t.Error(err)
	}
	for _, hostname := range []string{"", "mx.example\r\nBcc: x", "mx example", "bücher.example", "mx.example."} {
		if err := (Config{Hostname: hostname, Lifetime: testConfig.Lifetime}).Validate(); err == nil {
			t.Errorf("hostname %q is taken", hostname)
		}
	}
	if err := (Config{Hostname: "mx.example", Lifetime: 1}).Validate(); err == nil {
		t.Error("a lifetime of 1 ns is taken")
	}
}

func dkimKey(t *testing.T) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// TestTLSReportConfig: all that is wrong is said at once, and no secret.
func TestTLSReportConfig(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  TLSReportConfig
		want []string
	}{
		{"nothing", TLSReportConfig{}, nil},
		{"no key", TLSReportConfig{Contact: "tls@a.test"}, nil},
		{"signed elsewhere", TLSReportConfig{Contact: "tls@a.test", Unsigned: true}, nil},
		{"signed", TLSReportConfig{Contact: "tls@a.test", Key: dkimKey(t), Selector: "tls"}, nil},
		{"no selector", TLSReportConfig{Contact: "tls@a.test", Key: dkimKey(t)}, []string{"_SELECTOR is not"}},
		{"selector alone", TLSReportConfig{Selector: "tls"}, []string{"_KEY is not"}},
		{"all", TLSReportConfig{Contact: "tls", Key: "secret", Selector: "a b", Unsigned: true}, []string{"_CONTACT", "_KEY is no private key in PEM", "_SELECTOR", "both"}},
	} {
		err := tt.cfg.Validate()
		if (err == nil) != (tt.want == nil) || err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v lacks %q", tt.name, err, want)
			}
		}
		if signer, err := tt.cfg.Signer(); tt.want == nil && (err != nil || (signer != nil) != (tt.name == "signed")) {
			t.Errorf("%s: signer %+v, %v", tt.name, signer, err)
		}
	}
}

// TestTLSReportsByMail: RFC 8460 §3 has receivers ignore those that are not
// signed, so they do not leave, and are due when a key comes the same day.
func TestTLSReportsByMail(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	yesterday := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -1)
	result := store.TLSResult{Day: yesterday, Domain: "a.test", PolicyType: "no-policy-found", PolicyDomain: "a.test"}
	for _, tt := range []struct {
		name string
		cfg  TLSReportConfig
		want string // how the message begins; "" is none
	}{
		{"no key", TLSReportConfig{}, ""},
		{"signed elsewhere", TLSReportConfig{Unsigned: true}, "Date: "},
		{"signed", TLSReportConfig{Key: dkimKey(t), Selector: "tls"}, "DKIM-Signature: "},
	} {
		result.Domain = mail.Domain(strings.ReplaceAll(tt.name, " ", "-") + ".test")
		if err := w.db.CountTLS(t.Context(), []store.TLSCount{{TLSResult: result, Sessions: 1}}, map[mail.Domain][]string{result.Domain: {"mailto:r@b.test"}}); err != nil {
			t.Fatal(err)
		}
		cfg := testConfig
		cfg.TLSReports = tt.cfg
		cfg.TLSReports.Contact = "tls@postrider.example"
		r, err := newTLSReporter(newBounce(cfg, w.db, w.nc))
		if err != nil {
			t.Fatal(err)
		}
		report := store.TLSReport{Day: yesterday, Domain: result.Domain, RUA: "mailto:r@b.test"}
		if err := r.send(t.Context(), report); err != nil {
			t.Fatal(err)
		}
		reports, err := w.db.TLSReports(t.Context(), 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range reports {
			if found.Domain != result.Domain {
				continue
			}
			if unsent := found.SentAt.IsZero() && !found.NextAt.IsZero() && strings.Contains(found.Trouble, "DKIM_KEY"); unsent != (tt.want == "") {
				t.Errorf("%s: %+v", tt.name, found)
			}
		}
		queued, err := w.db.Queue(t.Context(), store.Filter{ReversePath: "tls@postrider.example"}, 10)
		if err != nil || len(queued) > 1 || len(queued) == 1 != (tt.want != "") {
			t.Fatalf("%s: queued %+v, %v", tt.name, queued, err)
		}
		for _, q := range queued {
			if content := w.content(t, q.ID); !strings.HasPrefix(content, tt.want) {
				t.Errorf("%s: mailed %q, want %q", tt.name, content, tt.want)
			}
			if _, err := w.db.Operate(t.Context(), store.Cancel, store.Filter{ID: q.ID}, "seen"); err != nil {
				t.Fatal(err)
			}
		}
	}
}
