package deployments_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/devpg"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/proc"
	"github.com/postrider/postrider/tests/world"
)

// machine is one on which the files of deployments/ are used as they say, but
// for addresses and passwords: it has a loopback network of its own, and
// Postgres at a socket.
type machine struct {
	dir, bin string
	pg       *devpg.Server
	network  string // the first three octets
	extra    map[string]string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	bin, err := world.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for d := dir; d != "/"; d = filepath.Dir(d) { // Postgres drops root and must get in
		if err := os.Chmod(d, 0o755); err != nil {
			break
		}
		if filepath.Dir(d) == os.TempDir() {
			break
		}
	}
	pg, err := devpg.Start(t.Context(), devpg.Options{Dir: filepath.Join(dir, "postgres")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Stop(); err != nil {
			t.Error(err)
		}
	})
	m := &machine{dir: dir, bin: bin, pg: pg, network: fmt.Sprintf("127.%d.%d", 1+rand.IntN(250), rand.IntN(256))}
	m.extra = map[string]string{
		"POSTRIDER_ALLOW_TARGETS":  m.network + ".0/24",
		"POSTRIDER_NATS_CA":        filepath.Join(dir, "nats-tls", "ca.pem"),
		"POSTRIDER_TLS_CERT_FILES": filepath.Join(dir, "tls", "cert.pem"), // tls.conf
		"POSTRIDER_TLS_KEY_FILES":  filepath.Join(dir, "tls", "key.pem"),
	}
	m.run(t, nil, "sh", path("deployments", "nats", "certificates.sh"), filepath.Join(dir, "nats-tls"), m.at(1))
	m.run(t, nil, "sh", path("deployments", "nats", "certificates.sh"), filepath.Join(dir, "tls"), "mail.example.com")
	m.run(t, []string{"POSTRIDER_POSTGRES_URL=" + pg.URL()}, filepath.Join(bin, "postrider"), "migrate", "up")
	at, err := url.Parse(pg.URL())
	if err != nil {
		t.Fatal(err)
	}
	login := []string{"PGHOST=" + at.Query().Get("host"), "PGUSER=postrider", "PGDATABASE=postrider"}
	logins := []string{"--no-psqlrc", "--quiet"}
	for _, name := range append(services(t), "operator", "reader") {
		logins = append(logins, "--variable="+name+"=it's "+name)
	}
	for range 2 { // whoever changes a password runs it again
		m.run(t, login, "psql", append(logins, "--file="+path("deployments", "postgres", "logins.sql"))...)
	}
	m.startNATS(t)
	return m
}

func (m *machine) at(host int) string { return m.network + "." + strconv.Itoa(host) }

// run runs a command to its end and returns what it printed.
func (m *machine) run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Env = append(os.Environ(), env...)
	c.Dir = m.dir
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func (m *machine) start(t *testing.T, name, binary string, env map[string]string, args ...string) *proc.Process {
	t.Helper()
	var list []string
	for _, k := range slices.Sorted(maps.Keys(env)) {
		list = append(list, k+"="+env[k])
	}
	p, err := proc.Start(proc.Spec{Name: name, Path: filepath.Join(m.bin, binary), Args: args, Env: list, LogDir: m.dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s:\n%s", name, p.Log(1<<13))
		}
	})
	return p
}

func (m *machine) startNATS(t *testing.T) {
	t.Helper()
	config := read(t, "deployments", "nats", "nats.conf")
	for _, listen := range []string{"0.0.0.0:4222", "127.0.0.1:8222"} {
		_, port, _ := strings.Cut(listen, ":")
		if !strings.Contains(config, listen) {
			t.Fatalf("nats.conf does not listen at %s", listen)
		}
		config = strings.Replace(config, listen, m.at(1)+":"+port, 1)
	}
	file := filepath.Join(m.dir, "nats.conf")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	env := envFile(t, "deployments", "systemd", "env", "nats.env")
	env["NATS_STORE_DIR"] = filepath.Join(m.dir, "jetstream")
	env["NATS_CERT_FILE"] = filepath.Join(m.dir, "nats-tls", "cert.pem")
	env["NATS_KEY_FILE"] = filepath.Join(m.dir, "nats-tls", "key.pem")
	m.start(t, "nats", "nats-server", env, "--config", file)
}

var (
	anyListener = regexp.MustCompile(`(^|,)(127\.0\.0\.1|\[::1\]|0\.0\.0\.0)?:(\d+)`)
	postgresAt  = regexp.MustCompile(`^postgres://(\w+):[^@]+@127\.0\.0\.1:5432/postrider$`)
)

// environment is what systemd gives a service, with the addresses of this
// machine.
func (m *machine) environment(t *testing.T, service string, host int) map[string]string {
	t.Helper()
	env := envFile(t, "deployments", "systemd", "env", "postrider.env")
	maps.Copy(env, envFile(t, "deployments", "systemd", "env", service+".env"))
	maps.Copy(env, m.extra)
	for name, value := range env {
		switch {
		case strings.HasSuffix(name, "_LISTEN"):
			seen := map[string]bool{}
			var all []string
			for _, address := range anyListener.FindAllStringSubmatch(value, -1) {
				port, err := strconv.Atoi(address[3])
				if err != nil {
					t.Fatal(err)
				}
				if port < 1024 {
					port += 12000 // for whoever runs this without being root
				}
				if here := fmt.Sprintf("%s:%d", m.at(host), port); !seen[here] {
					seen[here], all = true, append(all, here)
				}
			}
			env[name] = strings.Join(all, ",")
		case name == "POSTRIDER_NATS_URL":
			env[name] = strings.Replace(value, "127.0.0.1", m.at(1), 1)
		}
	}
	login := postgresAt.FindStringSubmatch(env["POSTRIDER_POSTGRES_URL"])
	if login == nil || login[1] != "mta_"+service {
		t.Fatalf("%s: logs in at Postgres by %s", service, env["POSTRIDER_POSTGRES_URL"])
	}
	env["POSTRIDER_POSTGRES_URL"] = strings.Replace(m.pg.URL(), "postrider@", login[1]+"@", 1)
	return env
}

// ready waits until /readyz says nothing but ok: Postgres and NATS are there.
func (m *machine) ready(t *testing.T, address string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := proc.Poll(ctx, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", nil)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err == nil && string(text) != "ok\n" {
			err = fmt.Errorf("%s: %s", res.Status, text)
		}
		return err
	})
	if err != nil {
		t.Fatalf("%s is not ready: %v", address, err)
	}
}

// unit returns the variables that a unit sets by itself for an instance.
func unit(t *testing.T, name, instance string) map[string]string {
	t.Helper()
	env := map[string]string{}
	for line := range strings.Lines(read(t, "deployments", "systemd", name)) {
		if assignment, is := strings.CutPrefix(strings.TrimSpace(line), "Environment="); is {
			variable, value, _ := strings.Cut(assignment, "=")
			env[variable] = strings.ReplaceAll(value, "%i", instance)
		}
	}
	return env
}

// TestSystemdFormRuns: the units' programs with the files of the example, a
// login of its own for each service, NATS with password and TLS, two processes
// of delivery; mail comes in by every door of ingress, and goes out.
func TestSystemdFormRuns(t *testing.T) {
	m := newMachine(t)
	host := smtptest.Start(t, smtptest.Script{Address: m.at(9) + ":0"})
	operator := []string{"POSTRIDER_POSTGRES_URL=" + strings.Replace(m.pg.URL(), "postrider@", "mta_operator@", 1)}
	postrider := func(args ...string) string {
		return m.run(t, operator, filepath.Join(m.bin, "postrider"), args...)
	}
	postrider("tenant", "add", "acme")
	postrider("domain", "add", "acme.example", "--tenant", "acme")
	password := lastWord(postrider("credential", "add", "app", "--tenant", "acme"))
	key := lastWord(postrider("credential", "add", "web", "--tenant", "acme", "--api-key"))
	postrider("route", "set", "example.test", host.Addr().String())

	var metrics []string
	for _, service := range services(t) {
		instances := []string{""}
		if service == "delivery" {
			instances = []string{"1", "2"}
		}
		for _, i := range instances {
			env := m.environment(t, service, 1)
			for variable, value := range unit(t, "postrider-delivery@.service", i) {
				if service == "delivery" {
					env[variable] = strings.Replace(value, "127.0.0.1", m.at(1), 1)
				}
			}
			m.start(t, service+i, service, env)
			metrics = append(metrics, env["POSTRIDER_METRICS_LISTEN"])
		}
	}
	if all := slices.Compact(slices.Sorted(slices.Values(metrics))); len(all) != 6 || slices.Contains(all, "") {
		t.Fatalf("six processes show metrics at %v", metrics)
	}
	for _, address := range metrics {
		m.ready(t, address)
	}
	for _, door := range []struct {
		port     string
		implicit bool
		password string
	}{{"12025", false, ""}, {"12587", false, password}, {"12465", true, password}} {
		if err := m.submit(t, m.at(1)+":"+door.port, door.implicit, door.password); err != nil {
			t.Errorf("port %s: %v", door.port, err)
		}
	}
	m.post(t, "https://"+m.at(1)+":8443/v1/messages", key)
	host.WaitMessages(t, 4, 30*time.Second)
}

// lastWord returns what a command has made: it is the longest word of what is
// printed.
func lastWord(text string) string {
	longest := ""
	for _, word := range strings.Fields(text) {
		if len(word) > len(longest) {
			longest = word
		}
	}
	return longest
}

func (m *machine) authority(t *testing.T) *tls.Config {
	t.Helper()
	return &tls.Config{ServerName: "mail.example.com", RootCAs: pool(t, filepath.Join(m.dir, "tls", "ca.pem"))}
}

// submit sends a message, with AUTH below TLS if there is a password.
func (m *machine) submit(t *testing.T, address string, implicit bool, password string) error {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer func() { conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	if implicit {
		conn = tls.Client(conn, m.authority(t))
	}
	text := textproto.NewConn(conn)
	say := func(code int, format string, args ...any) error {
		if format != "" {
			if err := text.PrintfLine(format, args...); err != nil {
				return err
			}
		}
		_, said, err := text.ReadResponse(code)
		if err != nil {
			return fmt.Errorf("%q: %w %s", format, err, said)
		}
		return nil
	}
	if err := errors.Join(say(220, ""), say(250, "EHLO client.acme.example")); err != nil {
		return err
	}
	if password != "" {
		if !implicit {
			if err := say(220, "STARTTLS"); err != nil {
				return err
			}
			conn = tls.Client(conn, m.authority(t))
			text = textproto.NewConn(conn)
			if err := say(250, "EHLO client.acme.example"); err != nil {
				return err
			}
		}
		if err := say(235, "AUTH PLAIN %s", base64.StdEncoding.EncodeToString([]byte("\x00app\x00"+password))); err != nil {
			return err
		}
	}
	return errors.Join(say(250, "MAIL FROM:<app@acme.example>"), say(250, "RCPT TO:<friend@example.test>"), say(354, "DATA"),
		say(250, "From: app@acme.example\r\nSubject: by %s\r\n\r\nIt works.\r\n.", address))
}

func (m *machine) post(t *testing.T, to, key string) {
	t.Helper()
	body := `{"from": {"address": "app@acme.example"}, "to": [{"address": "friend@example.test"}], "subject": "by HTTPS", "text": "It works."}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, to, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	client := http.Client{Transport: &http.Transport{TLSClientConfig: m.authority(t)}}
	res, err := client.Do(req)
	if err != nil {
		t.Error(err)
		return
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusAccepted {
		text, err := io.ReadAll(res.Body)
		t.Errorf("POST: %s %s %v", res.Status, text, err)
	}
}

// TestHAProxy: behind HAProxy with the example's configuration an ingress stops
// and no client notices; the client's own address comes through.
func TestHAProxy(t *testing.T) {
	m := newMachine(t)
	config := read(t, "deployments", "haproxy", "haproxy.cfg")
	var stopping *proc.Process
	for i, address := range []string{"10.0.0.11", "10.0.0.12"} {
		if !strings.Contains(config, address) {
			t.Fatalf("haproxy.cfg has no server %s", address)
		}
		here := 11 + i
		config = strings.ReplaceAll(config, address, m.at(here))
		env := m.environment(t, "ingress", here)
		// As the file says.
		env["POSTRIDER_PROXY_NETWORKS"] = m.at(5) + "/32"
		env["POSTRIDER_HTTP_PROXY_NETWORKS"] = m.at(5) + "/32"
		env["POSTRIDER_METRICS_LISTEN"] = m.at(here) + ":9464"
		env["POSTRIDER_SMTP_LISTEN"], env["POSTRIDER_SUBMISSION_LISTEN"] = m.at(here)+":2525", m.at(here)+":2587"
		env["POSTRIDER_SUBMISSIONS_LISTEN"], env["POSTRIDER_RELAY_NETWORKS"] = m.at(here)+":2465", m.at(7)+"/32"
		stopping = m.start(t, "ingress"+strconv.Itoa(i), "ingress", env)
		m.ready(t, env["POSTRIDER_METRICS_LISTEN"])
	}
	for _, port := range []int{25, 587, 465, 443} {
		before := config
		config = strings.Replace(config, fmt.Sprintf("bind :%d\n", port), fmt.Sprintf("bind %s:%d\n", m.at(5), 12000+port), 1)
		if config == before {
			t.Fatalf("haproxy.cfg does not bind port %d", port)
		}
	}
	// A machine has one address; this one has to say from which it connects.
	config = strings.Replace(config, "defaults\n", "defaults\n    source "+m.at(5)+"\n", 1)
	file := filepath.Join(m.dir, "haproxy.cfg")
	config = strings.Replace(config, "maxconn 20000", "maxconn 100", 1) // of this process's files
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		haproxy = "/usr/sbin/haproxy"
	}
	p, err := proc.Start(proc.Spec{Name: "haproxy", Path: haproxy, Args: []string{"-db", "-f", file}, LogDir: m.dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("haproxy:\n%s", p.Log(1<<13))
		}
	})
	client := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(m.at(7))}}
	greet := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		c, err := client.DialContext(ctx, "tcp", m.at(5)+":12025")
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		in := bufio.NewReader(c)
		if _, err := in.ReadString('\n'); err != nil {
			return fmt.Errorf("no greeting: %w", err)
		}
		text := textproto.NewConn(struct {
			io.Reader
			io.Writer
			io.Closer
		}{in, c, c})
		for _, command := range []string{"EHLO client.example", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.net>"} {
			if err := text.PrintfLine("%s", command); err != nil {
				return err
			}
			if _, said, err := text.ReadResponse(250); err != nil {
				return fmt.Errorf("%s: %w %s", command, err, said)
			}
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := proc.Poll(ctx, func(context.Context) error { return greet() }); err != nil {
		t.Fatal(err)
	}
	stopping.Signal(syscall.SIGTERM)
	for sent := 0; stopping.Running() || sent < 100; sent++ {
		if err := greet(); err != nil {
			t.Fatalf("client %d since the signal: %v", sent, err)
		}
		if ctx.Err() != nil {
			t.Fatal("ingress has not stopped within 30 s")
		}
	}
}
