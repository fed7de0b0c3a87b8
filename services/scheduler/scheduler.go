package scheduler

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/telemetry"
)

const (
	page       = 1000                   // rows per statement
	pages      = 20                     // statements per step, so that a step ends
	ringEvery  = 250 * time.Millisecond // how late a due recipient is rung at most
	keepUp     = time.Second            // resolvers keep up while no hint waits longer
	reclaim    = time.Second            // how late a death is noticed after the lease ended
	grace      = 5 * time.Second        // after a start of Postgres, for workers to renew
	expire     = time.Second
	notice     = 2 * time.Second
	lagEvery   = 5 * time.Second
	partitions = 10 * time.Minute
	ahead      = 26 * time.Hour // partitions are there for so long
	claims     = time.Minute
	overdue    = 2 * time.Hour // no transaction takes as long

	keysEvery  = time.Hour        // how often the age of the bus key is looked at
	keyAge     = 24 * time.Hour   // a key signs for so long
	keyOverlap = 15 * time.Minute // and is valid for so long after that: longer than a hint waits in its stream

	accountRest = 20 // counting takes at most a twentieth of the time, however much mail there is
)

// Run looks after time until ctx is done, and returns nil.
func Run(ctx context.Context, cfg Config, db *store.Store, nc *bus.Bus) error {
	s := &scheduler{tracer: telemetry.Tracer("scheduler"), cfg: cfg, db: db, nc: nc, metrics: newMetrics(), wake: make(chan struct{}, 1)}
	defer s.metrics.unregister()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.watchBus(ctx) })
	for _, l := range []loop{
		{name: "ring", every: ringEvery, within: 10 * time.Second, step: s.ring, wake: s.wake},
		{name: "reclaim", every: reclaim, within: 10 * time.Second, step: s.reclaim},
		{name: "expire", every: expire, within: time.Minute, step: s.expire},
		{name: "notice", every: notice, within: 10 * time.Second, step: s.notice},
		{name: "lag", every: lagEvery, within: 10 * time.Second, step: s.lag},
		{name: "claims", every: claims, within: 10 * time.Second, step: s.claims},
		{name: "partitions", every: partitions, within: 5 * time.Minute, step: s.partitions},
		{name: "keys", every: keysEvery, within: 10 * time.Second, step: s.keys},
		{name: "accounts", every: time.Duration(cfg.AccountingInterval), within: 5 * time.Minute, step: s.accounts, rest: accountRest},
	} {
		g.Go(func() error { return l.run(ctx) })
	}
	return g.Wait()
}

type scheduler struct {
	tracer  trace.Tracer
	cfg     Config
	db      *store.Store
	nc      *bus.Bus
	metrics *metrics
	wake    chan struct{} // holds at most one signal: ring at once
	marks   []mark        // of the last two hours, the oldest first; the claims loop's own
}

func (s *scheduler) ringNow() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// watchBus has everything rung again whose hint may be lost.
func (s *scheduler) watchBus(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.nc.Lost():
		}
		slog.Info("hints may be lost: ringing everything that was rung")
		l := loop{name: "unring", within: time.Minute, step: s.unring}
		if err := l.once(ctx); err != nil {
			return err
		}
	}
}

// unring makes everything due whose hint is out.
func (s *scheduler) unring(ctx context.Context) error {
	for {
		n, err := s.db.Unring(ctx, page)
		if err != nil {
			return err
		}
		s.ringNow()
		if n < page {
			return nil
		}
	}
}

// ring publishes hints for recipients that are due. What is only for the log
// and the trace holds up no mail.
func (s *scheduler) ring(ctx context.Context) error {
	for range pages {
		unseen := s.adopt(ctx)
		more, err := s.ringPage(ctx)
		if err := errors.Join(unseen, err); err != nil || !more {
			return err
		}
	}
	return nil
}

// ringPage is one page of ring: arm, commit, publish. more says that there is
// another one for now.
func (s *scheduler) ringPage(ctx context.Context) (more bool, err error) {
	if !s.nc.Up() {
		return false, nil // without the bus, resolvers take from Postgres
	}
	oldest, err := s.nc.OldestHint(ctx)
	if err != nil {
		return false, err
	}
	queued, looked, err := s.db.Ring(ctx, store.RingOptions{Limit: page, OldestHint: oldest})
	if err != nil {
		return false, err
	}
	// What is not published now is due again when its arming ends.
	if err := s.nc.PublishQueued(ctx, queued); err != nil {
		return false, err
	}
	s.metrics.rung.Add(ctx, recipients(queued))
	behind := !oldest.IsZero() && time.Since(oldest) > keepUp
	return looked == page && !behind, nil
}

// adopt logs what was submitted by SQL and begins its trace, as ingress does
// for the rest. A message that is committed in the middle of a step may be
// rung for before that: what comes of it is in a trace of its own then.
func (s *scheduler) adopt(ctx context.Context) error {
	subs, err := s.db.TakeSubmitted(ctx, page)
	if err != nil || len(subs) == 0 {
		return err
	}
	for _, sub := range subs {
		ctx, span := s.tracer.Start(telemetry.Continue(context.Background(), sub.Traceparent), "submit.accept",
			trace.WithTimestamp(sub.AcceptedAt), trace.WithSpanKind(trace.SpanKindServer))
		if span.IsRecording() {
			span.SetAttributes(attribute.String("queue_id", sub.ID.String()), attribute.Int("recipients", len(sub.Recipients)), attribute.String("protocol", sub.Client.Protocol))
		}
		sub.Traceparent = telemetry.Traceparent(ctx)
		span.End()
		telemetry.Accepted(sub)
	}
	return s.db.SetTraceparents(ctx, subs)
}

func recipients(queued []mail.QueuedMessage) int64 {
	n := 0
	for i := range queued {
		n += len(queued[i].Recipients)
	}
	return int64(n)
}

// reclaim takes back what dead workers had claimed.
func (s *scheduler) reclaim(ctx context.Context) error {
	r, err := s.db.Reclaim(ctx, grace)
	if err != nil {
		return err
	}
	if len(r.Workers) > 0 || r.Recipients > 0 {
		slog.Warn("workers are dead or no homes any more; their claims are taken back",
			"dead", r.Workers, "recipients", r.Recipients, "uncertain", r.Uncertain)
		s.metrics.reclaimed.Add(ctx, int64(r.Recipients))
		s.metrics.uncertain.Add(ctx, int64(r.Uncertain))
		s.ringNow()
	}
	return nil
}

// expire ends recipients whose time has come: RFC 5321 §4.5.4.1.
func (s *scheduler) expire(ctx context.Context) error {
	for range pages {
		n, reports, err := s.db.Expire(ctx, page)
		if err != nil {
			return err
		}
		s.metrics.expired.Add(ctx, int64(n))
		if err := s.hintReports(ctx, reports); err != nil {
			return err
		}
		if n < page {
			return nil
		}
	}
	return nil
}

// notice rings bounce for reports that are due: delay notices, and reports
// whose hint was lost.
func (s *scheduler) notice(ctx context.Context) error {
	ids, err := s.db.DueReports(ctx, page)
	if err != nil {
		return err
	}
	return s.hintReports(ctx, ids)
}

func (s *scheduler) hintReports(ctx context.Context, ids []mail.QueueID) error {
	if len(ids) == 0 || !s.nc.Up() {
		return nil // without the bus, bounce looks for itself
	}
	return s.nc.PublishFailed(ctx, ids)
}

// partitions makes those of the hours to come and drops those that nobody
// needs any more.
func (s *scheduler) partitions(ctx context.Context) error {
	now := time.Now()
	// An hour back: clocks of ingress may differ from ours.
	if err := s.db.EnsurePartitions(ctx, now.Add(-time.Hour), now.Add(ahead)); err != nil {
		return err
	}
	hours, errContents := s.db.RetireContents(ctx, now)
	days, errHistory := s.db.RetireHistory(ctx, now.Add(-time.Duration(s.cfg.HistoryRetention)))
	if hours+days > 0 {
		slog.Info("partitions dropped", "hours_of_contents", hours, "days_of_history", days)
	}
	_, errRoutes := s.db.ForgetRoutes(ctx)
	_, errSites := s.db.ForgetSites(ctx)
	return errors.Join(errContents, errHistory, errRoutes, errSites, s.retireKeys(ctx))
}

// keys has what is put on the bus signed with a new key, when the one before
// is old.
func (s *scheduler) keys(ctx context.Context) error {
	id, err := s.db.RotateBusKey(ctx, keyOverlap, keyAge)
	if err == nil && id != 0 {
		slog.Info("bus key rotated", "key", id)
	}
	return err
}

// retireKeys removes the idempotency keys whose time is over.
func (s *scheduler) retireKeys(ctx context.Context) error {
	for {
		n, err := s.db.RetireIdempotency(ctx, page)
		if err != nil || n < page {
			return err
		}
	}
}
