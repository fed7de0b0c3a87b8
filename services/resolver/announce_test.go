package resolver

import (
	"context"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// heard is what was announced, by domain.
type heard struct {
	mu   sync.Mutex // guards ways
	ways map[mail.Domain]bus.Way
}

func (w *world) hear(t *testing.T) *heard {
	t.Helper()
	h := &heard{ways: map[mail.Domain]bus.Way{}}
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error {
		return w.nc.WatchWays(ctx, func(ways []bus.Way) {
			h.mu.Lock()
			defer h.mu.Unlock()
			for _, way := range ways {
				h.ways[way.Domain] = way
			}
		})
	})
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h *heard) of(domain mail.Domain) (bus.Way, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	way, ok := h.ways[domain]
	delete(h.ways, domain)
	return way, ok
}

func TestWaysOfBusyDomainsAreAnnounced(t *testing.T) {
	w := newWorld(t)
	wk := w.worker(t)
	h := w.hear(t)
	w.start(t)
	crowd := func(domain mail.Domain, n int) *mail.Submission {
		var domains []mail.Domain
		for range n {
			domains = append(domains, domain)
		}
		return submission(domains...)
	}
	var way bus.Way
	announced := func(domain mail.Domain) func() bool {
		return func() (ok bool) {
			w.submit(t, crowd(domain, busy))
			way, ok = h.of(domain)
			return ok
		}
	}
	eventually(t, "the way of a busy domain", announced("own.test"))
	if way.Worker != wk.id || way.Route.Site != "mx.own.test" || way.Valid <= 0 || way.Valid > refreshEvery {
		t.Errorf("announced %+v", way)
	}

	// One with little mail is not worth it.
	before := len(wk.got())
	w.submit(t, crowd("two.test", busy-1))
	eventually(t, "mail of a quiet domain leaves", func() bool { return len(wk.got()) > before })
	eventually(t, "the way of another", announced("own.test"))
	if way, ok := h.of("two.test"); ok {
		t.Errorf("announced %+v", way)
	}

	// The parts of a divided site take turns.
	site := mail.Site("mx.own.test")
	division, err := w.db.Divide(t.Context(), wk.id, mail.Division{Site: site, Slots: []int16{site.Slot()}}, []int16{site.Slot(), (site.Slot() + 1) % mail.Slots})
	if err != nil || !division {
		t.Fatal(division, err)
	}
	w.silent(t, wk, h, crowd("own.test", busy))
	if _, err := w.db.SetRoute(t.Context(), store.RoutingRule{Match: store.RouteMatch{Domain: "one.test", Sender: "a@b.test"}, Hosts: []string{"smart.test:587"}}); err != nil {
		t.Fatal(err)
	}
	w.silent(t, wk, h, crowd("one.test", busy)) // a rule may ask for the sender
	eventually(t, "the way of a domain without rules", announced("two.test"))
}

// silent waits until mail to a domain goes out and nothing is announced any
// more: for as long as three rereadings take, which the service does each
// second.
func (w *world) silent(t *testing.T, wk *worker, h *heard, like *mail.Submission) {
	t.Helper()
	domain := like.Recipients[0].Domain
	quiet := time.Now()
	eventually(t, "no way of "+string(domain), func() bool {
		next := submission(domain, domain, domain, domain)
		before := len(wk.got())
		w.submit(t, next)
		eventually(t, "mail leaves", func() bool { return len(wk.got()) > before })
		if _, ok := h.of(domain); ok {
			quiet = time.Now()
		}
		return time.Since(quiet) > 3*refreshEvery
	})
}
