package mx

import (
	"context"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"
)

// memo keeps values until they expire, at most a fixed number of them, and
// finds each at most once at a time.
type memo[V any] struct {
	entries *otter.Cache[string, entry[V]]
	flights singleflight.Group
}

type entry[V any] struct {
	value   V
	expires time.Time
}

func newMemo[V any](size int) (*memo[V], error) {
	entries, err := otter.New(&otter.Options[string, entry[V]]{
		MaximumSize: size,
		ExpiryCalculator: otter.ExpiryWritingFunc(func(e otter.Entry[string, entry[V]]) time.Duration {
			return max(time.Until(e.Value.expires), time.Millisecond)
		}),
	})
	if err != nil {
		return nil, err
	}
	return &memo[V]{entries: entries}, nil
}

// known returns the value of key if it is kept and has not expired.
func (m *memo[V]) known(key string) (V, bool) {
	e, ok := m.entries.GetIfPresent(key)
	if !ok || !time.Now().Before(e.expires) {
		var none V
		return none, false
	}
	return e.value, true
}

// get returns the value of key, calling find if it is not known. Callers that
// want the same key share one call, which goes on when one of them gives up.
// The error is that of ctx.
func (m *memo[V]) get(ctx context.Context, key string, find func() (V, time.Time)) (V, error) {
	if v, ok := m.known(key); ok {
		return v, nil
	}
	flight := m.flights.DoChan(key, func() (any, error) {
		if v, ok := m.known(key); ok { // found between our look and our flight
			return v, nil
		}
		v, expires := find()
		m.entries.Set(key, entry[V]{v, expires})
		return v, nil
	})
	select {
	case done := <-flight:
		return done.Val.(V), nil
	case <-ctx.Done():
		var none V
		return none, ctx.Err()
	}
}
