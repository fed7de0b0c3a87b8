// Package telemetry owns traces, metrics and logs: it sets up the
// OpenTelemetry SDK once per process, carries the trace of a message through
// the walk, and holds the vocabulary of mail events (log.go: one function per
// event, the same fields in the same order).
//
// Traces go to an OTLP collector when OTEL_EXPORTER_OTLP_ENDPOINT is set, and
// to a file of JSON lines in development. The OTEL_* variables mean what the
// OpenTelemetry specification says: OTEL_EXPORTER_OTLP_PROTOCOL is grpc or
// http/protobuf (the default), OTEL_TRACES_SAMPLER and its argument replace
// our sampler, OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES add to the
// resource. Without any exporter no span is recorded, and each message still
// has a trace id that its log lines share.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Options say what a process wants of its telemetry.
type Options struct {
	Service     string  // service.name of the resource
	Version     string  // service.version
	SampleRatio float64 // share of new traces that are recorded, 0 to 1; OTEL_TRACES_SAMPLER wins
	SpanFile    string  // spans go to this file as JSON lines too; "" is none
}

// SDK is the telemetry of this process.
type SDK struct {
	traces   *sdktrace.TracerProvider
	metrics  *sdkmetric.MeterProvider
	registry *prometheus.Registry
}

// Setup installs the tracer and meter providers of the process. Errors: an
// unknown OTEL_EXPORTER_OTLP_PROTOCOL, or a span file that cannot be written.
// A collector that is away is no error: its spans are dropped.
func Setup(ctx context.Context, o Options) (*SDK, error) {
	res, err := resource.New(ctx,
		resource.WithHost(),
		resource.WithAttributes(
			attribute.String("service.name", o.Service),
			attribute.String("service.version", o.Version)),
		resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("telemetry resource: %w", err)
	}
	traces, err := newTraces(ctx, o, res)
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry), otelprometheus.WithoutScopeInfo())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("telemetry: %w", err), traces.Shutdown(ctx))
	}
	s := &SDK{
		traces:   traces,
		metrics:  sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter), sdkmetric.WithResource(res)),
		registry: registry,
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		slog.Warn("telemetry", "error", err)
	}))
	otel.SetTracerProvider(s.traces)
	otel.SetMeterProvider(s.metrics)
	return s, nil
}

func newTraces(ctx context.Context, o Options, res *resource.Resource) (*sdktrace.TracerProvider, error) {
	opts := []sdktrace.TracerProviderOption{sdktrace.WithResource(res)}
	exporting := false
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "" {
		exporter, err := newOTLP(ctx)
		if err != nil {
			return nil, err
		}
		opts = append(opts, sdktrace.WithBatcher(exporter))
		exporting = true
	}
	if o.SpanFile != "" {
		exporter, err := newSpanFile(o.SpanFile)
		if err != nil {
			return nil, err
		}
		// Soon, because somebody waits for the walk of the message just sent.
		opts = append(opts, sdktrace.WithBatcher(exporter, sdktrace.WithBatchTimeout(200*time.Millisecond)))
		exporting = true
	}
	sampler := os.Getenv("OTEL_TRACES_SAMPLER")
	parentsDecide.Store(!exporting || sampler == "" || strings.HasPrefix(sampler, "parentbased_"))
	switch {
	case !exporting:
		opts = append(opts, sdktrace.WithSampler(sdktrace.NeverSample()))
	case sampler == "":
		opts = append(opts, sdktrace.WithSampler(sdktrace.ParentBased(linked{sdktrace.TraceIDRatioBased(o.SampleRatio)})))
	}
	return sdktrace.NewTracerProvider(opts...), nil
}

func newOTLP(ctx context.Context) (sdktrace.SpanExporter, error) {
	protocol := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
	if protocol == "" {
		protocol = os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
	}
	switch protocol {
	case "grpc":
		return otlptracegrpc.New(ctx)
	case "", "http/protobuf", "http":
		return otlptracehttp.New(ctx)
	default:
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL is %q, want grpc or http/protobuf", protocol)
	}
}

// linked samples a new trace that links to a recorded one, so that the
// attempts of later days are kept when the acceptance was. Other new traces
// are up to the sampler inside.
type linked struct{ sdktrace.Sampler }

func (l linked) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	for _, link := range p.Links {
		if link.SpanContext.IsSampled() {
			return sdktrace.SamplingResult{
				Decision:   sdktrace.RecordAndSample,
				Tracestate: trace.SpanContextFromContext(p.ParentContext).TraceState(),
			}
		}
	}
	return l.Sampler.ShouldSample(p)
}

// MetricsHandler serves the metrics of the process in the formats that
// Prometheus reads.
func (s *SDK) MetricsHandler() http.Handler {
	return promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{})
}

// Shutdown sends what is left and ends the telemetry, at the latest when ctx
// is done.
func (s *SDK) Shutdown(ctx context.Context) error {
	return errors.Join(s.traces.Shutdown(ctx), s.metrics.Shutdown(ctx))
}

// Tracer returns the tracer of a service or package.
func Tracer(name string) trace.Tracer { return otel.Tracer(name) }

// Meter returns the meter of a service or package.
func Meter(name string) metric.Meter { return otel.Meter(name) }
