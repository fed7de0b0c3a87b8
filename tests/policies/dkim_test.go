package policies

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	msgauth "github.com/emersion/go-msgauth/dkim"

	"github.com/postrider/postrider/pkg/dkim"
)

// publishKey makes the key that reports by mail are signed with.
func (s *stage) publishKey() {
	s.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		s.t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	if err := os.WriteFile(filepath.Join(s.zone.dir, "dkim.pem"), text, 0o644); err != nil {
		s.t.Fatal(err)
	}
	name, value, err := (&dkim.Signer{Domain: "postrider.test", Selector: "tls", Key: key}).Record()
	if err != nil {
		s.t.Fatal(err)
	}
	s.zone.add("%s. 60 IN TXT \"%s\" \"%s\"", name, value[:200], value[200:])
}

// verifier verifies with Debian's python3-dkim, as the receiver of a report
// on TLS.
const verifier = `
import sys, dkim, dns.resolver
resolver = dns.resolver.Resolver(configure=False)
resolver.nameservers, resolver.port = [sys.argv[1]], int(sys.argv[2])
def txt(name, timeout=5):
    return b''.join(resolver.resolve(name.decode(), 'TXT')[0].strings)
sys.exit(not dkim.DKIM(sys.stdin.buffer.read(), tlsrpt=True).verify(dnsfunc=txt))
`

// verifySignature: RFC 8460 §3 has receivers ignore a report without a valid
// signature of the domain that it comes from, or with l=.
func (s *stage) verifySignature(t *testing.T, content []byte) error {
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, s.zone.address)
	}}
	found, err := msgauth.VerifyWithOptions(bytes.NewReader(content), &msgauth.VerifyOptions{
		LookupTXT: func(name string) ([]string, error) { return resolver.LookupTXT(t.Context(), name+".") },
	})
	switch {
	case err != nil:
		return err
	case len(found) != 1 || found[0].Err != nil:
		return fmt.Errorf("go-msgauth: %+v", found)
	case found[0].Domain != "postrider.test" || !slices.Contains(found[0].HeaderKeys, "TLS-Required"):
		return fmt.Errorf("signed for %s: %v", found[0].Domain, found[0].HeaderKeys)
	}
	host, port, err := net.SplitHostPort(s.zone.address)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", verifier, host, port)
	cmd.Stdin = bytes.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("dkimpy: %w %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
