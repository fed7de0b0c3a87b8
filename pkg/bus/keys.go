package bus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

// Keys reads the keys that what is on the bus is signed with. *store.Store is
// one.
type Keys interface {
	BusKeys(ctx context.Context) (mail.BusKeys, error)
}

// errNoKeys says that Postgres has not told the keys yet.
var errNoKeys = errors.New("the keys of the bus are not read yet")

const (
	// keysEvery is how late a key that is valid no more is refused, at most.
	keysEvery = 3 * time.Second
	// keysPause is the least time between two readings, however many frames
	// come with keys that nobody knows.
	keysPause   = time.Second
	keysTimeout = 2 * time.Second
)

// keySet is the keys that are valid.
type keySet struct {
	signs *key
	all   map[int32]*key
	ahead time.Duration // of our clock, as the clock of Postgres is
}

// time is what the clock of Postgres shows.
func (s *keySet) time() time.Time { return time.Now().Add(s.ahead) }

// keyring holds the keys as they were read last. Its methods may be called at
// the same time.
type keyring struct {
	source  Keys
	changed func() // called when there are keys for the first time

	current atomic.Pointer[keySet]

	mu      sync.Mutex // one reading at a time; guards what follows
	readAt  time.Time
	failing error // the last reading, and that was logged
}

// now returns the keys, or nil before they were read.
func (r *keyring) now() *keySet { return r.current.Load() }

// refresh reads the keys, or logs why not.
func (r *keyring) refresh(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read(ctx) //nolint:errcheck // logged
}

// run reads the keys again and again until ctx is done.
func (r *keyring) run(ctx context.Context) error {
	ticker := time.NewTicker(keysEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		r.refresh(ctx)
	}
}

// find returns the key, and nil if there is no such key: it reads them again
// before it says so. Errors: they cannot be read.
func (r *keyring) find(ctx context.Context, id int32) (*keySet, *key, error) {
	if set := r.now(); set != nil && set.all[id] != nil {
		return set, set.all[id], nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if set := r.now(); set == nil || set.all[id] == nil && time.Since(r.readAt) >= keysPause {
		if err := r.read(ctx); err != nil {
			return nil, nil, err
		}
	}
	set := r.now()
	return set, set.all[id], nil
}

// read reads the keys; the caller holds mu. What was read stays when that
// fails: without Postgres nobody can do anything with a frame.
func (r *keyring) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	asked := time.Now()
	found, err := r.source.BusKeys(ctx)
	answered := time.Now()
	if err == nil && len(found.Keys) == 0 {
		err = errors.New("there are none: postrider bus rotate makes one")
	}
	if err != nil {
		err = fmt.Errorf("read the keys of the bus: %w", err)
		if r.failing == nil && !errors.Is(ctx.Err(), context.Canceled) {
			slog.Warn("bus: keys cannot be read, will retry", "error", err)
			r.failing = err
		}
		return err
	}
	if r.failing != nil {
		slog.Info("bus: keys can be read again")
		r.failing = nil
	}
	before := r.now()
	set := &keySet{all: map[int32]*key{}, ahead: found.At.Sub(asked.Add(answered.Sub(asked) / 2))}
	for i, k := range found.Keys {
		known := newKey(k)
		if before != nil && before.all[k.ID] != nil && bytes.Equal(before.all[k.ID].Secret, k.Secret) {
			known = before.all[k.ID]
		}
		set.all[k.ID] = known
		if i == 0 {
			set.signs = known
		}
	}
	r.readAt = answered
	r.current.Store(set)
	if before == nil {
		r.changed()
	}
	return nil
}
