package world

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/proc"
)

// Main runs the tests of a package, closes the worlds that they shared, and
// removes the binaries.
func Main(m *testing.M, shared ...*Shared) {
	code := m.Run()
	for _, s := range shared {
		if err := s.close(); err != nil {
			fmt.Fprintln(os.Stderr, "close the shared world:", err)
			code = 1
		}
	}
	if err := RemoveBuild(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// Shared is a world for all tests of a package, started by the first that
// asks for it. Tests keep apart by their domains.
type Shared struct {
	Options Options

	once  sync.Once
	world *World
	err   error
}

// Get returns the world. The logs are shown if the test fails.
func (s *Shared) Get(tb testing.TB) *World {
	tb.Helper()
	// The context of this test must not end what others use.
	s.once.Do(func() { s.world, s.err = New(context.Background(), s.Options) })
	if s.err != nil {
		tb.Fatalf("start the shared world: %v\n%s", s.err, s.world.Logs())
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Log(s.world.Logs())
		}
	})
	return s.world
}

func (s *Shared) close() error {
	if s.world == nil {
		return nil
	}
	return s.world.Close()
}

// Start runs a world for the time of a test. The test fails if a process of
// it does not end in good order, and shows the ends of the logs when it fails.
// The logs are kept whole if it fails or POSTRIDER_TEST_LOGS names a directory
// for them; the test says where.
func Start(tb testing.TB, o Options) *World {
	tb.Helper()
	w, err := New(tb.Context(), o)
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Log(w.Logs())
		}
		if parent := os.Getenv("POSTRIDER_TEST_LOGS"); parent != "" || tb.Failed() {
			w.keepLogs(tb, parent)
		}
		if err := w.Close(); err != nil {
			tb.Errorf("close the world: %v", err)
		}
	})
	if err != nil {
		tb.Fatalf("start the world: %v", err)
	}
	return w
}

// Host runs a scripted remote host under a name for the time of a test.
func (w *World) Host(tb testing.TB, name string, script smtptest.Script) *smtptest.Server {
	tb.Helper()
	var err error
	if script.Address, err = w.Remote(name); err != nil {
		tb.Fatal(err)
	}
	script.Hostname = name
	return smtptest.Start(tb, script)
}

// MX gives a domain its mail exchangers, such as "10 mx1.example".
func (w *World) MX(tb testing.TB, domain string, mx ...string) {
	tb.Helper()
	if err := w.SetMX(domain, mx...); err != nil {
		tb.Fatal(err)
	}
}

// Eventually waits until check returns nil. After the limit the test ends
// with the last error of check and what was waited for.
func (w *World) Eventually(tb testing.TB, limit time.Duration, what string, check func(context.Context) error) {
	tb.Helper()
	ctx, cancel := context.WithTimeoutCause(tb.Context(), limit, fmt.Errorf("not within %s", limit))
	defer cancel()
	if err := proc.Poll(ctx, check); err != nil {
		tb.Fatalf("%s: %v", what, err)
	}
}

// WaitIdle waits until nothing is queued and nothing is to be reported.
func (w *World) WaitIdle(tb testing.TB, limit time.Duration) {
	tb.Helper()
	w.Eventually(tb, limit, "nothing queued any more", w.Idle)
}
