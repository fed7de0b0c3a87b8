package postrider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/boot"
	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/devpg"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/telemetry"
	"github.com/postrider/postrider/services/bounce"
	"github.com/postrider/postrider/services/delivery"
	"github.com/postrider/postrider/services/ingress"
	"github.com/postrider/postrider/services/postrider/internal/sink"
	"github.com/postrider/postrider/services/resolver"
	"github.com/postrider/postrider/services/scheduler"
)

// The files of the data directory.
const (
	postgresName = "postgres"
	natsName     = "jetstream"
	arrivalsName = "arrivals"
	spansName    = "spans.jsonl"
	logName      = "postrider.log"
)

// readyWithin bounds the start of the services.
const readyWithin = time.Minute

// demoDomains go to the demo destination.
var demoDomains = []string{"demo.test", "*.demo.test"}

// devDefaults stand in for the configuration that a production system has.
func devDefaults() map[string]string {
	hostname, err := os.Hostname()
	if err != nil || !strings.Contains(hostname, ".") {
		hostname = "postrider.test"
	}
	return map[string]string{
		"POSTRIDER_HOSTNAME":           hostname,
		"POSTRIDER_INGRESS_STOP_DELAY": "0s",
		"POSTRIDER_RELAY_NETWORKS":     "127.0.0.0/8,::1/128",
		"POSTRIDER_TLS_SELF_SIGNED":    "true",
		"POSTRIDER_METRICS_LISTEN":     "127.0.0.1:9464",
		"POSTRIDER_RETRY_SCHEDULE":     "10s,30s,1m,5m,10m,20m,40m,80m,160m,4h",
	}
}

// devConfig is the configuration of all services in one process.
type devConfig struct {
	Where     location
	Demo      string `envconfig:"DEMO_LISTEN" default:"127.0.0.1:2526" desc:"Address of the demo destination of postrider dev, which takes mail for demo.test."`
	Store     store.Config
	Bus       bus.Config
	Ingress   ingress.Config
	Resolver  resolver.Config
	Delivery  delivery.Config
	Scheduler scheduler.Config
	Bounce    bounce.Config
}

func devCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "dev",
		Short: "Run everything in this process, with a Postgres and a NATS of its own and a demo destination",
		Long: `dev runs all services in one process. It starts a Postgres from the binaries
of this machine and a NATS inside the process, unless POSTRIDER_POSTGRES_URL
and POSTRIDER_NATS_URL name others, and a demo destination that takes mail for
demo.test. The queue is in POSTRIDER_DATA_DIR (./.postrider) and is there again
at the next start. Configuration: docs/configuration.md.`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return boot.Run("postrider", func(ctx context.Context, p *boot.Process) error {
				return runDev(ctx, p, c.OutOrStdout())
			})
		},
	}
}

// dev is a running postrider dev.
type dev struct {
	cfg      devConfig
	out      io.Writer
	terminal terminal
	process  *boot.Process
	closers  []func() error // last first
}

func runDev(ctx context.Context, p *boot.Process, out io.Writer) (err error) {
	d := &dev{process: p, out: out, terminal: newTerminal(out)}
	// Everything that was started goes in the reverse order, whatever ends it.
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.surround(ctx); err != nil {
		return err
	}
	db, err := store.Open(ctx, d.cfg.Store)
	if err != nil {
		return err
	}
	d.onClose(func() error { db.Close(); return nil })
	nc, err := bus.Connect(ctx, d.cfg.Bus, db)
	if err != nil {
		return err
	}
	d.onClose(func() error { nc.Close(); return nil })
	return d.run(ctx, db, nc)
}

func (d *dev) onClose(f func() error) { d.closers = append(d.closers, f) }

func (d *dev) close() error {
	var errs []error
	for i := len(d.closers) - 1; i >= 0; i-- {
		errs = append(errs, d.closers[i]())
	}
	return errors.Join(errs...)
}

// surround reads the configuration, starts Postgres and NATS where none are
// given, and brings the schema up to date.
func (d *dev) surround(ctx context.Context) error {
	p, defaults := d.process, devDefaults()
	var given struct {
		Where   location
		NATSURL string `envconfig:"NATS_URL" desc:"NATS servers."`
	}
	if err := boot.Load(defaults, &given); err != nil {
		return err
	}
	dir, err := filepath.Abs(given.Where.DataDir)
	if err != nil {
		return err
	}
	// What is wrong shows before anything is started; the two addresses are
	// only known later.
	if given.Where.PostgresURL == "" {
		defaults["POSTRIDER_POSTGRES_URL"] = "postgres:///"
	}
	if given.NATSURL == "" {
		defaults["POSTRIDER_NATS_URL"] = "nats://127.0.0.1"
	}
	if err := boot.Load(defaults, &d.cfg); err != nil {
		return err
	}
	// Who is not its user may enter it, for Postgres must when it is started by
	// root, but sees nothing of what is in it.
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	if given.Where.PostgresURL == "" {
		pg, err := devpg.Start(ctx, devpg.Options{Dir: filepath.Join(dir, postgresName), Durable: true})
		if errors.Is(err, devpg.ErrInUse) {
			return fmt.Errorf("a postrider dev runs already in %s: stop it, or name another directory by POSTRIDER_DATA_DIR", dir)
		}
		if err != nil {
			return err
		}
		d.onClose(pg.Stop)
		defaults["POSTRIDER_POSTGRES_URL"] = pg.URL()
	}
	if given.NATSURL == "" {
		nats, url, err := startJetStream(filepath.Join(dir, natsName))
		if err != nil {
			return err
		}
		d.onClose(func() error { nats.Shutdown(); nats.WaitForShutdown(); return nil })
		defaults["POSTRIDER_NATS_URL"] = url
	}
	p.Defaults(defaults)
	p.SpanFile(filepath.Join(dir, spansName))
	if err := p.Config(&d.cfg); err != nil {
		return err
	}
	d.cfg.Where.DataDir = dir
	if err := d.logTo(filepath.Join(dir, logName)); err != nil {
		return err
	}
	if err := store.Migrate(ctx, d.cfg.Store.URL); err != nil {
		return err
	}
	// The demo destination is on loopback, where no mail goes otherwise.
	d.cfg.Resolver.AllowTargets = append(d.cfg.Resolver.AllowTargets, netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"))
	d.cfg.Delivery.AllowTargets = d.cfg.Resolver.AllowTargets
	return nil
}

// logTo sends all log lines to a file; the log of the run before is kept
// beside it. The terminal gets mail events and warnings.
func (d *dev) logTo(name string) error {
	if err := os.Rename(name, name+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewMultiHandler(telemetry.NewLogHandler(f, d.process.Level()), d.terminal)))
	d.onClose(func() error {
		slog.SetDefault(before)
		return f.Close()
	})
	return nil
}

// run opens the doors, starts all services, and says so when they are ready.
func (d *dev) run(ctx context.Context, db *store.Store, nc *bus.Bus) error {
	demo, err := sink.Listen(d.cfg.Demo, filepath.Join(d.cfg.Where.DataDir, arrivalsName), d.arrived)
	if err != nil {
		return fmt.Errorf("POSTRIDER_DEMO_LISTEN: %w", err)
	}
	if err := routeDemo(ctx, db, demo.Address()); err != nil {
		return err
	}
	listener, err := ingress.Listen(ctx, d.cfg.Ingress)
	if err != nil {
		return err
	}
	d.process.ReadyWhen("postgres", db.Ping)
	d.process.ReadyWhen("nats", nc.Ping)

	// The destination stays until the services have drained into it.
	last, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var destination errgroup.Group
	destination.Go(func() error { return demo.Serve(last) })

	g, running := errgroup.WithContext(ctx)
	g.Go(func() error { return scheduler.Run(running, d.cfg.Scheduler, db, nc) })
	g.Go(func() error { return bounce.Run(running, d.cfg.Bounce, db, nc) })
	g.Go(func() error { return delivery.Run(running, d.cfg.Delivery, db, nc) })
	g.Go(func() error { return resolver.Run(running, d.cfg.Resolver, db, nc) })
	g.Go(func() error {
		return ingress.Run(running, d.cfg.Ingress, ingress.Deps{Listener: listener, Store: db, Bus: nc})
	})
	g.Go(func() error { return d.announce(running, listener.Addr()) })
	err = g.Wait()
	stop()
	return errors.Join(err, destination.Wait())
}

// routeDemo sends the demo domains to the demo destination. A rule that stands
// already stays, for a change of it has waiting mail tried again.
func routeDemo(ctx context.Context, db *store.Store, address string) error {
	rules, err := db.Routing(ctx)
	if err != nil {
		return err
	}
	for _, domain := range demoDomains {
		rule := store.RoutingRule{Match: store.RouteMatch{Domain: domain}, Hosts: []string{address}, TLS: mail.TLSMay}
		stands := func(r store.RoutingRule) bool {
			return r.Match == rule.Match && slices.Equal(r.Hosts, rule.Hosts) && r.TLS == rule.TLS
		}
		if slices.ContainsFunc(rules, stands) {
			continue
		}
		if _, err := db.SetRoute(ctx, rule); err != nil {
			return err
		}
	}
	return nil
}

// announce waits until the process is ready, then tells the other commands
// and the person at the terminal.
func (d *dev) announce(ctx context.Context, smtp net.Addr) error {
	wait, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		err := d.process.Ready(wait)
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wait.Done():
			return fmt.Errorf("not ready: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	dir := d.cfg.Where.DataDir
	i := instance{
		PID:         os.Getpid(),
		PostgresURL: d.cfg.Store.URL,
		SMTP:        smtp.String(),
		HTTP:        d.process.HTTPAddress(),
		Submit:      d.cfg.Ingress.HTTP.Listen,
		Arrivals:    filepath.Join(dir, arrivalsName),
		Spans:       filepath.Join(dir, spansName),
		Log:         filepath.Join(dir, logName),
	}
	if err := i.write(dir); err != nil {
		return err
	}
	_, err := fmt.Fprint(d.out, i.welcome())
	if err != nil {
		return err
	}
	<-ctx.Done()
	if err := d.terminal.println("\nstopping: what is in progress ends first; Ctrl-C again exits at once"); err != nil {
		return err
	}
	return os.Remove(instanceFile(dir))
}

// arrived prints one line for each message at the demo destination.
func (d *dev) arrived(a sink.Arrival) {
	name := filepath.Base(a.File)
	if err := d.terminal.println(time.Now().Format("15:04:05.000"), "arrived  ", a.QueueID, "as", arrivalsName+"/"+name); err != nil {
		slog.Warn("terminal", "error", err)
	}
}

// welcome is what to do first.
func (i instance) welcome() string {
	host, port, err := net.SplitHostPort(i.SMTP)
	if err != nil {
		host, port = "127.0.0.1", "2525"
	}
	submit := ""
	if i.Submit != "" {
		submit = ", mail by HTTP on http://" + i.Submit + " (docs/submission.md)"
	}
	self := os.Args[0]
	if strings.Contains(self, "go-build") {
		self = "go run ./services/postrider/cmd/postrider"
	}
	return fmt.Sprintf(`
postrider is up: SMTP on %s, health and metrics on http://%s%s

Send a message; demo.test is a destination inside this process:
  swaks --server %s --from you@demo.test --to friend@demo.test
  python3 -c 'import smtplib; smtplib.SMTP("%s", %s).sendmail("you@demo.test", ["friend@demo.test"], "Subject: hello\r\n\r\nIt works.\r\n")'
Also try later@demo.test (refused once, then taken: a retry) and
nobody@demo.test (refused for good: a DSN comes back to you@demo.test).

Look, in another terminal:
  %s show QUEUE-ID      the story and the trace of a message
  %s queue              what has not left yet
  ls %s
  tail -f %s
Ctrl-C stops everything; the queue is there again at the next start.

`, i.SMTP, i.HTTP, submit, i.SMTP, host, port, self, self, i.Arrivals, i.Log)
}
