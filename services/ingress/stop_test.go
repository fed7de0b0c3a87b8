package ingress_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/bustest"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
	"github.com/postrider/postrider/services/ingress"
)

// A load balancer sends clients until it has noticed that the process is not
// ready: none of them finds the door closed.
func TestClientsAreTakenForTheStopDelay(t *testing.T) {
	t.Parallel()
	db, err := store.Open(t.Context(), store.Config{URL: storetest.New(t), MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	nc, err := bus.Connect(t.Context(), bus.Config{URL: bustest.Start(t).URL()}, db)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	cfg := testConfig()
	cfg.StopDelay = 3 * time.Second
	listener, err := ingress.Listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{store: db, bus: nc, address: listener.Addr().String()}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- ingress.Run(ctx, cfg, ingress.Deps{Listener: listener, Store: db, Bus: nc}) }()
	stop()
	stopped := time.Now()
	s, err := w.session(t.Context())
	if err != nil {
		t.Fatalf("a client after the signal: %v", err)
	}
	if reply, err := s.say("MAIL FROM:<a@example.com>\r\n", 1); err != nil || reply.Code != 250 {
		t.Errorf("a client after the signal hears %s, %v", reply, err)
	}
	s.conn.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if took := time.Since(stopped); took < cfg.StopDelay {
		t.Errorf("the listeners were closed after %v", took)
	}
	if c, err := net.Dial("tcp", w.address); err == nil {
		c.Close()
		t.Error("the listener is still open")
	}
}
