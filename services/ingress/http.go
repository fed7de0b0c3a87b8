package ingress

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/services/ingress/internal/access"
	"github.com/postrider/postrider/services/ingress/internal/commit"
	"github.com/postrider/postrider/services/ingress/internal/httpd"
	"github.com/postrider/postrider/services/ingress/internal/smtpd"
	"github.com/postrider/postrider/services/ingress/internal/spool"
)

// openHTTP opens the addresses for HTTP clients.
func (l *Listeners) openHTTP(ctx context.Context, cfg *httpd.Config) error {
	door := httpd.NewDoorkeeper(*cfg)
	for _, web := range []struct {
		variable, address string
		tls               bool
	}{{"POSTRIDER_HTTP_LISTEN", cfg.Listen, false}, {"POSTRIDER_HTTPS_LISTEN", cfg.ListenTLS, true}} {
		if web.address == "" {
			continue
		}
		if web.tls && l.certs == nil {
			return fmt.Errorf("%s wants TLS, and there is no certificate", web.variable)
		}
		var lc net.ListenConfig
		listener, err := lc.Listen(ctx, "tcp", web.address)
		if err != nil {
			return fmt.Errorf("%s: %w", web.variable, err)
		}
		listener = door.Listen(listener, web.tls)
		if web.tls {
			listener = tls.NewListener(listener, l.certs.Server())
		}
		l.web = append(l.web, listener)
	}
	return nil
}

// newHTTP returns the server for HTTP clients. What is not special to them is
// as for those of SMTP.
func newHTTP(cfg httpd.Config, smtp smtpd.Config, committer *commit.Committer, keeper *access.Keeper, room *spool.Spool) (*httpd.Server, error) {
	cfg.Hostname = smtp.Hostname
	cfg.MaxMessageBytes, cfg.MendLines = smtp.MaxMessageBytes, smtp.MendLines
	cfg.MaxRecipients = smtp.MaxRecipients
	cfg.DrainTimeout = smtp.DrainTimeout
	cfg.Lifetime = smtp.Lifetime
	cfg.ReportLifetime = time.Duration(smtp.ReportLifetime)
	return httpd.New(cfg, committer, keeper, room)
}

// serveBoth runs the SMTP server, and the one for HTTP clients unless it has
// no listener, until ctx is done or one of them fails.
func serveBoth(ctx context.Context, smtp func(context.Context) error, web *httpd.Server, listeners []net.Listener) error {
	servers, ctx := errgroup.WithContext(ctx)
	servers.Go(func() error { return smtp(ctx) })
	if len(listeners) > 0 {
		for _, listener := range listeners {
			slog.Info("serving HTTP", "address", listener.Addr().String())
		}
		servers.Go(func() error { return web.Serve(ctx, listeners) })
	}
	return servers.Wait()
}
