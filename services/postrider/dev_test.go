package postrider

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary be the program too.
func TestMain(m *testing.M) {
	if os.Getenv("POSTRIDER_TEST_PROGRAM") != "" {
		os.Args = append([]string{"postrider"}, os.Args[1:]...)
		os.Exit(Main())
	}
	os.Exit(m.Run())
}

// program is the command line with the data directory of a test.
type program struct {
	t   *testing.T
	dir string
}

// newProgram uses a directory that the database's account can enter, when the
// test runs as root.
func newProgram(t *testing.T) *program {
	t.Helper()
	dir, err := os.MkdirTemp("", "postrider-dev-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return &program{t, dir}
}

func (p *program) command(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "POSTRIDER_TEST_PROGRAM=1", "POSTRIDER_DATA_DIR="+filepath.Join(p.dir, "data"),
		"POSTRIDER_SMTP_LISTEN=127.0.0.1:0", "POSTRIDER_SUBMISSION_LISTEN=127.0.0.1:0", "POSTRIDER_SUBMISSIONS_LISTEN=127.0.0.1:0", "POSTRIDER_HTTP_LISTEN=127.0.0.1:0", "POSTRIDER_METRICS_LISTEN=127.0.0.1:0", "POSTRIDER_DEMO_LISTEN=127.0.0.1:0",
		"POSTRIDER_RETRY_SCHEDULE=1s", "POSTRIDER_HOSTNAME=dev.test")
	return cmd
}

// run runs a command and returns what it prints.
func (p *program) run(args ...string) (string, error) {
	out, err := p.command(args...).CombinedOutput()
	return string(out), err
}

// must is run for commands that have to succeed.
func (p *program) must(args ...string) string {
	p.t.Helper()
	out, err := p.run(args...)
	if err != nil {
		p.t.Fatalf("postrider %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// up starts postrider dev and waits until it has announced itself. stop ends
// it as Ctrl-C does and wants a clean exit.
func (p *program) up() (i instance, stop func()) {
	p.t.Helper()
	cmd := p.command("dev")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	running := true
	stop = func() {
		if !running {
			return
		}
		running = false
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			p.t.Error(err)
		}
		select {
		case err := <-exited:
			if err != nil {
				p.t.Errorf("postrider dev: %v: %s", err, out.String())
			}
		case <-time.After(time.Minute):
			p.t.Errorf("postrider dev does not stop: %s", out.String())
			_ = cmd.Process.Kill() // it may have ended just now
		}
	}
	p.t.Cleanup(stop)
	p.eventually("postrider dev is up", func() bool {
		select {
		case err := <-exited:
			running = false
			p.t.Fatalf("postrider dev ended: %v: %s", err, out.String())
		default:
		}
		var err error
		i, err = readInstance(filepath.Join(p.dir, "data"))
		return err == nil
	})
	return i, stop
}

func (p *program) eventually(what string, cond func() bool) {
	p.t.Helper()
	deadline := time.After(90 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			p.t.Fatalf("%s: not within 90 s", what)
		case <-tick.C:
		}
	}
}

// send submits a message and returns its queue id.
func (p *program) send(i instance, to string) string {
	p.t.Helper()
	c, err := smtp.Dial(i.SMTP)
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Close()
	for _, err := range []error{c.Hello("client.test"), c.Mail("you@demo.test"), c.Rcpt(to)} {
		if err != nil {
			p.t.Fatal(err)
		}
	}
	id, err := c.Text.Cmd("DATA")
	if err != nil {
		p.t.Fatal(err)
	}
	c.Text.StartResponse(id)
	if _, _, err := c.Text.ReadResponse(354); err != nil {
		p.t.Fatal(err)
	}
	if err := c.Text.PrintfLine("Subject: test\r\nMessage-ID: <%s>\r\n\r\nto %s\r\n.", to, to); err != nil {
		p.t.Fatal(err)
	}
	_, text, err := c.Text.ReadResponse(250)
	if err != nil {
		p.t.Fatal(err)
	}
	c.Text.EndResponse(id)
	words := strings.Fields(text)
	return words[len(words)-1]
}

func (p *program) story(id string) storyLine {
	p.t.Helper()
	var s storyLine
	if err := json.Unmarshal([]byte(p.must("show", id, "-o", "json")), &s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

// reaches waits until the only recipient of a message is in a state.
func (p *program) reaches(id, state string) (s storyLine) {
	p.t.Helper()
	p.eventually(id+" is "+state, func() bool {
		s = p.story(id)
		return s.Recipients[0].State == state
	})
	return s
}

// arrivals returns the names of the files of the demo destination for a
// local-part.
func (p *program) arrivals(i instance, local string) []string {
	p.t.Helper()
	files, err := filepath.Glob(filepath.Join(i.Arrivals, "*-"+local+"@demo.test.eml"))
	if err != nil {
		p.t.Fatal(err)
	}
	return files
}

// TestDevWalk is the first quarter of an hour of a newcomer, on the real
// program: mail that leaves, is retried, comes back as a DSN; the commands;
// a stop, and a second start with the same queue.
func TestDevWalk(t *testing.T) {
	p := newProgram(t)
	i, stop := p.up()
	// Nothing listens there, so mail for it stays queued. The resolver knows of
	// it within a second: long before these domains are used below.
	p.must("route", "set", "dead.test", "127.0.0.1:9")
	p.must("route", "set", "gone.test", "127.0.0.1:9")

	t.Run("a message arrives", func(t *testing.T) {
		id := p.send(i, "friend@demo.test")
		s := p.reaches(id, "relayed")
		if len(s.Attempts) != 1 || !strings.HasPrefix(s.Attempts[0].Reply, "250 ") || s.Attempts[0].Phase != "dot" {
			t.Errorf("attempts %+v", s.Attempts)
		}
		files := p.arrivals(i, "friend")
		if len(files) != 1 {
			t.Fatalf("arrivals %v", files)
		}
		text, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"Return-Path: <you@demo.test>\r\n", "by dev.test with ESMTP id " + id, "\r\n\r\nto friend@demo.test\r\n"} {
			if !bytes.Contains(text, []byte(want)) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
		p.eventually("the whole trace is in the span file", func() bool {
			names := map[string]bool{}
			for _, span := range p.story(id).Spans {
				names[span.Name] = true
			}
			return names["ingress.accept"] && names["resolver.resolve"] && names["delivery.attempt"] && names["settle"]
		})
		if out := p.must("show", id); !strings.Contains(out, "what happened") || !strings.Contains(out, "delivery.attempt") {
			t.Errorf("show prints\n%s", out)
		}
	})

	t.Run("a refusal for now is retried", func(t *testing.T) {
		s := p.reaches(p.send(i, "later@demo.test"), "relayed")
		if len(s.Attempts) != 2 || s.Attempts[0].Action != "delayed" || s.Attempts[0].NextAttemptAt == nil {
			t.Errorf("attempts %+v", s.Attempts)
		}
	})

	t.Run("a refusal for good comes back as a DSN", func(t *testing.T) {
		id := p.send(i, "nobody@demo.test")
		p.reaches(id, "failed")
		p.eventually("a report", func() bool { return len(p.story(id).Reports) == 1 })
		report := p.reaches(p.story(id).Reports[0], "relayed")
		if report.ReversePath != "<>" || report.ReportOf != id {
			t.Errorf("report from %s about %s", report.ReversePath, report.ReportOf)
		}
		if files := p.arrivals(i, "you"); len(files) != 1 {
			t.Errorf("arrivals of the sender %v, want the DSN", files)
		}
	})

	t.Run("health and metrics", func(t *testing.T) {
		for path, code := range map[string]int{"/livez": 200, "/readyz": 200, "/metrics": 200, "/": 404} {
			res, err := http.Get("http://" + i.HTTP + path)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != code {
				t.Errorf("%s: %d, want %d", path, res.StatusCode, code)
			}
		}
	})

	t.Run("routes", func(t *testing.T) {
		if out := p.must("route", "set", "held.test", "127.0.0.1:9", "--tls", "encrypt"); !strings.Contains(out, "held.test goes by 127.0.0.1:9") {
			t.Errorf("route set: %s", out)
		}
		if out := p.must("route", "list"); !strings.Contains(out, "demo.test") || !strings.Contains(out, "encrypt") {
			t.Errorf("route list:\n%s", out)
		}
		p.must("route", "delete", "held.test")
		if out, err := p.run("route", "delete", "held.test"); err == nil {
			t.Errorf("second delete: %s", out)
		}
	})

	t.Run("a second instance is refused", func(t *testing.T) {
		if out, err := p.run("dev"); err == nil || !strings.Contains(out, "runs already in") {
			t.Errorf("%v: %s", err, out)
		}
	})

	t.Run("nobody else reads what is in the data directory", func(t *testing.T) {
		for name, want := range map[string]os.FileMode{".": 0o711, logName: 0o600, spansName: 0o600, arrivalsName: 0o700, "dev.json": 0o600} {
			info, err := os.Stat(filepath.Join(p.dir, "data", name))
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Mode().Perm(); got != want {
				t.Errorf("%s: %o, want %o", name, got, want)
			}
		}
	})

	t.Run("an address in use names its variable", func(t *testing.T) {
		other := newProgram(t)
		cmd := other.command("dev")
		cmd.Env = append(cmd.Env, "POSTRIDER_SMTP_LISTEN="+i.SMTP)
		out, _ := cmd.CombinedOutput() // the exit code is looked at
		if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "POSTRIDER_SMTP_LISTEN: listen tcp "+i.SMTP) {
			t.Errorf("exit code %d: %s", cmd.ProcessState.ExitCode(), out)
		}
	})

	held, waiting := p.send(i, "x@dead.test"), p.send(i, "y@dead.test")
	p.eventually("the first attempt fails", func() bool { return len(p.story(waiting).Attempts) > 0 })
	p.eventually("hold", func() bool { return strings.HasPrefix(p.must("hold", held), "1 ") })
	stop()
	if out, err := p.run("queue"); err == nil || !strings.Contains(out, "no postrider dev runs") {
		t.Errorf("queue without postrider dev: %v: %s", err, out)
	}

	i, _ = p.up()
	if out := p.must("queue", "--domain", "dead.test"); !strings.Contains(out, held) || !strings.Contains(out, waiting) {
		t.Errorf("after the second start the queue is\n%s", out)
	}
	if out := p.must("site", "list"); !strings.Contains(out, "127.0.0.1:9") {
		t.Errorf("site list:\n%s", out)
	}
	p.must("site", "suspend", "127.0.0.1:9", "--for", "1h", "--reason", "test")
	if out := p.must("suspension", "list"); !strings.Contains(out, "site 127.0.0.1:9") {
		t.Errorf("suspension list:\n%s", out)
	}
	if out := p.must("queue", "--domain", "dead.test"); !strings.Contains(out, "site suspended until") || !strings.Contains(out, "by suspend_site: test") {
		t.Errorf("queue of a suspended site:\n%s", out)
	}
	for _, tc := range []struct{ args, want string }{
		{"queue --from YOU@demo.test --to *@DEAD.test -n 1", "there are more: -n"},
		{"queue --from <>", "nothing that is queued matches"},
		{"queue --older-than 1d", "nothing that is queued matches"},
		{"queue --reply refused --place held", held},
		{"hold --all --dry-run", "1 recipients would be held"},
		{"hold --from you@DEMO.test --to Y@*", "1 recipients held"},
		{"release --to y@dead.test", "1 recipients released"},
	} {
		if out := p.must(strings.Fields(tc.args)...); !strings.Contains(out, tc.want) {
			t.Errorf("%s: %s, want %q", tc.args, out, tc.want)
		}
	}
	if out, err := p.run("cancel", "--from", "yuo@demo.test", "--domain", "dead.test"); err == nil || !strings.Contains(out, "nothing that is queued matches --from yuo@demo.test") {
		t.Errorf("cancel of what is not there: %v, %s", err, out)
	}
	if out, err := p.run("queue", "--place", "parkd"); err == nil || !strings.Contains(out, `--place "parkd", want one of: waiting, parked`) {
		t.Errorf("queue in a place that is none: %v, %s", err, out)
	}
	p.must("site", "resume", "127.0.0.1:9")
	// The demo destination takes over: held mail stays, the other leaves.
	var demo string
	for _, line := range strings.Split(p.must("route", "list"), "\n") {
		if f := strings.Fields(line); len(f) == 5 && f[0] == "demo.test" {
			demo = f[4]
		}
	}
	p.must("route", "set", "dead.test", demo)
	p.reaches(waiting, "relayed")
	if s := p.story(held); s.Recipients[0].State != "held" {
		t.Errorf("held message is %s", s.Recipients[0].State)
	}
	if out := p.must("release", "--domain", "dead.test"); !strings.HasPrefix(out, "1 ") {
		t.Errorf("release: %s", out)
	}
	p.reaches(held, "relayed")

	failed, cancelled := p.send(i, "x@gone.test"), p.send(i, "y@gone.test")
	p.eventually("fail", func() bool { return strings.HasPrefix(p.must("fail", failed, "--reason", "no more"), "1 ") })
	p.eventually("cancel", func() bool { return strings.HasPrefix(p.must("cancel", cancelled), "1 ") })
	s := p.reaches(failed, "failed")
	if last := s.Attempts[len(s.Attempts)-1]; last.Reply != "no more" || last.Phase != "queue" {
		t.Errorf("last attempt %+v", last)
	}
	p.reaches(cancelled, "cancelled")
	p.eventually("the sender hears of the failure, not of the cancellation", func() bool { return len(p.story(failed).Reports) == 1 })
	if s := p.story(cancelled); len(s.Reports) != 0 {
		t.Errorf("reports of a cancelled message: %v", s.Reports)
	}
	if out := p.must("migrate", "status"); strings.Contains(out, "pending") || !strings.Contains(out, "0001_queue.sql") {
		t.Errorf("migrate status:\n%s", out)
	}
	p.must("migrate", "up")
}

func TestWrongCommandLines(t *testing.T) {
	p := newProgram(t)
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"version", 0, "postrider "},
		{"--help", 0, "Available Commands"},
		{"show", 2, "QUEUE-ID"},
		{"show x", 2, "queue id"},
		{"queue --no-such-flag", 2, "--help"},
		{"queue", 1, "make run"},
		{"queue extra", 2, "no arguments"},
		{"version extra", 2, "no arguments"},
		{"cancel a b", 2, "QUEUE-ID and no more"},
		{"cancel", 2, "--all"},
		{"hold --older-than soon", 2, "--older-than"},
		{"pool set", 2, "NAME SOURCE"},
		{"route set", 2, "DOMAIN"},
		{"no-such-command", 2, "unknown command"},
		{"queu", 2, "did you mean queue?"},
		{"route lst", 2, "did you mean set or list?"},
		{"site nonsense", 2, "unknown command"},
		{"route set example.com nonsense:x", 2, "HOST:PORT"},
	} {
		cmd := p.command(strings.Fields(tc.args)...)
		out, _ := cmd.CombinedOutput() // the exit code is looked at
		if got := cmd.ProcessState.ExitCode(); got != tc.code || !strings.Contains(string(out), tc.want) {
			t.Errorf("postrider %s: exit code %d, %s, want %d and %q", tc.args, got, out, tc.code, tc.want)
		}
	}
	cmd := p.command("dev")
	cmd.Env = append(cmd.Env, "POSTRIDER_MESSAGE_LIFETIME=soon", "POSTRIDER_NATS_STORAGE=paper")
	out, _ := cmd.CombinedOutput() // the exit code is looked at
	if cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "MESSAGE_LIFETIME") || !strings.Contains(string(out), "NATS_STORAGE") {
		t.Errorf("dev with a wrong configuration: %s", out)
	}
}

// TestInstanceOfADeadProcess: after kill -9 the file of the instance is left.
func TestInstanceOfADeadProcess(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if err := (instance{PID: cmd.Process.Pid}).write(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := readInstance(dir); !os.IsNotExist(err) {
		t.Errorf("error %v, want not exist", err)
	}
	if err := (instance{PID: syscall.Getpid(), SMTP: "127.0.0.1:2525"}).write(dir); err != nil {
		t.Fatal(err)
	}
	i, err := readInstance(dir)
	if err != nil || !strings.Contains(i.welcome(), `smtplib.SMTP("127.0.0.1", 2525)`) {
		t.Errorf("%v: %s", err, fmt.Sprint(i))
	}
}
