package delivery

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/telemetry"
)

// metrics counts by the class of the outcome and by provider, of which the
// configuration names a few; never by domain or address.
type metrics struct {
	outcomes    metric.Int64Counter
	lost        metric.Int64Counter
	unknown     metric.Int64Counter
	parked      metric.Int64Counter
	duration    metric.Float64Histogram
	lag         metric.Float64Histogram
	connections metric.Int64Counter
	adaptations metric.Int64Counter
	options     sync.Map // labels to metric.MeasurementOption
}

func newMetrics() (*metrics, error) {
	meter := telemetry.Meter("delivery")
	m := &metrics{}
	var errs [8]error
	m.outcomes, errs[0] = meter.Int64Counter("postrider.outcomes", metric.WithDescription("recipients by what became of them in an attempt"))
	m.lost, errs[1] = meter.Int64Counter("postrider.outcomes.lost", metric.WithDescription("outcomes of recipients that were taken back meanwhile"))
	m.parked, errs[2] = meter.Int64Counter("postrider.requests.parked", metric.WithDescription("delivery requests laid aside because their site has no room"))
	m.duration, errs[3] = meter.Float64Histogram("postrider.transaction.duration", metric.WithUnit("s"), metric.WithDescription("from the beginning of an attempt to its last reply"))
	m.lag, errs[4] = meter.Float64Histogram("postrider.delivery.lag", metric.WithUnit("s"), metric.WithDescription("from the acceptance of a message to its relay, first attempts only"))
	m.connections, errs[5] = meter.Int64Counter("postrider.connections", metric.WithDescription("attempts to connect to a remote host, by how they ended"))
	m.adaptations, errs[6] = meter.Int64Counter("postrider.adaptations", metric.WithDescription("replies that changed the pace, by provider and by what was done: actions of automation, or slow down"))
	m.unknown, errs[7] = meter.Int64Counter("postrider.claims.unknown", metric.WithUnit("{recipient}"),
		metric.WithDescription("recipients that Postgres took for claimed by this worker, which knew nothing of them, and that were given back; more than 0 means that Postgres lost what it had committed, as in a failover to a standby that was behind"))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return m, nil
}

// labels are the labels of one kind of outcome.
type labels struct {
	provider, action, phase string
	class                   int // of the reply: 2, 4, 5, or 0 without one
	uncertain               bool
}

// option returns the labels as the meter takes them, made once for each kind.
func (m *metrics) option(l labels) metric.MeasurementOption {
	if o, ok := m.options.Load(l); ok {
		return o.(metric.MeasurementOption)
	}
	attrs := []attribute.KeyValue{attribute.String("provider", l.provider)}
	if l.action != "" {
		attrs = append(attrs, attribute.String("action", l.action), attribute.String("phase", l.phase),
			attribute.Int("class", l.class), attribute.Bool("uncertain", l.uncertain))
	}
	o := metric.WithAttributeSet(attribute.NewSet(attrs...))
	m.options.Store(l, o)
	return o
}

// settled counts the outcomes of a settlement.
func (m *metrics) settled(ctx context.Context, st *mail.Settlement, provider string) {
	for i := range st.Outcomes {
		o := &st.Outcomes[i]
		m.outcomes.Add(ctx, 1, m.option(labels{provider, string(o.Action), string(o.Phase), o.Reply.Code / 100, o.Uncertain}))
	}
	m.duration.Record(ctx, st.Transaction.Duration.Seconds(), m.option(labels{provider: provider}))
	if o := &st.Outcomes[0]; o.Action == mail.Relayed && o.Attempt == 1 {
		at := st.Transaction.StartedAt.Add(st.Transaction.Duration)
		m.lag.Record(ctx, at.Sub(st.Message.AcceptedAt).Seconds(), m.option(labels{provider: provider}))
	}
}

// connected counts an attempt to connect.
func (m *metrics) connected(ctx context.Context, how string) {
	m.connections.Add(ctx, 1, metric.WithAttributes(attribute.String("outcome", how)))
}

// adapted counts a reply that changed the pace.
func (m *metrics) adapted(ctx context.Context, provider, action string) {
	m.adaptations.Add(ctx, 1, metric.WithAttributes(attribute.String("provider", provider), attribute.String("action", action)))
}
