package ingress

import (
	"context"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/services/ingress/internal/access"
	"github.com/postrider/postrider/services/ingress/internal/commit"
	"github.com/postrider/postrider/services/ingress/internal/httpd"
	"github.com/postrider/postrider/services/ingress/internal/smtpd"
)

// listenHTTP opens the address for HTTP clients; nil when there is none.
func listenHTTP(ctx context.Context, address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", address)
}

// newHTTP returns the server for HTTP clients. What is not special to them is
// as for those of SMTP.
func newHTTP(cfg httpd.Config, smtp smtpd.Config, committer *commit.Committer, keeper *access.Keeper) (*httpd.Server, error) {
	cfg.Hostname = smtp.Hostname
	cfg.MaxMessageBytes = smtp.MaxMessageBytes
	cfg.MaxRecipients = smtp.MaxRecipients
	cfg.DrainTimeout = smtp.DrainTimeout
	cfg.Lifetime = smtp.Lifetime
	cfg.ReportLifetime = time.Duration(smtp.ReportLifetime)
	return httpd.New(cfg, committer, keeper)
}

// serveBoth runs the SMTP server, and the one for HTTP clients unless it has
// no listener, until ctx is done or one of them fails.
func serveBoth(ctx context.Context, smtp func(context.Context) error, web *httpd.Server, listener net.Listener) error {
	servers, ctx := errgroup.WithContext(ctx)
	servers.Go(func() error { return smtp(ctx) })
	if listener != nil {
		slog.Info("serving HTTP", "address", listener.Addr().String())
		servers.Go(func() error { return web.Serve(ctx, listener) })
	}
	return servers.Wait()
}
