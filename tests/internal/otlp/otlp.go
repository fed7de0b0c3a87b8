// Package otlp is an OpenTelemetry collector for tests: it takes traces over
// OTLP/HTTP and keeps them.
package otlp

import (
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is one span, with ids in hex.
type Span struct {
	Service, Name           string
	TraceID, SpanID, Parent string
	Attributes              map[string]string
}

// Collector keeps what it gets.
type Collector struct {
	server *httptest.Server

	mu    sync.Mutex // guards all below
	spans []Span
	errs  []error
}

// Start listens on a free port of 127.0.0.1.
func Start() *Collector {
	c := &Collector{}
	c.server = httptest.NewServer(http.HandlerFunc(c.take))
	return c
}

// URL is for OTEL_EXPORTER_OTLP_ENDPOINT.
func (c *Collector) URL() string { return c.server.URL }

// Close stops listening.
func (c *Collector) Close() { c.server.Close() }

// Trace returns the spans of a trace so far, and what could not be read of
// all that came.
func (c *Collector) Trace(id string) ([]Span, []error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var spans []Span
	for _, s := range c.spans {
		if s.TraceID == id {
			spans = append(spans, s)
		}
	}
	return spans, append([]error(nil), c.errs...)
}

func (c *Collector) take(w http.ResponseWriter, r *http.Request) {
	spans, err := read(r)
	c.mu.Lock()
	c.spans = append(c.spans, spans...)
	if err != nil {
		c.errs = append(c.errs, err)
	}
	c.mu.Unlock()
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-protobuf") // empty: all taken
}

func read(r *http.Request) ([]Span, error) {
	if r.URL.Path != "/v1/traces" {
		return nil, fmt.Errorf("OTLP request for %s", r.URL.Path)
	}
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, err
		}
		body = z
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	var req collector.ExportTraceServiceRequest
	if err := proto.Unmarshal(data, &req); err != nil {
		return nil, err
	}
	var spans []Span
	for _, rs := range req.GetResourceSpans() {
		service := ""
		for _, a := range rs.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				service = a.GetValue().GetStringValue()
			}
		}
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				span := Span{
					Service: service, Name: s.GetName(), TraceID: hex.EncodeToString(s.GetTraceId()),
					SpanID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
					Attributes: map[string]string{},
				}
				for _, a := range s.GetAttributes() {
					span.Attributes[a.GetKey()] = a.GetValue().GetStringValue()
				}
				spans = append(spans, span)
			}
		}
	}
	return spans, nil
}
