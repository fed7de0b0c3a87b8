package httpd

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/postrider/postrider/pkg/mail"
)

// metrics are the instruments of the server, never by client or address. Mail
// counts in those of SMTP.
type metrics struct {
	requests   metric.Int64Counter
	messages   metric.Int64Counter
	recipients metric.Int64Counter
	bytes      metric.Int64Counter
}

func newMetrics() *metrics {
	meter := otel.Meter("github.com/postrider/postrider/services/ingress")
	m := &metrics{}
	var errs [4]error
	m.requests, errs[0] = meter.Int64Counter("postrider.ingress.http.requests", metric.WithUnit("{request}"),
		metric.WithDescription("Requests to submit mail by HTTP, by status."))
	m.messages, errs[1] = meter.Int64Counter("postrider.ingress.accepted", metric.WithUnit("{message}"),
		metric.WithDescription("Messages that were accepted with a 250."))
	m.recipients, errs[2] = meter.Int64Counter("postrider.ingress.accepted.recipients", metric.WithUnit("{recipient}"),
		metric.WithDescription("Recipients of accepted messages."))
	m.bytes, errs[3] = meter.Int64Counter("postrider.ingress.accepted.size", metric.WithUnit("By"),
		metric.WithDescription("Content of accepted messages."))
	for _, err := range errs {
		if err != nil {
			slog.Warn("ingress: metric not registered", "error", err)
		}
	}
	return m
}

func (m *metrics) accepted(sub *mail.Submission) {
	ctx := context.Background()
	m.messages.Add(ctx, 1)
	m.recipients.Add(ctx, int64(len(sub.Recipients)))
	m.bytes.Add(ctx, sub.SizeBytes)
}

func (m *metrics) answered(status int) {
	m.requests.Add(context.Background(), 1, metric.WithAttributes(attribute.Int("status", status)))
}
