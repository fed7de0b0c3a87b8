package resolver

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/bustest"
	"github.com/postrider/postrider/pkg/dnstest"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
)

const (
	traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	lease       = time.Minute // none of these tests lets a lease end
)

// zone has a provider with two domains, a host of its own, and every trouble.
var zone = dnstest.Zone{
	MX: map[string][]string{
		"one.test":  {"10 mx1.provider.test", "20 mx2.provider.test"},
		"two.test":  {"20 mx2.provider.test", "10 mx1.provider.test"},
		"own.test":  {"10 mx.own.test"},
		"null.test": {"0 ."},
		"slow.test": {"10 mx.own.test"},
	},
	A: map[string][]string{
		"mx1.provider.test": {"192.0.2.1"}, "mx2.provider.test": {"192.0.2.2"}, "mx.own.test": {"192.0.2.3"},
		"smart.test": {"192.0.2.4"}, "smarter.test": {"192.0.2.5"},
	},
	ServFail: []string{"broken.test"},
	Timeout:  []string{"slow.test"},
}

const providerSite = "(mx1|mx2).provider.test"

// world is a real Postgres, a real JetStream and DNS over real sockets, with
// a store and a bus of the test's own to look and act with.
type world struct {
	url  string // of Postgres
	nats *bustest.Server
	dns  *dnstest.Server
	db   *store.Store
	nc   *bus.Bus
	cfg  Config
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{url: storetest.New(t), nats: bustest.Start(t), dns: dnstest.Start(t, zone)}
	w.db, w.nc = w.connect(t)
	if err := w.db.EnsurePartitions(t.Context(), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	schedule, err := retry.Parse("1h")
	if err != nil {
		t.Fatal(err)
	}
	w.cfg = Config{
		Hostname: "relay.postrider.test", DNSServers: []string{w.dns.Addr()}, DNSTimeout: time.Second, RemotePort: 2525,
		OwnAddresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.250/32")},
		Shaping:      shaping.Config{RetrySchedule: schedule, MessageLifetime: retry.Duration(time.Hour), DelayNoticeAfter: retry.Duration(time.Hour)},
	}
	if err := w.cfg.Validate(); err != nil {
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

// start runs a resolver until the test ends or stop is called.
func (w *world) start(t *testing.T) (stop func()) {
	t.Helper()
	db, nc := w.connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error { return Run(ctx, w.cfg, db, nc) })
	stop = sync.OnceFunc(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// worker is the home of all slots, and keeps what it gets.
type worker struct {
	id       mail.WorkerID
	mu       sync.Mutex // guards requests
	requests []*mail.DeliveryRequest
}

func (w *world) worker(t *testing.T) *worker {
	t.Helper()
	id, err := w.db.RegisterWorker(t.Context(), t.Name(), lease)
	if err != nil {
		t.Fatal(err)
	}
	var all []int16
	for slot := range int16(mail.Slots) {
		all = append(all, slot)
	}
	if taken, err := w.db.TakeSlots(t.Context(), id, lease, all); err != nil || len(taken) != mail.Slots {
		t.Fatalf("took %d slots: %v", len(taken), err)
	}
	wk := &worker{id: id}
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error {
		return w.nc.ConsumeReady(ctx, id, func(_ context.Context, requests []*mail.DeliveryRequest) error {
			wk.mu.Lock()
			defer wk.mu.Unlock()
			wk.requests = append(wk.requests, requests...)
			return nil
		})
	})
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
	return wk
}

// got returns what came, one line per request: "site: forward-paths", sorted.
func (wk *worker) got() []string {
	wk.mu.Lock()
	defer wk.mu.Unlock()
	return describe(wk.requests)
}

func describe(requests []*mail.DeliveryRequest) []string {
	var lines []string
	for _, r := range requests {
		var paths []string
		for _, p := range r.Recipients {
			paths = append(paths, string(p.ForwardPath))
		}
		slices.Sort(paths)
		lines = append(lines, fmt.Sprintf("%s: %s", r.Route.Site, strings.Join(paths, " ")))
	}
	slices.Sort(lines)
	return lines
}

// submission is a message to a recipient at each domain.
func submission(domains ...mail.Domain) *mail.Submission {
	content := []byte("Subject: x\r\n\r\nx\r\n")
	sub := &mail.Submission{
		Message: mail.Message{
			ID: mail.NewQueueID(), Envelope: mail.Envelope{ReversePath: "alice@sender.test"},
			SizeBytes: int64(len(content)), AcceptedAt: time.Now(), Traceparent: traceparent,
		},
		Content: content,
	}
	for i, d := range domains {
		sub.Recipients = append(sub.Recipients, mail.Recipient{
			No: int32(i + 1), ForwardPath: mail.ForwardPath(fmt.Sprintf("bob%d@%s", i+1, d)), Domain: d, ExpiresAt: time.Now().Add(5 * time.Hour),
		})
	}
	return sub
}

// accept stores messages without ringing for them.
func (w *world) accept(t *testing.T, subs ...*mail.Submission) {
	t.Helper()
	if err := w.db.Accept(t.Context(), subs); err != nil {
		t.Fatal(err)
	}
}

// submit stores messages and rings for them, as ingress does.
func (w *world) submit(t *testing.T, subs ...*mail.Submission) {
	t.Helper()
	w.accept(t, subs...)
	var hints []mail.QueuedMessage
	for _, s := range subs {
		q := mail.QueuedMessage{Message: s.Message}
		for _, r := range s.Recipients {
			q.Recipients = append(q.Recipients, mail.Pending{Recipient: r})
		}
		hints = append(hints, q)
	}
	eventually(t, "the bus is up", w.nc.Up)
	if err := w.nc.PublishQueued(t.Context(), hints); err != nil {
		t.Fatal(err)
	}
}

func (w *world) show(t *testing.T, sub *mail.Submission) store.Story {
	t.Helper()
	story, err := w.db.Show(t.Context(), sub.ID)
	if err != nil {
		t.Fatal(err)
	}
	return story
}

// states returns "state place" of each recipient.
func (w *world) states(t *testing.T, sub *mail.Submission) []string {
	t.Helper()
	story := w.show(t, sub)
	slices.SortFunc(story.Recipients, func(a, b store.StoryRecipient) int { return cmp.Compare(a.No, b.No) })
	var out []string
	for _, r := range story.Recipients {
		out = append(out, strings.TrimSpace(r.State+" "+r.Place))
	}
	return out
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not within 20 s: %s", what)
		case <-tick.C:
		}
	}
}

func (w *world) arrives(t *testing.T, wk *worker, want ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("requests %q", want), func() bool { return len(wk.got()) >= len(want) })
	if got := wk.got(); !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func TestRequestsReachTheHome(t *testing.T) {
	w := newWorld(t)
	wk := w.worker(t)
	w.start(t)
	sub := submission("one.test", "own.test", "two.test", "one.test")
	w.submit(t, sub)
	w.arrives(t, wk,
		providerSite+": bob1@one.test bob3@two.test bob4@one.test",
		"mx.own.test: bob2@own.test")
	wk.mu.Lock()
	defer wk.mu.Unlock()
	for _, r := range wk.requests {
		if r.Message.ID != sub.ID || r.Message.Traceparent != traceparent || r.Route.TLS != mail.TLSMay || r.Route.SmartHost {
			t.Errorf("request %+v, route %+v", r.Message, r.Route)
		}
		if left := time.Until(r.Route.ExpiresAt); left < 4*time.Minute || left > 5*time.Minute {
			t.Errorf("the route expires in %v, want the TTL of 5 minutes", left)
		}
		for _, h := range r.Route.Hosts {
			if h.Port != 2525 || len(h.Addresses) != 1 {
				t.Errorf("host %+v", h)
			}
		}
		if r.Route.Site == providerSite && (len(r.Route.Hosts) != 2 || r.Route.Hosts[0].Name != "mx1.provider.test") {
			t.Errorf("hosts %+v", r.Route.Hosts)
		}
	}
}

func TestTroubleIsSettled(t *testing.T) {
	w := newWorld(t)
	wk := w.worker(t)
	w.start(t)
	var mu sync.Mutex
	var reported []mail.QueueID
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error {
		return w.nc.ConsumeFailed(ctx, func(_ context.Context, ids []mail.QueueID) error {
			mu.Lock()
			defer mu.Unlock()
			reported = append(reported, ids...)
			return nil
		})
	})
	defer func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	}()
	sub, delayed := submission("null.test", "gone.test", "broken.test", "own.test", "[192.0.2.1]"), submission("broken.test")
	w.submit(t, sub, delayed)
	w.arrives(t, wk, "mx.own.test: bob4@own.test")
	eventually(t, "the message is to be reported on", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Equal(reported, []mail.QueueID{sub.ID})
	})
	if got, want := w.states(t, sub), []string{"failed", "failed", "queued waiting", "queued waiting", "failed"}; !slices.Equal(got, want) {
		t.Errorf("recipients are %q, want %q", got, want)
	}
	status := map[int32]string{}
	for _, a := range w.show(t, sub).Attempts {
		if a.Phase != mail.PhaseResolve || a.Reply == "" {
			t.Errorf("attempt %+v: want one of phase resolve that says why", a)
		}
		for _, no := range a.RecipientNos {
			status[no] += a.Status
		}
	}
	for no, want := range map[int32]string{1: "5.1.10", 2: "5.1.2", 3: "4.4.3", 4: "", 5: "5.1.2"} {
		if status[no] != want {
			t.Errorf("recipient %d has status %q, want %q", no, status[no], want)
		}
	}
	eventually(t, "the other message is delayed", func() bool { return w.show(t, delayed).Recipients[0].Tries == 1 })
	r := w.show(t, delayed).Recipients[0]
	if wait := time.Until(r.NextAttemptAt); wait < 50*time.Minute || wait > 70*time.Minute {
		t.Errorf("the next attempt is in %v, want about an hour as the schedule says", wait)
	}
}

// A hint that comes twice makes no second outcome: the first took the fence.
func TestRepeatedHintsAreHarmless(t *testing.T) {
	w := newWorld(t)
	w.worker(t)
	sub := submission("null.test", "broken.test")
	w.submit(t, sub)
	eventually(t, "the bus is up", w.nc.Up)
	hint := mail.QueuedMessage{Message: sub.Message}
	for _, r := range sub.Recipients {
		hint.Recipients = append(hint.Recipients, mail.Pending{Recipient: r})
	}
	for range 3 {
		if err := w.nc.PublishQueued(t.Context(), []mail.QueuedMessage{hint}); err != nil {
			t.Fatal(err)
		}
	}
	w.start(t)
	w.start(t)
	eventually(t, "all hints are acked", func() bool {
		oldest, err := w.nc.OldestHint(t.Context())
		return err == nil && oldest.IsZero()
	})
	story := w.show(t, sub)
	if got := w.states(t, sub); !slices.Equal(got, []string{"failed", "queued waiting"}) || story.Recipients[1].Tries != 1 {
		t.Errorf("recipients %+v, want one failed and one delayed once", story.Recipients)
	}
}

// A domain whose DNS is silent delays neither other recipients of its message
// nor other messages, and its hint is acked while it is still looked up.
func TestSlowDomainDelaysNobody(t *testing.T) {
	w := newWorld(t)
	w.cfg.DNSTimeout = 2 * time.Second
	wk := w.worker(t)
	w.start(t)
	slow := submission("slow.test", "own.test")
	begin := time.Now()
	w.submit(t, slow)
	w.arrives(t, wk, "mx.own.test: bob2@own.test")
	for range 8 { // more than there are handlers
		w.submit(t, submission("slow.test"))
	}
	w.submit(t, submission("one.test"))
	eventually(t, "the other message leaves", func() bool { return len(wk.got()) == 2 })
	eventually(t, "all hints are acked", func() bool {
		oldest, err := w.nc.OldestHint(t.Context())
		return err == nil && oldest.IsZero()
	})
	if d := time.Since(begin); d > 4*time.Second {
		t.Errorf("that took %v, as long as the slow domain", d)
	}
	if r := w.show(t, slow).Recipients[0]; r.Tries != 0 {
		t.Errorf("the slow recipient was settled early: %+v", r)
	}
	if err := w.dns.Set(dnstest.Zone{MX: zone.MX, A: zone.A}); err != nil { // the next try is answered
		t.Fatal(err)
	}
	eventually(t, "the slow domain's recipients leave", func() bool { return len(wk.got()) == 2+9 })
}

func TestNoHomeMeansParked(t *testing.T) {
	w := newWorld(t)
	w.start(t)
	sub := submission("one.test", "own.test")
	w.submit(t, sub)
	eventually(t, "both are parked", func() bool {
		return slices.Equal(w.states(t, sub), []string{"queued parked", "queued parked"})
	})
	wk := w.worker(t)
	pulled, err := w.db.Pull(t.Context(), wk.id, store.ParkedSite{Site: providerSite, Slot: mail.Site(providerSite).Slot()}, []store.Share{{Recipients: 10}})
	if err != nil || !slices.Equal(describe(pulled), []string{providerSite + ": bob1@one.test"}) {
		t.Fatalf("pulled %q, %v", describe(pulled), err)
	}
	if hosts := pulled[0].Route.Hosts; len(hosts) != 2 || hosts[0].Addresses[0] != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("the route has hosts %+v", hosts)
	}
	// The new home announces itself: what comes now is published at once.
	if err := w.nc.Announce(t.Context(), bus.SlotsTopic); err != nil {
		t.Fatal(err)
	}
	eventually(t, "mail is published to the new home", func() bool {
		w.submit(t, submission("own.test"))
		return len(wk.got()) > 0
	})
}

func TestWithoutTheBus(t *testing.T) {
	w := newWorld(t)
	wk := w.worker(t)
	w.start(t)
	eventually(t, "the bus is up", w.nc.Up)
	w.nats.Stop()
	sub := submission("one.test", "null.test")
	w.accept(t, sub)
	eventually(t, "the message is parked and settled", func() bool {
		return slices.Equal(w.states(t, sub), []string{"queued parked", "failed"})
	})
	w.nats.Resume()
	eventually(t, "the bus is up again", w.nc.Up)
	w.submit(t, submission("own.test"))
	eventually(t, "mail is published again", func() bool { return slices.Contains(wk.got(), "mx.own.test: bob1@own.test") })
}

func TestRoutingTableComesFirst(t *testing.T) {
	w := newWorld(t)
	wk := w.worker(t)
	set := func(domain string, tls mail.TLSLevel, hosts ...string) {
		t.Helper()
		if _, err := w.db.SetRoute(t.Context(), store.RoutingRule{Match: store.RouteMatch{Domain: domain}, Hosts: hosts, TLS: tls}); err != nil {
			t.Fatal(err)
		}
	}
	set("one.test", mail.TLSVerify, "smart.test:587")
	set("*.own.test", mail.TLSMay, "smart.test:587", "192.0.2.9:25")
	set("null.test", mail.TLSMay, "smart.test:587")
	w.start(t)
	w.submit(t, submission("one.test", "two.test", "sub.own.test", "null.test"))
	w.arrives(t, wk,
		providerSite+": bob2@two.test",
		"192.0.2.9:25,smart.test:587: bob3@sub.own.test",
		"smart.test:587: bob1@one.test", // apart from bob4, for its TLS level is another
		"smart.test:587: bob4@null.test")
	wk.mu.Lock()
	for _, r := range wk.requests {
		smart := strings.Contains(string(r.Route.Site), "smart.test")
		if r.Route.SmartHost != smart || smart && r.Route.Hosts[0].Port != 587 {
			t.Errorf("route %+v", r.Route)
		}
		if strict := r.Recipients[0].Domain == "one.test"; strict != (r.Route.TLS == mail.TLSVerify) {
			t.Errorf("%s goes with TLS %s", r.Recipients[0].ForwardPath, r.Route.TLS)
		}
	}
	wk.mu.Unlock()

	// A change holds for new mail within about a second, and for mail that
	// was tried before at once.
	set("two.test", mail.TLSMay, "smarter.test:587")
	again := submission("two.test")
	again.ID = mail.NewQueueID()
	w.accept(t, again)
	hint := mail.QueuedMessage{Message: again.Message, Recipients: []mail.Pending{{Recipient: again.Recipients[0], Attempt: 1}}}
	if err := w.nc.PublishQueued(t.Context(), []mail.QueuedMessage{hint}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it leaves", func() bool { return len(wk.got()) == 5 })
	if got := wk.got(); !slices.Contains(got, "smarter.test:587: bob1@two.test") {
		t.Errorf("rerouted mail went the old way: %q", got)
	}
	if _, err := w.db.DeleteRoute(t.Context(), store.RouteMatch{Domain: "two.test"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "mail takes its MX again", func() bool {
		w.submit(t, submission("two.test"))
		return slices.Contains(wk.got(), providerSite+": bob1@two.test")
	})
}

// A stop in the middle of a look-up settles nothing and ends soon.
func TestStopInMidLookup(t *testing.T) {
	w := newWorld(t)
	w.cfg.DNSTimeout = time.Minute
	w.worker(t)
	stop := w.start(t)
	sub := submission("slow.test")
	w.submit(t, sub)
	eventually(t, "the look-up is on its way", func() bool { return w.dns.Queries("slow.test") > 0 })
	begin := time.Now()
	stop()
	if d := time.Since(begin); d > drainWithin+2*time.Second {
		t.Errorf("the stop took %v", d)
	}
	if r := w.show(t, sub).Recipients[0]; r.State != "queued" || r.Tries != 0 {
		t.Errorf("the recipient is %+v, want it untouched", r)
	}
}

func TestConfigValidate(t *testing.T) {
	good := Config{Hostname: "relay.test", DNSServers: []string{"192.0.2.1", "[2001:db8::1]:53", "2001:db8::1"}, DNSTimeout: time.Second, RemotePort: 25}
	if err := good.Validate(); err != nil {
		t.Errorf("a good configuration: %v", err)
	}
	bad := Config{Hostname: "", DNSServers: []string{"dns.test", "192.0.2.1:x"}, RemotePort: 0}
	err := bad.Validate()
	for _, want := range []string{"POSTRIDER_HOSTNAME", `"dns.test"`, `"192.0.2.1:x"`, "POSTRIDER_DNS_TIMEOUT", "POSTRIDER_REMOTE_PORT"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not tell of %s: %v", want, err)
		}
	}
}
