package chaos

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/postrider/postrider/tests/world"
)

// TestRollingRestart: every process is stopped in good order and started
// again, in the middle of the load, as an upgrade does. Nothing is lost, and
// nothing is even uncertain.
func TestRollingRestart(t *testing.T) {
	s := newScene(t)
	n := messages(t) / len(world.Services)
	for i, name := range world.Services {
		s.waitShares()
		var at time.Time
		s.wave(fmt.Sprintf("roll%d-", i), n, func() {
			for c := range 2 {
				p := s.Service(name, c)
				at = time.Now()
				if err := p.Stop(); err != nil {
					t.Errorf("%s does not stop in good order: %v", p, err)
				}
				s.restart(p)
			}
		})
		s.WaitIdle(t, drained)
		s.wantTakenOver("restart of "+name, at)
	}
	s.judge()
	if u := s.paths(t.Context(), `SELECT DISTINCT forward_path FROM postrider.history WHERE uncertain`); len(u) > 0 {
		t.Errorf("%d recipients are uncertain after restarts in good order", len(u))
	}
}

// TestStoppedWorker: a delivery worker stands still for longer than its
// lease, as in a suspended virtual machine, and then goes on. Others have
// taken its work over; it must not send what is no longer its own.
func TestStoppedWorker(t *testing.T) {
	s := newScene(t)
	s.waitShares()
	victim := s.Service("delivery", 0)
	var at time.Time
	s.wave("stopped-", messages(t), func() {
		at = time.Now()
		s.strike(func() { victim.Process().Signal(syscall.SIGSTOP) })
	})
	s.WaitIdle(t, drained) // without it
	s.wantTakenOver("stop of "+victim.String(), at)
	victim.Process().Signal(syscall.SIGCONT)
	s.wave("continued-", messages(t)/3, func() {})
	s.waitShares()
	s.judge()
}
