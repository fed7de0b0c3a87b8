package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/mail"
)

const (
	// drainQuiet is how long nothing may come for a dead worker before its
	// consumer is deleted: resolvers with an old slot map still publish to it.
	drainQuiet = 3 * time.Second
	drainLook  = 500 * time.Millisecond
	// drainAckWait is ackWait while a dead worker is drained: what is in its
	// own hands comes as soon, and the heirs say what they still work on.
	drainAckWait = 2 * time.Second
)

// DrainReady takes what is left for a worker that died, as ConsumeReady takes
// a worker's own, until nothing waited or was unacked for 3 s; then it deletes
// the worker's consumer and returns nil. Several workers may drain the same
// one and share what is left. It also returns nil when ctx is done.
func (b *Bus) DrainReady(ctx context.Context, dead mail.WorkerID, handle func(context.Context, []*mail.DeliveryRequest) error) error {
	s := b.readySubscription(dead, nil)
	s.config.AckWait = drainAckWait
	consuming, stop := context.WithCancel(ctx)
	defer stop()
	var g errgroup.Group
	g.Go(func() error { return s.consume(consuming, batchHandler(s, handle, decodeReady)) })
	quietSince := time.Now()
	for ctx.Err() == nil && time.Since(quietSince) < drainQuiet {
		wait(ctx, nil, drainLook)
		empty, err := s.empty(ctx)
		if err != nil && ctx.Err() == nil {
			slog.Warn("bus: drain goes on", "worker", dead, "error", err)
		}
		if !empty {
			quietSince = time.Now()
		}
	}
	stop()
	if err := g.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return nil
	}
	err := b.js.DeleteConsumer(ctx, s.stream, s.config.Durable)
	if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) && ctx.Err() == nil {
		return fmt.Errorf("drain worker %d: %w", dead, err)
	}
	return nil
}

// ReadyWorkers returns the workers for which requests wait or are unacked.
func (b *Bus) ReadyWorkers(ctx context.Context) ([]mail.WorkerID, error) {
	if up, _, why := b.state(); !up {
		return nil, fmt.Errorf("ready workers: %w: %w", ErrDown, why)
	}
	ctx, cancel := b.request(ctx)
	defer cancel()
	stream, err := b.js.Stream(ctx, streamReady)
	if err != nil {
		return nil, fmt.Errorf("ready workers: %w", err)
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(subjectReady+"*"))
	if err != nil {
		return nil, fmt.Errorf("ready workers: %w", err)
	}
	var found []mail.WorkerID
	for subject := range info.State.Subjects {
		// Whatever else was published there is left to its age.
		if id, err := strconv.ParseInt(strings.TrimPrefix(subject, subjectReady), 10, 32); err == nil {
			found = append(found, mail.WorkerID(id))
		}
	}
	return found, nil
}

// empty reports whether the consumer has nothing to deliver and waits for no
// ack. A consumer that another worker deleted is empty.
func (s *subscription) empty(ctx context.Context) (bool, error) {
	if !s.bus.Up() {
		return false, nil
	}
	ctx, cancel := s.bus.request(ctx)
	defer cancel()
	consumer, err := s.bus.js.Consumer(ctx, s.stream, s.config.Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	info := consumer.CachedInfo()
	return info.NumPending == 0 && info.NumAckPending == 0, nil
}
