package httpd

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics are the instruments of the server, never by client or address.
type metrics struct{ requests metric.Int64Counter }

func newMetrics() *metrics {
	requests, err := otel.Meter("github.com/postrider/postrider/services/ingress").Int64Counter("postrider.ingress.http.requests",
		metric.WithUnit("{request}"), metric.WithDescription("Requests to submit mail by HTTP, by status."))
	if err != nil {
		slog.Warn("ingress: metric not registered", "error", err)
	}
	return &metrics{requests: requests}
}

func (m *metrics) answered(status int) {
	m.requests.Add(context.Background(), 1, metric.WithAttributes(attribute.Int("status", status)))
}
