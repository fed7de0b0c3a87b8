package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The streams and their subjects.
const (
	streamQueued = "POSTRIDER_QUEUED"
	streamReady  = "POSTRIDER_READY"
	streamFailed = "POSTRIDER_FAILED"

	subjectQueued = "postrider.queued"
	subjectReady  = "postrider.ready." // and the worker's id
	subjectFailed = "postrider.failed"
)

// The longest time that a frame waits in its stream. A frame that nobody
// takes holds the time of OldestHint back, and with it the ringing of rows
// whose hint really was lost; so it must go, and its rows are rung again.
const (
	maxAgeQueued = 10 * time.Minute
	// A worker takes frames at once and parks what does not fit. What is older
	// than twice ackWait is for a worker that is gone, unseen by any that could
	// drain it, and keeps rows from being rung.
	maxAgeReady = 2 * ackWait
)

// streams returns what the streams must look like. Work-queue retention: a
// frame leaves at its ack.
func (c Config) streams() []jetstream.StreamConfig {
	storage := jetstream.MemoryStorage
	if c.Storage == "file" {
		storage = jetstream.FileStorage
	}
	base := jetstream.StreamConfig{
		Retention: jetstream.WorkQueuePolicy,
		Discard:   jetstream.DiscardOld,
		Storage:   storage,
		Replicas:  c.Replicas,
		MaxBytes:  c.StreamBytes,
		MaxAge:    maxAgeQueued,
		// Publishers wait for no ack, so there is nothing to deduplicate for:
		// the server's shortest window.
		Duplicates: 100 * time.Millisecond,
	}
	queued, ready, failed := base, base, base
	queued.Name, queued.Subjects = streamQueued, []string{subjectQueued}
	ready.Name, ready.Subjects, ready.MaxAge = streamReady, []string{subjectReady + "*"}, maxAgeReady
	failed.Name, failed.Subjects = streamFailed, []string{subjectFailed}
	return []jetstream.StreamConfig{queued, ready, failed}
}

// keeper watches the connection and the streams of a Bus, and makes the
// streams that are missing. Owned by its goroutine.
type keeper struct {
	bus        *Bus
	made       map[string]time.Time // stream -> when it was created, as last seen
	seen       bool                 // the streams have been seen once
	waited     bool                 // there was a time without NATS before that
	reconnects uint64
}

func (k *keeper) run(ctx context.Context) error {
	ticker := time.NewTicker(inspectEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.bus.look:
		case <-ticker.C:
		}
		k.inspect(ctx)
	}
}

// inspect brings the state of the bus up to date and says when hints may have
// been lost.
func (k *keeper) inspect(ctx context.Context) {
	b := k.bus
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b.mu.Lock()
	b.endInspect = cancel
	b.mu.Unlock()
	if status := b.nc.Status(); status != nats.CONNECTED {
		k.waited = true
		b.setState(false, b.whyNotConnected(), false)
		return
	}
	reconnects := b.nc.Stats().Reconnects
	anew := false
	for _, want := range b.config.streams() {
		created, err := k.ensure(ctx, want)
		if err != nil {
			if errors.Is(err, nats.ErrNoResponders) {
				err = fmt.Errorf("the server has no JetStream, or its cluster no leader: %w", err)
			}
			if ctx.Err() == nil {
				b.setState(false, fmt.Errorf("stream %s: %w", want.Name, err), false)
			}
			return
		}
		anew = anew || created
	}
	if b.keys.now() == nil {
		k.waited = true
		b.setState(false, errNoKeys, false)
		return
	}
	lost := anew || reconnects != k.reconnects || !k.seen && k.waited
	k.seen, k.reconnects = true, reconnects
	if anew {
		b.era.Add(1)
	}
	b.setState(true, nil, lost)
	if lost {
		b.signalLost()
	}
}

// whyNotConnected returns what is known of the last attempt to connect.
func (b *Bus) whyNotConnected() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch err := b.nc.LastError(); {
	case b.unmet != nil:
		return fmt.Errorf("not connected: %w", b.unmet)
	case err != nil && !errors.Is(err, nats.ErrNoServers): // which says nothing, and more will follow
		return fmt.Errorf("not connected: %w", err)
	}
	return errNotYet
}

// ensure makes the stream if it is missing and reports whether it is not the
// one seen last: then what was in that one is lost. At the first look it
// also brings the settings up to date.
func (k *keeper) ensure(ctx context.Context, want jetstream.StreamConfig) (anew bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	js := k.bus.js
	stream, err := js.Stream(ctx, want.Name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		stream, err = js.CreateStream(ctx, want)
		anew = err == nil
	case err != nil || k.seen:
	case stream.CachedInfo().Config.Storage != want.Storage:
		// The server cannot change the storage of a stream. Its hints may go:
		// their rows are rung again.
		slog.Warn("bus: stream made anew in other storage", "stream", want.Name, "storage", want.Storage.String())
		if err := js.DeleteStream(ctx, want.Name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return false, err
		}
		stream, err = js.CreateStream(ctx, want)
		anew = err == nil
	default:
		stream, err = js.UpdateStream(ctx, want)
	}
	if err != nil {
		return false, err
	}
	created := stream.CachedInfo().Created
	before, known := k.made[want.Name]
	k.made[want.Name] = created
	return anew || known && !before.Equal(created), nil
}

// OldestHint returns the time at which the oldest hint was published that
// still waits in the streams or is in a consumer's hands: rows rung since then
// may still be on their way. The zero time says that none waits.
func (b *Bus) OldestHint(ctx context.Context) (time.Time, error) {
	if up, _, why := b.state(); !up {
		return time.Time{}, fmt.Errorf("oldest hint: %w: %w", ErrDown, why)
	}
	var oldest time.Time
	ctx, cancel := b.request(ctx)
	defer cancel()
	for _, name := range []string{streamQueued, streamReady} {
		stream, err := b.js.Stream(ctx, name)
		if err != nil {
			return time.Time{}, fmt.Errorf("oldest hint: %w", err)
		}
		state := stream.CachedInfo().State
		if state.Msgs > 0 && (oldest.IsZero() || state.FirstTime.Before(oldest)) {
			oldest = state.FirstTime
		}
	}
	return oldest, nil
}
