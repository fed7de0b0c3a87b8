package smtpd

import (
	"context"
	"fmt"
	"net"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// peer is a mail server of others on this machine, which relays to us.
type peer struct {
	address string
	dir     string
}

// peerDir is a directory into which the users of a peer may come.
func peerDir(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mail servers start as root only")
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// runPeer runs a server in the foreground until the end of the test.
func runPeer(t *testing.T, cmd *exec.Cmd, stop func()) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (tests/deps.sh installs it)", err)
	}
	t.Cleanup(func() {
		stop()
		_ = cmd.Wait() // it was told to end
		if text, err := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("%s said %s%v", cmd, text[max(0, len(text)-10_000):], err)
		}
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	})
}

func mustRun(t *testing.T, name string, args ...string) {
	t.Helper()
	// The end of the test must not keep it from stopping what it started.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v (tests/deps.sh installs it)\n%s", name, strings.Join(args, " "), err, out)
	}
}

func mustWrite(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// freePort returns a port that nobody listens on now.
func freePort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func (p *peer) waitUp(t *testing.T) {
	t.Helper()
	patiently(t, "the peer listens", func() bool {
		conn, err := net.Dial("tcp", p.address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// patiently is eventually for what other programs do.
func patiently(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

// startPostfix runs an instance of Debian's Postfix with directories of its
// own.
func startPostfix(t *testing.T, relayTo string, settings ...string) *peer {
	t.Helper()
	dir, port := peerDir(t), freePort(t)
	host, relayPort, err := net.SplitHostPort(relayTo)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "config")
	for _, d := range []string{config, filepath.Join(dir, "queue"), filepath.Join(dir, "data")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, "chown", "postfix", filepath.Join(dir, "data"))
	mustWrite(t, filepath.Join(config, "main.cf"), fmt.Sprintf(`compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.example
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
mydestination =
alias_maps =
alias_database =
local_recipient_maps =
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_peername_lookup = no
smtpd_tls_security_level = none
smtp_tls_security_level = none
smtp_dns_support_level = disabled
message_size_limit = 26214400
maillog_file = /dev/stdout
maillog_file_prefixes = /dev/stdout, /dev/stderr
relayhost = [%[2]s]:%[3]s
%[4]s
`, dir, host, relayPort, strings.Join(settings, "\n")))
	mustWrite(t, filepath.Join(config, "master.cf"), `127.0.0.1:`+port+` inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
postlog unix-dgram n - n - 1 postlogd
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
`)
	runPeer(t, exec.Command("/usr/sbin/postfix", "-c", config, "start-fg"), func() { mustRun(t, "/usr/sbin/postfix", "-c", config, "stop") })
	p := &peer{address: "127.0.0.1:" + port, dir: dir}
	p.waitUp(t)
	return p
}

// startExim runs the Exim that tests/unpack.sh has unpacked.
func startExim(t *testing.T, relayTo string) *peer {
	t.Helper()
	const tree = "/var/cache/postrider-tests/exim4-daemon-light"
	const program = tree + "/usr/sbin/exim4"
	dir, port := peerDir(t), freePort(t)
	host, relayPort, err := net.SplitHostPort(relayTo)
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, "chown", "Debian-exim", dir)
	config := filepath.Join(dir, "exim.conf")
	mustWrite(t, config, fmt.Sprintf(`exim_path = %[1]s
spool_directory = %[2]s/spool
log_file_path = %[2]s/%%slog
pid_file_path = %[2]s/exim.pid
primary_hostname = exim.example
local_interfaces = 127.0.0.1
daemon_smtp_ports = %[3]s
acl_smtp_rcpt = anybody
host_lookup =
rfc1413_hosts =
tls_advertise_hosts =
keep_environment = LD_LIBRARY_PATH
begin acl
anybody:
  accept
begin routers
on:
  driver = manualroute
  route_list = * %[4]s
  self = send
  transport = on
begin transports
on:
  driver = smtp
  port = %[5]s
  hosts_try_fastopen =
  hosts_avoid_tls = *
begin retry
* * F,1h,1s
`, program, dir, port, host, relayPort))
	libraries, err := filepath.Glob(tree + "/usr/lib/*-linux-gnu*")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-C", config, "-bdf", "-q5s")
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(libraries, ":"))
	runPeer(t, cmd, func() { _ = cmd.Process.Signal(syscall.SIGTERM) }) // or it has ended before
	p := &peer{address: "127.0.0.1:" + port, dir: dir}
	p.waitUp(t)
	return p
}

// Other mail servers relay into us, and what they took arrives byte for byte,
// behind their trace field.
func TestRelayedByOthers(t *testing.T) {
	for name, start := range map[string]func(*testing.T, string) *peer{
		"Postfix": func(t *testing.T, to string) *peer { return startPostfix(t, to) },
		"Exim":    startExim,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig()
			cfg.IdleTimeout = 5 * time.Minute
			store := &fakeStore{}
			server := startServer(t, cfg, store)
			relay := start(t, server.address)
			for letter, content := range letters {
				t.Run(letter, func(t *testing.T) {
					store.forget()
					// The client is another implementation than ours, too.
					if err := smtp.SendMail(relay.address, nil, "a@example.com", []string{"b@example.net", "c@example.net"}, []byte(content)); err != nil {
						t.Fatal(err)
					}
					patiently(t, "the message is relayed", func() bool { return len(store.submissions()) > 0 })
					sub := store.submissions()[0]
					if sub.Envelope.ReversePath != "a@example.com" || len(sub.Recipients) != 2 {
						t.Errorf("envelope %+v, %+v", sub.Envelope, sub.Recipients)
					}
					if !strings.HasSuffix(content, "\r\n") {
						content += "\r\n"
					}
					if head, same := strings.CutSuffix(string(sub.Content), "\r\n"+content); !same || strings.Count("\r\n"+head, "\r\nReceived: ") != 2 {
						t.Errorf("sent %d octets, arrived %d: %.2000q", len(content), len(sub.Content), sub.Content)
					}
				})
			}
		})
	}
}
