package access

import (
	"context"
	"errors"
	"log/slog"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics are the instruments of a keeper, never by user or address.
type metrics struct {
	attempts metric.Int64Counter
	quotas   metric.Int64Counter
}

func newMetrics() *metrics {
	meter := otel.Meter("github.com/postrider/postrider/services/ingress")
	m := &metrics{}
	var errs [2]error
	m.attempts, errs[0] = meter.Int64Counter("postrider.ingress.authentications", metric.WithUnit("{attempt}"),
		metric.WithDescription("Clients that tried to authenticate, by method and outcome."))
	m.quotas, errs[1] = meter.Int64Counter("postrider.ingress.over_quota", metric.WithUnit("{message}"),
		metric.WithDescription("Messages that were put off by a rate, a quota or a suspension."))
	for _, err := range errs {
		if err != nil {
			slog.Warn("ingress: metric not registered", "error", err)
		}
	}
	return m
}

func (m *metrics) attempt(method Method, err error) {
	outcome := "unavailable"
	var tooMany *TooManyError
	switch {
	case err == nil:
		outcome = "accepted"
	case errors.Is(err, ErrRefused), errors.Is(err, ErrExchange):
		outcome = "refused"
	case errors.As(err, &tooMany):
		outcome = "blocked"
	case errors.Is(err, context.Canceled):
		outcome = "gone"
	}
	m.attempts.Add(context.Background(), 1, metric.WithAttributes(
		attribute.String("method", string(method)), attribute.String("outcome", outcome)))
}

func (m *metrics) take(err error) {
	var quota *QuotaError
	if errors.As(err, &quota) {
		m.quotas.Add(context.Background(), 1)
	}
}
