package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

type inner struct {
	URL string `envconfig:"TEST_URL" required:"true" secret:"true" desc:"Where."`
}

type sample struct {
	Listen   string         `envconfig:"TEST_LISTEN" default:"127.0.0.1:1" desc:"Address."`
	Networks []netip.Prefix `envconfig:"TEST_NETWORKS" default:"127.0.0.0/8,::1/128" desc:"Who."`
	Wait     time.Duration  `envconfig:"TEST_WAIT" default:"90s" desc:"How | long."`
	Count    int            `envconfig:"TEST_COUNT" default:"3"`
	Inner    inner
}

func (s sample) Validate() error {
	var errs []error
	if s.Count > 10 {
		errs = append(errs, errors.New("POSTRIDER_TEST_COUNT is over 10"))
	}
	if s.Wait < 0 {
		errs = append(errs, errors.New("POSTRIDER_TEST_WAIT is negative"))
	}
	return errors.Join(errs...)
}

func process(env map[string]string) *Process {
	return &Process{
		stderr: io.Discard,
		http:   &health{},
		lookup: func(name string) (string, bool) { v, ok := env[name]; return v, ok },
	}
}

func TestConfigFills(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(secret, []byte("postgres://from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := process(map[string]string{
		"POSTRIDER_TEST_URL_FILE": secret,
		"POSTRIDER_TEST_NETWORKS": "192.0.2.0/24, 2001:db8::/32",
		"POSTRIDER_TEST_LISTEN":   "",
		"TEST_COUNT":              "7", // envconfig alone would take a name without the prefix
	})
	p.Defaults(map[string]string{"POSTRIDER_TEST_WAIT": "5s"})
	var got sample
	if _, err := p.load(&got); err != nil {
		t.Fatal(err)
	}
	want := sample{
		Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
		Wait:     5 * time.Second,
		Count:    3,
		Inner:    inner{URL: "postgres://from-file"},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestConfigReportsEveryErrorAtOnce(t *testing.T) {
	type second struct {
		Level slog.Level `envconfig:"TEST_LEVEL" default:"info"`
		Token string     `envconfig:"TEST_TOKEN" secret:"true"`
		Pin   int        `envconfig:"TEST_PIN" secret:"true"`
	}
	p := process(map[string]string{
		"POSTRIDER_TEST_URL":        "",
		"POSTRIDER_TEST_NETWORKS":   "10.0.0.0/8,nonsense",
		"POSTRIDER_TEST_WAIT":       "soon",
		"POSTRIDER_TEST_LEVEL":      "loud",
		"POSTRIDER_TEST_TOKEN":      "a",
		"POSTRIDER_TEST_TOKEN_FILE": "/b",
		"POSTRIDER_TEST_PIN":        "hunter2",
	})
	_, err := p.load(&sample{}, &second{})
	var wrong *ConfigError
	if !errors.As(err, &wrong) {
		t.Fatalf("error %v, want a ConfigError", err)
	}
	wants := []string{"TEST_NETWORKS is", "TEST_WAIT is \"soon\"", "TEST_URL is required", "TEST_LEVEL is \"loud\"", "TEST_TOKEN and", "TEST_PIN does not hold"}
	if len(wrong.Problems) != len(wants) {
		t.Errorf("%d problems, want %d: %v", len(wrong.Problems), len(wants), wrong)
	}
	for _, want := range wants {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v shows a secret", err)
	}
}

func TestConfigValidates(t *testing.T) {
	p := process(map[string]string{"POSTRIDER_TEST_URL": "x", "POSTRIDER_TEST_COUNT": "11", "POSTRIDER_TEST_WAIT": "-1s"})
	var wrong *ConfigError
	if _, err := p.load(&sample{}, &sample{}); !errors.As(err, &wrong) || len(wrong.Problems) != 2 {
		t.Errorf("error %v, want the two problems once each", err)
	}
}

// TestConfigValidatesWhatIsWhole: one broken field must not hide what is wrong
// elsewhere.
func TestConfigValidatesWhatIsWhole(t *testing.T) {
	var all struct {
		Sample sample
		Level  struct {
			Level slog.Level `envconfig:"TEST_LEVEL"`
		}
	}
	p := process(map[string]string{"POSTRIDER_TEST_URL": "x", "POSTRIDER_TEST_COUNT": "11", "POSTRIDER_TEST_LEVEL": "loud"})
	var wrong *ConfigError
	if _, err := p.load(&all); !errors.As(err, &wrong) || len(wrong.Problems) != 2 {
		t.Errorf("error %v, want both problems", err)
	}
}

func TestConfigMistakesOfTheProgrammer(t *testing.T) {
	for name, cfg := range map[string]any{
		"no pointer": sample{},
		"no tag":     &struct{ A string }{},
	} {
		if _, err := process(nil).load(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestDumpHidesSecrets(t *testing.T) {
	shown, err := process(map[string]string{"POSTRIDER_TEST_URL": "hunter2"}).load(&sample{})
	if err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(shown, " "); strings.Contains(text, "hunter2") || !strings.Contains(text, "POSTRIDER_TEST_COUNT=3") {
		t.Errorf("dump: %s", text)
	}
}

func TestHelpPrintsTheTable(t *testing.T) {
	var buf bytes.Buffer
	p := process(nil)
	p.stderr, p.print, p.name = &buf, true, "ingress"
	if err := p.Config(&sample{}); !errors.Is(err, errPrinted) {
		t.Fatal(err)
	}
	for _, want := range []string{"POSTRIDER_TEST_URL", "required", "POSTRIDER_LOG_LEVEL", "127.0.0.0/8,::1/128"} {
		if !strings.Contains(buf.String(), want) {
			t.Errorf("no %q in\n%s", want, buf.String())
		}
	}
}

func TestReference(t *testing.T) {
	text, names, err := Reference([]Section{{Name: "ingress", Configs: []any{&sample{}}}, {Name: "bounce", Configs: []any{&inner{}}}, {Name: "dev", Configs: []any{&sample{}}, All: true}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"## every process", "## ingress",
		"| `POSTRIDER_TEST_URL` | text | required | Where. Never shown in logs. Also read by: bounce. |",
		`How \| long.`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "## bounce") || strings.Contains(text, "## dev") {
		t.Error("a section without a variable of its own")
	}
	if !strings.HasPrefix(names, "POSTRIDER_LOG_LEVEL\nPOSTRIDER_METRICS_LISTEN\nPOSTRIDER_TEST_COUNT\n") {
		t.Errorf("names %q", names)
	}
}

func TestCheckName(t *testing.T) {
	before := known
	known = "POSTRIDER_SMTP_LISTEN\nPOSTRIDER_POSTGRES_URL\n"
	defer func() { known = before }()
	for name, want := range map[string]string{
		"POSTRIDER_SMTP_LISTN":           "POSTRIDER_SMTP_LISTEN",
		"POSTRIDER_SMTP_LISTEN":          "",
		"POSTRIDER_POSTGRES_URL_FILE":    "",
		"POSTRIDER_INGRESS_SERVICE_HOST": "",
		"POSTRIDER_INGRESS_PORT_25_TCP":  "",
		"POSTRIDER_POSTGRES_URI":         "POSTRIDER_POSTGRES_URL",
		"PATH":                           "",
	} {
		nearest, unknown := checkName(name)
		if nearest != want || unknown != (want != "") {
			t.Errorf("%s: %q, %v, want %q", name, nearest, unknown, want)
		}
	}
}

func TestGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		work, cancel := Grace(ctx, time.Minute)
		defer cancel()
		stop()
		begin := time.Now()
		<-work.Done()
		if got := time.Since(begin); got != time.Minute {
			t.Errorf("work ended %v after ctx, want 1m", got)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		work, cancel := Grace(t.Context(), time.Minute)
		cancel()
		if work.Err() == nil {
			t.Error("work goes on after cancel")
		}
	})
}

func TestHealth(t *testing.T) {
	h := &health{}
	p := &Process{http: h}
	if err := h.serve("127.0.0.1:0", http.NotFoundHandler()); err != nil {
		t.Fatal(err)
	}
	defer h.close()
	get := func(path string) (int, string) {
		res, err := http.Get("http://" + p.HTTPAddress() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, strings.TrimSpace(string(body))
	}
	want := func(code int, text string) {
		t.Helper()
		if c, b := get("/readyz"); c != code || b != text {
			t.Errorf("/readyz: %d %q, want %d %q", c, b, code, text)
		}
		if c, _ := get("/livez"); c != http.StatusOK {
			t.Errorf("/livez: %d", c)
		}
	}
	want(503, "starting")
	var failing error
	p.ReadyWhen("postgres", func(context.Context) error { return failing })
	p.ReadyWhen("bus", func(context.Context) error { return nil })
	want(200, "ok")
	p.AlsoTell("bus", func(context.Context) error { return failing })
	failing = errors.New("connection refused")
	want(503, "postgres: connection refused")
	p.http.checks = p.http.checks[1:]
	want(200, "ok\nbus: connection refused")
	failing = nil
	want(200, "ok")
	p.ReadyWhen("slow", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	want(503, "slow: context deadline exceeded")
	h.drain()
	want(503, "draining")
}

// TestProcess runs this binary as a service: exit codes, output, and signals.
func TestProcess(t *testing.T) {
	if mode := os.Getenv("BOOT_TEST_CHILD"); mode != "" {
		child(mode)
		return
	}
	for _, tc := range []struct {
		name, mode string
		args       []string
		env        string
		signals    int
		code       int
		output     string
	}{
		{name: "clean", mode: "return", code: 0, output: `"msg":"stopped"`},
		{name: "failed", mode: "fail", code: 1, output: "no bus"},
		{name: "wrong configuration", mode: "return", env: "POSTRIDER_LOG_LEVEL=loud", code: 2, output: "POSTRIDER_LOG_LEVEL is \"loud\""},
		{name: "dump", mode: "return", env: "POSTRIDER_LOG_LEVEL=debug", code: 0, output: "POSTRIDER_LOG_LEVEL=debug"},
		{name: "arguments", mode: "return", args: []string{"x"}, code: 2, output: "takes no arguments"},
		{name: "help", mode: "return", args: []string{"-h"}, code: 0, output: "POSTRIDER_METRICS_LISTEN"},
		{name: "version", mode: "return", args: []string{"-version"}, code: 0, output: "child "},
		{name: "drain on the first signal", mode: "wait", signals: 1, code: 0, output: `"msg":"stopped"`},
		{name: "exit on the second", mode: "stuck", signals: 2, code: 143, output: "draining"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], append([]string{"-test.run=^TestProcess$", "--"}, tc.args...)...)
			cmd.Env = append(os.Environ(), "BOOT_TEST_CHILD="+tc.mode)
			if tc.env != "" {
				cmd.Env = append(cmd.Env, tc.env)
			}
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stdout, cmd.Stderr = w, w
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w.Close()
			var out bytes.Buffer
			buf := make([]byte, 4096)
			sent := 0
			for {
				n, err := r.Read(buf)
				out.Write(buf[:n])
				// One signal when it is up, the second when it drains.
				for sent < tc.signals && (sent == 0 && strings.Contains(out.String(), "up\n") || sent == 1 && strings.Contains(out.String(), "draining")) {
					if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
						t.Fatal(err)
					}
					sent++
				}
				if err != nil {
					break
				}
			}
			_ = cmd.Wait() // the code is what we look at
			if got := cmd.ProcessState.ExitCode(); got != tc.code {
				t.Errorf("exit code %d, want %d: %s", got, tc.code, out.String())
			}
			if !strings.Contains(out.String(), tc.output) {
				t.Errorf("no %q in %s", tc.output, out.String())
			}
		})
	}
}

func child(mode string) {
	for i, arg := range os.Args {
		if arg == "--" {
			os.Args = append(os.Args[:1], os.Args[i+1:]...)
			break
		}
	}
	Main("child", func(ctx context.Context, p *Process) error {
		if err := p.Config(); err != nil {
			return err
		}
		switch mode {
		case "fail":
			return errors.New("no bus")
		case "wait":
			fmt.Println("up")
			<-ctx.Done()
		case "stuck":
			fmt.Println("up")
			select {}
		}
		return nil
	})
}
