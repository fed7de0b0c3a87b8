package resolver

import (
	"context"
	"log/slog"
	"time"
)

// finding is the end of one look-up.
type finding struct {
	aim aim
	way way
	err error // the look-up was given up
}

// lookupAll looks up aims of a batch and sends on what it finds. What takes
// longer than patience is followed apart.
func (r *resolver) lookupAll(ctx context.Context, b *batch, aims []aim) error {
	found := make(chan finding, len(aims)) // so that no look-up ever waits for us
	for _, a := range aims {
		r.group.Go(func() error {
			w, err := r.lookup(r.work, a)
			found <- finding{a, w, err}
			return nil
		})
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	left, err := r.follow(ctx, b, following{found, len(aims), timer.C})
	if err != nil || left == 0 {
		return err
	}
	slow, recipients := b.split(aims)
	taken := int64(min(recipients, followAtMost))
	if err := r.room.Acquire(ctx, taken); err != nil {
		slow.end(err)
		return err
	}
	r.group.Go(func() error {
		defer r.room.Release(taken)
		_, err := r.follow(r.work, slow, following{found, left, nil})
		slow.end(err)
		if err != nil && r.work.Err() == nil {
			slog.Warn("recipients of slow domains could not be handed on; they are rung again", "recipients", recipients, "error", err)
		}
		return nil
	})
	return nil
}

// following is a set of look-ups in progress.
type following struct {
	found    <-chan finding
	left     int
	patience <-chan time.Time // nil: follow to the end
}

// follow sends on what is found, in waves, until nothing is left or the
// patience ends. It returns how many look-ups are left.
func (r *resolver) follow(ctx context.Context, b *batch, f following) (left int, err error) {
	for f.left > 0 {
		var first finding
		select {
		case <-ctx.Done():
			return f.left, ctx.Err()
		case <-f.patience:
			return f.left, nil
		case first = <-f.found:
		}
		ways := map[aim]way{}
		err := f.take(ways, first)
		for moment := time.NewTimer(gather); err == nil && f.left > 0; {
			select {
			case next := <-f.found:
				err = f.take(ways, next)
				continue
			case <-moment.C:
			}
			break
		}
		if err != nil {
			return f.left, err
		}
		if err := r.finish(ctx, b, ways); err != nil {
			return f.left, err
		}
	}
	return 0, nil
}

func (f *following) take(ways map[aim]way, found finding) error {
	f.left--
	ways[found.aim] = found.way
	return found.err
}

// finish sends on the recipients whose ways were found.
func (r *resolver) finish(ctx context.Context, b *batch, ways map[aim]way) error {
	w := r.waveOf(b, ways)
	if err := r.send(ctx, w); err != nil {
		return err
	}
	r.announce(ctx, w.requests)
	b.end(nil)
	return nil
}

// sleep waits for d, and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
