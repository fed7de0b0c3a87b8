package bus_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/bustest"
	"github.com/postrider/postrider/pkg/mail"
)

// far returns the URL of a server behind a proxy that delays all that passes
// by half of the round trip.
func far(t *testing.T, s *bustest.Server, roundTrip time.Duration) string {
	t.Helper()
	u, err := url.Parse(s.URL())
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var g errgroup.Group
	var mu sync.Mutex // guards open
	var open []net.Conn
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		g.Wait()
	})
	g.Go(func() error {
		for {
			near, err := l.Accept()
			if err != nil {
				return nil
			}
			there, err := net.Dial("tcp", u.Host)
			if err != nil {
				near.Close()
				continue
			}
			mu.Lock()
			open = append(open, near, there)
			mu.Unlock()
			g.Go(func() error { delay(near, there, roundTrip/2); return nil })
			g.Go(func() error { delay(there, near, roundTrip/2); return nil })
		}
	})
	return "nats://" + l.Addr().String()
}

// delay passes on what it reads, later, until one side is closed; however much
// is under way.
func delay(to io.WriteCloser, from io.ReadCloser, by time.Duration) {
	type piece struct {
		octets []byte
		due    time.Time
	}
	under := make(chan piece, 1<<16)
	var g errgroup.Group
	g.Go(func() error {
		defer to.Close()
		for p := range under {
			<-time.After(time.Until(p.due))
			if _, err := to.Write(p.octets); err != nil {
				return nil
			}
		}
		return nil
	})
	for {
		b := make([]byte, 64<<10)
		n, err := from.Read(b)
		if n > 0 {
			under <- piece{b[:n], time.Now().Add(by)}
		}
		if err != nil {
			break
		}
	}
	close(under)
	g.Wait()
	from.Close()
}

// A consumer that is far from NATS gets many frames for each time that it asks,
// so that mail does not wait for round trips.
func TestFarConsumerAsksSeldom(t *testing.T) {
	s := bustest.Start(t)
	near := connect(t, s)
	away := connectOnly(t, bus.Config{URL: far(t, s, 300*time.Millisecond)})
	eventually(t, "the bus is up", away.Up)
	var asked atomic.Int64
	nc, err := nats.Connect(s.URL())
	must(t, err)
	t.Cleanup(nc.Close)
	_, err = nc.Subscribe("$JS.API.CONSUMER.MSG.NEXT.POSTRIDER_QUEUED.>", func(*nats.Msg) { asked.Add(1) })
	must(t, err)
	must(t, nc.Flush())

	var all []mail.QueueID
	for range 1000 {
		messages, ids := queued(1)
		all = append(all, ids...)
		must(t, near.PublishQueued(t.Context(), messages)) // a frame each
	}
	box := newInbox()
	background(t, func(ctx context.Context) error { return away.ConsumeQueued(ctx, box.queued) })
	eventually(t, "all arrive", box.has(all...))
	if n := asked.Load(); n > 30 {
		t.Errorf("the consumer asked %d times for 1000 frames", n)
	}
}

// lines collects the log.
type lines struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Why NATS cannot be used is logged when it never could, and once.
func TestTroubleIsLogged(t *testing.T) {
	before := slog.Default()
	t.Cleanup(func() { slog.SetDefault(before) })
	s := bustest.Start(t)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	nobody := closed.Addr().String()
	must(t, closed.Close())
	for _, c := range []struct {
		name   string
		config bus.Config
		keys   bus.Keys
		want   string
	}{
		{"nobody listens", bus.Config{URL: "nats://" + nobody}, bustest.OneKey, "connection refused"},
		{"a password that is wrong", bus.Config{URL: bustest.StartWithPassword(t, "secret").URL()}, bustest.OneKey, "uthorization"},
		{"no JetStream", bus.Config{URL: bustest.StartWithoutJetStream(t).URL()}, bustest.OneKey, "has no JetStream"},
		{"three copies on one server", bus.Config{URL: s.URL(), Replicas: 3}, bustest.OneKey, "replicas > 1 not supported"},
		{"no keys", bus.Config{URL: s.URL()}, bustest.Keys{}, "keys of the bus are not read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := &lines{}
			slog.SetDefault(slog.New(slog.NewTextHandler(log, nil)))
			b, err := bus.Connect(t.Context(), c.config, c.keys)
			must(t, err)
			t.Cleanup(func() {
				if t.Failed() {
					t.Log(log)
				}
			})
			eventually(t, "the reason is logged", func() bool { return strings.Contains(log.String(), c.want) })
			if err := b.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Ping says %v, want %q", err, c.want)
			}
			b.Close()
			if n := strings.Count(log.String(), "bus: down"); n > 2 {
				t.Errorf("%d lines:\n%s", n, log)
			}
		})
	}
}

// A process that stops has no trouble with NATS to tell of.
func TestCloseIsNoTrouble(t *testing.T) {
	before := slog.Default()
	t.Cleanup(func() { slog.SetDefault(before) })
	s := bustest.Start(t)
	log := &lines{}
	slog.SetDefault(slog.New(slog.NewTextHandler(log, nil)))
	b, err := bus.Connect(t.Context(), bus.Config{URL: s.URL()}, bustest.OneKey)
	must(t, err)
	eventually(t, "the bus is up", b.Up)
	b.Close()
	// The client tells of the end from a goroutine of its own: what a second
	// connection says comes later.
	other, err := bus.Connect(t.Context(), bus.Config{URL: s.URL()}, bustest.OneKey)
	must(t, err)
	defer other.Close()
	eventually(t, "another bus is up", other.Up)
	if strings.Contains(log.String(), "bus: down") {
		t.Errorf("closed without need, and said:\n%s", log)
	}
}

// lateKeys cannot be read at first.
type lateKeys struct{ there atomic.Bool }

func (k *lateKeys) BusKeys(ctx context.Context) (mail.BusKeys, error) {
	if !k.there.Load() {
		return mail.BusKeys{}, errors.New("postgres is away")
	}
	return bustest.OneKey.BusKeys(ctx)
}

// Who starts without Postgres trusts nothing and publishes nothing, and takes
// what waits once the keys are read.
func TestKeysComeLate(t *testing.T) {
	s := bustest.Start(t)
	other := connect(t, s)
	messages, ids := queued(1)
	must(t, other.PublishQueued(t.Context(), messages))
	keys := &lateKeys{}
	b, err := bus.Connect(t.Context(), bus.Config{URL: s.URL()}, keys)
	must(t, err)
	t.Cleanup(b.Close)
	if err := b.PublishQueued(t.Context(), messages); !errors.Is(err, bus.ErrDown) || b.Up() {
		t.Errorf("without keys: up %v, publishing says %v", b.Up(), err)
	}
	box := newInbox()
	background(t, func(ctx context.Context) error { return b.ConsumeQueued(ctx, box.queued) })
	keys.there.Store(true)
	eventually(t, "what waited arrives", box.has(ids...))
}
