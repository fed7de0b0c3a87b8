package bus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
)

// ErrDown means that NATS cannot be reached or has no streams. Nothing was
// published; the rows are armed, so the scheduler rings them when due.
var ErrDown = errors.New("the bus is down")

// errNotYet says that no attempt to connect has failed or succeeded.
var errNotYet = errors.New("not connected yet")

const (
	// inspectEvery is how often the streams are looked at when nothing
	// happens. Disconnects are noticed at once.
	inspectEvery = 2 * time.Second
	// apiTimeout bounds one request to JetStream.
	apiTimeout = 5 * time.Second
	// maxReconnectDelay bounds the wait between two attempts to connect: a
	// NATS that comes back is used again within it.
	maxReconnectDelay = 500 * time.Millisecond
	// pingInterval times two is how long a silent network loss stays unseen.
	pingInterval = 2 * time.Second
	// sayEvery is the least time between two log lines about one kind of
	// trouble that lasts.
	sayEvery = 10 * time.Second
)

// Bus is one connection to NATS with the streams of postrider. Its methods
// may be called at the same time.
type Bus struct {
	config  Config
	keys    *keyring
	signer  *signer
	gates   map[string]*gate // by stream; never changed
	nc      *nats.Conn
	js      jetstream.JetStream
	lost    chan struct{}   // holds at most one signal
	look    chan struct{}   // wakes the keeper; holds at most one signal
	keep    context.Context // until Close
	stop    context.CancelFunc
	keeper  *errgroup.Group
	metrics metrics
	refused refusals
	era     atomic.Uint64 // counts the times that a stream was made anew

	mu         sync.Mutex // guards what follows
	up         bool
	why        error  // why not up
	closed     bool   // by Close: that the connection ends is no news
	unmet      error  // of the last attempt to connect
	logged     string // what was said of that
	loggedAt   time.Time
	period     context.Context // until up changes or the streams are made anew
	endPeriod  context.CancelFunc
	endInspect context.CancelFunc // ends the keeper's requests in progress
}

// Connect returns a Bus that connects in the background and keeps doing so
// for ever. What it publishes is signed, and what it takes is verified, with
// the newest of the keys; while there are none it is down. Its errors are of
// the configuration only: an empty or malformed URL, a file that cannot be
// read. Close it when done.
func Connect(ctx context.Context, config Config, keys Keys) (*Bus, error) {
	if config.URL == "" {
		return nil, errors.New("bus: POSTRIDER_NATS_URL is empty")
	}
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("bus: %w", err)
	}
	b := &Bus{
		config: config.withDefaults(),
		lost:   make(chan struct{}, 1),
		look:   make(chan struct{}, 1),
		why:    errNotYet,
	}
	b.period, b.endPeriod = context.WithCancel(context.Background())
	b.endInspect = func() {}
	b.keys = &keyring{source: keys, changed: b.wakeKeeper}
	b.signer = &signer{keys: b.keys}
	b.signer.renew()
	b.gates = map[string]*gate{
		streamQueued: newGate(b.keys, maxAgeQueued),
		streamReady:  newGate(b.keys, maxAgeReady),
		streamFailed: newGate(b.keys, maxAgeQueued),
	}
	b.metrics = newMetrics(b)
	var err error
	b.nc, err = nats.Connect(b.config.URL, b.options()...)
	if err != nil {
		return nil, fmt.Errorf("bus: %w", err)
	}
	b.js, err = jetstream.New(b.nc, jetstream.WithDefaultTimeout(apiTimeout))
	if err != nil {
		b.nc.Close()
		return nil, fmt.Errorf("bus: %w", err)
	}
	// The keeper outlives ctx, which bounds the service's work: what is in
	// hand at shutdown is still acked and published. Close ends it.
	keep, stop := context.WithCancel(context.WithoutCancel(ctx))
	b.keep, b.stop = keep, stop
	b.keeper = new(errgroup.Group)
	k := &keeper{bus: b, made: map[string]time.Time{}}
	b.keys.refresh(keep)
	k.inspect(keep)
	b.keeper.Go(func() error { return b.keys.run(keep) })
	b.keeper.Go(func() error { return k.run(keep) })
	return b, nil
}

func (b *Bus) options() []nats.Option {
	look := func(*nats.Conn) { b.wakeKeeper() }
	options := []nats.Option{
		nats.Name("postrider"),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(),
		nats.Timeout(2 * time.Second),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(2),
		// A hint for a server that is away is refused, not kept: at its
		// return everything that is due is rung anyway.
		nats.ReconnectBufSize(-1),
		nats.CustomReconnectDelay(func(attempts int) time.Duration {
			return min(time.Duration(attempts)*50*time.Millisecond, maxReconnectDelay)
		}),
		nats.ConnectHandler(look),
		nats.ReconnectHandler(look),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { b.notConnected(err) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { b.disconnected(err) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			slog.Warn("bus: NATS reports an error", "error", err)
		}),
	}
	if b.config.Credentials != "" {
		options = append(options, nats.UserCredentials(b.config.Credentials))
	}
	if b.config.CA != "" {
		options = append(options, nats.RootCAs(b.config.CA))
	}
	return options
}

// Close flushes what was published or acked and disconnects. Consumers must
// have returned before.
func (b *Bus) Close() {
	b.stop()
	b.keeper.Wait() //nolint:errcheck // the keeper returns nil
	b.mu.Lock()
	b.up, b.why, b.closed = false, errors.New("closed"), true
	b.endPeriod()
	b.mu.Unlock()
	b.metrics.unregister()
	if b.nc.IsConnected() {
		if err := b.nc.FlushTimeout(time.Second); err != nil {
			slog.Warn("bus: closed before everything was flushed", "error", err)
		}
	}
	b.nc.Close()
}

// Ping makes a round trip to NATS, within 2 s or until ctx is done, and
// checks that the streams are there.
func (b *Bus) Ping(ctx context.Context) error {
	if up, _, why := b.state(); !up {
		return fmt.Errorf("%w: %w", ErrDown, why)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := b.nc.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrDown, err)
	}
	return nil
}

// Up reports whether the bus is connected and its streams are there.
func (b *Bus) Up() bool {
	up, _, _ := b.state()
	return up
}

// Lost signals that hints may have been lost: after each reconnect, and when
// a stream was gone. Whoever receives it (one receiver per Bus: the
// scheduler) rings everything that was rung before. Signals that nobody
// received are one signal.
func (b *Bus) Lost() <-chan struct{} { return b.lost }

// state returns whether the bus is up, the context that is done when that
// changes, and why it is not up.
func (b *Bus) state() (up bool, period context.Context, why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.up, b.period, b.why
}

// request bounds one request to JetStream: an answer does not come once the
// connection is lost.
func (b *Bus) request(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	_, period, _ := b.state()
	forget := context.AfterFunc(period, cancel)
	return ctx, func() {
		forget()
		cancel()
	}
}

// disconnected takes the bus down at once. The keeper finds out what follows.
func (b *Bus) disconnected(err error) {
	switch {
	case err == nil:
		err = errors.New("disconnected")
	case errors.Is(err, io.EOF):
		err = errors.New("the server ended the connection")
	}
	b.signer.renew()
	b.setState(false, err, false)
	b.mu.Lock()
	b.unmet = nil
	b.endInspect()
	b.mu.Unlock()
	b.wakeKeeper()
}

// notConnected is told why an attempt to connect failed.
func (b *Bus) notConnected(err error) {
	if errors.Is(err, nats.ErrNoServers) {
		return // it says nothing, and the next attempt will
	}
	b.mu.Lock()
	news := b.unmet == nil || b.unmet.Error() != err.Error()
	b.unmet = err
	b.mu.Unlock()
	if news {
		b.wakeKeeper()
	}
}

// setState ends the period if the state differs or anew is set.
func (b *Bus) setState(up bool, why error, anew bool) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return
	}
	turned := b.up != up
	b.up, b.why = up, why
	if turned || anew {
		b.endPeriod()
		b.period, b.endPeriod = context.WithCancel(context.Background())
	}
	say := b.newTrouble(up, why)
	b.mu.Unlock()
	switch {
	case turned && up:
		slog.Info("bus: up", "server", b.nc.ConnectedUrlRedacted())
	case say:
		slog.Warn("bus: down, mail goes through Postgres alone", "error", why)
	}
}

// newTrouble reports whether operators have not been told yet why the bus is
// down: at once when it goes down or never was up, and when the reason is
// another one, every sayEvery at most. The caller holds mu.
func (b *Bus) newTrouble(up bool, why error) bool {
	if up {
		b.logged = ""
		return false
	}
	text := why.Error()
	if errors.Is(why, errNotYet) || strings.EqualFold(text, b.logged) || b.logged != "" && time.Since(b.loggedAt) < sayEvery {
		return false
	}
	b.logged, b.loggedAt = text, time.Now()
	return true
}

func (b *Bus) signalLost() {
	select {
	case b.lost <- struct{}{}:
	default:
	}
}

func (b *Bus) wakeKeeper() {
	select {
	case b.look <- struct{}{}:
	default:
	}
}
