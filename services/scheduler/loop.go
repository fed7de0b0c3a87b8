package scheduler

import (
	"context"
	"log/slog"
	"time"
)

// retryEvery is the pause after a step that failed, if its own is shorter.
const retryEvery = time.Second

// loop is a step that is done again and again, whatever happens.
type loop struct {
	name   string
	every  time.Duration
	within time.Duration // a step may take so long: a connection that hangs is given up
	step   func(context.Context) error
	wake   <-chan struct{} // the step is done at once; may be nil
	rest   int             // the pause lasts so many times as long as the step did, if that is longer than every

	failing bool // the last step failed, and that was logged
}

// run does the step now, and again at each interval, until ctx is done.
func (l *loop) run(ctx context.Context) error {
	for ctx.Err() == nil {
		began := time.Now()
		l.try(ctx)
		pause := max(l.every, time.Duration(l.rest)*time.Since(began))
		if l.failing {
			pause = max(pause, retryEvery)
			// A step that is rare is not put off for long by a failure.
			pause = min(pause, 10*retryEvery)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-l.wake:
		}
		timer.Stop()
	}
	return nil
}

// once tries until the step succeeds or ctx is done.
func (l *loop) once(ctx context.Context) error {
	for l.try(ctx); l.failing && ctx.Err() == nil; l.try(ctx) {
		timer := time.NewTimer(retryEvery)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// try does the step. Of a row of failures the first is logged, and the end.
func (l *loop) try(ctx context.Context) {
	step, cancel := context.WithTimeout(ctx, l.within)
	defer cancel()
	err := l.step(step)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil && !l.failing:
		slog.Warn("a step of the scheduler fails; trying on", "step", l.name, "error", err)
	case err == nil && l.failing:
		slog.Info("a step of the scheduler works again", "step", l.name)
	}
	l.failing = err != nil
}
