package bus_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/bustest"
	"github.com/postrider/postrider/pkg/mail"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// connect returns a Bus that is up and is closed at the end of the test.
func connect(t *testing.T, s *bustest.Server) *bus.Bus {
	t.Helper()
	b := connectOnly(t, bus.Config{URL: s.URL()})
	eventually(t, "the bus is up", b.Up)
	return b
}

func connectOnly(t *testing.T, config bus.Config) *bus.Bus {
	t.Helper()
	b, err := bus.Connect(t.Context(), config, bustest.OneKey)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// background runs a consumer until the test ends, or stop is called.
func background(t *testing.T, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return run(ctx) })
	stop = sync.OnceFunc(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Errorf("consumer: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// eventually waits until the condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// inbox collects the queue ids that a consumer was given.
type inbox struct {
	mu  sync.Mutex // guards ids
	ids map[mail.QueueID]int
}

func newInbox() *inbox { return &inbox{ids: map[mail.QueueID]int{}} }

func (i *inbox) add(id mail.QueueID) {
	i.mu.Lock()
	i.ids[id]++
	i.mu.Unlock()
}

func (i *inbox) queued(_ context.Context, messages []mail.QueuedMessage) error {
	for _, m := range messages {
		i.add(m.ID)
	}
	return nil
}

func (i *inbox) ready(_ context.Context, requests []*mail.DeliveryRequest) error {
	for _, r := range requests {
		i.add(r.Message.ID)
	}
	return nil
}

func (i *inbox) failed(_ context.Context, ids []mail.QueueID) error {
	for _, id := range ids {
		i.add(id)
	}
	return nil
}

func (i *inbox) count(id mail.QueueID) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.ids[id]
}

func (i *inbox) has(ids ...mail.QueueID) func() bool {
	return func() bool {
		return !slices.ContainsFunc(ids, func(id mail.QueueID) bool { return i.count(id) == 0 })
	}
}

func queued(n int) (messages []mail.QueuedMessage, ids []mail.QueueID) {
	for range n {
		m := mail.QueuedMessage{Message: mail.Message{ID: mail.NewQueueID()}, Recipients: []mail.Pending{{
			Recipient: mail.Recipient{No: 1, ForwardPath: "r@example.org", Domain: "example.org"},
		}}}
		messages = append(messages, m)
		ids = append(ids, m.ID)
	}
	return messages, ids
}

func requests(n int) (all []*mail.DeliveryRequest, ids []mail.QueueID) {
	route := &mail.Route{Site: "mx.example.org", Hosts: []mail.Host{{Name: "mx.example.org", Port: 25, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}}, TLS: mail.TLSMay}
	messages, ids := queued(n)
	for _, m := range messages {
		all = append(all, &mail.DeliveryRequest{Message: m.Message, Route: route, Recipients: m.Recipients})
	}
	return all, ids
}

// admin looks behind the back of package bus.
func admin(t *testing.T, s *bustest.Server) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(s.URL())
	must(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	must(t, err)
	return js
}

func settings(t *testing.T, s *bustest.Server, stream string) jetstream.StreamConfig {
	t.Helper()
	found, err := admin(t, s).Stream(t.Context(), stream)
	must(t, err)
	return found.CachedInfo().Config
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestEachKindArrivesOnce(t *testing.T) {
	b := connect(t, bustest.Start(t))
	q, r, f, other := newInbox(), newInbox(), newInbox(), newInbox()
	background(t, func(ctx context.Context) error { return b.ConsumeQueued(ctx, q.queued) })
	background(t, func(ctx context.Context) error { return b.ConsumeReady(ctx, 1, r.ready) })
	background(t, func(ctx context.Context) error { return b.ConsumeReady(ctx, 2, other.ready) })
	background(t, func(ctx context.Context) error { return b.ConsumeFailed(ctx, f.failed) })

	messages, queuedIDs := queued(1000)
	ready, readyIDs := requests(1000)
	must(t, b.PublishQueued(t.Context(), messages))
	must(t, b.PublishReady(t.Context(), 1, ready))
	must(t, b.PublishFailed(t.Context(), queuedIDs))
	eventually(t, "all hints arrive", q.has(queuedIDs...))
	eventually(t, "all requests arrive", r.has(readyIDs...))
	eventually(t, "all reports arrive", f.has(queuedIDs...))

	eventually(t, "nothing is left", func() bool {
		oldest, err := b.OldestHint(t.Context())
		return err == nil && oldest.IsZero()
	})
	for i, id := range queuedIDs {
		if q.count(id) != 1 || f.count(id) != 1 || r.count(readyIDs[i]) != 1 {
			t.Fatalf("counts of message %d: queued %d, failed %d, ready %d; want 1 each", i, q.count(id), f.count(id), r.count(readyIDs[i]))
		}
	}
	if len(other.ids) != 0 {
		t.Errorf("worker 2 got %d requests of worker 1", len(other.ids))
	}
}

func TestResolversShareTheHints(t *testing.T) {
	s := bustest.Start(t)
	publisher := connect(t, s)
	boxes := []*inbox{newInbox(), newInbox()}
	for _, box := range boxes {
		b := connect(t, s)
		background(t, func(ctx context.Context) error { return b.ConsumeQueued(ctx, box.queued, bus.Handlers(2)) })
	}
	var all []mail.QueueID
	publish := func() {
		messages, ids := queued(1)
		all = append(all, ids...)
		must(t, publisher.PublishQueued(t.Context(), messages))
	}
	for range 200 {
		publish()
	}
	eventually(t, "each resolver gets some", func() bool {
		publish()
		return len(boxes[0].snapshot()) > 0 && len(boxes[1].snapshot()) > 0
	})
	eventually(t, "all arrive once", func() bool {
		return !slices.ContainsFunc(all, func(id mail.QueueID) bool { return boxes[0].count(id)+boxes[1].count(id) != 1 })
	})
}

func (i *inbox) snapshot() []mail.QueueID {
	i.mu.Lock()
	defer i.mu.Unlock()
	var ids []mail.QueueID
	for id := range i.ids {
		ids = append(ids, id)
	}
	return ids
}

func TestFrameComesAgainAfterAnError(t *testing.T) {
	b := connect(t, bustest.Start(t))
	messages, ids := queued(3)
	box := newInbox()
	var mu sync.Mutex
	calls := 0
	background(t, func(ctx context.Context) error {
		return b.ConsumeQueued(ctx, func(ctx context.Context, got []mail.QueuedMessage) error {
			mu.Lock()
			defer mu.Unlock()
			if calls++; calls == 1 {
				return errors.New("Postgres is away")
			}
			return box.queued(ctx, got)
		})
	})
	must(t, b.PublishQueued(t.Context(), messages))
	eventually(t, "the frame comes again", box.has(ids...))
	eventually(t, "it was acked", noHintLeft(t, b))
}

func noHintLeft(t *testing.T, b *bus.Bus) func() bool {
	return func() bool {
		oldest, err := b.OldestHint(t.Context())
		return err == nil && oldest.IsZero()
	}
}

// A frame that no handler will ever take must not hold OldestHint back for
// ever: with it the scheduler would not ring what really was lost.
func TestFrameIsDroppedInTheEnd(t *testing.T) {
	b := connect(t, bustest.Start(t))
	messages, _ := queued(1)
	background(t, func(ctx context.Context) error {
		return b.ConsumeQueued(ctx, func(context.Context, []mail.QueuedMessage) error { return errors.New("never") })
	})
	must(t, b.PublishQueued(t.Context(), messages))
	eventually(t, "a hint waits", func() bool { return !noHintLeft(t, b)() })
	eventually(t, "the frame is dropped", noHintLeft(t, b))
}

func TestUndecodableFrameIsDropped(t *testing.T) {
	s := bustest.Start(t)
	b := connect(t, s)
	nc, err := nats.Connect(s.URL())
	must(t, err)
	t.Cleanup(nc.Close)
	must(t, nc.Publish("postrider.queued", []byte("\xff not a frame")))
	must(t, nc.Flush())
	box := newInbox()
	background(t, func(ctx context.Context) error { return b.ConsumeQueued(ctx, box.queued) })
	messages, ids := queued(1)
	must(t, b.PublishQueued(t.Context(), messages))
	eventually(t, "the next frame arrives", box.has(ids...))
	eventually(t, "nothing is left", noHintLeft(t, b))
}

func TestOldestHint(t *testing.T) {
	b := connect(t, bustest.Start(t))
	if !noHintLeft(t, b)() {
		t.Fatal("a new bus has hints")
	}
	before := time.Now()
	ready, _ := requests(1)
	must(t, b.PublishReady(t.Context(), 9, ready))
	eventually(t, "a hint waits", func() bool { return !noHintLeft(t, b)() })
	messages, _ := queued(1)
	must(t, b.PublishQueued(t.Context(), messages))

	// In the hands of a handler it still counts.
	held, release := make(chan struct{}), make(chan struct{})
	background(t, func(ctx context.Context) error {
		return b.ConsumeReady(ctx, 9, func(context.Context, []*mail.DeliveryRequest) error {
			close(held)
			<-release
			return nil
		})
	})
	<-held
	oldest, err := b.OldestHint(t.Context())
	must(t, err)
	if oldest.Before(before) || oldest.After(time.Now()) {
		t.Errorf("oldest hint %v, want between %v and now", oldest, before)
	}
	close(release)
	eventually(t, "the younger one is the oldest now", func() bool {
		now, err := b.OldestHint(t.Context())
		return err == nil && now.After(oldest)
	})
}

// What is fetched and not handled at shutdown goes to another resolver at
// once, not after AckWait; what is in hand is finished.
func TestShutdownHandsOver(t *testing.T) {
	s := bustest.Start(t)
	first, second := connect(t, s), connect(t, s)
	held, release := make(chan struct{}), make(chan struct{})
	box := newInbox()
	once := sync.OnceFunc(func() { close(held) })
	stop := background(t, func(ctx context.Context) error {
		return first.ConsumeQueued(ctx, func(work context.Context, got []mail.QueuedMessage) error {
			once()
			<-release
			if err := work.Err(); err != nil {
				t.Errorf("the handler's context ended with that of Consume: %v", err)
			}
			return box.queued(work, got)
		})
	})
	var all []mail.QueueID
	for range 40 {
		messages, ids := queued(1)
		all = append(all, ids...)
		must(t, first.PublishQueued(t.Context(), messages))
	}
	<-held
	stopped := make(chan struct{})
	background(t, func(context.Context) error { stop(); close(stopped); return nil })
	began := time.Now()
	background(t, func(ctx context.Context) error { return second.ConsumeQueued(ctx, box.queued) })
	eventually(t, "the other one gets most", func() bool { return len(box.snapshot()) >= 24 })
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("took %v: the frames waited for AckWait", took)
	}
	close(release)
	<-stopped
	eventually(t, "all arrive", box.has(all...))
}

func TestRestart(t *testing.T) {
	for _, c := range []struct {
		name, storage string
		wipe          bool
	}{{"memory", "memory", false}, {"memory, wiped", "memory", true}, {"file, wiped", "file", true}, {"file, kept", "file", false}} {
		t.Run(c.name, func(t *testing.T) {
			s := bustest.Start(t)
			b := connectOnly(t, bus.Config{URL: s.URL(), Storage: c.storage})
			eventually(t, "the bus is up", b.Up)
			<-b.Lost() // the streams were made now

			q, r := newInbox(), newInbox()
			background(t, func(ctx context.Context) error { return b.ConsumeQueued(ctx, q.queued) })
			background(t, func(ctx context.Context) error { return b.ConsumeReady(ctx, 1, r.ready) })
			messages, ids := queued(1)
			must(t, b.PublishQueued(t.Context(), messages))
			eventually(t, "the first hint arrives", q.has(ids...))
			unread, unreadIDs := queued(0)
			ready2, ready2IDs := requests(1)
			must(t, b.PublishReady(t.Context(), 2, ready2)) // nobody takes it before the restart
			eventually(t, "it is stored", func() bool { return !noHintLeft(t, b)() })

			s.Stop()
			eventually(t, "the bus is down", func() bool { return !b.Up() })
			if err := b.PublishQueued(t.Context(), messages); !errors.Is(err, bus.ErrDown) {
				t.Errorf("publish while down: %v, want ErrDown", err)
			}
			if err := b.Ping(t.Context()); !errors.Is(err, bus.ErrDown) {
				t.Errorf("ping while down: %v, want ErrDown", err)
			}
			s.Resume()
			if c.wipe {
				s.Restart(true)
			}
			eventually(t, "the bus is up again", b.Up)
			must(t, b.Ping(t.Context()))
			select {
			case <-b.Lost():
			case <-time.After(patience):
				t.Fatal("no signal that hints may be lost")
			}
			// Consumers resume by themselves.
			eventually(t, "hints arrive again", func() bool {
				again, againIDs := queued(1)
				readyAgain, _ := requests(1)
				unread, unreadIDs = append(unread, again...), append(unreadIDs, againIDs...)
				return b.PublishQueued(t.Context(), again) == nil && b.PublishReady(t.Context(), 1, readyAgain) == nil &&
					slices.ContainsFunc(unreadIDs, func(id mail.QueueID) bool { return q.count(id) > 0 }) && len(r.snapshot()) > 0
			})
			late := newInbox()
			background(t, func(ctx context.Context) error { return b.ConsumeReady(ctx, 2, late.ready) })
			if c.storage == "file" && !c.wipe {
				eventually(t, "what was stored arrives", late.has(ready2IDs...))
			}
		})
	}
}

func TestLostStreamIsMadeAnew(t *testing.T) {
	s := bustest.Start(t)
	b := connect(t, s)
	<-b.Lost()
	box := newInbox()
	background(t, func(ctx context.Context) error { return b.ConsumeQueued(ctx, box.queued) })
	messages, ids := queued(1)
	must(t, b.PublishQueued(t.Context(), messages))
	eventually(t, "the hint arrives", box.has(ids...))

	must(t, admin(t, s).DeleteStream(t.Context(), "POSTRIDER_QUEUED"))
	select {
	case <-b.Lost():
	case <-time.After(patience):
		t.Fatal("no signal that hints may be lost")
	}
	var again []mail.QueueID
	eventually(t, "hints arrive again", func() bool {
		messages, ids := queued(1)
		again = append(again, ids...)
		return b.PublishQueued(t.Context(), messages) == nil &&
			slices.ContainsFunc(again, func(id mail.QueueID) bool { return box.count(id) > 0 })
	})
}

func TestStartsWithoutNATS(t *testing.T) {
	s := bustest.Start(t)
	s.Stop()
	b := connectOnly(t, bus.Config{URL: s.URL()})
	if b.Up() {
		t.Error("up without a server")
	}
	box := newInbox()
	background(t, func(ctx context.Context) error { return b.ConsumeQueued(ctx, box.queued) })
	watched := make(chan struct{}, 1)
	background(t, func(ctx context.Context) error {
		return b.Watch(ctx, "slots", func(context.Context) {
			select {
			case watched <- struct{}{}:
			default:
			}
		})
	})
	s.Resume()
	eventually(t, "the bus is up", b.Up)
	<-b.Lost()
	<-watched
	messages, ids := queued(1)
	must(t, b.PublishQueued(t.Context(), messages))
	eventually(t, "the hint arrives", box.has(ids...))
}

func TestDrainOfADeadWorker(t *testing.T) {
	s := bustest.Start(t)
	resolver, heir, other := connect(t, s), connect(t, s), connect(t, s)

	// Worker 7 fetches frames, answers none and dies.
	dying, err := bus.Connect(t.Context(), bus.Config{URL: s.URL()}, bustest.OneKey)
	must(t, err)
	held, release := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(held) })
	stop := background(t, func(ctx context.Context) error {
		return dying.ConsumeReady(ctx, 7, func(context.Context, []*mail.DeliveryRequest) error {
			once()
			<-release
			return nil
		})
	})
	var all []mail.QueueID
	publish := func() {
		r, ids := requests(1)
		all = append(all, ids...)
		must(t, resolver.PublishReady(t.Context(), 7, r))
	}
	for range 60 {
		publish()
	}
	<-held
	if ids, err := heir.ReadyWorkers(t.Context()); err != nil || !slices.Equal(ids, []mail.WorkerID{7}) {
		t.Errorf("requests wait for workers %v, %v; want 7", ids, err)
	}
	dying.Cut()

	box := newInbox()
	began := time.Now()
	drained := make(chan struct{})
	background(t, func(ctx context.Context) error {
		defer close(drained)
		return heir.DrainReady(ctx, 7, box.ready)
	})
	background(t, func(ctx context.Context) error { return other.DrainReady(ctx, 7, box.ready) })
	publish() // a resolver that does not know yet
	eventually(t, "the heirs get everything", box.has(all...))
	t.Logf("everything after %v", time.Since(began))
	<-drained
	eventually(t, "nothing is left", noHintLeft(t, resolver))
	if ids, err := heir.ReadyWorkers(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("requests wait for workers %v, %v; want none", ids, err)
	}
	if _, err := admin(t, s).Consumer(t.Context(), "POSTRIDER_READY", "worker-7"); !errors.Is(err, jetstream.ErrConsumerNotFound) {
		t.Errorf("the dead worker's consumer: %v, want it gone", err)
	}
	close(release)
	stop()
	dying.Close()
}

func TestWatch(t *testing.T) {
	s := bustest.Start(t)
	b, other := connect(t, s), connect(t, s)
	seen := make(chan struct{}, 100)
	background(t, func(ctx context.Context) error {
		return b.Watch(ctx, "slots", func(context.Context) { seen <- struct{}{} })
	})
	eventually(t, "the notice is seen", func() bool {
		must(t, other.Announce(t.Context(), "slots"))
		return len(seen) > 0
	})
	n := len(seen)
	must(t, other.Announce(t.Context(), "routing"))
	s.Restart(true)
	eventually(t, "the return of the bus counts as a notice", func() bool { return len(seen) > n })
}

func TestSettingsOfStreamsAreUpdated(t *testing.T) {
	s := bustest.Start(t)
	b := connect(t, s)
	messages, _ := queued(1)
	must(t, b.PublishQueued(t.Context(), messages))
	eventually(t, "a hint waits", func() bool { return !noHintLeft(t, b)() })

	bigger := connectOnly(t, bus.Config{URL: s.URL(), StreamBytes: 256 << 20})
	eventually(t, "up", bigger.Up)
	if got := settings(t, s, "POSTRIDER_QUEUED").MaxBytes; got != 256<<20 {
		t.Errorf("stream of %d bytes, want %d", got, 256<<20)
	}
	if noHintLeft(t, bigger)() {
		t.Error("the update lost a hint")
	}

	filed := connectOnly(t, bus.Config{URL: s.URL(), Storage: "file"})
	eventually(t, "up", filed.Up)
	if got := settings(t, s, "POSTRIDER_QUEUED").Storage; got != jetstream.FileStorage {
		t.Errorf("storage %v, want file", got)
	}
	<-filed.Lost()
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		name   string
		config bus.Config
		errors int
	}{
		{"empty", bus.Config{}, 0},
		{"good", bus.Config{URL: "nats://a:4222, tls://u:p@b:4222", Replicas: 3, Storage: "file", StreamBytes: 1 << 20}, 0},
		{"no host", bus.Config{URL: "localhost"}, 1},
		{"all wrong", bus.Config{URL: "nats://:4222,%zz", Replicas: 6, Storage: "tape", StreamBytes: 5}, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.config.Validate()
			n := 0
			if err != nil {
				n = len(err.(interface{ Unwrap() []error }).Unwrap())
			}
			if n != c.errors {
				t.Errorf("%d errors, want %d: %v", n, c.errors, err)
			}
		})
	}
	if _, err := bus.Connect(t.Context(), bus.Config{}, bustest.OneKey); err == nil {
		t.Error("an empty URL was taken")
	}
}
