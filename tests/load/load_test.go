// Package load crowds ingress, and looks at what that costs in memory, and
// whether a client beside the crowd notices. POSTRIDER_LOAD_FULL=1 is the full
// form, which is the promise; the short form is a tenth of it.
package load

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/tests/internal/proc"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

const (
	from = "me@sender.test"
	to   = "you@crowd.test"

	// patience is how long a session of a crowd may last. It is no promise.
	patience = 20 * time.Minute
)

func TestMain(m *testing.M) { world.Main(m) }

// full reports whether the full form is asked for.
func full() bool { return os.Getenv("POSTRIDER_LOAD_FULL") != "" }

// start runs two copies of ingress, to which clients of many addresses may
// come, and no other service: what ingress takes stays in Postgres.
func start(t *testing.T, env map[string]string) *world.World {
	t.Helper()
	env["POSTRIDER_SMTP_MAX_CONNECTIONS_PER_IP"] = "1000"
	env["POSTRIDER_SMTP_MAX_CONNECTIONS_PER_NETWORK"] = "0"
	w := world.Start(t, world.Options{Copies: 2, Env: env})
	for _, name := range world.Services {
		for c := range 2 {
			if name == "ingress" {
				continue
			}
			if err := w.Service(name, c).Stop(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return w
}

// resident returns the memory of the ingress that is crowded.
func resident(t *testing.T, w *world.World) proc.Resident {
	t.Helper()
	r, err := proc.ReadResident(w.Service("ingress", 0).Process().PID())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mib(bytes int64) string { return fmt.Sprintf("%.0f MiB", float64(bytes)/(1<<20)) }

// dial opens a session with the crowded ingress and says EHLO, as one of many
// clients.
func dial(ctx context.Context, w *world.World, client int) (*submit.Session, error) {
	s, err := submit.Dial(ctx, w.SMTP(0), w.Address(100+client%100))
	if err != nil {
		return nil, err
	}
	if err := s.Patience(patience); err != nil {
		return nil, err
	}
	return s, s.Expect(250, "EHLO client.example")
}

// each does something with all sessions, some at a time.
func each(t *testing.T, sessions []*submit.Session, do func(i int, s *submit.Session) error) {
	t.Helper()
	var g errgroup.Group
	g.SetLimit(32)
	for i, s := range sessions {
		g.Go(func() error { return do(i, s) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}
