package bounce

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/telemetry"
)

// metrics are the counters of the service.
type metrics struct {
	reports metric.Int64Counter
	failed  metric.Int64Counter
	tls     metric.Int64Counter
}

func newMetrics() metrics {
	meter := telemetry.Meter("bounce")
	var m metrics
	var errs [3]error
	m.reports, errs[0] = meter.Int64Counter("postrider.reports", metric.WithUnit("{report}"),
		metric.WithDescription("Delivery status notifications written, by kind."))
	m.failed, errs[1] = meter.Int64Counter("postrider.reports.failed", metric.WithUnit("{message}"),
		metric.WithDescription("Messages whose report could not be written and stays due."))
	m.tls, errs[2] = meter.Int64Counter("postrider.tls.reports", metric.WithUnit("{report}"),
		metric.WithDescription("Reports on TLS (RFC 8460) that were sent or could not be sent, by way."))
	for _, err := range errs {
		if err != nil {
			slog.Warn("bounce: metric not registered", "error", err)
		}
	}
	return m
}

func (m metrics) report(ctx context.Context, kind store.ReportKind) {
	m.reports.Add(ctx, 1, metric.WithAttributes(attribute.String("kind", string(kind))))
}

func (m metrics) tlsReport(ctx context.Context, way, outcome string) {
	m.tls.Add(ctx, 1, metric.WithAttributes(attribute.String("way", way), attribute.String("outcome", outcome)))
}
