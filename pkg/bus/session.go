package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
)

// session consumes frames for as long as the bus stays up with the same
// streams. It ends at any error that the client reports: the client's own
// recovery is known to stall after a reconnect (nats.go#1622), so ours is to
// begin anew.
type session struct {
	*subscription
	handle  handler
	arrived chan jetstream.Msg
	failed  chan error    // what the client reports
	over    chan struct{} // closed when what arrives goes back
	hands   []hand        // one per handler
}

func (s *subscription) newSession(handle handler) *session {
	return &session{
		subscription: s,
		handle:       handle,
		arrived:      make(chan jetstream.Msg, batchFrames),
		failed:       make(chan error, 1),
		over:         make(chan struct{}),
		hands:        make([]hand, s.handlers),
	}
}

// run makes the consumer and takes frames until ctx or the period is done, or
// the client fails. It returns after the calls in progress.
func (s *session) run(ctx, period context.Context) error {
	consuming, err := s.start(ctx)
	if err != nil {
		return err
	}
	taking, stopTaking := context.WithCancel(ctx)
	var handlers errgroup.Group
	for i := range s.hands {
		handlers.Go(func() error {
			s.work(ctx, taking.Done(), &s.hands[i])
			return nil
		})
	}
	err = s.watch(ctx, period)
	stopTaking()
	// What was fetched and not handled goes back at once: another consumer
	// need not wait for ackWait. Without a connection there is nobody to tell.
	// The handlers may take long over what they hold.
	close(s.over)
	s.giveBack()
	if s.bus.nc.IsConnected() {
		consuming.Drain()
		wait(context.Background(), consuming.Closed(), time.Second)
	}
	consuming.Stop()
	s.giveBack()
	handlers.Wait() //nolint:errcheck // handlers return nil
	s.giveBack()
	return err
}

// giveBack lets another consumer have what arrived and is in no hands.
func (s *session) giveBack() {
	for {
		select {
		case m := <-s.arrived:
			answer(m.Nak())
		default:
			return
		}
	}
}

// start makes or updates the consumer and begins to fetch.
func (s *session) start(ctx context.Context) (jetstream.ConsumeContext, error) {
	ctx, cancel := s.bus.request(ctx)
	defer cancel()
	consumer, err := s.bus.js.CreateOrUpdateConsumer(ctx, s.stream, s.config)
	if err != nil {
		return nil, fmt.Errorf("create consumer: %w", err)
	}
	arrive := func(m jetstream.Msg) {
		select {
		case s.arrived <- m:
		case <-s.over:
			answer(m.Nak())
		}
	}
	fail := func(_ jetstream.ConsumeContext, err error) {
		select {
		case s.failed <- err:
		default:
		}
	}
	consuming, err := consumer.Consume(arrive,
		jetstream.PullMaxMessagesWithBytesLimit(pullFrames, pullBytes),
		jetstream.PullExpiry(30*time.Second),
		jetstream.PullHeartbeat(5*time.Second),
		jetstream.ConsumeErrHandler(fail))
	if err != nil {
		return nil, fmt.Errorf("consume: %w", err)
	}
	return consuming, nil
}

// watch returns when the session is over, and until then tells the server
// which frames are still worked on.
func (s *session) watch(ctx, period context.Context) error {
	ticker := time.NewTicker(s.config.AckWait / 2)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-period.Done():
			return nil
		case err := <-s.failed:
			return err
		case <-ticker.C:
			for i := range s.hands {
				s.hands[i].inProgress()
			}
		}
	}
}

// hand holds the batch that one handler works on.
type hand struct {
	mu    sync.Mutex // guards batch
	batch []jetstream.Msg
}

func (h *hand) hold(batch []jetstream.Msg) {
	h.mu.Lock()
	h.batch = batch
	h.mu.Unlock()
}

func (h *hand) inProgress() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.batch {
		answer(m.InProgress())
	}
}

// work handles batches of what arrived until stop is closed.
func (s *session) work(ctx context.Context, stop <-chan struct{}, h *hand) {
	batch := make([]jetstream.Msg, 0, batchFrames)
	for {
		select {
		case <-stop:
			return
		case m := <-s.arrived:
			batch = s.fill(append(batch[:0], m))
		}
		h.hold(batch)
		handled := s.handleBatch(ctx, batch)
		h.hold(nil)
		clear(batch)
		if !handled {
			pause := time.NewTimer(retryDelay)
			select {
			case <-stop:
			case <-pause.C:
			}
			pause.Stop()
		}
	}
}

// fill adds to the batch what has arrived too.
func (s *session) fill(batch []jetstream.Msg) []jetstream.Msg {
	for len(batch) < batchFrames {
		select {
		case m := <-s.arrived:
			batch = append(batch, m)
		default:
			return batch
		}
	}
	return batch
}

// handleBatch calls the handler and answers for the frames. It reports
// whether the handler succeeded.
func (s *session) handleBatch(ctx context.Context, batch []jetstream.Msg) bool {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })()

	err := s.handle(work, batch)
	if err == nil {
		for _, m := range batch {
			answer(m.Ack())
		}
		s.bus.metrics.consumed(ctx, len(batch))
		return true
	}
	slog.Warn("bus: frames come again", "stream", s.stream, "frames", len(batch), "error", err)
	for _, m := range batch {
		if meta, err := m.Metadata(); err == nil && meta.NumDelivered >= maxDeliveries {
			slog.Error("bus: frame dropped, its rows are rung when due", "stream", s.stream, "deliveries", meta.NumDelivered)
			answer(m.TermWithReason("handled in vain too often"))
			continue
		}
		answer(m.NakWithDelay(retryDelay))
	}
	return false
}

// answer takes the error of an ack. A frame whose ack is lost comes again,
// which is harmless; one that was answered before needs no second answer.
func answer(err error) {
	for _, harmless := range []error{jetstream.ErrMsgAlreadyAckd, nats.ErrConnectionClosed, nats.ErrReconnectBufExceeded} {
		if errors.Is(err, harmless) {
			return
		}
	}
	if err != nil {
		slog.Warn("bus: frame not answered", "error", err)
	}
}
