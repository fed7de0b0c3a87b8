package servers

import (
	"fmt"
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

// opensmtpdRoot is where tests/unpack.sh puts Debian's OpenSMTPD.
const opensmtpdRoot = "/var/cache/postrider-tests/opensmtpd"

const opensmtpdConfig = `smtp max-message-size %[3]d
pki "%[6]s" cert "%[9]s"
pki "%[6]s" key "%[10]s"
table later { "later@%[4]s" }
filter "greylist" phase rcpt-to match rcpt-to <later> reject "451 4.2.0 greylisted"
table boxes { "you@%[4]s" = opensmtpq, "later@%[4]s" = opensmtpq }
listen on %[2]s port %[5]d hostname "%[6]s" tls-require pki "%[6]s" %[7]s
action "box" maildir "%[1]s/mail/box" virtual <boxes>
action "out" relay host smtp://%[8]s
match from any for domain "%[4]s" action "box"
match for any action "out"
`

// opensmtpdStart runs the server in mounts of its own, because its paths are
// fixed. testdata/opensmtpd_key.c says what is preloaded.
const opensmtpdStart = `set -e
mount -t overlay overlay -o lowerdir=%[1]s/usr:/usr /usr
mount -t tmpfs tmpfs /var
mkdir -p /var/run /var/spool/smtpd /var/lib/opensmtpd/empty /var/mail
chmod 711 /var/spool/smtpd
exec env LD_PRELOAD=%[2]s /usr/sbin/smtpd -d -f "$0"
`

// TestOpenSMTPD: with a filter that delays later@.
func TestOpenSMTPD(t *testing.T) {
	if _, err := os.Stat(filepath.Join(opensmtpdRoot, "usr/sbin/smtpd")); err != nil {
		t.Fatalf("%v: tests/deps.sh unpacks it", err)
	}
	s := begin(t, "opensmtpd")
	s.brief = true
	if out, err := exec.Command("unshare", "-m", "true").CombinedOutput(); err != nil {
		t.Skipf("no mounts of its own for the server: %v\n%s", err, out)
	}
	account, err := user.Lookup("opensmtpq")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(account.Uid)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(s.file("mail/box"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(s.file("mail/box"), uid, -1); err != nil {
		t.Fatal(err)
	}
	// It refuses a key that others could read.
	if err := os.Chmod(s.key, 0o600); err != nil {
		t.Fatal(err)
	}
	cc := exec.Command("cc", "-shared", "-fPIC", "-o", s.file("key.so"), "testdata/opensmtpd_key.c", "-ldl")
	if out, err := cc.CombinedOutput(); err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	p := s.opensmtpd(`filter "greylist"`)
	t.Cleanup(func() { stopOpenSMTPD(t, p) })
	s.pass = func() {
		stopOpenSMTPD(t, p)
		p = s.opensmtpd("")
	}
	s.prove()
}

// opensmtpd starts the server with options for its listener.
func (s *server) opensmtpd(options string) *proc.Process {
	s.t.Helper()
	s.write(s.file("smtpd.conf"), fmt.Sprintf(opensmtpdConfig, s.dir, s.ip, maxSize, s.domain, world.RemotePort, s.host, options, s.sender,
		s.certificate, s.key))
	p, err := proc.Start(proc.Spec{
		Name: "opensmtpd", Path: "/usr/bin/unshare", LogDir: s.dir,
		Args: []string{"-m", "sh", "-c", fmt.Sprintf(opensmtpdStart, opensmtpdRoot, s.file("key.so")), s.file("smtpd.conf")},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.waitListens()
	return p
}

func stopOpenSMTPD(t *testing.T, p *proc.Process) {
	t.Helper()
	if err := p.Stop(syscall.SIGTERM, 10*time.Second); err != nil {
		t.Logf("opensmtpd: %v", err)
	}
	if t.Failed() {
		t.Log(p.Log(1 << 13))
	}
}
