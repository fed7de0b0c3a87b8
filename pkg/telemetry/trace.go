package telemetry

import (
	"context"
	"encoding/hex"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/postrider/postrider/pkg/mail"
)

// linkAfter is the age of a message from which an attempt is a trace of its
// own with a link to the first one: a trace that grows for five days is more
// than trace stores take.
const linkAfter = time.Hour

// traceparentLength is the length of version 00: "00-", 32 digits of trace
// id, "-", 16 of span id, "-", 2 of flags. W3C Trace Context §3.2.2.
const traceparentLength = 55

// Traceparent returns the trace context of the span in ctx as a W3C
// traceparent, or "" if there is none.
func Traceparent(ctx context.Context) string {
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsValid() {
		return ""
	}
	traceID, spanID := sc.TraceID(), sc.SpanID()
	var buf [traceparentLength]byte
	copy(buf[:], "00-")
	hex.Encode(buf[3:35], traceID[:])
	buf[35] = '-'
	hex.Encode(buf[36:52], spanID[:])
	copy(buf[52:], "-00")
	if sc.IsSampled() {
		buf[54] = '1'
	}
	return string(buf[:])
}

// Continue returns ctx with the span that traceparent names as its parent:
// the next span joins that trace. A text that is no traceparent changes
// nothing, for it may come from a client.
func Continue(ctx context.Context, traceparent string) context.Context {
	sc, ok := parse(traceparent)
	if !ok {
		return ctx
	}
	return trace.ContextWithRemoteSpanContext(ctx, sc)
}

// parentsDecide says that the sampler of this process records no child of a
// span that is not recorded. Such a child need not be made to find out: at 1 %
// that is 99 of 100 messages, at each step.
var parentsDecide atomic.Bool

// Start begins a span of the walk of m: a child of its ingress.accept, or,
// when the message is older than an hour, a trace of its own that links to
// it. The span carries the queue id if it is recorded.
func Start(ctx context.Context, tracer trace.Tracer, name string, m *mail.Message) (context.Context, trace.Span) {
	sc, ok := parse(m.Traceparent)
	if ok && time.Since(m.AcceptedAt) < linkAfter {
		if !sc.IsSampled() && parentsDecide.Load() {
			ctx := trace.ContextWithRemoteSpanContext(ctx, sc)
			return ctx, trace.SpanFromContext(ctx)
		}
		ctx, span := tracer.Start(trace.ContextWithRemoteSpanContext(ctx, sc), name)
		return ctx, mark(span, m)
	}
	opts := []trace.SpanStartOption{trace.WithNewRoot()}
	if ok {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: sc}))
	}
	ctx, span := tracer.Start(ctx, name, opts...)
	return ctx, mark(span, m)
}

func mark(span trace.Span, m *mail.Message) trace.Span {
	if span.IsRecording() {
		span.SetAttributes(attribute.String("queue_id", m.ID.String()))
	}
	return span
}

// parse reads a traceparent of version 00, and the first fields of later
// versions: W3C Trace Context §3.2.2, §4.
func parse(s string) (trace.SpanContext, bool) {
	if len(s) < traceparentLength || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return trace.SpanContext{}, false
	}
	if s[:2] == "ff" || s[:2] == "00" && len(s) != traceparentLength || len(s) > traceparentLength && s[55] != '-' {
		return trace.SpanContext{}, false
	}
	var traceID trace.TraceID
	var spanID trace.SpanID
	var version, flags [1]byte
	for _, f := range []struct {
		to   []byte
		text string
	}{{version[:], s[:2]}, {traceID[:], s[3:35]}, {spanID[:], s[36:52]}, {flags[:], s[53:55]}} {
		if !lowerHex(f.to, f.text) {
			return trace.SpanContext{}, false
		}
	}
	sc := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID:    traceID,
		SpanID:     spanID,
		TraceFlags: trace.TraceFlags(flags[0]) & trace.FlagsSampled,
		Remote:     true,
	})
	return sc, sc.IsValid()
}

// lowerHex decodes lower-case hexadecimal, the only kind that a traceparent
// may have, without allocating.
func lowerHex(to []byte, text string) bool {
	for i := range to {
		hi, lo := digit(text[2*i]), digit(text[2*i+1])
		if hi > 15 || lo > 15 {
			return false
		}
		to[i] = hi<<4 | lo
	}
	return true
}

func digit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 255
}

// traceID returns the trace id inside a traceparent, for log lines.
func traceID(traceparent string) string {
	if len(traceparent) < 35 {
		return ""
	}
	return traceparent[3:35]
}
