package servers

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/postrider/postrider/tests/internal/proc"
	"github.com/postrider/postrider/tests/world"
)

// eximRoot is where tests/unpack.sh puts Debian's Exim.
const eximRoot = "/var/cache/postrider-tests/exim4-daemon-light"

const eximConfig = `primary_hostname = %[2]s
local_interfaces = %[3]s.%[4]d
spool_directory = %[1]s/spool
log_file_path = %[1]s/log/%%slog
pid_file_path = %[1]s/exim.pid
exim_user = Debian-exim
exim_group = Debian-exim
deliver_drop_privilege = true
never_users =
host_lookup =
rfc1413_query_timeout = 0s
keep_environment = LD_LIBRARY_PATH
exim_path = %[9]s
tls_advertise_hosts = *
tls_certificate = %[1]s/cert.pem
tls_privatekey = %[1]s/eximkey.pem
dsn_advertise_hosts = *
message_size_limit = %[5]d
smtp_accept_max = 100
acl_smtp_mail = check_mail
acl_smtp_rcpt = check_rcpt
begin acl
check_mail:
  deny message = TLS is required here
       ! encrypted = *
  accept
check_rcpt:
  defer local_parts = later
        condition = ${if exists{%[1]s/seen}{no}{yes}}
        message = greylisted
  deny local_parts = gone
       message = no such user
  accept domains = %[6]s
  deny message = not here
begin routers
here:
  driver = accept
  domains = %[6]s
  transport = mailbox
out:
  driver = manualroute
  route_list = * %[7]s
  self = send
  transport = out
begin transports
mailbox:
  driver = appendfile
  directory = %[1]s/mail/box
  maildir_format
  create_directory
  user = Debian-exim
out:
  driver = smtp
  port = %[8]d
  allow_localhost
  hosts_avoid_tls = *
begin retry
* * F,1h,1s
`

// TestExim: with an ACL that defers later@.
func TestExim(t *testing.T) {
	binary := filepath.Join(eximRoot, "usr/sbin/exim4")
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("%v: tests/deps.sh unpacks it", err)
	}
	s := begin(t, "exim")
	account, err := user.Lookup("Debian-exim")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(account.Uid)
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(s.key)
	if err != nil {
		t.Fatal(err)
	}
	s.write(s.file("eximkey.pem"), string(key))
	for _, d := range []string{"spool", "log", "mail"} {
		if err := os.Mkdir(s.file(d), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(s.file(d), uid, -1); err != nil {
			t.Fatal(err)
		}
	}
	host, port, err := net.SplitHostPort(s.sender)
	if err != nil {
		t.Fatal(err)
	}
	senderPort, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	s.write(s.file("exim.conf"), fmt.Sprintf(eximConfig, s.dir, s.host, s.ip, world.RemotePort, maxSize, s.domain, host, senderPort, binary))
	s.pass = func() { s.write(s.file("seen"), "") }
	libraries := "LD_LIBRARY_PATH=" + filepath.Join(eximRoot, "usr/lib", triplet(t))
	p, err := proc.Start(proc.Spec{
		Name: "exim", Path: binary, Args: []string{"-C", s.file("exim.conf"), "-bdf", "-q1s"}, Env: []string{libraries}, LogDir: s.dir,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(syscall.SIGTERM, 10*time.Second); err != nil {
			t.Logf("exim: %v", err)
		}
		if t.Failed() {
			t.Logf("%s\n%s\n%s", p.Log(1<<13), proc.Tail(s.file("log/mainlog"), 1<<13), proc.Tail(s.file("log/paniclog"), 1<<12))
		}
	})
	s.waitListens()
	s.prove()
}

// triplet is the folder of libraries of this machine.
func triplet(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("dpkg-architecture", "-qDEB_HOST_MULTIARCH").Output()
	if err == nil && len(out) > 1 {
		return string(out[:len(out)-1])
	}
	found, err := filepath.Glob("/usr/lib/*-linux-gnu*")
	if err != nil || len(found) == 0 {
		t.Fatalf("no folder of libraries: %v", err)
	}
	return filepath.Base(found[0])
}
