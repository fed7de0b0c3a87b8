package ingress_test

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
	"github.com/postrider/postrider/services/ingress"
)

// countingStore counts the commits of a real store.
type countingStore struct {
	*store.Store
	commits atomic.Int64
}

func (s *countingStore) Accept(ctx context.Context, group []*mail.Submission) error {
	s.commits.Add(1)
	return s.Store.Accept(ctx, group)
}

type deafBus struct{}

func (deafBus) PublishQueued(context.Context, []mail.QueuedMessage) error { return nil }

func (deafBus) PublishReady(context.Context, mail.WorkerID, []*mail.DeliveryRequest) error {
	return nil
}

func (deafBus) WatchWays(ctx context.Context, _ func([]bus.Way)) error {
	<-ctx.Done()
	return nil
}

func (deafBus) Watch(ctx context.Context, _ string, _ func(context.Context)) error {
	<-ctx.Done()
	return nil
}

// Twenty clients that do not pipeline, 4 KiB each, as smtp-source does it.
// Clients, server and the benchmark share the cores.
func BenchmarkAccept(b *testing.B) {
	db, err := store.Open(b.Context(), store.Config{URL: storetest.New(b), MaxConns: 4})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	counting := &countingStore{Store: db}
	cfg := testConfig()
	cfg.SMTP.MaxMessages = 1 << 30
	listener, err := ingress.Listen(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	w := &world{address: listener.Addr().String()}
	ctx, stop := context.WithCancel(b.Context())
	var serving errgroup.Group
	serving.Go(func() error {
		return ingress.Run(ctx, cfg, ingress.Deps{Listener: listener, Store: counting, Bus: deafBus{}})
	})
	var wire bytes.Buffer
	dots := smtp.NewDotWriter(&wire)
	if _, err := dots.Write(body(0, 0, 4096)); err != nil {
		b.Fatal(err)
	}
	if err := dots.Close(); err != nil {
		b.Fatal(err)
	}
	content := wire.String()

	const clients = 20
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			s, err := w.session(b.Context())
			if err != nil {
				b.Error(err)
				return
			}
			defer s.conn.Close()
			for left.Add(-1) >= 0 {
				for _, command := range []string{"MAIL FROM:<a@example.com>\r\n", "RCPT TO:<b@example.net>\r\n", "DATA\r\n", content} {
					if reply, err := s.say(command, 1); err != nil || !reply.Positive() {
						b.Errorf("%s, %v", reply, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
	b.ReportMetric(1000*float64(counting.commits.Load())/float64(b.N), "commits/1000")
	stop()
	if err := serving.Wait(); err != nil {
		b.Error(err)
	}
}
