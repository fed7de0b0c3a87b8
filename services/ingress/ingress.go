package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/services/ingress/internal/commit"
	"github.com/postrider/postrider/services/ingress/internal/smtpd"
)

// accepter makes submissions durable. *store.Store is one.
type accepter interface {
	Accept(ctx context.Context, group []*mail.Submission) error
	AcceptStream(ctx context.Context, sub *mail.Submission, content io.Reader) error
}

// publisher rings for new messages. *bus.Bus is one.
type publisher interface {
	PublishQueued(ctx context.Context, messages []mail.QueuedMessage) error
}

// Listen opens the address that Run serves.
func Listen(ctx context.Context, cfg Config) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("ingress: %w", err)
	}
	return l, nil
}

// Deps are what ingress works with.
type Deps struct {
	Listener net.Listener // from Listen; Run closes it
	Store    accepter
	Bus      publisher
}

// Run serves SMTP clients until ctx is done. Then it takes no more mail,
// finishes the messages that are being received within the drain timeout, and
// returns nil.
func Run(ctx context.Context, cfg Config, deps Deps) error {
	shape, err := shaping.Load(cfg.Shaping)
	if err != nil {
		return errors.Join(fmt.Errorf("ingress: %w", err), deps.Listener.Close())
	}
	cfg.SMTP.Hostname = cfg.Hostname
	cfg.SMTP.Lifetime = func(domain mail.Domain) time.Duration {
		return shape.For(domain, "", nil).MessageLifetime
	}
	committer := commit.New(deps.Store, deps.Bus, cfg.SMTP.CommitTimeout)
	server := smtpd.New(cfg.SMTP, committer)

	slog.Info("serving SMTP", "address", deps.Listener.Addr().String(), "hostname", cfg.Hostname)
	// The committer outlives the sessions: each of them gets its reply.
	committing, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var g errgroup.Group
	g.Go(func() error { return committer.Run(committing) })
	g.Go(func() error {
		defer stop()
		return server.Serve(ctx, deps.Listener)
	})
	return g.Wait()
}
