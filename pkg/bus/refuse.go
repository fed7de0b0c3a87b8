package bus

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// refusals are what was refused since it was last logged.
type refusals struct {
	mu sync.Mutex // guards by
	by map[refusal]*refused
}

type refused struct {
	frames   int // since loggedAt
	loggedAt time.Time
}

// count counts one more and returns how many there were since the last line
// of the log, if it is time for one, else 0.
func (r *refusals) count(why refusal) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil {
		r.by = map[refusal]*refused{}
	}
	of := r.by[why]
	if of == nil {
		of = &refused{}
		r.by[why] = of
	}
	of.frames++
	if time.Since(of.loggedAt) < sayEvery {
		return 0
	}
	n := of.frames
	of.frames, of.loggedAt = 0, time.Now()
	return n
}

// refuse counts and logs what was refused. It reports false if the error is no
// refusal: then nobody knows yet.
func (b *Bus) refuse(subject string, bytes int, err error) bool {
	var why refusal
	if !errors.As(err, &why) {
		return false
	}
	b.metrics.turnedAway.Add(context.Background(), 1, metric.WithAttributes(attribute.String("reason", string(why))))
	if n := b.refused.count(why); n > 0 {
		slog.Warn("bus: frame refused, its rows are rung when due", "reason", string(why), "error", err,
			"subject", subject, "bytes", bytes, "frames", n)
	}
	return true
}
