package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postrider/postrider/tests/internal/proc"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

// upWithin is what a newcomer waits for, at most, after compiling.
const upWithin = 60 * time.Second

// laptop is a directory in which a newcomer runs postrider.
type laptop struct {
	t       *testing.T
	dir     string
	binary  string
	user    *proc.User
	smtp    string
	metrics string
	demo    string
	dev     *proc.Process
	runs    int
}

// TestDev is the first five minutes of a newcomer: make run, a message from
// a client at hand, its story; Ctrl-C, and the same queue the next time.
func TestDev(t *testing.T) {
	users := map[string]*proc.User{"as ourselves": nil}
	if os.Getuid() == 0 {
		users["as an ordinary user"] = &proc.User{UID: 65534, GID: 65534} // nobody
	}
	for name, user := range users {
		t.Run(name, func(t *testing.T) {
			l := newLaptop(t, user)
			l.start()
			l.helloWorld()
			l.reportComesBack()
			id := l.send("later@demo.test") // the demo destination refuses it once
			l.waitShow(id, "delayed")
			l.interrupt()
			l.start()
			if text := l.postrider("queue"); !strings.Contains(text, id) && !strings.Contains(l.postrider("show", id), "relayed") {
				t.Errorf("after the restart the queue has no %s:\n%s", id, text)
			}
			l.waitShow(id, "relayed")
			l.interrupt()
		})
	}
}

func newLaptop(t *testing.T, user *proc.User) *laptop {
	t.Helper()
	built, err := world.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "postrider-laptop-") // t.TempDir is for root alone
	if err != nil {
		t.Fatal(err)
	}
	l := &laptop{t: t, dir: dir, binary: filepath.Join(dir, "postrider"), user: user, smtp: freeAddress(t), metrics: freeAddress(t), demo: freeAddress(t)}
	t.Cleanup(func() {
		if l.dev != nil && l.dev.Running() {
			l.dev.Kill()
		}
		if t.Failed() && l.dev != nil {
			t.Log(l.dev.Log(1<<15) + proc.Tail(filepath.Join(dir, ".postrider", "postrider.log"), 1<<14))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	text, err := os.ReadFile(filepath.Join(built, "postrider"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.binary, text, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if user != nil {
		if err := os.Chown(dir, int(user.UID), int(user.GID)); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// freeAddress returns an address on which nothing listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (l *laptop) spec(name string, args ...string) proc.Spec {
	return proc.Spec{
		Name: name, Path: l.binary, Args: args, Dir: l.dir, LogDir: l.dir, User: l.user,
		Env: []string{"HOME=" + l.dir, "POSTRIDER_SMTP_LISTEN=" + l.smtp, "POSTRIDER_SUBMISSION_LISTEN=127.0.0.1:0", "POSTRIDER_SUBMISSIONS_LISTEN=127.0.0.1:0", "POSTRIDER_HTTP_LISTEN=127.0.0.1:0", "POSTRIDER_METRICS_LISTEN=" + l.metrics,
			"POSTRIDER_DEMO_LISTEN=" + l.demo, "POSTRIDER_RETRY_SCHEDULE=3s"},
	}
}

// start runs postrider dev and waits until it says that it is up.
func (l *laptop) start() {
	l.t.Helper()
	l.runs++
	var err error
	if l.dev, err = proc.Start(l.spec(fmt.Sprintf("dev%d", l.runs), "dev")); err != nil {
		l.t.Fatal(err)
	}
	l.eventually(upWithin, "postrider dev is up", func(context.Context) error {
		if !l.dev.Running() {
			l.t.Fatalf("postrider dev ended: %v\n%s", l.dev.Err(), l.dev.Log(1<<14))
		}
		if !strings.Contains(l.dev.Log(1<<16), "SMTP on "+l.smtp) {
			return errors.New("it has not said so")
		}
		return nil
	})
}

func (l *laptop) eventually(limit time.Duration, what string, check func(context.Context) error) {
	l.t.Helper()
	ctx, cancel := context.WithTimeoutCause(l.t.Context(), limit, fmt.Errorf("not within %s", limit))
	defer cancel()
	if err := proc.Poll(ctx, check); err != nil {
		l.t.Fatalf("%s: %v", what, err)
	}
}

// helloWorld sends a message with Python's smtplib, finds it at the demo
// destination, and reads its story.
func (l *laptop) helloWorld() {
	l.t.Helper()
	host, port, err := net.SplitHostPort(l.smtp)
	if err != nil {
		l.t.Fatal(err)
	}
	if out, err := exec.CommandContext(l.t.Context(), "python3", "-c", pythonClient, host, port, "friend@demo.test").CombinedOutput(); err != nil {
		l.t.Fatalf("smtplib: %v\n%s", err, out)
	}
	l.waitArrival("Subject: from smtplib")
	id := l.send("friend@demo.test")
	l.waitShow(id, "relayed")
	for _, want := range []string{id, "you@demo.test", "friend@demo.test", "ingress.accept", "delivery.attempt"} {
		if text := l.postrider("show", id); !strings.Contains(text, want) {
			// Spans reach their file a moment after the message is settled.
			l.waitShow(id, want)
		}
	}
}

// reportComesBack sends a message that is refused for good.
func (l *laptop) reportComesBack() {
	l.t.Helper()
	id := l.send("nobody@demo.test")
	l.waitShow(id, "failed")
	l.waitArrival("Final-Recipient: rfc822;")
}

func (l *laptop) send(to string) string {
	l.t.Helper()
	id, err := submit.Send(l.t.Context(), l.smtp, submit.Message{From: "you@demo.test", To: []string{to}, Content: content("for " + to)})
	if err != nil {
		l.t.Fatal(err)
	}
	return id
}

// postrider runs a command and returns what it printed.
func (l *laptop) postrider(args ...string) string {
	l.t.Helper()
	var out strings.Builder
	s := l.spec("command", args...)
	s.Stdout = &out
	p, err := proc.Start(s)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := p.Wait(l.t.Context()); err != nil {
		l.t.Fatalf("postrider %v: %v\n%s%s", args, err, &out, p.Log(1<<14))
	}
	return out.String()
}

func (l *laptop) waitShow(id, want string) {
	l.t.Helper()
	l.eventually(deadline, "postrider show "+id+" says "+want, func(context.Context) error {
		if text := l.postrider("show", id); !strings.Contains(text, want) {
			return errors.New(text)
		}
		return nil
	})
}

// waitArrival waits for a message at the demo destination.
func (l *laptop) waitArrival(want string) {
	l.t.Helper()
	l.eventually(deadline, "a message with "+want+" at the demo destination", func(context.Context) error {
		files, err := filepath.Glob(filepath.Join(l.dir, ".postrider", "arrivals", "*"))
		if err != nil {
			return err
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				return err
			}
			if strings.Contains(string(text), want) {
				return nil
			}
		}
		return fmt.Errorf("none of %d messages has it", len(files))
	})
}

// interrupt is Ctrl-C: SIGINT to the process group of the terminal. All has
// to end, Postgres too, with exit code 0.
func (l *laptop) interrupt() {
	l.t.Helper()
	pidFile := filepath.Join(l.dir, ".postrider", "postgres", "postmaster.pid")
	text, err := os.ReadFile(pidFile)
	if err != nil {
		l.t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	postgres, err := strconv.Atoi(line)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := syscall.Kill(-l.dev.PID(), syscall.SIGINT); err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(l.t.Context(), deadline)
	defer cancel()
	if err := l.dev.Wait(ctx); err != nil {
		l.t.Errorf("postrider dev after Ctrl-C: %v\n%s", err, l.dev.Log(1<<14))
	}
	if err := syscall.Kill(postgres, 0); !errors.Is(err, syscall.ESRCH) {
		l.t.Errorf("Postgres still runs after Ctrl-C: %v", err)
	}
	if _, err := os.Stat(pidFile); !errors.Is(err, fs.ErrNotExist) {
		l.t.Errorf("Postgres did not stop in good order: postmaster.pid is there (%v)", err)
	}
}
