// Package proc runs the programs that the black-box tests and the benchmark
// are about: each with its own log, stopped and killed by its id, and
// accounted for in /proc.
package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Spec says what to run.
type Spec struct {
	Name   string // for messages and for the name of the log
	Path   string
	Args   []string
	Env    []string // added to a small environment of PATH, HOME and TMPDIR
	Dir    string   // working directory; "" is LogDir
	LogDir string   // standard output and error go to LogDir/Name.log, appended
	User   *User    // nil: as ourselves

	// Stdout and Stderr, if set, get the output instead of the log.
	Stdout, Stderr io.Writer
}

// User is an ordinary user that a program of ours is to run as.
type User struct{ UID, GID uint32 }

// Process is a running program.
type Process struct {
	Spec
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{} // closed by the waiter once the process has ended
	err  error         // of Wait; read it after done
}

// Start starts a program. It dies with us: PR_SET_PDEATHSIG is set, so a
// test that is killed leaves nothing behind.
func Start(s Spec) (*Process, error) {
	log, err := os.OpenFile(LogPath(s), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	p := &Process{Spec: s, log: log, done: make(chan struct{})}
	p.cmd = exec.Command(s.Path, s.Args...)
	p.cmd.Dir = s.Dir
	if p.cmd.Dir == "" {
		p.cmd.Dir = s.LogDir
	}
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.TempDir()}, s.Env...)
	p.cmd.Stderr, p.cmd.Stdout = log, log
	if s.Stdout != nil {
		p.cmd.Stdout = s.Stdout
	}
	if s.Stderr != nil {
		p.cmd.Stderr = s.Stderr
	}
	p.cmd.SysProcAttr = attributes(s.User)
	if err := start(p.cmd); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", s.Name, err), log.Close())
	}
	go p.wait()
	return p, nil
}

// LogPath returns where the output of a program goes.
func LogPath(s Spec) string { return filepath.Join(s.LogDir, s.Name+".log") }

func (p *Process) wait() {
	p.err = errors.Join(p.cmd.Wait(), p.log.Close())
	close(p.done)
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns how the process ended; nil is exit code 0. It must not be
// called before Done is closed.
func (p *Process) Err() error { return p.err }

// Running reports whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Kill sends SIGKILL and waits until the process has ended.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Signal sends a signal to a process that has not ended.
func (p *Process) Signal(sig syscall.Signal) {
	if p.Running() {
		// The process may end between the two: then there is nothing to signal.
		_ = p.cmd.Process.Signal(sig)
	}
}

// Stop sends sig and waits for the end of the process. It returns how the
// process ended, or an error after it had to be killed when limit was over.
func (p *Process) Stop(sig syscall.Signal, limit time.Duration) error {
	p.Signal(sig)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.err
	case <-timer.C:
		p.Kill()
		return fmt.Errorf("%s: not ended %s after signal %s", p.Name, limit, sig)
	}
}

// Wait waits for the end of the process and returns how it ended. When ctx
// is done first the process is killed.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		p.Kill()
		return fmt.Errorf("%s: %w", p.Name, context.Cause(ctx))
	}
}

// Log returns the output so far, at most the last limit bytes.
func (p *Process) Log(limit int64) string { return Tail(LogPath(p.Spec), limit) }

// Tail returns the last limit bytes of a file, from the start of a line.
func Tail(path string, limit int64) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err.Error()
	}
	from := max(0, st.Size()-limit)
	text, err := io.ReadAll(io.NewSectionReader(f, from, limit))
	if err != nil {
		return err.Error()
	}
	if i := bytes.IndexByte(text, '\n'); from > 0 && i >= 0 {
		text = text[i+1:]
	}
	return string(text)
}

// Poll calls check, at once and then every 10 ms, until it returns nil. It
// returns the last error of check once ctx is done.
func Poll(ctx context.Context, check func(context.Context) error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // what ctx cut short says nothing
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w, the last answer was: %w", context.Cause(ctx), last)
		case <-tick.C:
		}
	}
}

// The kernel sends the parent-death signal when the *thread* that started
// the child ends, so all starts happen on one thread that never ends.
var (
	starts    = make(chan func())
	startOnce sync.Once
)

func start(cmd *exec.Cmd) error {
	startOnce.Do(func() { go startThread() })
	result := make(chan error)
	starts <- func() { result <- cmd.Start() }
	return <-result
}
