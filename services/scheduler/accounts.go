package scheduler

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/telemetry"
)

// metrics are the counters of the service, and the last sums.
type metrics struct {
	rung, reclaimed, uncertain, expired metric.Int64Counter
	registration                        metric.Registration

	mu     sync.Mutex // guards what follows
	summed *store.Accounting
	lags   map[string]time.Duration // by stage
	late   *int64                   // transactions that no worker can have in hand any more
}

func newMetrics() *metrics {
	meter := telemetry.Meter("scheduler")
	m := &metrics{lags: map[string]time.Duration{}}
	failed := func(err error) {
		if err != nil {
			slog.Warn("scheduler: metric not registered", "error", err)
		}
	}
	counter := func(name, description string) metric.Int64Counter {
		c, err := meter.Int64Counter(name, metric.WithUnit("{recipient}"), metric.WithDescription(description))
		failed(err)
		return c
	}
	m.rung = counter("postrider.rung", "Recipients for which a hint was published because they were due.")
	m.reclaimed = counter("postrider.reclaimed", "Recipients taken back from workers that died.")
	m.uncertain = counter("postrider.uncertain", "Recipients in a transaction with a remote host when their worker died: the next attempt may be a duplicate.")
	m.expired = counter("postrider.expired", "Recipients whose time ran out.")

	accepted, err := meter.Int64ObservableGauge("postrider.accepted.recipients", metric.WithUnit("{recipient}"),
		metric.WithDescription("Recipients accepted, in the retained history."))
	failed(err)
	byState, err := meter.Int64ObservableGauge("postrider.queue.recipients", metric.WithUnit("{recipient}"),
		metric.WithDescription("Recipients in the retained history, by state."))
	failed(err)
	unaccounted, err := meter.Int64ObservableGauge("postrider.unaccounted", metric.WithUnit("{recipient}"),
		metric.WithDescription("Accepted recipients that are neither queued nor final. Anything but 0 is a defect."))
	failed(err)
	lag, err := meter.Float64ObservableGauge("postrider.stage.lag", metric.WithUnit("s"),
		metric.WithDescription("How long the oldest work of a stage has waited for it. Scale the stage whose lag grows."))
	failed(err)
	late, err := meter.Int64ObservableGauge("postrider.claims.overdue", metric.WithUnit("{recipient}"),
		metric.WithDescription("Recipients that have been in a transaction for over 2 hours, longer than any takes. Anything but 0 is a defect."))
	failed(err)
	m.registration, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		for stage, d := range m.lags {
			o.ObserveFloat64(lag, d.Seconds(), metric.WithAttributes(attribute.String("stage", stage)))
		}
		if m.late != nil {
			o.ObserveInt64(late, *m.late)
		}
		a := m.summed
		if a == nil {
			return nil
		}
		o.ObserveInt64(accepted, a.Accepted)
		o.ObserveInt64(unaccounted, a.Unaccounted)
		for state, n := range map[string]int64{
			"queued": a.Queued, "relayed": a.Relayed, "failed": a.Failed, "expired": a.Expired, "cancelled": a.Cancelled,
		} {
			o.ObserveInt64(byState, n, metric.WithAttributes(attribute.String("state", state)))
		}
		return nil
	}, accepted, byState, unaccounted, lag, late)
	failed(err)
	return m
}

func (m *metrics) unregister() {
	if m.registration == nil {
		return
	}
	if err := m.registration.Unregister(); err != nil {
		slog.Warn("scheduler: metrics not unregistered", "error", err)
	}
}

// accounts sums the queue: accepted = queued + final.
func (s *scheduler) accounts(ctx context.Context) error {
	a, err := s.db.CountAccounts(ctx)
	if err != nil {
		return err
	}
	if a.Unaccounted != 0 {
		slog.Error("the accounts do not balance", "unaccounted", a.Unaccounted, "accepted", a.Accepted)
	}
	s.metrics.mu.Lock()
	defer s.metrics.mu.Unlock()
	s.metrics.summed = &a
	return nil
}

// lag measures how long work waits for each stage.
func (s *scheduler) lag(ctx context.Context) error {
	l, err := s.db.Lag(ctx)
	if err != nil {
		return err
	}
	lags := map[string]time.Duration{"scheduler": l.Waiting, "delivery": l.Parked, "bounce": l.Reports}
	if s.nc.Up() {
		oldest, err := s.nc.OldestHint(ctx)
		if err != nil {
			return err
		}
		lags["resolver"] = 0
		if !oldest.IsZero() {
			lags["resolver"] = time.Since(oldest)
		}
	}
	s.metrics.mu.Lock()
	defer s.metrics.mu.Unlock()
	s.metrics.lags = lags
	return nil
}

// mark is a moment, here and in the order of Postgres's transactions.
type mark struct {
	at      time.Time
	horizon store.Horizon
}

// claims counts the transactions that have lasted for longer than any can. It
// knows of none before it has run for as long itself.
func (s *scheduler) claims(ctx context.Context) error {
	now := time.Now()
	horizon, err := s.db.Horizon(ctx)
	if err != nil {
		return err
	}
	s.marks = append(s.marks, mark{now, horizon})
	for len(s.marks) > 1 && now.Sub(s.marks[1].at) >= overdue {
		s.marks = s.marks[1:]
	}
	var late int64
	if now.Sub(s.marks[0].at) >= overdue {
		if late, err = s.db.Overdue(ctx, s.marks[0].horizon); err != nil {
			return err
		}
	}
	if late > 0 {
		slog.Error("recipients have been in a transaction for longer than any takes", "recipients", late)
	}
	s.metrics.mu.Lock()
	defer s.metrics.mu.Unlock()
	s.metrics.late = &late
	return nil
}
