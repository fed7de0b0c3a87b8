package delivery

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// lockstepFor is how long a host that refuses what is sent ahead gets each
// command alone, and maxLockstep bounds how many such hosts are remembered.
const (
	lockstepFor = 24 * time.Hour
	maxLockstep = 10_000
)

// lockstep is the addresses of hosts that offer PIPELINING and take it for a
// fault: mostly there is something between them and us that does not know it.
type lockstep struct {
	mu    sync.Mutex
	since map[netip.AddrPort]time.Time // guarded by mu
}

func (l *lockstep) has(addr netip.AddrPort) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	since, known := l.since[addr]
	if known && time.Since(since) > lockstepFor {
		delete(l.since, addr)
		known = false
	}
	return known
}

func (l *lockstep) add(addr netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.since == nil || len(l.since) >= maxLockstep {
		l.since = map[netip.AddrPort]time.Time{}
	}
	l.since[addr] = time.Now()
}

// walkInStep has a host that refused what was sent ahead get each command
// alone from now on. The connection is of no more use.
func (a *attempt) walkInStep() {
	a.conn.Close()
	a.lockstep.add(a.target.addr)
	slog.Info("a host offers pipelining and refuses it; it gets one command at a time", "worker_id", a.id, "host", a.target.host.Name, "address", a.target.addr)
}
