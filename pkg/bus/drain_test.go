package bus_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/bustest"
	"github.com/postrider/postrider/pkg/mail"
)

// TestADrainWaitsForTheFramesInHand: the heir of a dead worker has a frame that
// it cannot do anything with yet, as while Postgres is away, for longer than
// nothing need come for a drain to end.
func TestADrainWaitsForTheFramesInHand(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	resolver, heir := connect(t, s), connect(t, s)
	r, ids := requests(1)
	must(t, resolver.PublishReady(t.Context(), 7, r))
	box := newInbox()
	began := time.Now()
	var tries atomic.Int32
	ended := make(chan struct{})
	background(t, func(ctx context.Context) error {
		defer close(ended)
		return heir.DrainReady(ctx, 7, func(ctx context.Context, requests []*mail.DeliveryRequest) error {
			tries.Add(1)
			if time.Since(began) < 5*time.Second {
				timer := time.NewTimer(4 * time.Second)
				defer timer.Stop()
				select {
				case <-timer.C:
				case <-ctx.Done():
				}
				return errors.New("not now")
			}
			return box.ready(ctx, requests)
		})
	})
	<-ended
	if !box.has(ids...)() {
		t.Errorf("the drain ended after %v and %d tries of a frame that nothing came of", time.Since(began), tries.Load())
	}
}
