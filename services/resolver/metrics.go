package resolver

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/telemetry"
)

// metrics are the counters of the service.
type metrics struct{ recipients metric.Int64Counter }

func newMetrics() metrics {
	recipients, err := telemetry.Meter("resolver").Int64Counter("postrider.resolver.recipients", metric.WithUnit("{recipient}"),
		metric.WithDescription("Recipients by what became of their look-up: published, parked, held, delayed, failed, cancelled (by a rule that discards)."))
	if err != nil {
		slog.Warn("resolver: metric not registered", "error", err)
	}
	return metrics{recipients}
}

// count counts the recipients of requests.
func (m metrics) count(ctx context.Context, result string, requests []*mail.DeliveryRequest) {
	n := 0
	for _, request := range requests {
		n += len(request.Recipients)
	}
	m.add(ctx, result, n)
}

func (m metrics) add(ctx context.Context, result string, n int) {
	if n > 0 {
		m.recipients.Add(ctx, int64(n), metric.WithAttributes(attribute.String("result", result)))
	}
}
