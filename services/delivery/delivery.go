package delivery

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
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
)

// The ways in which the life of a worker ends before its process does.
var (
	errLeaseOver     = errors.New("the lease of this worker is over")
	errUnknownClaims = errors.New("a claim may have been committed that this worker does not know of")
)

const (
	firstStorePause = 50 * time.Millisecond
	maxStorePause   = time.Second
	endWithin       = 3 * time.Second

	// storeWithin bounds one try of a step in Postgres: a connection that a
	// failover left dead must not hold up what a new one could do.
	storeWithin = 10 * time.Second
)

// worker is one life of a delivery process: from its registration to the end
// of its lease.
type worker struct {
	config  Config
	store   *store.Store
	bus     *bus.Bus
	shaping *shaping.Live
	metrics *metrics
	tracer  trace.Tracer

	id     mail.WorkerID
	lease  lease           // on what is claimed
	tenure lease           // on the slots: not longer
	taking context.Context // done: take no more work
	work   context.Context // done: give up the transactions in hand
	keep   context.Context // done: give up what they left to record

	claims    *batcher[*claim]
	loads     *batcher[*load]
	settles   *batcher[mail.Settlement]
	settledAt time.Time // when the last batch was; the settler's own
	aside     *batcher[aside]
	orders    *batcher[mail.Measure]
	pulls     chan *site
	lookNow   chan struct{} // holds at most one signal
	saveNow   chan *site    // those that wait for it

	reconcileNow chan struct{} // holds at most one signal

	sessions    errgroup.Group // one per connection
	helpers     errgroup.Group // drains of dead workers
	connections *semaphore.Weighted
	placeless   atomic.Int64  // sessions that have no connection yet
	wanted      chan struct{} // one for each of them, for idle ones to take
	tls         *tls.Config   // the base of every session's
	broken      *brokenTLS
	lockstep    lockstep
	tlsReports  *tlsReports
	contents    *semaphore.Weighted
	jobs        atomic.Int64 // that wait in memory, over all sites
	opened      atomic.Int64 // sessions, over all sites
	held        atomic.Int64 // bytes of content of transactions in hand, over all sites
	slotMap     *slotMap
	credentials credentials
	sources     atomic.Pointer[sources]
	egressKey   string
	egressOn    net.Listener // nil: other workers cannot use our addresses

	mu        sync.Mutex // guards all below
	slots     [mail.Slots]slot
	sites     map[sitePart]*site
	remnants  map[sitePart][]*site // as they were when their slot was lost
	divisions mail.Divisions
	suspended suspensions
	memories  memories

	shareNow chan struct{} // holds at most one signal
	sharing  sync.Mutex    // guards the two below
	joints   map[string]*joint
	voided   int // how often all that is held of them was lost

	dividing sync.Mutex // makes reads of the divisions one after another
}

// Run relays mail until ctx is done, and returns nil when what was in
// progress has ended and everything else is given back. A worker that was
// declared dead, because it could not renew its lease, begins a new life.
func Run(ctx context.Context, config Config, db *store.Store, nc *bus.Bus) error {
	shape, err := shaping.Open(config.Shaping)
	if err != nil {
		return fmt.Errorf("delivery: %w", err)
	}
	if _, err := shape.Look(ctx, db); err != nil && ctx.Err() == nil {
		slog.Warn("shaping not read from Postgres yet", "error", err)
	}
	pool, err := roots.Load(config.Roots)
	if err != nil {
		return fmt.Errorf("delivery: %w", err)
	}
	m, err := newMetrics()
	if err != nil {
		return fmt.Errorf("delivery: %w", err)
	}
	for ctx.Err() == nil {
		w := &worker{
			config: config, store: db, bus: nc, shaping: shape, metrics: m, tracer: telemetry.Tracer("delivery"),
			pulls: make(chan *site, 64), lookNow: make(chan struct{}, 1), saveNow: make(chan *site, 64), reconcileNow: make(chan struct{}, 1), shareNow: make(chan struct{}, 1), slotMap: newSlotMap(), egressKey: newEgressKey(),
			connections: semaphore.NewWeighted(config.Connections),
			wanted:      make(chan struct{}, config.Connections),
			contents:    semaphore.NewWeighted(config.ContentBytes),
			tls:         &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(sessionsKept)},
			broken:      &brokenTLS{store: db, suspected: map[suspect]time.Time{}},
			tlsReports:  newTLSReports(db),
			sites:       map[sitePart]*site{},
			remnants:    map[sitePart][]*site{},
			joints:      map[string]*joint{},
			memories:    memories{},
		}
		w.claims = newBatcher(claimBatch, w.claim)
		w.loads = newBatcher(loadBatch, w.dispatch).lingers(loadLinger, always)
		w.settles = newBatcher(settleBatch, w.settle).lingers(config.SettleLinger, w.busy)
		w.aside = newBatcher(claimBatch, w.putAside)
		w.orders = newBatcher(orderBatch, w.order)
		err := w.live(ctx)
		if errors.Is(err, errEgressListener) {
			return fmt.Errorf("delivery: %w", err)
		}
		switch {
		case err != nil && ctx.Err() == nil:
			slog.Error("worker begins a new life", "worker_id", w.id, "error", err)
			sleep(ctx, maxStorePause)
		case err != nil:
			slog.Warn("worker did not end in order: the others wait until its lease is over", "worker_id", w.id, "error", err)
		}
	}
	return nil
}

// live is one life: register, work, end. An error says why it ended before
// ctx was done.
func (w *worker) live(ctx context.Context) error {
	if !w.register(ctx) {
		return nil
	}
	taking, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	work, cutWork := boot.Grace(taking, w.config.DrainTimeout)
	defer cutWork()
	keep, cutKeep := boot.Grace(taking, w.config.DrainTimeout+endWithin)
	defer cutKeep()
	w.taking, w.work, w.keep = taking, work, keep

	if err := w.listenEgress(taking); err != nil {
		return err
	}
	if w.egressOn != nil {
		defer w.egressOn.Close()
	}
	if w.persist("read sources", w.readSources) != nil {
		return nil
	}

	var intake, batchers, home errgroup.Group
	for _, run := range []func() error{w.claims.run, w.loads.run, w.settles.run, w.aside.run, w.orders.run} {
		batchers.Go(run)
	}
	home.Go(func() error {
		h := &homes{worker: w, moved: make(chan func(), 1)}
		err := h.run(taking)
		if errors.Is(err, errGone) {
			// Nothing that we hold is ours any more, and nothing new begins: not
			// even to end at once, again and again, until the lease is over.
			stop(err)
			h.lose(h.slotsIn(ours, leaving), "this worker was declared dead")
			cutWork()
			cutKeep()
		}
		return err
	})
	take := func(run func(context.Context) error) {
		intake.Go(func() error {
			err := run(taking)
			if err != nil {
				stop(err)
			}
			return err
		})
	}
	take(func(ctx context.Context) error { return w.bus.ConsumeReady(ctx, w.id, w.receive, bus.Handlers(2)) })
	take(w.runLook)
	take(w.runReconcile)
	take(w.runSave)
	take(w.followShaping)
	take(w.broken.run)
	take(w.tlsReports.run)
	take(w.runDivisions)
	take(w.runShares)
	take(w.runWaits)
	take(w.runSources)
	take(w.serveEgress)
	for range pullers {
		take(w.runPuller)
	}

	// Whoever hands in ends before who takes.
	err := errors.Join(intake.Wait(), home.Wait(), w.helpers.Wait(), w.sessions.Wait())
	w.claims.stop()
	w.loads.stop()
	w.settles.stop()
	w.aside.stop()
	w.orders.stop()
	return errors.Join(err, batchers.Wait(), w.end())
}

// register begins the life of the worker; false if ctx ended before.
func (w *worker) register(ctx context.Context) bool {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	w.keep = ctx
	err = w.persist("register", func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(ctx, renewWithin)
		defer cancel()
		asked := time.Now()
		w.id, err = w.store.RegisterWorker(ctx, fmt.Sprintf("%s/%d", host, os.Getpid()), w.config.Lease)
		w.lease.extend(asked.Add(w.config.Lease))
		w.tenure.extend(asked.Add(w.config.HomeLease))
		return err
	})
	if err == nil {
		slog.Info("worker registered", "worker_id", w.id)
	}
	return err == nil
}

// end gives back what is left. If it cannot, the scheduler does when the
// lease is over.
func (w *worker) end() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.keep), endWithin)
	defer cancel()
	return errors.Join(w.tlsReports.flush(ctx), w.leaveShares(ctx), w.store.EndWorker(ctx, w.id))
}

// startSession opens a connection for a job. Caller holds the site's mu.
func (w *worker) startSession(ss *session, j *job) {
	w.sessions.Go(func() error {
		ss.run(j)
		return nil
	})
}

// freeJobs returns how many more jobs may wait in memory.
func (w *worker) freeJobs() int { return int(max(w.config.ReadyLimit-w.jobs.Load(), 0)) }

// look has parked mail looked for at once.
func (w *worker) look() {
	select {
	case w.lookNow <- struct{}{}:
	default:
	}
}

// persist repeats a step in Postgres until it succeeds or the work is given
// up: Postgres may restart at any time.
func (w *worker) persist(step string, do func(context.Context) error) error {
	for pause := firstStorePause; ; pause = min(2*pause, maxStorePause) {
		ctx, cancel := context.WithTimeout(w.keep, storeWithin)
		err := do(ctx)
		cancel()
		if err == nil || w.keep.Err() != nil {
			return err
		}
		slog.Warn("Postgres refuses a step; it is repeated", "worker_id", w.id, "step", step, "error", err)
		sleep(w.keep, pause)
	}
}

// sleep waits about so long, or until ctx is done.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(time.Duration(float64(d) * (0.75 + rand.Float64()/2)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
