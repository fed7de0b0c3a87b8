package telemetry

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// calm is how long nothing may have failed before a success ends an outage:
// what fails and works by turns is one.
const calm = time.Second

// Outage keeps the log readable while something fails again and again: the
// first failure is a line, and the end is one with their number. Each failure
// is there too at level debug. The zero value is ready; it is safe for
// concurrent use.
type Outage struct {
	failing atomic.Bool

	mu    sync.Mutex // guards what follows
	since time.Time
	last  time.Time
	count int
}

// Failed notes a failure. what says what does not work, such as "messages are
// not accepted"; args are as of slog.Error.
func (o *Outage) Failed(what string, err error, args ...any) {
	now := time.Now()
	o.mu.Lock()
	first := o.count == 0
	if first {
		o.since = now
	}
	o.count++
	o.last = now
	o.failing.Store(true)
	o.mu.Unlock()
	log := slog.Debug
	if first {
		log = slog.Error
	}
	log(what, append(args, "error", err)...)
}

// Worked notes that it worked. again says so, such as "messages are accepted
// again".
func (o *Outage) Worked(again string) {
	if !o.failing.Load() {
		return
	}
	now := time.Now()
	o.mu.Lock()
	if o.count == 0 || now.Sub(o.last) < calm {
		o.mu.Unlock()
		return
	}
	count, lasted := o.count, o.last.Sub(o.since)
	o.count = 0
	o.failing.Store(false)
	o.mu.Unlock()
	slog.Info(again, "failures", count, "outage", lasted)
}
