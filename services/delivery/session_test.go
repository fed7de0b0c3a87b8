package delivery

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/telemetry"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

// newRelayWorker is a worker that relays what is loaded already: it has the
// lease and the slots for as long as the test says, and no store.
func newRelayWorker(t *testing.T) *worker {
	t.Helper()
	w := newTestWorker(t, store.Sources{})
	m, err := newMetrics()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.taking, w.work, w.keep = ctx, ctx, ctx
	w.metrics, w.tracer, w.tls = m, telemetry.Tracer("delivery"), &tls.Config{MinVersion: tls.VersionTLS12}
	w.broken, w.tlsReports = &brokenTLS{}, newTLSReports(nil)
	w.connections, w.wanted = semaphore.NewWeighted(10), make(chan struct{}, 10)
	w.config.Hostname, w.config.AllowTargets = "mta.origin.test", []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	w.lease.extend(time.Now().Add(time.Hour))
	t.Cleanup(func() {
		cancel()
		_ = w.sessions.Wait()
	})
	return w
}

// loaded is a job for a host, with its content.
func (w *worker) loaded(host netip.AddrPort) *job {
	content := []byte("Subject: test\r\n\r\ntext\r\n")
	request := &mail.DeliveryRequest{
		Message:    mail.Message{ID: mail.NewQueueID(), SizeBytes: int64(len(content))},
		Route:      &mail.Route{Site: "mx.a.test", TLS: mail.TLSNone, Hosts: []mail.Host{{Name: "mx.a.test", Port: host.Port(), Addresses: []netip.Addr{host.Addr()}}}},
		Recipients: []mail.Pending{{Recipient: mail.Recipient{No: 1, Domain: "a.test", ForwardPath: "x@a.test", ExpiresAt: time.Now().Add(time.Hour)}, Attempt: 1}},
	}
	request.Message.Envelope.ReversePath = "y@origin.test"
	j := w.split(request, bounds{recipients: 1})[0]
	j.load = w.tryReserve(request)
	j.load.content = store.Content{Bytes: content}
	return j
}

// settled waits for the outcome of a job of one recipient.
func settledOne(t *testing.T, w *worker) mail.Outcome {
	t.Helper()
	select {
	case st := <-w.settles.in:
		return st.Outcomes[0]
	case <-time.After(20 * time.Second):
		t.Fatal("no outcome")
		return mail.Outcome{}
	}
}

// TestNoDotAfterTheLease: the lease on the claims ends while the host takes the
// content. Others may have the message by then.
func TestNoDotAfterTheLease(t *testing.T) {
	w := newRelayWorker(t)
	mx := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{
		{At: smtptest.Data, Do: smtptest.Then(smtptest.Signal(func() { w.lease.extend(time.Now()) }), smtptest.Reply(354, "go on"))},
	}})
	w.add(w.siteOf("mx.a.test", mail.Site("mx.a.test").Slot()), []*job{w.loaded(mx.Addr())})
	o := settledOne(t, w)
	if n := mx.Count(); n != 0 {
		t.Errorf("%d messages arrived after the lease was over", n)
	}
	if o.Action != mail.Delayed || o.Uncertain || !o.Untried {
		t.Errorf("outcome %+v; want a delay that is no attempt, and no mark: the dot was not sent", o)
	}
}

// TestNoTransactionAfterTheLeaseOnTheSlots: neither on a connection that is
// open, nor on one that was begun in time.
func TestNoTransactionAfterTheLeaseOnTheSlots(t *testing.T) {
	w := newRelayWorker(t)
	mx := smtptest.Start(t, smtptest.Script{})
	s := w.siteOf("mx.a.test", mail.Site("mx.a.test").Slot())
	w.add(s, []*job{w.loaded(mx.Addr())})
	if o := settledOne(t, w); o.Action != mail.Relayed {
		t.Fatalf("outcome %+v", o)
	}
	w.tenure.extend(time.Now())
	w.add(s, []*job{w.loaded(mx.Addr())})
	s.mu.Lock()
	waiting := s.ready.len()
	s.mu.Unlock()
	if waiting != 1 {
		t.Errorf("%d jobs wait after the lease is over, want the one", waiting)
	}
	w.tenure.extend(time.Now().Add(time.Hour))
	s.kick()
	if o := settledOne(t, w); o.Action != mail.Relayed {
		t.Errorf("outcome %+v after the lease was renewed", o)
	}

	slow := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{
		{At: smtptest.Hello, Do: smtptest.Then(smtptest.Signal(func() { w.tenure.extend(time.Now()) }), smtptest.Reply(250, "mx.a.test"))},
	}})
	j := w.loaded(slow.Addr())
	j.request.Route.Site = "slow.a.test"
	w.add(w.siteOf("slow.a.test", mail.Site("slow.a.test").Slot()), []*job{j})
	if o := settledOne(t, w); o.Action != mail.Delayed || !o.Untried {
		t.Errorf("outcome %+v of a transaction that would have begun after the lease", o)
	}
	if n := len(slow.Transactions()); n != 0 {
		t.Errorf("%d transactions began after the lease was over", n)
	}
}

// TestAConnectionServesOnlyWhatWantsOneLikeIt: each demand is tried alone.
func TestAConnectionServesOnlyWhatWantsOneLikeIt(t *testing.T) {
	w := newRelayWorker(t)
	addr := netip.MustParseAddrPort("192.0.2.1:25")
	job := func() *job { return w.loaded(addr) }
	s := w.siteOf("mx.a.test", mail.Site("mx.a.test").Slot())
	first := job()
	s.learn(first.request, w.values(first.request))
	host := first.request.Route.Hosts[0]
	s.mu.Lock()
	defer s.mu.Unlock()
	ss := &session{worker: w, site: s, lane: s.lane(here), source: here, target: target{host, addr},
		demand: demandOf(first.request, host), channel: channelOf(first.request)}
	for _, c := range []struct {
		name   string
		change func(j *mail.DeliveryRequest)
		want   bool
	}{
		{"the same", func(*mail.DeliveryRequest) {}, true},
		{"a credential", func(r *mail.DeliveryRequest) { r.Route.Credential = "account" }, false},
		{"LMTP", func(r *mail.DeliveryRequest) { r.Route.LMTP = true }, false},
		{"implicit TLS", func(r *mail.DeliveryRequest) { r.Route.ImplicitTLS = true }, false},
		{"opportunistic TLS", func(r *mail.DeliveryRequest) { r.Route.TLS = mail.TLSMay }, false},
		{"verified TLS", func(r *mail.DeliveryRequest) { r.Route.TLS = mail.TLSVerify }, false},
		{"REQUIRETLS", func(r *mail.DeliveryRequest) { r.Message.Envelope.RequireTLS = true; r.Route.SecureMX = true }, false},
		{"another host", func(r *mail.DeliveryRequest) { r.Route.Hosts[0].Name = "other.a.test" }, false},
		{"another port", func(r *mail.DeliveryRequest) { r.Route.Hosts[0].Port = 26 }, false},
	} {
		j := job()
		c.change(j.request)
		if got := ss.serves(j); got != c.want {
			t.Errorf("%s: serves %v, want %v", c.name, got, c.want)
		}
	}
	j := job()
	j.tried = []netip.AddrPort{addr}
	if ss.serves(j) {
		t.Error("a job comes back to where it was in vain")
	}
}

// TestTheSourceWhoseTurnItIsOpensAConnection: not the first one that may.
func TestTheSourceWhoseTurnItIsOpensAConnection(t *testing.T) {
	a, b := &lane{source: here, openable: true}, &lane{source: here, openable: true}
	turns := &turn{lanes: []entry{{lane: a, weight: 1, pass: 3}, {lane: b, weight: 1, pass: 2}}}
	j := &job{families: eitherFamily}
	if turns.next(j) != b {
		t.Error("the first source that may open a connection is taken, though another one is behind it")
	}
	turns.took(b)
	turns.took(b)
	if turns.next(j) != a {
		t.Error("a source that has had its turn is taken")
	}
	a.openable = false
	if turns.next(j) != b {
		t.Error("no source is taken though one may open a connection")
	}
}

// TestADelayEndsWithTheLifetime: whatever a host asks for, and whatever our own
// trouble is.
func TestADelayEndsWithTheLifetime(t *testing.T) {
	w := newTestWorker(t, store.Sources{})
	w.taking = t.Context()
	w.lease.extend(time.Now().Add(time.Hour))
	now := time.Now()
	p := mail.Pending{Recipient: mail.Recipient{Domain: "a.test", ExpiresAt: now.Add(20 * time.Second)}}
	a := &attempt{session: &session{worker: w, site: w.siteOf("a.test", mail.Site("a.test").Slot()), source: here}, over: now}
	a.job = &job{request: &mail.DeliveryRequest{Route: &mail.Route{Site: "a.test"}, Recipients: []mail.Pending{p}}}
	for _, answer := range []smtpclient.Answer{
		{Phase: mail.PhaseRcpt, Reply: mail.Reply{Code: 451, Lines: []string{"try again later"}}},
		{Phase: mail.PhaseRcpt, Reply: mail.Reply{Code: 450, Enhanced: mail.EnhancedCode{Class: 4, Subject: 7, Detail: 1}, Lines: []string{"greylisted, try again in 1 hour"}}},
		{Phase: mail.PhaseRcpt, Reply: mail.Reply{Code: 452, Enhanced: mail.EnhancedCode{Class: 4, Subject: 2, Detail: 2}, Lines: []string{"mailbox full"}}},
		{Phase: mail.PhaseMail, Err: fmt.Errorf("%w: no room", smtpclient.ErrStopped)},
	} {
		if o := a.outcome(p, answer, judge(circumstances{answer: answer})); o.Action != mail.Delayed || o.NextAttemptAt.After(p.ExpiresAt) {
			t.Errorf("%s %v: %s until %v, the recipient expires at %v", answer.Reply, answer.Err, o.Action, o.NextAttemptAt, p.ExpiresAt)
		}
	}
}
