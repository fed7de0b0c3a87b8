package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/postrider/postrider/tests/world"
)

// postrider is the whole system: one process of each service, Postgres with
// durable commits, and a NATS server.
type postrider struct {
	world     *world.World
	collector *httptest.Server
	spans     atomic.Int64 // bytes of traces that the collector got
}

// shaping opens what Postfix's configuration opens: 20 connections to a
// destination, used again without end, 20,000 messages in the active queue,
// and no rates.
const shaping = `["default"]
connection_limit = 20
max_ready = 20000
max_deliveries_per_connection = 100000
max_connection_rate = "unlimited"
max_message_rate = "unlimited"
`

func (p *postrider) name() string { return "postrider" }
func (p *postrider) smtp() string { return p.world.SMTP(0) }

func (p *postrider) start(ctx context.Context, dir string, w workload) error {
	p.collector = httptest.NewServer(http.HandlerFunc(p.collect))
	var err error
	p.world, err = world.New(ctx, world.Options{
		Durable: true,
		Shaping: shaping,
		Parent:  dir,
		Env: map[string]string{
			"POSTRIDER_ALLOW_TARGETS":     "127.0.0.0/8",
			"POSTRIDER_RELAY_NETWORKS":    "127.0.0.0/8",
			"OTEL_EXPORTER_OTLP_ENDPOINT": p.collector.URL,
			"OTEL_TRACES_SAMPLER":         "parentbased_traceidratio",
			"OTEL_TRACES_SAMPLER_ARG":     "0.01", // DESIGN.md §7
			"GOMAXPROCS":                  "1",    // of each process: many share few cores (docs/configuration.md)
		},
	})
	if err != nil {
		return err
	}
	for i := range w.recipients {
		host := "mx." + domain(i)
		if err := p.world.SetA(host, sinkAddress(i)); err != nil {
			return err
		}
		if err := p.world.SetMX(domain(i), "10 "+host); err != nil {
			return err
		}
	}
	return nil
}

// collect takes traces as an OTLP collector does, and forgets them.
func (p *postrider) collect(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p.spans.Add(n)
	w.Header().Set("Content-Type", "application/x-protobuf") // an empty body is an ExportTraceServiceResponse without complaints
}

func (p *postrider) parts() []part {
	all := []part{{"postgres", p.world.PG.PID()}, {"nats", p.world.NATS().PID()}}
	for _, name := range world.Services {
		all = append(all, part{name, p.world.Service(name, 0).Process().PID()})
	}
	return all
}

func (p *postrider) queued(ctx context.Context) (int, error) {
	a, err := p.world.Accounting(ctx)
	if err == nil && a.Unaccounted != 0 {
		err = fmt.Errorf("the accounting does not balance: %+v", a)
	}
	return int(a.Queued), err
}

func (p *postrider) stop() error {
	defer p.collector.Close()
	if p.world == nil {
		return nil
	}
	return p.world.Close()
}

func (p *postrider) logs() string {
	if p.world == nil {
		return ""
	}
	var lines []string
	for line := range strings.Lines(p.world.Logs()) {
		if !strings.Contains(line, `"level":"INFO"`) && !strings.Contains(line, "[INF]") {
			lines = append(lines, line)
		}
	}
	return "logs in " + filepath.Clean(p.world.Dir) + " without level INFO:\n" + strings.Join(lines, "")
}
