// Package world is postrider as it runs in production, on one machine: the
// real binaries as separate processes, several of every service, a real
// Postgres, a real NATS server and DNS over real sockets. The black-box
// tests and the benchmark start it, send mail in, and look at what comes out
// at remote hosts.
//
// Every world has a loopback network of its own, 127.x.y.0/23: .1 is
// postrider, .10 and up are remote hosts, which all listen on RemotePort.
package world

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postrider/postrider/pkg/devpg"
	"github.com/postrider/postrider/pkg/dnstest"
	"github.com/postrider/postrider/tests/internal/proc"
)

// The ports of a world, at addresses of its own network.
const (
	RemotePort  = 12625 // of every remote host
	smtpPort    = 12525 // ingress copy 0; the next copy has the next port
	natsPort    = 14222
	httpPort    = 18025 // of ingress copy 0, as above
	metricsPort = 19100 // of the first process; the next has the next port
)

const (
	readyLimit = 30 * time.Second // until a process is ready
	drainLimit = 30 * time.Second // until a process has ended after SIGTERM
)

// Services are the services that run as processes of their own.
var Services = []string{"ingress", "resolver", "delivery", "scheduler", "bounce"}

// Options say how the world is. The zero value is one copy of everything.
type Options struct {
	Copies  int  // of each service; 0 is 1
	Durable bool // Postgres flushes to disk
	// Shaping is the text of the shaping file. Blocks of domains want
	// mx_rollup = false: the resolver looks up the others as it starts, and
	// remembers that they do not exist yet.
	Shaping string
	Roots   []byte            // certificates in PEM that the services trust; nil: those of the system
	Env     map[string]string // for all services, over what the world sets
	Roles   bool              // each service has a login of its own, as docs/operations.md makes them
	Parent  string            // directory that keeps logs and data; "" is a temporary one, removed by Close
}

// World is a running postrider with its surroundings.
type World struct {
	Dir      string
	PG       *devpg.Server
	DB       *pgxpool.Pool
	DNS      *dnstest.Server
	services []*Service

	bin    string
	second int    // octet of its network
	third  int    // an even one
	remove bool   // Dir goes with Close
	logs   string // where Close keeps the logs; "" if they need not be kept
	env    map[string]string
	roles  bool

	mu    sync.Mutex // guards all below, held
	nats  *proc.Process
	zone  dnstest.Zone
	hosts int // remote hosts so far
}

// Service is one process of a service. It can be killed and started again.
type Service struct {
	Name string // such as "delivery"
	Copy int    // from 0

	world   *World
	smtp    string // ingress only
	http    string // as smtp
	metrics string

	mu      sync.Mutex // guards process
	process *proc.Process
}

// New builds and starts a world and returns when all of it is ready. The
// caller closes it, also after an error: then what runs is in the world that
// is returned with it.
func New(ctx context.Context, o Options) (*World, error) {
	w := &World{remove: o.Parent == ""}
	var err error
	if w.bin, err = Build(ctx); err != nil {
		return w, err
	}
	if err := w.place(o.Parent); err != nil {
		return w, err
	}
	w.PG, err = devpg.Start(ctx, devpg.Options{Dir: filepath.Join(w.Dir, "postgres"), Durable: o.Durable})
	if err != nil {
		return w, err
	}
	if w.DB, err = pgxpool.New(ctx, w.PG.URL()); err != nil {
		return w, err
	}
	if err := w.StartNATS(ctx); err != nil {
		return w, err
	}
	if w.DNS, err = dnstest.New(dnstest.Zone{}); err != nil {
		return w, err
	}
	w.zone = dnstest.Zone{MX: map[string][]string{}, A: map[string][]string{}}
	if err := w.environment(o); err != nil {
		return w, err
	}
	if err := w.Command(ctx, "migrate", "up"); err != nil {
		return w, err
	}
	if w.roles = o.Roles; w.roles {
		if err := w.makeLogins(ctx); err != nil {
			return w, err
		}
	}
	for _, name := range Services {
		for c := range max(1, o.Copies) {
			w.services = append(w.services, w.newService(name, c))
		}
	}
	for _, s := range w.services {
		if err := s.Start(); err != nil {
			return w, err
		}
	}
	for _, s := range w.services {
		if err := s.WaitReady(ctx); err != nil {
			return w, err
		}
	}
	return w, nil
}

// place makes the directory and chooses the network.
func (w *World) place(parent string) error {
	var err error
	if parent == "" {
		if w.Dir, err = os.MkdirTemp("", "postrider-world-"); err != nil {
			return err
		}
	} else if w.Dir, err = filepath.Abs(parent); err != nil {
		return err
	}
	if err := os.MkdirAll(w.Dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(w.Dir, 0o755); err != nil { // Postgres drops root and must get in
		return err
	}
	for range 20 {
		w.second, w.third = 1+rand.IntN(250), 2*rand.IntN(128)
		// Whoever has this port of the network has the network.
		l, err := net.Listen("tcp", w.address(1, natsPort))
		if err == nil {
			return l.Close()
		}
	}
	return errors.New("no free loopback network")
}

func (w *World) address(host, port int) string {
	return fmt.Sprintf("%s:%d", w.Address(host), port)
}

// Address returns an address of the world's network, for a client that is to
// come from another one than the others.
func (w *World) Address(host int) string {
	return fmt.Sprintf("127.%d.%d.%d", w.second, w.third+host/251, host%251)
}

// Network returns the world's network in CIDR form.
func (w *World) Network() string { return w.Address(0) + "/23" }

// environment is what all services are told.
func (w *World) environment(o Options) error {
	shaping := ""
	if o.Shaping != "" {
		shaping = filepath.Join(w.Dir, "shaping.toml")
		if err := os.WriteFile(shaping, []byte(o.Shaping), 0o644); err != nil {
			return err
		}
	}
	w.env = map[string]string{
		"POSTRIDER_POSTGRES_URL":       w.PG.URL(),
		"POSTRIDER_NATS_URL":           "nats://" + w.address(1, natsPort),
		"POSTRIDER_DATA_DIR":           filepath.Join(w.Dir, "data"),
		"POSTRIDER_HOSTNAME":           "mta.postrider.test",
		"POSTRIDER_DNS_SERVERS":        w.DNS.Addr(),
		"POSTRIDER_REMOTE_PORT":        strconv.Itoa(RemotePort),
		"POSTRIDER_ALLOW_TARGETS":      w.Network(),
		"POSTRIDER_INGRESS_STOP_DELAY": "0s",
		"POSTRIDER_RELAY_NETWORKS":     "127.0.0.1/32," + w.Network(),
	}
	if shaping != "" {
		w.env["POSTRIDER_SHAPING_FILE"] = shaping
	}
	if o.Roots != nil {
		w.env["SSL_CERT_FILE"] = filepath.Join(w.Dir, "roots.pem")
		if err := os.WriteFile(w.env["SSL_CERT_FILE"], o.Roots, 0o644); err != nil {
			return err
		}
	}
	maps.Copy(w.env, o.Env)
	return nil
}

// Command runs a command of the postrider binary in the world's environment.
func (w *World) Command(ctx context.Context, args ...string) error {
	_, err := w.Output(ctx, args...)
	return err
}

// Output runs a command of the postrider binary and returns what it printed.
func (w *World) Output(ctx context.Context, args ...string) (string, error) {
	var out strings.Builder
	p, err := proc.Start(proc.Spec{
		Name: "postrider-" + args[0], Path: filepath.Join(w.bin, "postrider"), Args: args,
		Env: list(w.env), LogDir: w.Dir, Stdout: &out,
	})
	if err != nil {
		return "", err
	}
	if err := p.Wait(ctx); err != nil {
		return out.String(), fmt.Errorf("postrider %s: %w\n%s%s", strings.Join(args, " "), err, &out, p.Log(1<<14))
	}
	return out.String(), nil
}

func list(env map[string]string) []string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(env)) {
		all = append(all, k+"="+env[k])
	}
	return all
}

func (w *World) newService(name string, c int) *Service {
	s := &Service{Name: name, Copy: c, world: w, metrics: w.address(1, metricsPort+len(w.services))}
	if name == "ingress" {
		s.smtp, s.http = w.address(1, smtpPort+c), w.address(1, httpPort+c)
	}
	return s
}

// Service returns one copy of a service.
func (w *World) Service(name string, c int) *Service {
	for _, s := range w.services {
		if s.Name == name && s.Copy == c {
			return s
		}
	}
	panic(fmt.Sprintf("no copy %d of %s in this world", c, name))
}

// Add makes one more copy of a service, which is not started.
func (w *World) Add(name string) *Service {
	copies := 0
	for _, s := range w.services {
		if s.Name == name {
			copies++
		}
	}
	s := w.newService(name, copies)
	w.services = append(w.services, s)
	return s
}

// SMTP returns where a copy of ingress takes mail.
func (w *World) SMTP(c int) string { return w.Service("ingress", c).smtp }

// HTTP returns where a copy of ingress takes mail by HTTP.
func (w *World) HTTP(c int) string { return "http://" + w.Service("ingress", c).http }

// String returns the name and copy, such as "delivery-1".
func (s *Service) String() string { return fmt.Sprintf("%s-%d", s.Name, s.Copy) }

// Start starts the process. It is not ready when Start returns.
func (s *Service) Start() error {
	env := maps.Clone(s.world.env)
	env["POSTRIDER_METRICS_LISTEN"] = s.metrics
	if s.world.roles {
		env["POSTRIDER_POSTGRES_URL"] = s.world.postgresAs("mta_" + s.Name)
	}
	if s.smtp != "" {
		env["POSTRIDER_SMTP_LISTEN"] = s.smtp
		env["POSTRIDER_HTTP_LISTEN"] = s.http
	}
	p, err := proc.Start(proc.Spec{
		Name: s.String(), Path: filepath.Join(s.world.bin, s.Name), Env: list(env), LogDir: s.world.Dir,
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process = p
	return err
}

// Process returns the process that runs, or ran last.
func (s *Service) Process() *proc.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

// WaitReady waits until /readyz of the process says so.
func (s *Service) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyLimit, fmt.Errorf("%s is not ready after %s", s, readyLimit))
	defer cancel()
	err := proc.Poll(ctx, func(ctx context.Context) error {
		if p := s.Process(); !p.Running() {
			cancel()
			return fmt.Errorf("%s has ended: %w", s, errors.Join(p.Err(), errors.New(p.Log(1<<12))))
		}
		return s.Ready(ctx)
	})
	return err
}

// Kill ends the process as kill -9 does.
func (s *Service) Kill() { s.Process().Kill() }

// Stop ends the process in good order.
func (s *Service) Stop() error {
	if err := s.Process().Stop(syscall.SIGTERM, drainLimit); err != nil {
		return fmt.Errorf("%s: %w", s, err)
	}
	return nil
}

// Close stops everything in good order, services first. The error says what
// did not end as it should.
func (w *World) Close() error {
	var errs []error
	// All at once, and one signal for each: a second one means at once.
	var stops sync.WaitGroup
	ended := make([]error, len(w.services))
	for i, s := range w.services {
		if p := s.Process(); p != nil && p.Running() {
			stops.Go(func() { ended[i] = s.Stop() })
		}
	}
	stops.Wait()
	errs = append(errs, ended...)
	if w.DB != nil {
		w.DB.Close()
	}
	if w.DNS != nil {
		errs = append(errs, w.DNS.Close())
	}
	if n := w.NATS(); n != nil && n.Running() {
		errs = append(errs, n.Stop(syscall.SIGTERM, drainLimit))
	}
	if w.PG != nil {
		errs = append(errs, w.PG.Stop())
	}
	errs = append(errs, w.alarms(), w.copyLogs())
	if w.remove && w.Dir != "" {
		errs = append(errs, os.RemoveAll(w.Dir))
	}
	return errors.Join(errs...)
}
