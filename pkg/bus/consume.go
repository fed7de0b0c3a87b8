package bus

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/postrider/postrider/pkg/mail"
)

const (
	// ackWait is how long a frame may stay in the hands of a consumer that
	// says nothing, before another one gets it.
	ackWait = 5 * time.Second
	// batchFrames bounds the frames that one call of a handler takes: at most
	// 1 MiB. As many wait in the client.
	batchFrames = 16
	// pullFrames and pullBytes bound what is fetched ahead. When half of it has
	// come more is asked for, so that a consumer far away gets some hundred
	// frames in each round trip; few enough to be handled within ackWait, and
	// at most 8 MiB in the client.
	pullFrames = 128
	pullBytes  = 2 << 20
	// maxUnanswered bounds the frames that are in the hands of all consumers of
	// a durable.
	maxUnanswered = 16 << 10
	// retryDelay is when a frame whose handler failed comes again. Meanwhile
	// the consumer pauses for as long: what failed was our own Postgres, most
	// likely.
	retryDelay = 500 * time.Millisecond
	// maxDeliveries is how often a frame comes before it is dropped. Its rows
	// are armed, so the scheduler rings them again.
	maxDeliveries = 10
	// grace is how long the handler may finish what it has in hand after the
	// context of Consume is done.
	grace = 5 * time.Second
	// staleConsumer is when the server removes a worker's consumer that nobody
	// used or drained.
	staleConsumer = time.Hour

	durableQueued = "resolver"
	durableFailed = "bounce"
)

// Option changes how frames are consumed.
type Option func(*subscription)

// Handlers is how many calls of the handler run at the same time; 1 if not
// given.
func Handlers(n int) Option {
	return func(s *subscription) { s.handlers = max(n, 1) }
}

// ConsumeQueued calls handle with hints until ctx is done, and then returns
// nil after the calls in progress. All resolvers share them.
//
// Each call gets what waits, of up to 16 frames. The frames are acked when
// handle returns nil; otherwise they come again, here or elsewhere. The
// context that handle gets lives up to 5 s longer than ctx, so that a batch
// in hand is finished. While NATS is away nothing comes, and ConsumeQueued
// resumes by itself, whatever data NATS came back with.
func (b *Bus) ConsumeQueued(ctx context.Context, handle func(context.Context, []mail.QueuedMessage) error, options ...Option) error {
	s := b.subscription(streamQueued, durableQueued, subjectQueued, options)
	return s.consume(ctx, batchHandler(s, handle, decodeQueued))
}

// ConsumeReady is ConsumeQueued for the delivery requests of a home worker.
func (b *Bus) ConsumeReady(ctx context.Context, worker mail.WorkerID, handle func(context.Context, []*mail.DeliveryRequest) error, options ...Option) error {
	s := b.readySubscription(worker, options)
	return s.consume(ctx, batchHandler(s, handle, decodeReady))
}

// ConsumeFailed is ConsumeQueued for the messages to report on. All bounce
// services share them.
func (b *Bus) ConsumeFailed(ctx context.Context, handle func(context.Context, []mail.QueueID) error, options ...Option) error {
	s := b.subscription(streamFailed, durableFailed, subjectFailed, options)
	return s.consume(ctx, batchHandler(s, handle, decodeFailed))
}

// subscription is one durable consumer and how it is consumed.
type subscription struct {
	bus      *Bus
	stream   string
	config   jetstream.ConsumerConfig
	handlers int
}

func (b *Bus) subscription(stream, durable, subject string, options []Option) *subscription {
	s := &subscription{
		bus:      b,
		stream:   stream,
		handlers: 1,
		config: jetstream.ConsumerConfig{
			Durable:       durable,
			FilterSubject: subject,
			AckPolicy:     jetstream.AckExplicitPolicy,
			AckWait:       ackWait,
			MaxAckPending: maxUnanswered,
			MaxDeliver:    -1, // see maxDeliveries: a frame that stays holds OldestHint back
		},
	}
	for _, o := range options {
		o(s)
	}
	return s
}

func (b *Bus) readySubscription(worker mail.WorkerID, options []Option) *subscription {
	s := b.subscription(streamReady, "worker-"+strconv.Itoa(int(worker)), readySubject(worker), options)
	s.config.InactiveThreshold = staleConsumer
	return s
}

// consume runs sessions until ctx is done: one session per time that the bus
// is up with the same streams.
func (s *subscription) consume(ctx context.Context, handle handler) error {
	for ctx.Err() == nil {
		up, period, _ := s.bus.state()
		if !up {
			wait(ctx, period.Done(), 0)
			continue
		}
		if err := s.newSession(handle).run(ctx, period); err != nil && ctx.Err() == nil {
			slog.Warn("bus: consumer restarts", "stream", s.stream, "consumer", s.config.Durable, "error", err)
			// The stream may be gone, or the server about to be.
			s.bus.wakeKeeper()
			wait(ctx, period.Done(), retryDelay)
		}
	}
	return nil
}

// handler decodes a batch of frames and passes it on. What it refuses it
// answers itself, so that it does not come again.
type handler func(ctx context.Context, batch []jetstream.Msg) error

func batchHandler[T any](s *subscription, handle func(context.Context, []T) error, decode func([]T, []byte) ([]T, error)) handler {
	return func(ctx context.Context, batch []jetstream.Msg) error {
		var items []T
		for _, m := range batch {
			body, err := s.open(ctx, m)
			if err == nil {
				items, err = decode(items, body)
			}
			if err == nil {
				continue
			}
			if refused := s.bus.refuse(m.Subject(), len(m.Data()), err); !refused {
				return err
			}
			// No repetition helps. The rows are armed.
			answer(m.TermWithReason("refused"))
		}
		if len(items) == 0 {
			return nil
		}
		return handle(ctx, items)
	}
}

// open returns what is in a frame that is let in.
func (s *subscription) open(ctx context.Context, m jetstream.Msg) ([]byte, error) {
	meta, err := m.Metadata()
	if err != nil {
		return nil, undecodable // it did not come by a stream
	}
	position := s.bus.era.Load()<<48 | meta.Sequence.Stream
	body, _, err := s.bus.gates[s.stream].open(ctx, m.Subject(), m.Data(), position)
	return body, err
}

// wait returns when ctx is done, done is closed, or d has passed (0: never).
func wait(ctx context.Context, done <-chan struct{}, d time.Duration) {
	var timeout <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-ctx.Done():
	case <-done:
	case <-timeout:
	}
}
