package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func start0(t *testing.T, s Spec) *Process {
	t.Helper()
	s.LogDir = t.TempDir()
	p, err := Start(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

// TestCPUCountsEndedChildren: what a child used that is gone and waited for
// is in the account of its parent, which is what makes the benchmark exact.
func TestCPUCountsEndedChildren(t *testing.T) {
	const busy = `i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done`
	p := start0(t, Spec{Name: "busy", Path: "/bin/sh", Args: []string{"-c", "sh -c '" + busy + "'; echo done; read forever"}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := Poll(ctx, func(context.Context) error {
		if !strings.Contains(p.Log(100), "done") && p.Running() {
			return errors.New("the child still works")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	used := ended(t, p)
	if used < 50*time.Millisecond {
		t.Errorf("the child used %s, too little to tell", used)
	}
}

// ended compares the account in /proc right before the end with what the
// kernel says at the end.
func ended(t *testing.T, p *Process) time.Duration {
	t.Helper()
	tree, err := ReadTree()
	if err != nil {
		t.Fatal(err)
	}
	used := tree.CPU(p.PID())
	p.Kill()
	exact := p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
	if diff := (exact - used).Abs(); p.Running() || used > 0 && diff > 50*time.Millisecond {
		t.Errorf("/proc says %s, wait4 says %s", used, exact)
	}
	return exact
}

func TestParseStat(t *testing.T) {
	const line = "42 (a b) c) S 7 1 1 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 5\n"
	got, err := parseStat([]byte(line))
	if err != nil || got != (stat{parent: 7, ticks: 100}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "42 (x) S", strings.ReplaceAll(line, "30", "x")} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestStopKillsAfterLimit(t *testing.T) {
	p := start0(t, Spec{Name: "stubborn", Path: "/bin/sh", Args: []string{"-c", "trap '' TERM; echo up; while :; do read x; done < /dev/zero"}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := Poll(ctx, func(context.Context) error {
		if p.Log(100) == "" {
			return errors.New("not up")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(syscall.SIGTERM, 50*time.Millisecond); err == nil || p.Running() {
		t.Errorf("stop: %v, running %v", err, p.Running())
	}
}

func TestPollSaysWhatItWaitedFor(t *testing.T) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 30*time.Millisecond, errors.New("too slow"))
	defer cancel()
	err := Poll(ctx, func(context.Context) error { return errors.New("not there") })
	if err == nil || !strings.Contains(err.Error(), "too slow") || !strings.Contains(err.Error(), "not there") {
		t.Errorf("%v", err)
	}
}

func TestTailStartsAtALine(t *testing.T) {
	path := t.TempDir() + "/log"
	if err := os.WriteFile(path, fmt.Appendf(nil, "%s\nlast\n", strings.Repeat("x", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Tail(path, 20); got != "last\n" {
		t.Errorf("%q", got)
	}
}
