package resolver

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/postrider/postrider/pkg/boot"
	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/roots"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/telemetry"
	"github.com/postrider/postrider/services/resolver/internal/mtasts"
	"github.com/postrider/postrider/services/resolver/internal/mx"
)

const (
	handlers     = 4                      // batches worked on at a time
	lookAtOnce   = 1000                   // look-ups that one batch starts at a time
	gather       = 20 * time.Millisecond  // ways found within it leave together
	patience     = 500 * time.Millisecond // a batch waits so long for its look-ups; those that go on are followed apart
	followAtMost = 4096                   // recipients that are followed apart; then batches wait
	refreshEvery = time.Second            // homes and routing table
	lostEvery    = 500 * time.Millisecond // due rows, while the bus is down
	lostAtMost   = 500                    // rows at a time
	readWithin   = 5 * time.Second        // one of these reads
	drainWithin  = 5 * time.Second
	fetchWithin  = 10 * time.Second // an MTA-STS policy: mail waits for it
)

// Run finds the way of queued mail until ctx is done, and returns nil after
// the batches in hand. Errors: the DNS servers or the shaping file of the
// configuration cannot be used.
func Run(ctx context.Context, cfg Config, db *store.Store, nc *bus.Bus) error {
	shape, err := shaping.Open(cfg.Shaping)
	if err != nil {
		return err
	}
	finder, policies, err := newFinder(cfg, db)
	if err != nil {
		return fmt.Errorf("resolver: %w", err)
	}
	defer finder.Close()
	work, cancel := boot.Grace(ctx, drainWithin)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	r := &resolver{
		db: db, nc: nc, mx: finder, shaping: shape,
		tracer: telemetry.Tracer("resolver"), metrics: newMetrics(),
		work: work, group: g, room: semaphore.NewWeighted(followAtMost),
	}
	g.Go(func() error { return r.run(ctx) })
	if policies != nil {
		g.Go(func() error { return policies.Refresh(ctx) })
	}
	return g.Wait()
}

// newFinder puts together what finds hosts and what finds the policies of
// domains; the latter is nil if nobody wants them.
func newFinder(cfg Config, db *store.Store) (*mx.Resolver, *mtasts.Finder, error) {
	look := mx.Config{
		Servers:         cfg.DNSServers,
		TrustAD:         cfg.DNSTrustAD,
		TLSReports:      cfg.TLSReportContact != "",
		OwnNames:        append([]string{cfg.Hostname}, cfg.OwnNames...),
		OwnAddresses:    cfg.OwnAddresses,
		Port:            cfg.RemotePort,
		Allow:           cfg.AllowTargets,
		AddressLiterals: cfg.AddressLiterals,
		Timeout:         cfg.DNSTimeout,
	}
	if len(look.OwnAddresses) == 0 {
		look.OwnAddresses = mx.LocalAddresses()
	}
	if !cfg.MTASTS {
		finder, err := mx.New(look)
		return finder, nil, err
	}
	pool, err := roots.Load(cfg.Roots)
	if err != nil {
		return nil, nil, err
	}
	var finder *mx.Resolver
	policies := mtasts.New(db, mtasts.FetchConfig{
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return finder.Dial(ctx, network, address)
		},
		Roots:   pool,
		Timeout: fetchWithin,
	})
	look.STS = policies
	finder, err = mx.New(look)
	return finder, policies, err
}

type resolver struct {
	db      *store.Store
	nc      *bus.Bus
	mx      *mx.Resolver
	shaping *shaping.Live
	tracer  trace.Tracer
	metrics metrics
	homes   atomic.Pointer[homes]
	routing atomic.Pointer[Table]

	reading   sync.Mutex // makes reads of the routing table one after another; guards routingAt
	routingAt time.Time  // when the last read began

	freshUntil atomic.Pointer[time.Time] // homes and routing table are read again then

	work  context.Context // of look-ups, which outlive the batch that began them
	group *errgroup.Group // runs them
	room  *semaphore.Weighted
}

// run starts the loops of the service, once homes and routing table are
// known: without the table, mail would go where operators said it must not.
func (r *resolver) run(ctx context.Context) error {
	for r.refresh(ctx) != nil {
		if !sleep(ctx, refreshEvery) {
			return nil
		}
	}
	if _, err := r.shaping.Look(ctx, r.db); err != nil && ctx.Err() == nil {
		slog.WarnContext(ctx, "shaping not read from Postgres yet", "error", err)
	}
	r.group.Go(func() error { return r.shaping.Follow(ctx, r.db, func() {}) })
	r.group.Go(func() error { return r.rollUp(ctx) })
	r.group.Go(func() error { return r.keepFresh(ctx) })
	r.group.Go(func() error {
		return r.nc.Watch(ctx, bus.SlotsTopic, func(ctx context.Context) {
			if err := r.refreshHomes(ctx); err != nil && ctx.Err() == nil {
				slog.WarnContext(ctx, "slots have new homes, which cannot be read yet", "error", err)
			}
		})
	})
	r.group.Go(func() error { return r.nc.ConsumeQueued(ctx, r.handle, bus.Handlers(handlers)) })
	return r.takeLost(ctx)
}

// keepFresh rereads homes and routing table every second. While Postgres is
// away the last ones hold.
func (r *resolver) keepFresh(ctx context.Context) error {
	stale := false
	for sleep(ctx, refreshEvery) {
		err := r.refresh(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil && !stale:
			slog.WarnContext(ctx, "homes and routing table cannot be read; the last ones hold", "error", err)
		case err == nil && stale:
			slog.InfoContext(ctx, "homes and routing table can be read again")
		}
		stale = err != nil
	}
	return nil
}

func (r *resolver) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	until := time.Now().Add(refreshEvery)
	if err := r.refreshRouting(ctx, time.Now()); err != nil {
		return err
	}
	if err := r.refreshHomes(ctx); err != nil {
		return err
	}
	r.freshUntil.Store(&until)
	return nil
}

// homes is where sites live, as of lately.
type homes struct {
	of      [mail.Slots]store.Home
	divided mail.Divisions
}

// refreshHomes reads which worker is the home of each slot, and which sites
// are divided over several.
func (r *resolver) refreshHomes(ctx context.Context) error {
	of, err := r.db.SlotHomes(ctx)
	if err != nil {
		return fmt.Errorf("homes of the slots: %w", err)
	}
	divided, err := r.db.Divisions(ctx)
	if err != nil {
		return err
	}
	r.homes.Store(&homes{of, divided})
	return nil
}

// refreshRouting reads the routing table unless a read has begun after since.
func (r *resolver) refreshRouting(ctx context.Context, since time.Time) error {
	r.reading.Lock()
	defer r.reading.Unlock()
	if r.routingAt.After(since) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readWithin) // others wait
	defer cancel()
	begin := time.Now()
	rules, err := r.db.Routing(ctx)
	if err != nil {
		return fmt.Errorf("routing table: %w", err)
	}
	r.routing.Store(NewTable(rules))
	r.routingAt = begin
	return nil
}

// takeLost does the bus's part while it is down: it takes due recipients from
// Postgres, and because nothing can be published they are parked with their
// route.
func (r *resolver) takeLost(ctx context.Context) error {
	failing := false
	for sleep(ctx, lostEvery) {
		for more := true; more && ctx.Err() == nil && !r.nc.Up(); {
			n, err := r.takeLostOnce(ctx)
			more = err == nil && n > 0
			switch {
			case ctx.Err() != nil:
			case err != nil && !failing:
				slog.WarnContext(ctx, "the bus is down, and due recipients cannot be taken from Postgres", "error", err)
			case err == nil && failing:
				slog.InfoContext(ctx, "due recipients can be taken from Postgres again")
			}
			failing = err != nil
		}
	}
	return nil
}

func (r *resolver) takeLostOnce(ctx context.Context) (messages int, err error) {
	read, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	lost, err := r.db.TakeLost(read, lostAtMost)
	if err != nil {
		return 0, err
	}
	return len(lost), r.handle(r.work, lost)
}

// handle finds the ways of a batch and sends it on. It returns when all has
// left but the recipients of slow domains, which are followed apart: nobody
// waits for them, and if this process dies their rows, which are armed, are
// rung again.
func (r *resolver) handle(ctx context.Context, messages []mail.QueuedMessage) error {
	b := r.newBatch(messages)
	err := r.handleBatch(ctx, b)
	b.end(err)
	return err
}

func (r *resolver) handleBatch(ctx context.Context, b *batch) error {
	// Rerouting a domain makes its waiting mail due at once: it must not meet
	// a table from before.
	if b.again() {
		if err := r.refreshRouting(ctx, b.began); err != nil {
			return err
		}
	}
	if err := r.aim(ctx, b); err != nil {
		return err
	}
	known := map[aim]way{}
	var unknown []aim
	for a := range b.open {
		if w, ok := r.known(a); ok {
			known[a] = w
		} else {
			unknown = append(unknown, a)
		}
	}
	if len(known) > 0 {
		if err := r.finish(ctx, b, known); err != nil {
			return err
		}
	}
	for aims := range slices.Chunk(unknown, lookAtOnce) {
		if err := r.lookupAll(ctx, b, aims); err != nil {
			return err
		}
	}
	return nil
}
