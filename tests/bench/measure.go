package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/postrider/postrider/tests/internal/proc"
)

// system is an MTA with everything that belongs to it.
type system interface {
	name() string
	start(ctx context.Context, dir string, w workload) error // fresh and empty
	smtp() string                                            // where it takes mail
	parts() []part
	queued(ctx context.Context) (int, error) // recipients or messages that it has not done with
	stop() error
	logs() string
}

// part is a process of a system, with all its children.
type part struct {
	name string
	pid  int
}

// result is what one run measured.
type result struct {
	system  string
	ingest  float64 // messages per second, until the client had its last 250
	e2e     float64 // messages per second, until the last one was at the sink
	cpu     []cost  // seconds per 1,000 messages
	flushes float64 // per 1,000 messages
	written float64 // MiB per 1,000 messages
	pss     []cost  // MiB
}

// cost is a figure of one part.
type cost struct {
	part  string
	value float64
}

const (
	warmUp   = 500 // messages
	runLimit = 10 * time.Minute
)

// measure makes one run.
func measure(ctx context.Context, sys system, w workload, dir string) (r result, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, runLimit, fmt.Errorf("run not done within %s", runLimit))
	defer cancel()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return r, err
	}
	sinks, err := startSinks(ctx, dir, w.recipients)
	defer stopSinks(sinks)
	if err != nil {
		return r, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s, workload %s: %w\n%s", sys.name(), w.name, err, sys.logs())
		}
		if stopErr := sys.stop(); err == nil {
			err = stopErr
		}
	}()
	if err := sys.start(ctx, filepath.Join(dir, "mta"), w); err != nil {
		return r, err
	}
	if _, err := pass(ctx, sys, w, sinks, dir, min(warmUp, w.messages/2)); err != nil {
		return r, fmt.Errorf("warm-up: %w", err)
	}
	return timed(ctx, sys, w, sinks, dir)
}

// timed makes the pass that counts.
func timed(ctx context.Context, sys system, w workload, sinks []*sink, dir string) (result, error) {
	r := result{system: sys.name()}
	disk, err := proc.DiskOf(dir)
	if err != nil {
		return r, err
	}
	diskBefore, err := disk.Count()
	if err != nil {
		return r, err
	}
	before, err := proc.ReadTree()
	if err != nil {
		return r, err
	}
	p, err := pass(ctx, sys, w, sinks, dir, w.messages)
	if err != nil {
		return r, err
	}
	after, err := proc.ReadTree()
	if err != nil {
		return r, err
	}
	diskAfter, err := disk.Count()
	if err != nil {
		return r, err
	}
	thousands := float64(w.messages) / 1000
	r.ingest = float64(w.messages) / p.ingest.Seconds()
	r.e2e = float64(w.messages) / p.e2e.Seconds()
	r.flushes = float64(diskAfter.Flushes-diskBefore.Flushes) / thousands
	r.written = float64(diskAfter.Written-diskBefore.Written) / (1 << 20) / thousands
	for _, part := range sys.parts() {
		used := after.CPU(part.pid) - before.CPU(part.pid)
		r.cpu = append(r.cpu, cost{part.name, used.Seconds() / thousands})
		pss, err := after.PSS(part.pid)
		if err != nil {
			return r, err
		}
		r.pss = append(r.pss, cost{part.name, float64(pss) / (1 << 20)})
	}
	return r, nil
}

type durations struct{ ingest, e2e time.Duration }

// pass sends n messages and waits until all are at the sinks and the system
// is done with them.
func pass(ctx context.Context, sys system, w workload, sinks []*sink, dir string, n int) (durations, error) {
	var d durations
	reached := make([]<-chan struct{}, len(sinks))
	want := make([]int, len(sinks))
	for i, s := range sinks {
		had, _ := s.counter.count()
		want[i] = had + n
		reached[i] = s.counter.expect(n)
	}
	started := time.Now()
	var err error
	if d.ingest, err = w.send(ctx, dir, sys.smtp(), n); err != nil {
		return d, err
	}
	for i, s := range sinks {
		select {
		case <-reached[i]:
			_, at := s.counter.count()
			d.e2e = max(d.e2e, at.Sub(started))
		case <-ctx.Done():
			got, _ := s.counter.count()
			return d, fmt.Errorf("sink %d has %d messages, want %d: %w", i, got, want[i], context.Cause(ctx))
		}
	}
	if err := proc.Poll(ctx, func(ctx context.Context) error {
		queued, err := sys.queued(ctx)
		if err == nil && queued > 0 {
			err = fmt.Errorf("%d still queued", queued)
		}
		return err
	}); err != nil {
		return d, err
	}
	for i, s := range sinks {
		if got, _ := s.counter.count(); got != want[i] {
			return d, fmt.Errorf("sink %d has %d messages, want %d: duplicates", i, got, want[i])
		}
	}
	return d, nil
}
