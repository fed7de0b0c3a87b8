package telemetry

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/postrider/postrider/pkg/mail"
)

// NewLogHandler returns the handler of every log line: JSON, one line each,
// with the trace and span of the context when there are any. Durations have
// their unit: "1.5s".
func NewLogHandler(w io.Writer, level slog.Leveler) slog.Handler {
	return traced{slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})}
}

type traced struct{ slog.Handler }

func (h traced) Handle(ctx context.Context, r slog.Record) error {
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() && !isMailEvent(ctx) {
		r.AddAttrs(slog.String("trace_id", sc.TraceID().String()), slog.String("span_id", sc.SpanID().String()))
	}
	if hasDuration(&r) {
		said := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
		r.Attrs(func(a slog.Attr) bool {
			said.AddAttrs(withUnit(a))
			return true
		})
		r = said
	}
	return h.Handler.Handle(ctx, r)
}

func (h traced) WithAttrs(attrs []slog.Attr) slog.Handler {
	said := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		said[i] = withUnit(a)
	}
	return traced{h.Handler.WithAttrs(said)}
}

func (h traced) WithGroup(name string) slog.Handler { return traced{h.Handler.WithGroup(name)} }

func hasDuration(r *slog.Record) (found bool) {
	r.Attrs(func(a slog.Attr) bool {
		found = a.Value.Kind() == slog.KindDuration
		return !found
	})
	return found
}

// withUnit returns a duration as text: JSON would have a number of nanoseconds.
func withUnit(a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

// mailEvent marks the context of a line that names its trace itself.
type mailEvent struct{}

func isMailEvent(ctx context.Context) bool { return ctx.Value(mailEvent{}) != nil }

// event is the context of all mail events: each takes its trace from its
// message, for one batch has messages of many traces.
var event = context.WithValue(context.Background(), mailEvent{}, true)

// emit writes one mail event. The fields queue_id and trace_id come first in
// each. The record is made here because a Logger would look up its caller,
// which no line shows, for a fifth of what the line costs.
func emit(level slog.Level, name string, m *mail.Message, fields ...slog.Attr) {
	if !enabled(level) {
		return
	}
	r := slog.NewRecord(time.Now(), level, name, 0)
	r.AddAttrs(slog.String("queue_id", m.ID.String()), slog.String("trace_id", traceID(m.Traceparent)))
	r.AddAttrs(fields...)
	_ = slog.Default().Handler().Handle(event, r) // as a Logger does: there is nowhere to say that the log fails
}

func enabled(level slog.Level) bool { return slog.Default().Enabled(event, level) }

// Accepted: the message is stored, the client has its 250.
func Accepted(s *mail.Submission) {
	if !enabled(slog.LevelInfo) {
		return
	}
	emit(slog.LevelInfo, "accepted", &s.Message,
		slog.String("reverse_path", s.Envelope.ReversePath.String()),
		slog.Int("recipients", len(s.Recipients)),
		slog.Int64("size_bytes", s.SizeBytes),
		slog.String("client", address(s.Client.Address)),
		slog.String("hello", s.Client.Hello),
		slog.String("protocol", s.Client.Protocol),
		slog.String("message_id", s.HeaderID))
}

// Refusal is a command that ingress did not take.
type Refusal struct {
	Client      mail.Client
	Command     string // the verb
	ReversePath mail.ReversePath
	ForwardPath mail.ForwardPath
	Reply       mail.Reply
}

// Refused: ingress gave a client a negative reply. There is no message yet,
// so there is no queue id.
func Refused(r Refusal) {
	slog.Default().LogAttrs(event, slog.LevelInfo, "refused",
		slog.String("client", address(r.Client.Address)),
		slog.String("hello", r.Client.Hello),
		slog.String("command", r.Command),
		slog.String("reverse_path", r.ReversePath.String()),
		slog.String("forward_path", r.ForwardPath.String()),
		slog.String("reply", r.Reply.String()))
}

// Resolved: recipients of the message have a route.
func Resolved(r *mail.DeliveryRequest) {
	if !enabled(slog.LevelDebug) {
		return
	}
	emit(slog.LevelDebug, "resolved", &r.Message,
		slog.Int("recipients", len(r.Recipients)),
		slog.String("site", string(r.Route.Site)),
		slog.String("host", r.Route.Hosts[0].Name))
}

// Attempted: one transaction with a remote host is over, and its outcomes
// are about to be settled.
func Attempted(s *mail.Settlement) {
	if !enabled(slog.LevelDebug) {
		return
	}
	emit(slog.LevelDebug, "attempted", &s.Message,
		slog.Int("recipients", len(s.Outcomes)),
		slog.String("site", string(s.Transaction.Site)),
		slog.String("host", s.Transaction.Host),
		slog.String("remote", remote(s.Transaction.Remote)),
		slog.String("tls", s.Transaction.TLS),
		slog.Duration("duration", s.Transaction.Duration))
}

// Settled: the outcomes are committed. One line for each recipient.
func Settled(s *mail.Settlement) {
	if !enabled(slog.LevelInfo) {
		return
	}
	for i := range s.Outcomes {
		o := &s.Outcomes[i]
		emit(slog.LevelInfo, "settled", &s.Message,
			slog.Int("recipient_no", int(o.RecipientNo)),
			slog.Int("attempt", int(o.Attempt)),
			slog.String("action", string(o.Action)),
			slog.String("status", o.Status.String()),
			slog.String("phase", string(o.Phase)),
			slog.String("reply", reply(o.Reply)),
			slog.String("site", string(s.Transaction.Site)),
			slog.String("host", s.Transaction.Host),
			slog.String("remote", remote(s.Transaction.Remote)),
			slog.String("tls", s.Transaction.TLS),
			slog.Bool("uncertain", o.Uncertain),
			slog.Duration("duration", s.Transaction.Duration))
		if o.Action == mail.Failed && s.Message.Envelope.ReversePath.IsNull() {
			Unreported(&s.Message, "double bounce: the reverse-path is null")
		}
	}
}

// Reported: a report on a message was accepted as new mail. The line is that
// of the message reported on; report_id is the report.
func Reported(of *mail.Message, report *mail.Submission) {
	emit(slog.LevelInfo, "reported", of,
		slog.String("report_id", report.ID.String()),
		slog.Int("recipients", len(report.Recipients)))
}

// Unreported: a failure has nobody to hear of it, because the reverse-path is
// null or the sender asked for no report. A bounce never bounces: RFC 5321
// §4.5.5.
func Unreported(m *mail.Message, why string) {
	emit(slog.LevelInfo, "unreported", m, slog.String("why", why))
}

// reply prints what the remote host said, or, if it said nothing, what
// happened.
func reply(r mail.Reply) string {
	if r.Code == 0 {
		return r.Text()
	}
	return r.String()
}

func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func remote(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
