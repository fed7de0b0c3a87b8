package commit

import (
	"context"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics are the instruments of the committer.
type metrics struct {
	groupSize  metric.Int64Histogram
	commitTime metric.Float64Histogram
	hints      metric.Int64Counter
	ok, failed metric.MeasurementOption
	stream     metric.MeasurementOption
	streamBad  metric.MeasurementOption
}

func newMetrics() *metrics {
	meter := otel.Meter("github.com/postrider/postrider/services/ingress")
	outcome := func(outcome, kind string) metric.MeasurementOption {
		return metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", outcome), attribute.String("kind", kind)))
	}
	m := &metrics{
		ok: outcome("committed", "group"), failed: outcome("failed", "group"),
		stream: outcome("committed", "stream"), streamBad: outcome("failed", "stream"),
	}
	var errs [3]error
	m.groupSize, errs[0] = meter.Int64Histogram("postrider.ingress.commit.messages",
		metric.WithDescription("Messages of one commit."), metric.WithUnit("{message}"),
		metric.WithExplicitBucketBoundaries(1, 2, 4, 8, 16, 32, 64, 128, 256))
	m.commitTime, errs[1] = meter.Float64Histogram("postrider.ingress.commit.duration",
		metric.WithDescription("Time of one commit in Postgres."), metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(.0005, .001, .002, .004, .008, .016, .032, .064, .125, .25, .5, 1, 2, 4, 8))
	m.hints, errs[2] = meter.Int64Counter("postrider.ingress.unpublished",
		metric.WithDescription("Accepted messages whose hint was not published; the scheduler rings for them."), metric.WithUnit("{message}"))
	for _, err := range errs {
		if err != nil {
			otel.Handle(err) // a bad name: the instrument does nothing
		}
	}
	return m
}

func (m *metrics) committed(ctx context.Context, group []*Seat, took time.Duration, err error) {
	option := m.ok
	if err != nil {
		option = m.failed
	}
	m.groupSize.Record(ctx, int64(len(group)), option)
	m.commitTime.Record(ctx, took.Seconds(), option)
}

func (m *metrics) streamed(ctx context.Context, err error) {
	option := m.stream
	if err != nil {
		option = m.streamBad
	}
	m.groupSize.Record(ctx, 1, option)
}

func (m *metrics) unpublished(messages int) { m.hints.Add(context.Background(), int64(messages)) }
