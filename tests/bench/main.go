package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/postrider/postrider/tests/internal/proc"
	"github.com/postrider/postrider/tests/world"
)

func main() {
	names := flag.String("workload", "a", "workloads, with commas between: a, b, d, e")
	which := flag.String("system", "postfix,postrider", "systems to compare; the first is the base of the ratios")
	rounds := flag.Int("rounds", 3, "runs of each system")
	messages := flag.Int("messages", 0, "messages of a run; 0 is the workload's own number")
	keep := flag.String("keep", "", "directory that keeps queues and logs; empty: a temporary one")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := bench(ctx, options{*names, *which, *rounds, *messages, *keep})
	if err := errors.Join(err, world.RemoveBuild()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	workloads, systems string
	rounds, messages   int
	keep               string
}

func bench(ctx context.Context, o options) (err error) {
	dir := o.keep
	if dir == "" {
		if dir, err = os.MkdirTemp("", "postrider-bench-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // Postgres and Postfix drop root, and must get in
		return err
	}
	disk, err := proc.DiskOf(dir)
	if err != nil {
		return err
	}
	fmt.Printf("queues on disk %s; flushes are its completed flush requests; %d rounds, interleaved\n", disk.Name, o.rounds)
	for name := range strings.SplitSeq(o.workloads, ",") {
		w, err := findWorkload(name)
		if err != nil {
			return err
		}
		if o.messages > 0 {
			w.messages = o.messages
		}
		if err := compare(ctx, o, w, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// compare runs all systems in turn, several times.
func compare(ctx context.Context, o options, w workload, dir string) error {
	results := map[string][]result{}
	var order []string
	for round := range o.rounds {
		for name := range strings.SplitSeq(o.systems, ",") {
			sys, err := newSystem(name)
			if err != nil {
				return err
			}
			r, err := measure(ctx, sys, w, filepath.Join(dir, fmt.Sprintf("%s-%d", name, round+1)))
			if err != nil {
				return err
			}
			line(os.Stdout, w, round+1, r)
			if round == 0 {
				order = append(order, r.system)
			}
			results[r.system] = append(results[r.system], r)
		}
	}
	report(os.Stdout, w, order, results)
	return nil
}

func newSystem(name string) (system, error) {
	switch name {
	case "postfix":
		return &postfix{}, nil
	case "postrider":
		return &postrider{}, nil
	}
	return nil, fmt.Errorf("no system %q: want postfix or postrider", name)
}
