package bounce

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/boot"
	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/telemetry"
)

const (
	gather      = 100 * time.Millisecond // a hint waits so long for others of its message
	lookEvery   = 5 * time.Second        // for rows whose hint was lost
	lookAlone   = time.Second            // for rows while the bus is down
	lookAtMost  = 1000                   // messages at a time
	noteAtMost  = 10_000                 // messages; what is beyond stays due in Postgres
	parallel    = 4                      // transactions at a time
	giveUpAfter = 16                     // failures in one round: Postgres is away
	drainWithin = 5 * time.Second
)

// Run reports until ctx is done, and returns nil after the reports in hand.
// Errors: the certificate authorities or the key of the configuration cannot
// be used.
func Run(ctx context.Context, cfg Config, db *store.Store, nc *bus.Bus) error {
	b := newBounce(cfg, db, nc)
	tls, err := newTLSReporter(b)
	if err != nil {
		return fmt.Errorf("bounce: %w", err)
	}
	work, cancel := boot.Grace(ctx, drainWithin)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return nc.ConsumeFailed(ctx, b.hear) })
	g.Go(func() error { return b.look(ctx) })
	g.Go(func() error { return b.reportAll(ctx, work) })
	if cfg.TLSReports.Contact != "" {
		g.Go(func() error { return tls.run(ctx, work) })
	}
	return g.Wait()
}

type bounce struct {
	cfg     Config
	db      *store.Store
	nc      *bus.Bus
	tracer  trace.Tracer
	metrics metrics

	mu    sync.Mutex // guards noted
	noted map[mail.QueueID]bool
	wake  chan struct{} // holds at most one signal: something is noted
}

func newBounce(cfg Config, db *store.Store, nc *bus.Bus) *bounce {
	return &bounce{
		cfg:     cfg,
		db:      db,
		nc:      nc,
		tracer:  telemetry.Tracer("bounce"),
		metrics: newMetrics(),
		noted:   map[mail.QueueID]bool{},
		wake:    make(chan struct{}, 1),
	}
}

// hear notes messages that a hint names.
func (b *bounce) hear(_ context.Context, ids []mail.QueueID) error {
	b.note(ids)
	return nil
}

// look notes messages whose reports are due, hint or no hint.
func (b *bounce) look(ctx context.Context) error {
	blind := false
	for {
		ids, err := b.db.DueReports(ctx, lookAtMost)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !blind:
			slog.Warn("due reports cannot be read; trying on", "error", err)
		case err == nil && blind:
			slog.Info("due reports can be read again")
		}
		blind = err != nil
		b.note(ids)
		pause := lookEvery
		if !b.nc.Up() || blind {
			pause = lookAlone
		}
		wait(ctx, pause)
	}
}

func (b *bounce) note(ids []mail.QueueID) {
	if len(ids) == 0 {
		return
	}
	b.mu.Lock()
	for _, id := range ids {
		if len(b.noted) < noteAtMost {
			b.noted[id] = true
		}
	}
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take empties what is noted.
func (b *bounce) take() map[mail.QueueID]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	noted := b.noted
	b.noted = map[mail.QueueID]bool{}
	return noted
}

// reportAll reports on what is noted, until ctx is done; work is the context
// of the reports themselves.
func (b *bounce) reportAll(ctx, work context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
		}
		wait(ctx, gather)
		b.round(ctx, work, b.take())
	}
}

// round reports on each message once. A message whose report fails stays due
// in Postgres.
func (b *bounce) round(ctx, work context.Context, ids map[mail.QueueID]bool) {
	var g errgroup.Group
	g.SetLimit(parallel)
	var failures atomic.Int32
	var first atomic.Pointer[error]
	for id := range ids {
		if ctx.Err() != nil || failures.Load() >= giveUpAfter {
			break
		}
		g.Go(func() error {
			if err := b.report(work, id); err != nil {
				failures.Add(1)
				first.CompareAndSwap(nil, &err)
			}
			return nil
		})
	}
	g.Wait() //nolint:errcheck // the functions above return nil
	if err := first.Load(); err != nil {
		b.metrics.failed.Add(work, int64(failures.Load()))
		slog.Warn("reports could not be written; they stay due", "messages", failures.Load(), "first_error", *err)
	}
}

// report writes the DSNs that are due for one message: write, commit, publish.
func (b *bounce) report(ctx context.Context, id mail.QueueID) error {
	var of mail.Message
	var kinds []store.ReportKind
	span := trace.SpanFromContext(context.Background()) // of no effect until there is something to report
	sent, err := b.db.Report(ctx, id, func(in store.ReportInput) (*mail.Submission, error) {
		if of.ID.IsZero() {
			of = in.Message
			ctx, span = telemetry.Start(ctx, b.tracer, "bounce.report", &of)
		}
		sub := b.write(in)
		if sub != nil {
			sub.Traceparent = telemetry.Traceparent(ctx)
			kinds = append(kinds, in.Kind)
		}
		return sub, nil
	})
	defer span.End()
	if err != nil {
		span.RecordError(err)
		return err
	}
	for i, sub := range sent {
		telemetry.Reported(&of, sub)
		b.metrics.report(ctx, kinds[i])
	}
	b.publish(ctx, sent)
	return nil
}

// publish rings for new DSNs. If that fails they are rung when their arming
// ends: commit, then publish.
func (b *bounce) publish(ctx context.Context, sent []*mail.Submission) {
	if len(sent) == 0 || !b.nc.Up() {
		return
	}
	queued := make([]mail.QueuedMessage, len(sent))
	for i, sub := range sent {
		queued[i].Message = sub.Message
		for _, r := range sub.Recipients {
			queued[i].Recipients = append(queued[i].Recipients, mail.Pending{Recipient: r})
		}
	}
	if err := b.nc.PublishQueued(ctx, queued); err != nil {
		slog.Debug("a report waits for the scheduler", "error", err)
	}
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
