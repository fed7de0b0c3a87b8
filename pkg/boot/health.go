package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/postrider/postrider/pkg/telemetry"
)

// checkTimeout bounds all checks of one /readyz. Probes give up after a
// second or a few by default.
const checkTimeout = 900 * time.Millisecond

// begin starts logs, telemetry and HTTP, once the configuration is right.
func (p *Process) begin(own *ownConfig) error {
	p.level.Set(own.LogLevel)
	ctx := context.Background()
	sdk, err := telemetry.Setup(ctx, telemetry.Options{
		Service:     p.name,
		Version:     BuildVersion(),
		SampleRatio: p.sampling,
		SpanFile:    p.spanFile,
	})
	if err != nil {
		return err
	}
	p.sdk = sdk
	p.warnUnknown()
	if own.MetricsListen != "" {
		if err := p.http.serve(own.MetricsListen, sdk.MetricsHandler()); err != nil {
			return fmt.Errorf("POSTRIDER_METRICS_LISTEN: %w", err)
		}
	}
	slog.Info("starting", "version", BuildVersion(), "metrics", p.http.address())
	return nil
}

// ReadyWhen adds a check to /readyz: the process is ready while all its
// checks return nil within a second. It is not ready before the first check
// is added, nor after the first signal.
func (p *Process) ReadyWhen(name string, check func(context.Context) error) {
	p.http.mu.Lock()
	defer p.http.mu.Unlock()
	p.http.checks = append(p.http.checks, namedCheck{name, check})
}

// AlsoTell adds a check of something that the process can work without: when
// it fails /readyz says so and stays 200.
func (p *Process) AlsoTell(name string, check func(context.Context) error) {
	p.http.mu.Lock()
	defer p.http.mu.Unlock()
	p.http.told = append(p.http.told, namedCheck{name, check})
}

// Ready returns nil when all checks pass, else what they say.
func (p *Process) Ready(ctx context.Context) error { return p.http.ready(ctx) }

// HTTPAddress returns where /livez, /readyz and /metrics are served, or "".
func (p *Process) HTTPAddress() string { return p.http.address() }

type namedCheck struct {
	name  string
	check func(context.Context) error
}

// health serves the HTTP endpoints of the process.
type health struct {
	mu       sync.Mutex // guards what follows
	checks   []namedCheck
	told     []namedCheck
	draining bool

	listener net.Listener // nil before serve; both are set once, before run goes on
	server   *http.Server
}

func (h *health) serve(address string, metrics http.Handler) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := h.ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
		h.mu.Lock()
		told := h.told
		h.mu.Unlock()
		if err := run(r.Context(), told); err != nil {
			fmt.Fprintln(w, err)
		}
	})
	mux.Handle("GET /metrics", metrics)
	h.listener = l
	h.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	go func() {
		if err := h.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			slog.Error("the metrics listener ended", "error", err)
		}
	}()
	return nil
}

// drain makes the process unready for good: its load goes elsewhere.
func (h *health) drain() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining = true
}

// ready runs all checks.
func (h *health) ready(ctx context.Context) error {
	h.mu.Lock()
	checks, draining := h.checks, h.draining
	h.mu.Unlock()
	if draining {
		return errors.New("draining")
	}
	if len(checks) == 0 {
		return errors.New("starting")
	}
	return run(ctx, checks)
}

// run runs checks at once, and returns what those say that fail.
func run(ctx context.Context, checks []namedCheck) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	errs := make([]error, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() {
			if err := c.check(ctx); err != nil {
				errs[i] = fmt.Errorf("%s: %w", c.name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (h *health) address() string {
	if h.listener == nil {
		return ""
	}
	return h.listener.Addr().String()
}

func (h *health) close() error {
	if h.server == nil {
		return nil
	}
	return h.server.Close()
}
