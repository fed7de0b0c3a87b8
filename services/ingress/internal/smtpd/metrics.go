package smtpd

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/postrider/postrider/pkg/mail"
)

// metrics are the instruments of the server, never by client or address.
type metrics struct {
	messages     metric.Int64Counter
	recipients   metric.Int64Counter
	bytes        metric.Int64Counter
	handshakes   metric.Int64Counter
	refusals     metric.Int64Counter
	registration metric.Registration
}

func newMetrics(s *Server) *metrics {
	meter := otel.Meter("github.com/postrider/postrider/services/ingress")
	m := &metrics{}
	var errs [9]error
	m.messages, errs[0] = meter.Int64Counter("postrider.ingress.accepted", metric.WithUnit("{message}"),
		metric.WithDescription("Messages that were accepted with a 250."))
	m.recipients, errs[1] = meter.Int64Counter("postrider.ingress.accepted.recipients", metric.WithUnit("{recipient}"),
		metric.WithDescription("Recipients of accepted messages."))
	m.bytes, errs[2] = meter.Int64Counter("postrider.ingress.accepted.size", metric.WithUnit("By"),
		metric.WithDescription("Content of accepted messages."))
	m.refusals, errs[3] = meter.Int64Counter("postrider.ingress.refused", metric.WithUnit("{reply}"),
		metric.WithDescription("Negative replies to clients, by code."))
	m.handshakes, errs[7] = meter.Int64Counter("postrider.ingress.tls", metric.WithUnit("{handshake}"),
		metric.WithDescription("TLS handshakes with clients, by version, or failed."))
	sessions, err := meter.Int64ObservableGauge("postrider.ingress.sessions", metric.WithUnit("{session}"),
		metric.WithDescription("Connections with clients."))
	errs[4] = err
	held, err := meter.Int64ObservableGauge("postrider.ingress.content.held", metric.WithUnit("By"),
		metric.WithDescription("Budget for content that sessions hold."))
	errs[5] = err
	spooled, err := meter.Int64ObservableGauge("postrider.ingress.content.spooled", metric.WithUnit("By"),
		metric.WithDescription("Budget for content on disk that is still coming in."))
	errs[8] = err
	m.registration, errs[6] = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		o.ObserveInt64(sessions, int64(s.count()))
		o.ObserveInt64(held, s.memory.Used())
		o.ObserveInt64(spooled, s.spool.Used())
		return nil
	}, sessions, held, spooled)
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

func (m *metrics) refused(reply mail.Reply) {
	m.refusals.Add(context.Background(), 1, metric.WithAttributes(attribute.Int("code", reply.Code)))
}

func (m *metrics) handshake(result string) {
	m.handshakes.Add(context.Background(), 1, metric.WithAttributes(attribute.String("result", result)))
}

func (m *metrics) unregister() {
	if m.registration == nil {
		return
	}
	if err := m.registration.Unregister(); err != nil {
		slog.Warn("ingress: metric not unregistered", "error", err)
	}
}
