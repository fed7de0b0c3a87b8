package policies

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postrider/postrider/tests/internal/proc"
)

// unboundConfig: a validating resolver that has the zones itself and still
// asks itself for the proof of them: nothing of them is believed that the
// trust anchor does not vouch for. Debian's defaults answer for test. with
// NXDOMAIN.
const unboundConfig = `server:
	interface: %[1]s
	port: %[2]s
	access-control: 127.0.0.0/8 allow
	do-daemonize: no
	use-syslog: no
	chroot: ""
	username: ""
	pidfile: ""
	directory: %[3]q
	module-config: "validator iterator"
	trust-anchor-file: %[4]q
	val-log-level: 2
	local-zone: "test." nodefault
	cache-min-ttl: 0
remote-control:
	control-enable: no
auth-zone:
	name: "test."
	zonefile: %[5]q
	for-downstream: no
	for-upstream: yes
auth-zone:
	name: "insecure.test."
	zonefile: %[6]q
	for-downstream: no
	for-upstream: yes
`

// signedZone is a zone with the key of its trust anchor.
type signedZone struct {
	dir     string
	address string // of the resolver
	records []string
	below   []string          // of insecure.test, which has no DS record
	forged  map[string]string // text of the signed zone, and what an attacker has in its place
}

func (z *signedZone) add(format string, args ...any) {
	z.records = append(z.records, fmt.Sprintf(format, args...))
}

// freePort returns an address where nobody listens.
func freePort() (string, error) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return c.LocalAddr().String(), c.Close()
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s\nthe tests need what tests/deps.sh installs", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

const soa = " 60 IN SOA ns.test. hostmaster.test. 1 3600 600 86400 5"

// serve signs the zone, forges what is to be forged, and starts unbound.
func (z *signedZone) serve(t *testing.T) {
	t.Helper()
	write := func(name, text string) string {
		path := filepath.Join(z.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key := run(t, z.dir, "ldns-keygen", "-a", "ECDSAP256SHA256", "-k", "-r", "/dev/urandom", "test")
	plain := write("test.zone", strings.Join(append([]string{"test." + soa, "test. 60 IN NS ns.test.", "ns.test. 60 IN A 127.0.0.1",
		"insecure.test. 60 IN NS ns.test."}, z.records...), "\n")+"\n")
	signed := filepath.Join(z.dir, "test.zone.signed")
	run(t, z.dir, "ldns-signzone", "-f", signed, plain, key)
	data, err := os.ReadFile(signed)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for from, to := range z.forged {
		if !strings.Contains(text, from) {
			t.Fatalf("the signed zone has no %q to forge:\n%s", from, text)
		}
		text = strings.ReplaceAll(text, from, to)
	}
	write("test.zone.signed", text)
	below := write("insecure.zone", strings.Join(append([]string{"insecure.test." + soa, "insecure.test. 60 IN NS ns.test."}, z.below...), "\n")+"\n")
	host, port, err := net.SplitHostPort(z.address)
	if err != nil {
		t.Fatal(err)
	}
	config := write("unbound.conf", fmt.Sprintf(unboundConfig, host, port, z.dir, filepath.Join(z.dir, key+".ds"), signed, below))
	p, err := proc.Start(proc.Spec{Name: "unbound", Path: "/usr/sbin/unbound", Args: []string{"-d", "-c", config}, LogDir: z.dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(p.Log(8 << 10))
		}
		if err := p.Stop(syscall.SIGTERM, 10*time.Second); err != nil {
			t.Error(err)
		}
	})
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, z.address)
	}}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if err := proc.Poll(ctx, func(ctx context.Context) error {
		_, err := resolver.LookupHost(ctx, "ns.test.")
		return err
	}); err != nil {
		t.Fatalf("unbound does not answer: %v\n%s", err, p.Log(8<<10))
	}
}

// digestOf is the digest of the key of a certificate, as in a TLSA record.
func (z *signedZone) digestOf(config *tls.Config) string {
	c, err := x509.ParseCertificate(config.Certificates[0].Certificate[0])
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(c.RawSubjectPublicKeyInfo))
}
