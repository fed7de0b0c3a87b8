package delivery

import (
	"context"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/telemetry"
)

// settleBatch bounds the settlements of one transaction.
const settleBatch = 500

// quiet is how long nothing is settled before an outcome counts as alone.
const quiet = 50 * time.Millisecond

// busy reports whether outcomes come so often that one may wait for others.
// One that is alone would wait in vain.
func (w *worker) busy() bool { return time.Since(w.settledAt) < quiet }

// settle records the outcomes of a batch in one transaction and rings the
// bounce service for what is to be reported. It does not give up while the
// lease lasts: the rows stay claimed meanwhile.
func (w *worker) settle(batch []mail.Settlement) {
	defer func() { w.settledAt = time.Now() }()
	var spans []trace.Span
	for i := range batch {
		m := &batch[i].Message
		if _, span := telemetry.Start(w.keep, w.tracer, "settle", m); span.IsRecording() {
			spans = append(spans, span)
		}
	}
	var lost int
	settle := w.store.Settle
	err := w.persist("settle", func(ctx context.Context) (err error) {
		lost, err = settle(ctx, w.id, batch)
		settle = w.store.Resettle // only the answer may be lost
		return err
	})
	for _, span := range spans {
		span.End()
	}
	if err != nil {
		slog.Error("outcomes not settled: their recipients are tried again when the lease ends", "worker_id", w.id, "settlements", len(batch), "error", err)
		return
	}
	if lost > 0 {
		slog.Warn("outcomes of recipients that were taken back meanwhile", "worker_id", w.id, "lost", lost)
		w.metrics.lost.Add(w.keep, int64(lost))
	}
	var reports []mail.QueueID
	now := time.Now()
	for i := range batch {
		st := &batch[i]
		telemetry.Settled(st)
		w.metrics.settled(w.keep, st, w.providerOf(&st.Transaction))
		if toReport(st, now) {
			reports = append(reports, st.Message.ID)
		}
	}
	if len(reports) == 0 {
		return
	}
	if err := w.bus.PublishFailed(w.keep, reports); err != nil {
		// The reports are due in Postgres, where bounce looks too.
		slog.Debug("bounce not rung", "worker_id", w.id, "error", err)
	}
}

// toReport reports whether the sender is to hear of an outcome now.
func toReport(st *mail.Settlement, now time.Time) bool {
	for i := range st.Outcomes {
		if at := st.Outcomes[i].ReportAt; !at.IsZero() && !at.After(now) {
			return true
		}
	}
	return false
}

// providerOf names the provider of a transaction, for metrics.
func (w *worker) providerOf(t *mail.Transaction) string {
	q := shaping.Query{Site: t.Site}
	if t.Host != "" {
		q.Hosts = []mail.Host{{Name: t.Host}}
	}
	return w.shaping.For(q).Provider
}
