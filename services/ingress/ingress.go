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

	"github.com/postrider/postrider/pkg/boot"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/ingress/internal/access"
	"github.com/postrider/postrider/services/ingress/internal/certs"
	"github.com/postrider/postrider/services/ingress/internal/commit"
	"github.com/postrider/postrider/services/ingress/internal/smtpd"
	"github.com/postrider/postrider/services/ingress/internal/spool"
	"github.com/postrider/postrider/services/ingress/internal/straight"
)

// accepter makes submissions durable. *store.Store is one.
type accepter interface {
	Accept(ctx context.Context, group []*mail.Submission) error
	AcceptStream(ctx context.Context, sub *mail.Submission, content io.Reader) error
}

// accounts are where credentials and their limits are. *store.Store is one.
type accounts interface {
	Grant(ctx context.Context, name string) (store.Grant, error)
	GrantOfKey(ctx context.Context, sha256 [32]byte) (store.Grant, error)
	GrantOfCertificate(ctx context.Context, certificates []string) (store.Grant, error)
	Standings(ctx context.Context, keys []string) ([]store.Standing, error)
	AuthFailed(ctx context.Context, keys []string) ([]float64, error)
	AuthSucceeded(ctx context.Context, key string) error
	AuthForgiven(ctx context.Context, keys []string, failures int) error
	AnySCRAM(ctx context.Context) (bool, error)
	ForgetAuth(ctx context.Context, clients time.Time) (int64, error)
	Decoy(ctx context.Context) ([]byte, error)
	AddUsage(ctx context.Context, add []store.Usage) (credentials, tenants []store.Usage, err error)
}

// database is all that ingress wants of Postgres. *store.Store is one.
type database interface {
	accepter
	accounts
	shaping.Board
	AnnounceHostname(ctx context.Context, hostname string) error
}

// Listeners are the open addresses that Run serves, and the certificates that
// are shown there.
type Listeners struct {
	doors []smtpd.Door
	web   []net.Listener // for HTTP clients
	certs *certs.Holder  // nil: there is no TLS
}

// Listen opens all addresses, and reads the certificates.
func Listen(ctx context.Context, cfg Config) (*Listeners, error) {
	holder, err := certs.Load(cfg.TLS, cfg.Hostname)
	if err != nil {
		return nil, fmt.Errorf("ingress: %w", err)
	}
	l := &Listeners{certs: holder}
	err = l.open(ctx, "POSTRIDER_SMTP_LISTEN", cfg.Listen, smtpd.Door{})
	if err == nil && (holder != nil || cfg.SMTP.PlaintextAuth) {
		err = l.open(ctx, "POSTRIDER_SUBMISSION_LISTEN", cfg.Submission, smtpd.Door{Submission: true})
	}
	if err == nil && holder != nil {
		err = l.open(ctx, "POSTRIDER_SUBMISSIONS_LISTEN", cfg.Submissions, smtpd.Door{Submission: true, ImplicitTLS: true})
	}
	for i := range cfg.Listeners.all {
		if err == nil {
			err = l.openOwn(ctx, &cfg.Listeners.all[i], cfg)
		}
	}
	if err == nil {
		err = l.openHTTP(ctx, &cfg.HTTP)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ingress: %w", err), l.Close())
	}
	return l, nil
}

// open opens a door at each address that a variable names.
func (l *Listeners) open(ctx context.Context, variable string, addresses []string, door smtpd.Door) error {
	var lc net.ListenConfig
	for _, address := range addresses {
		var err error
		if door.Listener, err = lc.Listen(ctx, "tcp", address); err != nil {
			return fmt.Errorf("%s: %w", variable, err)
		}
		l.doors = append(l.doors, door)
	}
	return nil
}

// openOwn opens a door that has rules of its own.
func (l *Listeners) openOwn(ctx context.Context, own *listener, cfg Config) error {
	door, err := own.door(cfg.SMTP)
	if err != nil {
		return err
	}
	if l.certs == nil && (door.ImplicitTLS || door.NeedTLS) {
		return fmt.Errorf("listener %s wants TLS, and there is no certificate", own.address)
	}
	return l.open(ctx, "POSTRIDER_SMTP_LISTENERS", []string{own.address}, door)
}

// Close closes all addresses. Run does so by itself.
func (l *Listeners) Close() error {
	var errs []error
	for i := range l.doors {
		errs = append(errs, l.doors[i].Listener.Close())
	}
	for _, web := range l.web {
		errs = append(errs, web.Close())
	}
	return errors.Join(errs...)
}

// Addrs returns the addresses of all SMTP listeners.
func (l *Listeners) Addrs() []net.Addr {
	all := make([]net.Addr, len(l.doors))
	for i := range l.doors {
		all[i] = l.doors[i].Listener.Addr()
	}
	return all
}

// Addr returns the first address of the relay listener, nil if there is none.
func (l *Listeners) Addr() net.Addr { return l.find(smtpd.Door{}) }

// SubmissionAddr is as Addr, of the submission listener.
func (l *Listeners) SubmissionAddr() net.Addr { return l.find(smtpd.Door{Submission: true}) }

// SubmissionsAddr is as Addr, of the submission listener with implicit TLS.
func (l *Listeners) SubmissionsAddr() net.Addr {
	return l.find(smtpd.Door{Submission: true, ImplicitTLS: true})
}

// HTTPAddr is as Addr, of the listener for HTTP clients.
func (l *Listeners) HTTPAddr() net.Addr {
	if len(l.web) == 0 {
		return nil
	}
	return l.web[0].Addr()
}

// HTTPSAddr is as Addr, of the listener for HTTP clients with TLS.
func (l *Listeners) HTTPSAddr() net.Addr {
	if len(l.web) == 0 || l.certs == nil {
		return nil
	}
	return l.web[len(l.web)-1].Addr()
}

func (l *Listeners) find(like smtpd.Door) net.Addr {
	for i := range l.doors { // by index: Run counts in them
		door := &l.doors[i]
		if door.Submission == like.Submission && door.ImplicitTLS == like.ImplicitTLS {
			return door.Listener.Addr()
		}
	}
	return nil
}

// Deps are what ingress works with.
type Deps struct {
	Listener *Listeners // from Listen; Run closes it
	Store    database
	Bus      straight.Bus
}

// Run serves SMTP and HTTP clients until ctx is done, and for the stop delay
// after that, because load balancers go on sending new ones for a while. Then it
// takes no more mail, finishes the messages that are being received within the
// drain timeout, and returns nil.
func Run(ctx context.Context, cfg Config, deps Deps) error {
	shape, err := shaping.Open(cfg.Shaping)
	if err != nil {
		return errors.Join(fmt.Errorf("ingress: %w", err), deps.Listener.Close())
	}
	cfg.SMTP.Hostname = cfg.Hostname
	cfg.SMTP.Lifetime = func(domain mail.Domain) time.Duration {
		return shape.For(shaping.Query{Domain: domain}).MessageLifetime
	}
	for _, door := range deps.Listener.doors {
		if door.Config != nil {
			door.Config.Hostname, door.Config.Lifetime = cfg.SMTP.Hostname, cfg.SMTP.Lifetime
		}
	}
	content, err := spool.Open(cfg.Spool)
	if err != nil {
		return errors.Join(fmt.Errorf("ingress: %w", err), deps.Listener.Close())
	}
	publisher := straight.New(deps.Bus)
	committer := commit.New(deps.Store, publisher, cfg.SMTP.CommitTimeout, cfg.SMTP.Streams)
	keeper, err := access.New(deps.Store, cfg.Access)
	if err != nil {
		return errors.Join(fmt.Errorf("ingress: %w", err), deps.Listener.Close())
	}
	with := smtpd.Deps{Committer: committer, Access: keeper, Spool: content}
	if deps.Listener.certs != nil {
		with.TLS = deps.Listener.certs
	}
	server := smtpd.New(cfg.SMTP, with)
	web, err := newHTTP(cfg.HTTP, cfg.SMTP, committer, keeper, content)
	if err != nil {
		return errors.Join(fmt.Errorf("ingress: %w", err), deps.Listener.Close())
	}

	for _, network := range cfg.SMTP.Wide() {
		slog.Warn("this may be an open relay: a relay network holds a good part of the Internet, and POSTRIDER_OPEN_RELAY allows it", "network", network.String())
	}
	for _, door := range deps.Listener.doors {
		slog.Info("serving SMTP", "address", door.Listener.Addr().String(), "hostname", cfg.Hostname,
			"submission", door.Submission, "implicit_tls", door.ImplicitTLS)
	}
	// These outlive the sessions: each of them gets its reply.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var g errgroup.Group
	g.Go(func() error { return committer.Run(serving) })
	g.Go(func() error { return publisher.Run(serving) })
	g.Go(func() error { return keeper.Run(serving) })
	g.Go(func() error { return announce(serving, deps.Store, cfg.Hostname) })
	g.Go(func() error { return shape.Follow(serving, deps.Store, func() {}) })
	if deps.Listener.certs != nil {
		g.Go(func() error { return deps.Listener.certs.Run(serving) })
	}
	accepting, stopAccepting := boot.Grace(ctx, cfg.StopDelay)
	defer stopAccepting()
	g.Go(func() error {
		defer stop()
		smtp := func(ctx context.Context) error { return server.Serve(ctx, deps.Listener.doors) }
		return serveBoth(accepting, smtp, web, deps.Listener.web)
	})
	return g.Wait()
}

// announceEvery is the pause after Postgres could not be told our name.
const announceEvery = 5 * time.Second

// announce tells Postgres our name, for what is submitted by SQL.
func announce(ctx context.Context, db database, hostname string) error {
	for failing := false; ; failing = true {
		err := db.AnnounceHostname(ctx, hostname)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if !failing {
			slog.Warn("the host name for mail submitted by SQL cannot be set, will retry", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(announceEvery):
		}
	}
}
