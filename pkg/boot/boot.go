// Package boot starts and stops a process of postrider: its configuration
// from the environment, its logs and telemetry, its health and metrics over
// HTTP, its signals, its exit code. It calls the process's run function once
// and knows nothing of what that does.
package boot

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/postrider/postrider/pkg/telemetry"
)

// The exit codes. A second signal exits with 128 and its number.
const (
	exitOK     = 0
	exitFailed = 1 // run returned an error
	exitConfig = 2 // the configuration or the command line is wrong
)

// flushTimeout bounds the sending of the last spans at the end.
const flushTimeout = 3 * time.Second

// Version is the version of the build, "dev" when it has none. A release sets
// it: -ldflags "-X github.com/postrider/postrider/pkg/boot.Version=v1.2.3".
var Version = ""

// Process is the process as its run function sees it.
type Process struct {
	name     string
	stderr   io.Writer
	lookup   func(string) (string, bool) // os.LookupEnv, but in tests
	defaults map[string]string           // from Defaults
	print    bool                        // -h: Config prints the table
	ran      bool                        // Config has set up logs, telemetry and HTTP
	http     *health
	sdk      *telemetry.SDK
	level    slog.LevelVar
	spanFile string
	sampling float64
}

// errPrinted ends a process that was only asked for its -h.
var errPrinted = errors.New("printed")

// Main runs the process and exits. The context that run gets is done after
// the first SIGINT or SIGTERM: run then takes no more work, finishes what it
// holds and returns nil. A second signal exits at once.
func Main(name string, run func(ctx context.Context, p *Process) error) {
	relaxTimers()
	p := newProcess(name)
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(p.stderr)
	flags.BoolVar(&p.print, "h", false, "print the environment variables that "+name+" reads")
	version := flags.Bool("version", false, "print the version")
	if err := flags.Parse(os.Args[1:]); err != nil || flags.NArg() > 0 {
		fmt.Fprintf(p.stderr, "%s takes no arguments; its configuration is in the environment: %s -h\n", name, name)
		os.Exit(exitConfig)
	}
	if *version {
		fmt.Println(name, BuildVersion())
		os.Exit(exitOK)
	}
	os.Exit(p.exitCode(p.run(run)))
}

// Run is Main for a program with a command line of its own, which prints the
// error and exits.
func Run(name string, run func(ctx context.Context, p *Process) error) error {
	return newProcess(name).run(run)
}

func newProcess(name string) *Process {
	p := &Process{name: name, stderr: os.Stderr, lookup: os.LookupEnv, sampling: 0.01, http: &health{}}
	slog.SetDefault(slog.New(telemetry.NewLogHandler(p.stderr, &p.level)).With("service", name))
	return p
}

// run calls f once, between the first line of the log and the last span.
func (p *Process) run(f func(ctx context.Context, p *Process) error) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	go func() {
		select {
		case s := <-signals:
			slog.Info("draining; a second signal exits at once", "signal", s.String())
			cancel()
		case <-ctx.Done():
			return
		}
		if s, ok := (<-signals).(syscall.Signal); ok {
			os.Exit(128 + int(s))
		}
	}()
	defer context.AfterFunc(ctx, p.http.drain)()
	return errors.Join(f(ctx, p), p.close())
}

// exitCode tells what became of run.
func (p *Process) exitCode(err error) int {
	var wrong *ConfigError
	switch {
	case err == nil:
		slog.Info("stopped")
		return exitOK
	case errors.Is(err, errPrinted):
		return exitOK
	case errors.As(err, &wrong):
		// For a person at a terminal, not for a log store: the process never began.
		fmt.Fprintf(p.stderr, "%s: %s\n", p.name, wrong)
		return exitConfig
	default:
		slog.Error("failed", "error", err)
		return exitFailed
	}
}

// Level is the least level of log lines, as POSTRIDER_LOG_LEVEL says once
// Config has read it.
func (p *Process) Level() slog.Leveler { return &p.level }

// close ends the HTTP server and sends the last spans.
func (p *Process) close() error {
	if p.sdk == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	if err := p.sdk.Shutdown(ctx); err != nil {
		// A collector that is away must not turn a clean stop into a failure.
		slog.Warn("the last spans were not sent", "error", err)
	}
	return p.http.close()
}

// Grace returns a context for work in progress. It has the values of ctx and
// is cancelled only when timeout has passed after the end of ctx: ctx says
// "take no more work", the result "give up the work you hold". Call cancel
// when the work is done.
func Grace(ctx context.Context, timeout time.Duration) (work context.Context, cancel context.CancelFunc) {
	work, cancelWork := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(timeout, cancelWork)
		context.AfterFunc(work, func() { timer.Stop() })
	})
	return work, func() {
		stop()
		cancelWork()
	}
}

// BuildVersion returns the version of the build: Version, else the module
// version or the commit that the Go tool recorded.
func BuildVersion() string {
	if Version != "" {
		return Version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "dev"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return "dev-" + s.Value[:min(12, len(s.Value))]
		}
	}
	return "dev"
}
