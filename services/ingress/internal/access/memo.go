package access

import (
	"context"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"
)

// memo keeps values for a fixed life, at most a fixed number of them, and
// finds each at most once at a time.
type memo[V any] struct {
	entries *otter.Cache[string, V]
	flights singleflight.Group
}

func newMemo[V any](size int, life time.Duration) (*memo[V], error) {
	entries, err := otter.New(&otter.Options[string, V]{
		MaximumSize:      size,
		ExpiryCalculator: otter.ExpiryWriting[string, V](life),
	})
	if err != nil {
		return nil, err
	}
	return &memo[V]{entries: entries}, nil
}

// get returns the value of key, calling find if it is not known. An error is
// not kept. find has the deadline of nobody: callers share it.
func (m *memo[V]) get(ctx context.Context, key string, find func(context.Context) (V, error)) (V, error) {
	if v, ok := m.entries.GetIfPresent(key); ok {
		return v, nil
	}
	return share(ctx, &m.flights, key, func(ctx context.Context) (V, error) {
		v, err := find(ctx)
		if err == nil {
			m.entries.Set(key, v)
		}
		return v, err
	})
}

// patience bounds a call that several clients wait for.
const patience = 30 * time.Second

// share lets callers who want the same at the same time have it by one call
// of f, which goes on when one of them gives up.
func share[V any](ctx context.Context, flights *singleflight.Group, key string, f func(context.Context) (V, error)) (V, error) {
	flight := flights.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		return f(ctx)
	})
	select {
	case done := <-flight:
		return done.Val.(V), done.Err
	case <-ctx.Done():
		var none V
		return none, ctx.Err()
	}
}
