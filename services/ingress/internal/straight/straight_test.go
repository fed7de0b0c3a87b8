package straight

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/bustest"
	"github.com/postrider/postrider/pkg/mail"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const worker = 7

// world is a real JetStream with a resolver and a worker that only listen, and
// a publisher under test.
type world struct {
	nc *bus.Bus
	p  *Publisher

	mu           sync.Mutex // guards what follows
	resolved, at []mail.QueueID
	routes       []*mail.Route
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{nc: connect(t, bustest.Start(t).URL())}
	eventually(t, "the bus is up", w.nc.Up)
	w.p = New(w.nc)
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return w.p.Run(ctx) })
	g.Go(func() error {
		return w.nc.ConsumeQueued(ctx, func(_ context.Context, messages []mail.QueuedMessage) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, m := range messages {
				w.resolved = append(w.resolved, m.ID)
			}
			return nil
		})
	})
	g.Go(func() error {
		return w.nc.ConsumeReady(ctx, worker, func(_ context.Context, requests []*mail.DeliveryRequest) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, r := range requests {
				w.at = append(w.at, r.Message.ID)
				w.routes = append(w.routes, r.Route)
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
	return w
}

func connect(t *testing.T, url string) *bus.Bus {
	t.Helper()
	nc, err := bus.Connect(t.Context(), bus.Config{URL: url}, bustest.OneKey)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// learns announces the way of a domain and waits until the publisher knows it.
func (w *world) learns(t *testing.T, domain mail.Domain, valid time.Duration) {
	t.Helper()
	way := bus.Way{Domain: domain, Worker: worker, Valid: valid, Route: &mail.Route{
		Site: "mx.example.net", Hosts: []mail.Host{{Name: "mx.example.net", Port: 25, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}}, ExpiresAt: time.Now().Add(time.Hour),
	}}
	eventually(t, "the way is known", func() bool {
		if err := w.nc.AnnounceWays(t.Context(), []bus.Way{way}); err != nil {
			t.Fatal(err)
		}
		w.p.mu.Lock()
		defer w.p.mu.Unlock()
		_, known := w.p.known[domain]
		return known
	})
}

// publish rings for a message with a recipient in each of the domains.
func (w *world) publish(t *testing.T, domains ...mail.Domain) mail.QueueID {
	t.Helper()
	m := mail.QueuedMessage{Message: mail.Message{ID: mail.NewQueueID(), AcceptedAt: time.Now()}}
	for i, d := range domains {
		m.Recipients = append(m.Recipients, mail.Pending{Recipient: mail.Recipient{No: int32(i + 1), ForwardPath: mail.ForwardPath("a@" + d), Domain: d}})
	}
	if err := w.p.PublishQueued(t.Context(), []mail.QueuedMessage{m}); err != nil {
		t.Fatal(err)
	}
	return m.ID
}

func (w *world) goes(t *testing.T, id mail.QueueID, straight bool) {
	t.Helper()
	where := &w.resolved
	if straight {
		where = &w.at
	}
	eventually(t, "the message arrives", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		if slices.Contains(w.at, id) && slices.Contains(w.resolved, id) {
			t.Fatal("the message went both ways")
		}
		return slices.Contains(*where, id)
	})
}

func TestMailGoesStraightWhereItsWayIsKnown(t *testing.T) {
	w := newWorld(t)
	w.goes(t, w.publish(t, "example.net"), false)
	w.learns(t, "example.net", time.Hour)
	w.learns(t, "example.org", time.Hour)
	w.goes(t, w.publish(t, "example.net", "example.net"), true)
	w.goes(t, w.publish(t, "other.example"), false)
	w.goes(t, w.publish(t, "example.net", "other.example"), false)
	w.goes(t, w.publish(t, "example.net", "example.org"), false) // they may share a transaction, which the resolver knows
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.routes) != 1 || w.routes[0].Site != "mx.example.net" || len(w.routes[0].Hosts) != 1 {
		t.Errorf("routes %+v", w.routes)
	}
}

func TestAWayEnds(t *testing.T) {
	w := newWorld(t)
	w.learns(t, "example.net", 10*time.Millisecond)
	eventually(t, "mail goes by the resolver again", func() bool {
		id := w.publish(t, "example.net")
		var straight bool
		eventually(t, "the message arrives", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			straight = slices.Contains(w.at, id)
			return straight || slices.Contains(w.resolved, id)
		})
		return !straight
	})
}

// A slot with a new home makes all ways doubtful.
func TestNewHomesMakeWaysForgotten(t *testing.T) {
	w := newWorld(t)
	w.learns(t, "example.net", time.Hour)
	eventually(t, "the way is forgotten", func() bool {
		if err := w.nc.Announce(t.Context(), bus.SlotsTopic); err != nil {
			t.Fatal(err)
		}
		w.p.mu.Lock()
		defer w.p.mu.Unlock()
		return len(w.p.known) == 0
	})
	w.goes(t, w.publish(t, "example.net"), false)
}

func TestWaysAreBounded(t *testing.T) {
	p := New(nil)
	ways := make([]bus.Way, maxWays+10)
	for i := range ways {
		ways[i] = bus.Way{Domain: mail.Domain(string(rune('a'+i%26)) + mail.NewQueueID().String()), Valid: time.Hour}
	}
	p.learn(ways)
	if len(p.known) != maxWays {
		t.Errorf("%d ways are known, want %d", len(p.known), maxWays)
	}
	for domain, w := range p.known { // all of them end
		w.until = time.Now()
		p.known[domain] = w
	}
	p.learn(ways[:1])
	if len(p.known) != 1 {
		t.Errorf("%d ways are known, want the one that holds", len(p.known))
	}
}
