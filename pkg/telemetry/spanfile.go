package telemetry

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// maxSpanFile bounds a span file, in bytes. A full one becomes FILE.1, whose
// predecessor goes.
const maxSpanFile = 32 << 20

// Span is one line of a span file.
type Span struct {
	TraceID    string         `json:"trace_id"`
	SpanID     string         `json:"span_id"`
	ParentID   string         `json:"parent_id,omitempty"`
	Scope      string         `json:"scope"` // the service
	Name       string         `json:"name"`
	Start      time.Time      `json:"start"`
	End        time.Time      `json:"end"`
	Error      string         `json:"error,omitempty"`
	Attributes map[string]any `json:"attributes,omitempty"`
	Events     []SpanEvent    `json:"events,omitempty"`
	Links      []string       `json:"links,omitempty"` // trace ids
}

// SpanEvent is a moment inside a span.
type SpanEvent struct {
	Name       string         `json:"name"`
	Time       time.Time      `json:"time"`
	Attributes map[string]any `json:"attributes,omitempty"`
}

// spanFile is an exporter that writes JSON lines.
type spanFile struct {
	mu   sync.Mutex // guards file and size
	name string
	file *os.File
	size int64
}

func newSpanFile(name string) (*spanFile, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return nil, err
	}
	f := &spanFile{name: name}
	return f, f.open()
}

func (f *spanFile) open() error {
	file, err := os.OpenFile(f.name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	f.file, f.size = file, info.Size()
	return nil
}

// ExportSpans appends the spans, one line each.
func (f *spanFile) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.size > maxSpanFile {
		if err := f.rotate(); err != nil {
			return fmt.Errorf("span file: %w", err)
		}
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	for _, s := range spans {
		if err := enc.Encode(lineOf(s)); err != nil {
			return fmt.Errorf("span file: %w", err)
		}
	}
	n, err := f.file.Write(buf.Bytes())
	f.size += int64(n)
	return err
}

func (f *spanFile) rotate() error {
	if err := f.file.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.name, f.name+".1"); err != nil {
		return err
	}
	return f.open()
}

// Shutdown closes the file.
func (f *spanFile) Shutdown(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.file.Close()
}

func lineOf(s sdktrace.ReadOnlySpan) Span {
	line := Span{
		TraceID:    s.SpanContext().TraceID().String(),
		SpanID:     s.SpanContext().SpanID().String(),
		Scope:      s.InstrumentationScope().Name,
		Name:       s.Name(),
		Start:      s.StartTime().UTC(),
		End:        s.EndTime().UTC(),
		Error:      s.Status().Description,
		Attributes: values(s.Attributes()),
	}
	if s.Parent().IsValid() {
		line.ParentID = s.Parent().SpanID().String()
	}
	for _, e := range s.Events() {
		line.Events = append(line.Events, SpanEvent{Name: e.Name, Time: e.Time.UTC(), Attributes: values(e.Attributes)})
	}
	for _, l := range s.Links() {
		line.Links = append(line.Links, l.SpanContext.TraceID().String())
	}
	return line
}

func values(attrs []attribute.KeyValue) map[string]any {
	if len(attrs) == 0 {
		return nil
	}
	m := make(map[string]any, len(attrs))
	for _, a := range attrs {
		m[string(a.Key)] = a.Value.AsInterface()
	}
	return m
}

// ReadSpans returns the spans of a trace, and of the traces that link to it,
// from a span file and its predecessor, in the order of their start. No file
// is no spans.
func ReadSpans(name, traceID string) ([]Span, error) {
	if traceID == "" {
		return nil, nil
	}
	spans, err := readSpans(name, []string{traceID})
	if err != nil {
		return nil, err
	}
	traces := []string{traceID}
	for _, s := range spans {
		if !slices.Contains(traces, s.TraceID) {
			traces = append(traces, s.TraceID) // the first span of a later attempt
		}
	}
	if len(traces) > 1 {
		return readSpans(name, traces)
	}
	return spans, nil
}

func readSpans(name string, traces []string) ([]Span, error) {
	var spans []Span
	for _, file := range []string{name + ".1", name} {
		f, err := os.Open(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found, err := scanSpans(f, traces)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		spans = append(spans, found...)
	}
	slices.SortStableFunc(spans, func(a, b Span) int { return a.Start.Compare(b.Start) })
	return spans, nil
}

func scanSpans(r io.Reader, traces []string) ([]Span, error) {
	var spans []Span
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if !slices.ContainsFunc(traces, func(id string) bool { return bytes.Contains(lines.Bytes(), []byte(id)) }) {
			continue
		}
		var s Span
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			continue // half a line, cut by a crash
		}
		spans = append(spans, s)
	}
	return spans, lines.Err()
}
