// Package devpg runs a private Postgres server from the binaries installed on
// this machine: the database of `postrider dev` and of the tests.
//
// The server listens on a Unix socket in a directory that only its user can
// enter, and nowhere else. It never runs as root: a root process starts it as
// user postgres or nobody. It ends with the process that started it, however
// that process ends. A data directory is used again by the next Start with
// the same Options.Dir.
package devpg

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// startTimeout bounds the wait for a server to take connections; crash
// recovery of a large queue is part of it. stopTimeout bounds a fast
// shutdown, after which an immediate one follows.
const (
	startTimeout = 2 * time.Minute
	stopTimeout  = 20 * time.Second
)

// Options say what kind of server is wanted. The zero value is a server for
// tests: fresh, fast, and gone when it stops.
type Options struct {
	Dir      string            // data directory, made if missing; "" is a temporary one, removed by Stop
	Durable  bool              // flush commits to disk, as production does; otherwise a power cut corrupts the data
	Settings map[string]string // more settings of postgresql.conf; they win over ours
}

// Server is a running Postgres server. Its methods may be called from any
// goroutine.
type Server struct {
	binaries string // directory of initdb and postgres
	account  account
	dir      string // data directory
	socket   string // directory of the socket
	args     []string
	lock     *os.File // holds the flock of dir
	remove   []string // directories that go with the server
	reaper   *reaper

	mu     sync.Mutex // guards all below; held through start and stop
	exited chan struct{}
	pid    int
	killed bool // and not started since: its backends may still be ending
}

// Start runs a server and returns when it takes connections. Errors: no
// Postgres is installed; the data directory is in use, or made by another
// major version; the server ends at once (the error has the end of its log).
func Start(ctx context.Context, o Options) (*Server, error) {
	s, err := prepare(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("devpg: %w", err)
	}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("devpg: %w", err), s.Stop())
	}
	return s, nil
}

// URL returns the connection string of database postrider. It stays the same
// through Restart.
func (s *Server) URL() string { return s.databaseURL("postrider") }

func (s *Server) databaseURL(name string) string {
	q := url.Values{"host": {s.socket}}
	return "postgres://postrider@/" + name + "?" + q.Encode()
}

// Dir returns the data directory. It differs from Options.Dir when that is
// out of reach for the account that the server runs as.
func (s *Server) Dir() string { return s.dir }

// PID returns the process id of the server, or 0 when it does not run.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pid
}

// Stop ends the server in an orderly way (open transactions are rolled
// back) and removes what was temporary. A server that does not run is fine.
func (s *Server) Stop() error {
	err := s.halt(syscall.SIGINT)
	for _, dir := range s.remove {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return errors.Join(err, s.reaper.dismiss(), s.lock.Close())
}

// Kill ends the server as a crash would: kill -9. The next Restart recovers.
func (s *Server) Kill() error {
	err := s.halt(syscall.SIGKILL)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.killed = true
	return err
}

// Halt ends the server in an orderly way and keeps its data, so that Restart
// can bring it back.
func (s *Server) Halt() error { return s.halt(syscall.SIGINT) }

// Restart stops the server if it runs, starts it again with the same data,
// and returns when it takes connections.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Halt(); err != nil {
		return err
	}
	if err := s.start(ctx); err != nil {
		return fmt.Errorf("devpg: %w", err)
	}
	return nil
}

// halt sends the signal and waits for the end of the process.
func (s *Server) halt(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pid == 0 {
		return nil
	}
	// The process may have ended by itself: then there is nobody to signal.
	if err := syscall.Kill(s.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("devpg: signal %d to process %d: %w", sig, s.pid, err)
	}
	select {
	case <-s.exited:
	case <-time.After(stopTimeout):
		if err := syscall.Kill(s.pid, syscall.SIGQUIT); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("devpg: process %d does not stop: %w", s.pid, err)
		}
		<-s.exited
	}
	s.pid = 0
	return s.reaper.watch(0)
}

// start runs the process and waits until it takes connections. A server that
// ends at once is tried again for a while: after kill -9 the old backends
// need a moment to leave the shared memory.
func (s *Server) start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if err := s.launch(); err != nil {
			return err
		}
		err := s.waitReady(ctx)
		if err == nil {
			s.killed = false
			return nil
		}
		// The backends of a killed server hold its shared memory for a moment,
		// and write their last words into the same log.
		if ctx.Err() != nil || !s.killed && !strings.Contains(err.Error(), "shared memory block") {
			return err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// mallocKeeps has the backends keep a few MiB of memory between statements. By
// itself glibc returns the buffers of each COPY to the kernel, and has them
// zeroed again for the next one: a twentieth of what Postgres does for us.
var mallocKeeps = []string{"MALLOC_TRIM_THRESHOLD_=8388608", "MALLOC_TOP_PAD_=1048576"}

// environment is what the server and its tools get of ours: nothing that may
// be a secret. Any user who can run SQL functions may read it there.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return !slices.Contains([]string{"PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH"}, name) && !strings.HasPrefix(name, "LC_")
	})
}

// launch starts the process; s.exited is closed when it has ended.
func (s *Server) launch() error {
	log, err := os.Create(s.logFile())
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(s.binaries, "postgres"), s.args...)
	cmd.Dir = s.dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(environment(), mallocKeeps...)
	// A process group of its own: Ctrl-C at the terminal is for us, and the
	// database has to outlive the services that drain into it.
	cmd.SysProcAttr = s.account.attributes()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	exited := make(chan struct{})
	s.pid, s.exited = cmd.Process.Pid, exited
	go func() {
		_ = cmd.Wait() // why it ended is in its log; waitReady and halt only need to know that it did
		close(exited)
	}()
	return s.reaper.watch(s.pid)
}

func (s *Server) waitReady(ctx context.Context) error {
	for {
		err := s.ensureDatabase(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-s.exited:
			s.pid = 0
			if err := s.reaper.watch(0); err != nil {
				return err
			}
			return fmt.Errorf("postgres ended at once: %s", s.logTail())
		case <-ctx.Done():
			return fmt.Errorf("postgres is not ready: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// ensureDatabase connects, which shows that the server is ready, and makes
// database postrider if this is the first start.
func (s *Server) ensureDatabase(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.databaseURL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var found bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = 'postrider')").Scan(&found); err != nil {
		return err
	}
	if found {
		return nil
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE postrider")
	return err
}

func (s *Server) logFile() string { return filepath.Join(s.dir, "postgres.log") }

// logTail returns the last lines of the server's log on one line.
func (s *Server) logTail() string {
	text, err := os.ReadFile(s.logFile())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-4):], " | ")
}

// arguments returns the command line of the server.
func arguments(o Options, dir, socket string) []string {
	settings := map[string]string{
		"listen_addresses":          "",
		"unix_socket_directories":   socket,
		"max_connections":           "200",
		"shared_buffers":            "128MB",
		"max_wal_size":              "2GB",
		"checkpoint_timeout":        "15min",
		"default_toast_compression": "lz4",
		"log_min_messages":          "warning",
		"timezone":                  "UTC",
		"log_timezone":              "UTC",
	}
	if !o.Durable {
		settings["fsync"] = "off"
		settings["full_page_writes"] = "off"
	}
	for name, value := range o.Settings {
		settings[name] = value
	}
	args := []string{"-D", dir}
	for name, value := range settings {
		args = append(args, "-c"+name+"="+value)
	}
	slices.Sort(args[2:])
	return args
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
