package delivery_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/bustest"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
	"github.com/postrider/postrider/services/delivery"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	os.Exit(m.Run())
}

// rig is a cluster without ingress, resolver and scheduler: a real Postgres,
// a real JetStream, any number of delivery workers, and a conductor that rings
// what is due along a route that the test chooses.
type rig struct {
	t   *testing.T
	url string
	nc  string
	db  *store.Store
	bus *bus.Bus

	mu     sync.Mutex
	routes map[mail.Domain]*mail.Route // guarded by mu
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return newRigOn(t, storetest.New(t))
}

func newRigOn(t *testing.T, url string) *rig {
	t.Helper()
	r := &rig{t: t, url: url, nc: bustest.Start(t).URL(), routes: map[mail.Domain]*mail.Route{}}
	r.db, r.bus = r.connect()
	return r
}

// connect returns a store and a bus of their own, as each process has.
func (r *rig) connect() (*store.Store, *bus.Bus) {
	r.t.Helper()
	db, err := store.Open(r.t.Context(), store.Config{URL: r.url, MaxConns: 4})
	if err != nil {
		r.t.Fatal(err)
	}
	nc, err := bus.Connect(r.t.Context(), bus.Config{URL: r.nc}, db)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		nc.Close()
		db.Close()
	})
	return db, nc
}

// route sends a domain to hosts, in the order of preference.
func (r *rig) route(domain mail.Domain, site mail.Site, addrs ...netip.AddrPort) {
	route := &mail.Route{Site: site, TLS: mail.TLSMay, ExpiresAt: time.Now().Add(time.Hour)}
	for i, a := range addrs {
		route.Hosts = append(route.Hosts, mail.Host{
			Name: fmt.Sprintf("mx%d.%s", i+1, domain), Preference: uint16(10 * i), Port: a.Port(), Addresses: []netip.Addr{a.Addr()},
		})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.routes[domain] = route
}

// sameRoute sends domains the way of another one.
func (r *rig) sameRoute(as mail.Domain, domains ...mail.Domain) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range domains {
		r.routes[d] = r.routes[as]
	}
}

// message describes what accept is to store.
type message struct {
	domain     mail.Domain
	others     []mail.Domain // of recipients beside those of domain
	recipients int
	content    []byte
	lifetime   time.Duration
	priority   int16
	tenant     string
}

// accept stores n messages and returns their ids.
func (r *rig) accept(n int, m message) []mail.QueueID {
	r.t.Helper()
	if m.content == nil {
		m.content = []byte("Subject: test\r\n\r\n.a line with a dot\r\nanother\r\n")
	}
	if m.lifetime == 0 {
		m.lifetime = time.Hour
	}
	var ids []mail.QueueID
	var group []*mail.Submission
	for range n {
		s := &mail.Submission{Content: m.content}
		s.ID, s.AcceptedAt = mail.NewQueueID(), time.Now()
		s.Envelope.ReversePath = "sender@origin.test"
		s.SizeBytes, s.Priority, s.Tenant = int64(len(m.content)), m.priority, m.tenant
		for i := range max(m.recipients, 1) {
			s.Recipients = append(s.Recipients, mail.Recipient{
				No: int32(i + 1), Domain: m.domain, ExpiresAt: s.AcceptedAt.Add(m.lifetime),
				ForwardPath: mail.ForwardPath(fmt.Sprintf("%s-%d@%s", s.ID, i+1, m.domain)),
			})
		}
		for _, d := range m.others {
			s.Recipients = append(s.Recipients, mail.Recipient{
				No: int32(len(s.Recipients) + 1), Domain: d, ExpiresAt: s.AcceptedAt.Add(m.lifetime), ForwardPath: mail.ForwardPath("other@" + string(d)),
			})
		}
		ids = append(ids, s.ID)
		group = append(group, s)
	}
	if err := r.db.Accept(r.t.Context(), group); err != nil {
		r.t.Fatal(err)
	}
	return ids
}

// requests returns what is due now as the resolver would route it.
func (r *rig) requests(ctx context.Context) ([]*mail.DeliveryRequest, error) {
	queued, _, err := r.db.Ring(ctx, store.RingOptions{Limit: 5000})
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*mail.DeliveryRequest
	for _, q := range queued {
		by := map[*mail.Route]*mail.DeliveryRequest{}
		for _, p := range q.Recipients {
			route := r.routes[p.Domain]
			req := by[route]
			if req == nil {
				req = &mail.DeliveryRequest{Message: q.Message, Route: route}
				by[route] = req
				all = append(all, req)
			}
			req.Recipients = append(req.Recipients, p)
		}
	}
	return all, nil
}

// send hands requests to the homes of their sites, or parks them.
func (r *rig) send(ctx context.Context, requests []*mail.DeliveryRequest) error {
	homes, err := r.db.SlotHomes(ctx)
	if err != nil {
		return err
	}
	divided, err := r.db.Divisions(ctx)
	if err != nil {
		return err
	}
	by := map[mail.WorkerID][]*mail.DeliveryRequest{}
	for _, req := range requests {
		req.SetSlot(divided.SlotOf(req.Route.Site, req.Message.ID))
		home := homes[req.Slot()]
		if !home.Live {
			home.Worker = 0
		}
		by[home.Worker] = append(by[home.Worker], req)
	}
	for worker, theirs := range by {
		if worker == 0 || r.bus.PublishReady(ctx, worker, theirs) != nil {
			err = errors.Join(err, r.db.Park(ctx, 0, theirs))
		}
	}
	return err
}

// conduct does what scheduler and resolver do, until the test ends. New mail
// is due at once for it.
func (r *rig) conduct() {
	r.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			requests, err := r.requests(ctx)
			if err == nil {
				err = r.send(ctx, requests)
			}
			if err == nil {
				_, err = r.db.Reclaim(ctx, 0)
			}
			if err == nil {
				_, _, err = r.db.Expire(ctx, 1000)
			}
			if err != nil && ctx.Err() == nil {
				return err
			}
		}
	})
	r.t.Cleanup(func() {
		stop()
		if err := g.Wait(); err != nil {
			r.t.Errorf("conductor: %v", err)
		}
	})
}

// ring makes everything that waits due and sends it once.
func (r *rig) ring() {
	r.t.Helper()
	if _, err := r.db.Operate(r.t.Context(), store.Retry, store.Filter{ReversePath: "sender@origin.test"}, ""); err != nil {
		r.t.Fatal(err)
	}
	requests, err := r.requests(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.send(r.t.Context(), requests); err != nil {
		r.t.Fatal(err)
	}
}

// config is that of a worker in tests: everything in seconds.
func (r *rig) config(shape string) delivery.Config {
	r.t.Helper()
	schedule, err := retry.Parse("1s")
	if err != nil {
		r.t.Fatal(err)
	}
	c := delivery.Config{
		Hostname: "mta.origin.test", DrainTimeout: 5 * time.Second, Lease: 5 * time.Second, HomeLease: 2 * time.Second,
		ReadyLimit: 1000, ContentBytes: 8 << 20, Connections: 100, SettleLinger: 5 * time.Millisecond,
		AllowTargets: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		Shaping:      shaping.Config{RetrySchedule: schedule, MessageLifetime: retry.Duration(time.Hour), DelayNoticeAfter: retry.Duration(time.Hour)},
	}
	if shape != "" {
		c.Shaping.File = filepath.Join(r.t.TempDir(), "shaping.toml")
		if err := os.WriteFile(c.Shaping.File, []byte(shape), 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	return c
}

// process is a delivery process.
type process struct {
	stop func() // as by SIGTERM; returns when it has ended
	cut  func() // takes Postgres from it, as a network that fails: it must end its work by itself
}

// start runs a delivery process, until the test ends at the latest.
func (r *rig) start(c delivery.Config) *process {
	r.t.Helper()
	db, nc := r.connect()
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return delivery.Run(ctx, c, db, nc) })
	stop := sync.OnceFunc(func() {
		cancel()
		if err := g.Wait(); err != nil {
			r.t.Errorf("delivery: %v", err)
		}
	})
	r.t.Cleanup(stop)
	return &process{stop: stop, cut: db.Close}
}

// until waits for a condition.
func (r *rig) until(what string, within time.Duration, done func() bool) {
	r.t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline.C:
			rows, err := r.db.Queue(context.Background(), store.Filter{}, 5)
			r.t.Fatalf("not within %v: %s\nqueue: %+v %v", within, what, rows, err)
		case <-tick.C:
		}
	}
}

// homes returns the number of slots of each live worker.
func (r *rig) homes() map[mail.WorkerID]int {
	r.t.Helper()
	homes, err := r.db.SlotHomes(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	n := map[mail.WorkerID]int{}
	for _, h := range homes {
		if h.Live {
			n[h.Worker]++
		}
	}
	return n
}

// settled waits until the workers hold all slots between them.
func (r *rig) settled(workers int) {
	r.t.Helper()
	r.until(fmt.Sprintf("%d workers share the slots", workers), 20*time.Second, func() bool {
		n, sum := r.homes(), 0
		for _, slots := range n {
			if slots < mail.Slots/workers {
				return false
			}
			sum += slots
		}
		return len(n) == workers && sum == mail.Slots
	})
}

// drained waits until no recipient is queued, and returns the accounts.
func (r *rig) drained(within time.Duration) store.Accounting {
	r.t.Helper()
	var a store.Accounting
	r.until("nothing is queued", within, func() bool {
		var err error
		if a, err = r.db.Accounting(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
		return a.Queued == 0
	})
	if a.Unaccounted != 0 {
		r.t.Errorf("%d recipients are unaccounted: %+v", a.Unaccounted, a)
	}
	return a
}

func (r *rig) show(id mail.QueueID) store.Story {
	r.t.Helper()
	s, err := r.db.Show(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// closedPort returns an address that refuses connections.
func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	s, err := smtptest.Listen(smtptest.Script{})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	return s.Addr()
}

// mustArrive checks that each message, of one recipient, arrived: once, or
// more often with a mark that this may have happened.
func (r *rig) mustArrive(mx *smtptest.Server, ids []mail.QueueID) {
	r.t.Helper()
	arrived := map[string]int{}
	for _, m := range mx.Messages() {
		for _, path := range m.Accepted() {
			id, _, _ := strings.Cut(path, "-1@")
			arrived[id]++
		}
	}
	twice := 0
	for _, id := range ids {
		switch n := arrived[id.String()]; {
		case n == 0:
			r.t.Errorf("%s never arrived: %s", id, describe(r.show(id).Attempts))
		case n > 1:
			twice++
			uncertain := slices.ContainsFunc(r.show(id).Attempts, func(a store.StoryAttempt) bool { return a.Uncertain })
			if !uncertain {
				r.t.Errorf("%s arrived %d times without a mark: %s", id, n, describe(r.show(id).Attempts))
			}
		}
	}
	r.t.Logf("%d messages, %d of them more than once", len(ids), twice)
}

func describe(attempts []store.StoryAttempt) string {
	var b strings.Builder
	for _, a := range attempts {
		fmt.Fprintf(&b, "%s %s %s; ", a.Action, a.Phase, a.Reply)
	}
	return b.String()
}
