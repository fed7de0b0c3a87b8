package bus

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
)

// metrics counts frames, never by subject: a worker's id is no label.
type metrics struct {
	frames       metric.Int64Counter
	bytes        metric.Int64Counter
	down         metric.Int64Counter
	handled      metric.Int64Counter
	turnedAway   metric.Int64Counter
	registration metric.Registration
}

func newMetrics(b *Bus) metrics {
	meter := otel.Meter("github.com/postrider/postrider/pkg/bus")
	var m metrics
	var errs [7]error
	m.frames, errs[0] = meter.Int64Counter("postrider.bus.published", metric.WithUnit("{frame}"),
		metric.WithDescription("Frames published to the bus."))
	m.bytes, errs[1] = meter.Int64Counter("postrider.bus.published.size", metric.WithUnit("By"),
		metric.WithDescription("Bytes of the frames published to the bus."))
	m.down, errs[2] = meter.Int64Counter("postrider.bus.refused", metric.WithUnit("{batch}"),
		metric.WithDescription("Batches that were not published because the bus was down; their rows wait for the scheduler."))
	m.handled, errs[3] = meter.Int64Counter("postrider.bus.handled", metric.WithUnit("{frame}"),
		metric.WithDescription("Frames handled and acked."))
	m.turnedAway, errs[6] = meter.Int64Counter("postrider.bus.frames.refused", metric.WithUnit("{frame}"),
		metric.WithDescription("Frames and notices that were not believed, by reason; the rows of a frame are rung again when due."))
	up, err := meter.Int64ObservableGauge("postrider.bus.up",
		metric.WithDescription("1 while connected to NATS with all streams there, else 0."))
	errs[4] = err
	m.registration, errs[5] = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		value := int64(0)
		if b.Up() {
			value = 1
		}
		o.ObserveInt64(up, value)
		return nil
	}, up)
	for _, err := range errs {
		if err != nil {
			slog.Warn("bus: metric not registered", "error", err)
		}
	}
	return m
}

func (m metrics) published(ctx context.Context, bytes int) {
	m.frames.Add(ctx, 1)
	m.bytes.Add(ctx, int64(bytes))
}

func (m metrics) refused(ctx context.Context) { m.down.Add(ctx, 1) }

func (m metrics) consumed(ctx context.Context, frames int) { m.handled.Add(ctx, int64(frames)) }

func (m metrics) unregister() {
	if m.registration == nil {
		return
	}
	if err := m.registration.Unregister(); err != nil {
		slog.Warn("bus: metric not unregistered", "error", err)
	}
}
