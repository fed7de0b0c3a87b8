package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/postrider/postrider/pkg/mail"
)

const parentText = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func setup(t *testing.T, o Options) *SDK {
	t.Helper()
	s, err := Setup(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func shutdown(t *testing.T, s *SDK) {
	t.Helper()
	if err := s.Shutdown(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}

func TestTraceparentRoundTrip(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"sampled":                {parentText, parentText},
		"not sampled":            {parentText[:53] + "00", parentText[:53] + "00"},
		"other flags are masked": {parentText[:53] + "03", parentText},
		"later version, more":    {"01" + parentText[2:] + "-x", parentText},
		"version ff":             {"ff" + parentText[2:], ""},
		"too long for 00":        {parentText + "-x", ""},
		"upper case":             {strings.ToUpper(parentText), ""},
		"zero trace":             {"00-00000000000000000000000000000000-b7ad6b7169203331-01", ""},
		"zero span":              {"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", ""},
		"short":                  {"00-0af7", ""},
		"no text":                {"", ""},
		"header injection":       {parentText[:50] + "\r\nX: y", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Traceparent(Continue(t.Context(), tc.in)); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func FuzzContinue(f *testing.F) {
	f.Add(parentText)
	f.Add("01" + parentText[2:] + "-more")
	f.Fuzz(func(t *testing.T, text string) {
		got := Traceparent(Continue(context.Background(), text))
		if got == "" {
			return
		}
		if len(got) != traceparentLength || got[3:52] != text[3:52] {
			t.Errorf("%q became %q", text, got)
		}
	})
}

// TestOneTrace follows the spans of a message to the span file: the parent
// chain, the link of a late attempt, and the reader's order.
func TestOneTrace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "spans.jsonl")
	sdk := setup(t, Options{Service: "test", SampleRatio: 1, SpanFile: file})
	ctx, accept := Tracer("ingress").Start(t.Context(), "ingress.accept")
	m := mail.Message{ID: mail.NewQueueID(), AcceptedAt: time.Now(), Traceparent: Traceparent(ctx)}
	accept.End()
	_, attempt := Start(t.Context(), Tracer("delivery"), "delivery.attempt", &m)
	attempt.AddEvent("reply")
	attempt.End()
	old := m
	old.AcceptedAt = time.Now().Add(-25 * time.Hour)
	ctx, late := Start(t.Context(), Tracer("delivery"), "delivery.attempt", &old)
	_, inner := Tracer("delivery").Start(ctx, "smtp.data")
	inner.End()
	late.End()
	_, other := Tracer("delivery").Start(t.Context(), "another message")
	other.End()
	shutdown(t, sdk)

	spans, err := ReadSpans(file, m.Traceparent[3:35])
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range spans {
		names = append(names, s.Scope+"/"+s.Name)
	}
	want := "ingress/ingress.accept delivery/delivery.attempt delivery/delivery.attempt delivery/smtp.data"
	if got := strings.Join(names, " "); got != want {
		t.Fatalf("spans %s, want %s", got, want)
	}
	if spans[1].ParentID != spans[0].SpanID || spans[1].TraceID != spans[0].TraceID {
		t.Errorf("attempt %+v is not a child of %+v", spans[1], spans[0])
	}
	if spans[1].Attributes["queue_id"] != m.ID.String() || len(spans[1].Events) != 1 {
		t.Errorf("attempt has attributes %v and events %v", spans[1].Attributes, spans[1].Events)
	}
	if spans[2].TraceID == spans[0].TraceID || len(spans[2].Links) != 1 || spans[2].Links[0] != spans[0].TraceID {
		t.Errorf("late attempt %+v does not link to trace %s", spans[2], spans[0].TraceID)
	}
}

// TestLateAttemptFollowsTheSample: with a ratio of 0 only what links to a
// recorded trace is recorded.
func TestLateAttemptFollowsTheSample(t *testing.T) {
	file := filepath.Join(t.TempDir(), "spans.jsonl")
	sdk := setup(t, Options{Service: "test", SpanFile: file})
	defer shutdown(t, sdk)
	for flags, want := range map[string]bool{"01": true, "00": false} {
		m := mail.Message{AcceptedAt: time.Now().Add(-2 * time.Hour), Traceparent: parentText[:53] + flags}
		_, span := Start(t.Context(), Tracer("delivery"), "delivery.attempt", &m)
		if got := span.IsRecording(); got != want {
			t.Errorf("flags %s: recording %v, want %v", flags, got, want)
		}
		span.End()
	}
}

func TestWithoutExporterTraceIDsRemain(t *testing.T) {
	sdk := setup(t, Options{Service: "test", SampleRatio: 1})
	defer shutdown(t, sdk)
	ctx, span := Tracer("ingress").Start(t.Context(), "ingress.accept")
	defer span.End()
	if span.IsRecording() {
		t.Error("span is recorded although nobody takes it")
	}
	if text := Traceparent(ctx); !strings.HasSuffix(text, "-00") {
		t.Errorf("traceparent %q, want one that is not sampled", text)
	}
}

// TestNotSampledIsCheap bounds what a message that is not sampled costs.
func TestNotSampledIsCheap(t *testing.T) {
	sdk := setup(t, Options{Service: "test"})
	defer shutdown(t, sdk)
	tracer := Tracer("delivery")
	m := mail.Message{ID: mail.NewQueueID(), AcceptedAt: time.Now(), Traceparent: parentText[:53] + "00"}
	got := testing.AllocsPerRun(1000, func() {
		ctx, span := Start(context.Background(), tracer, "delivery.attempt", &m)
		_ = Traceparent(ctx)
		span.End()
	})
	t.Logf("%.0f allocations per span", got)
	if got > 6 {
		t.Errorf("%.0f allocations per span, want at most 6", got)
	}
}

func TestSpanFileRotates(t *testing.T) {
	name := filepath.Join(t.TempDir(), "deep", "spans.jsonl")
	f, err := newSpanFile(name)
	if err != nil {
		t.Fatal(err)
	}
	f.size = maxSpanFile + 1
	if err := f.ExportSpans(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(name + ".1"); err != nil {
		t.Error(err)
	}
	if f.size != 0 {
		t.Errorf("size after rotation %d, want 0", f.size)
	}
	if err := f.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestUnknownProtocolIsAnError(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")
	if _, err := Setup(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "carrier-pigeon") {
		t.Errorf("error %v, want one that names the protocol", err)
	}
}

func TestOTLPExport(t *testing.T) {
	got := make(chan int, 16)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.URL.Path != "/v1/traces" || !bytes.Contains(body, []byte("ingress.accept")) {
			t.Errorf("%s: %v: %q", r.URL.Path, err, body)
		}
		got <- len(body)
	}))
	defer collector.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_TRACES_SAMPLER", "always_on")
	sdk := setup(t, Options{Service: "test"})
	_, span := Tracer("ingress").Start(t.Context(), "ingress.accept")
	span.End()
	shutdown(t, sdk)
	select {
	case <-got:
	default:
		t.Error("the collector got nothing")
	}
}

func TestMetricsHandler(t *testing.T) {
	sdk := setup(t, Options{Service: "test"})
	defer shutdown(t, sdk)
	counter, err := Meter("ingress").Int64Counter("postrider.accepted.messages")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 3)
	rec := httptest.NewRecorder()
	sdk.MetricsHandler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{"postrider_accepted_messages_total 3", "go_goroutines", `service_name="test"`} {
		if !strings.Contains(rec.Body.String(), want) {
			t.Errorf("metrics have no %q", want)
		}
	}
}

// capture makes the default logger write into a buffer for the test.
func capture(t *testing.T, level slog.Level) *bytes.Buffer {
	t.Helper()
	var buf bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(NewLogHandler(&buf, level)))
	t.Cleanup(func() { slog.SetDefault(before) })
	return &buf
}

func TestMailEventsHaveTheSameHead(t *testing.T) {
	buf := capture(t, slog.LevelDebug)
	sub := &mail.Submission{Message: mail.Message{ID: mail.NewQueueID(), Traceparent: parentText}}
	req := &mail.DeliveryRequest{Message: sub.Message, Route: &mail.Route{Hosts: []mail.Host{{Name: "mx.example.com"}}}}
	set := &mail.Settlement{Message: sub.Message, Outcomes: []mail.Outcome{
		{RecipientNo: 1, Reply: mail.Reply{Code: 250, Lines: []string{"ok"}}},
		{RecipientNo: 2, Reply: mail.Reply{Lines: []string{"connection refused"}}},
	}}
	Accepted(sub)
	Resolved(req)
	Attempted(set)
	Settled(set)
	Reported(&sub.Message, sub)
	Unreported(&sub.Message, "null reverse-path")
	lines := strings.Split(strings.TrimSpace(buf.String()), "\n")
	var names []string
	for _, line := range lines {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatal(err)
		}
		names = append(names, fields["msg"].(string))
		head := `"msg":"` + fields["msg"].(string) + `","queue_id":"` + sub.ID.String() + `","trace_id":"0af7651916cd43dd8448eb211c80319c",`
		if !strings.Contains(line, head) {
			t.Errorf("line %s has no head %s", line, head)
		}
	}
	for _, want := range []string{`"reply":"250 ok"`, `"reply":"connection refused"`} {
		if !strings.Contains(buf.String(), want) {
			t.Errorf("no %s in %s", want, buf)
		}
	}
	if got := strings.Join(names, " "); got != "accepted resolved attempted settled settled reported unreported" {
		t.Errorf("events %s", got)
	}
}

func TestRefusedTellsWhoAndWhy(t *testing.T) {
	buf := capture(t, slog.LevelInfo)
	Refused(Refusal{Command: "RCPT", ForwardPath: "a@example.com", Reply: mail.Reply{Code: 550, Enhanced: mail.EnhancedCode{Class: 5, Subject: 7, Detail: 1}, Lines: []string{"no"}}})
	for _, want := range []string{`"msg":"refused"`, `"reply":"550 5.7.1 no"`, `"forward_path":"<a@example.com>"`} {
		if !strings.Contains(buf.String(), want) {
			t.Errorf("%s has no %s", buf, want)
		}
	}
}

func TestDurationsInTheLogHaveAUnit(t *testing.T) {
	var buf bytes.Buffer
	l := slog.New(NewLogHandler(&buf, slog.LevelInfo)).With("every", 400*time.Millisecond)
	l.Info("x", "n", 3, "left", 1500*time.Millisecond)
	for _, want := range []string{`"every":"400ms"`, `"left":"1.5s"`, `"n":3`} {
		if !strings.Contains(buf.String(), want) {
			t.Errorf("the line %s lacks %s", buf.String(), want)
		}
	}
}

func TestLogLinesCarryTheTraceOfTheirContext(t *testing.T) {
	buf := capture(t, slog.LevelInfo)
	ctx := trace.ContextWithRemoteSpanContext(t.Context(), trace.SpanContextFromContext(Continue(t.Context(), parentText)))
	slog.With("service", "x").InfoContext(ctx, "hello")
	if !strings.Contains(buf.String(), `"trace_id":"0af7651916cd43dd8448eb211c80319c","span_id":"b7ad6b7169203331"`) {
		t.Errorf("no trace in %s", buf)
	}
}

// The child of a span that is not recorded is made only if the sampler could
// record it.
func TestChildrenOfUnsampled(t *testing.T) {
	m := &mail.Message{ID: mail.NewQueueID(), AcceptedAt: time.Now(), Traceparent: parentText[:53] + "00"}
	for sampler, recorded := range map[string]bool{"": false, "parentbased_always_on": false, "always_on": true} {
		t.Run("sampler "+sampler, func(t *testing.T) {
			t.Setenv("OTEL_TRACES_SAMPLER", sampler)
			s := setup(t, Options{SpanFile: filepath.Join(t.TempDir(), "spans"), SampleRatio: 1})
			defer shutdown(t, s)
			ctx, span := Start(t.Context(), Tracer("test"), "step", m)
			defer span.End()
			if span.IsRecording() != recorded {
				t.Errorf("recorded: %v, want %v", span.IsRecording(), recorded)
			}
			if got := Traceparent(ctx); got[3:35] != m.Traceparent[3:35] {
				t.Errorf("the trace goes on as %s, was %s", got, m.Traceparent)
			}
		})
	}
}
