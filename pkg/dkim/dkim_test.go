package dkim_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	msgauth "github.com/emersion/go-msgauth/dkim"

	"github.com/postrider/postrider/pkg/dkim"
	"github.com/postrider/postrider/pkg/dnstest"
)

var update = flag.Bool("update", false, "write the golden files")

const message = "From: <tls@postrider.test>\r\nTo: <reports@a.test>\r\nSubject: Report Domain: a.test\r\n\tSubmitter: mx.postrider.test\r\n" +
	"Date: Fri, 27 Nov 2026 00:10:00 +0000\r\nMessage-ID: <1@mx.postrider.test>\r\nTLS-Required: No\r\nTLS-Report-Domain: a.test\r\n" +
	"MIME-Version: 1.0\r\nContent-Type: text/plain\r\nX-Other:  not  signed\r\n\r\nHow  TLS went. \r\n\r\n\r\n"

func signer(t *testing.T, file string) *dkim.Signer {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	key, err := dkim.ParseKey(string(text))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return &dkim.Signer{Domain: "postrider.test", Selector: "2026.tls", Key: key}
}

// TestField: the field is what it was, and folded where the library can.
func TestField(t *testing.T) {
	for _, file := range []string{"rsa.pem", "rsa.pkcs1.pem", "ed25519.pem"} {
		synctest.Test(t, func(t *testing.T) { // t= is midnight UTC 2000-01-01
			field, err := signer(t, file).Sign([]byte(message))
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", strings.TrimSuffix(strings.TrimSuffix(file, ".pem"), ".pkcs1")+".field")
			if *update {
				if err := os.WriteFile(golden, []byte(field), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil || field != string(want) {
				t.Errorf("%s: %v; got\n%s\nwant\n%s", file, err, field, want)
			}
		})
	}
}

// publish serves the records, and returns how they are looked up.
func publish(t *testing.T, signers ...*dkim.Signer) (address string, lookup func(string) ([]string, error)) {
	t.Helper()
	zone := dnstest.Zone{TXT: map[string][]string{}}
	for _, s := range signers {
		name, value, err := s.Record()
		if err != nil {
			t.Fatal(err)
		}
		zone.TXT[name] = []string{value}
	}
	address = dnstest.Start(t, zone).Addr()
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}}
	return address, func(name string) ([]string, error) { return resolver.LookupTXT(t.Context(), name+".") }
}

// TestVerifies: two other implementations take what we sign, by the record
// that we say is to be published, and nothing that was changed on the way.
func TestVerifies(t *testing.T) {
	for _, file := range []string{"rsa.pem", "ed25519.pem"} {
		t.Run(file, func(t *testing.T) {
			s := signer(t, file)
			address, lookup := publish(t, s)
			field, err := s.Sign([]byte(message))
			if err != nil {
				t.Fatal(err)
			}
			for name, tt := range map[string]struct {
				content string
				valid   bool
			}{
				"as it was":             {message, true},
				"with trace fields":     {"Received: from a by b; Fri, 27 Nov 2026 00:10:01 +0000\r\n" + message, true},
				"white space":           {strings.Replace(message, "Report Domain: a.test\r\n\tSub", "Report  Domain: a.test Sub", 1), true},
				"another body":          {message + "More.\r\n", false},
				"another subject":       {strings.Replace(message, "Report Domain", "Invoice", 1), false},
				"a second From":         {"From: <ceo@postrider.test>\r\n" + message, false},
				"a Cc":                  {"Cc: <all@a.test>\r\n" + message, false},
				"a second TLS-Required": {"TLS-Required: No\r\n" + message, false},
				"no TLS-Required":       {strings.Replace(message, "TLS-Required: No\r\n", "", 1), false},
			} {
				content := field + tt.content
				found, err := msgauth.VerifyWithOptions(strings.NewReader(content), &msgauth.VerifyOptions{LookupTXT: lookup})
				if err != nil || len(found) != 1 || (found[0].Err == nil) != tt.valid {
					t.Errorf("%s: go-msgauth: %+v, %v; want valid: %v", name, found, err, tt.valid)
				}
				if valid, err := python(t, address, content); err != nil || valid != tt.valid {
					t.Errorf("%s: dkimpy: %v, %v; want valid: %v", name, valid, err, tt.valid)
				}
			}
		})
	}
}

// python verifies with Debian's python3-dkim.
func python(t *testing.T, address, content string) (bool, error) {
	const script = `
import sys, dkim, dns.resolver
resolver = dns.resolver.Resolver(configure=False)
resolver.nameservers, resolver.port = [sys.argv[1]], int(sys.argv[2])
def txt(name, timeout=5):
    return b''.join(resolver.resolve(name.decode(), 'TXT')[0].strings)
print(dkim.DKIM(sys.stdin.buffer.read(), tlsrpt=True).verify(dnsfunc=txt))
`
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return false, err
	}
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", script, host, port)
	cmd.Stdin = strings.NewReader(content)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		if strings.Contains(stderr.String(), "ModuleNotFoundError") || errors.Is(err, os.ErrNotExist) {
			t.Fatal("no python3-dkim with dnspython: run tests/deps.sh")
		}
		if strings.Contains(stderr.String(), "ValidationError") {
			return false, nil
		}
		return false, fmt.Errorf("%w\n%s", err, stderr.String())
	}
	return strings.TrimSpace(out.String()) == "True", nil
}

func TestWeakness(t *testing.T) {
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	key, err := dkim.ParseKey(inPEM(t, short))
	if err != nil {
		t.Fatal(err)
	}
	for want, s := range map[string]*dkim.Signer{"": signer(t, "rsa.pem"), "2048 bits": {Key: key}, "RSA only": signer(t, "ed25519.pem")} {
		if got := s.Weakness(); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestRepeatedFields(t *testing.T) {
	s := signer(t, "ed25519.pem")
	for _, more := range []string{"from: <b@b.test>\r\n", "Subject : x\r\n", "SENDER: <a@b.test>\r\nSender: <b@b.test>\r\n"} {
		if field, err := s.Sign([]byte(more + message)); !errors.Is(err, dkim.ErrRepeated) {
			t.Errorf("%q: %v, %s", more, err, field)
		}
	}
	for _, content := range []string{"", "From: a\r\nno end", "Subject: x\r\n\r\nFrom: a\r\n"} {
		if field, err := s.Sign([]byte(content)); err == nil {
			t.Errorf("%q is signed: %s", content, field)
		}
	}
}

func inPEM(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func TestBadKeys(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0") // to make a short one
	short, err := rsa.GenerateKey(rand.Reader, 768)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, text, want string }{
		{"nothing", "", "no private key in PEM"},
		{"not PEM", "secret", "no private key in PEM"},
		{"short", inPEM(t, short), "an RSA key of 768 bits"},
		{"elliptic curve", inPEM(t, curve), "*ecdsa.PrivateKey, want RSA or Ed25519"},
		{"encrypted", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nc2VjcmV0\n-----END ENCRYPTED PRIVATE KEY-----\n", "ENCRYPTED PRIVATE KEY"},
		{"broken", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n", "cannot be read"},
	} {
		var key crypto.Signer
		if key, err = dkim.ParseKey(tt.text); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") || key != nil {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	for selector, good := range map[string]bool{"a": true, "mail2026": true, "2026.tls": true, "k_1": true, "": false, "a.": false, "-a": false, "a b": false, "a;p=": false, strings.Repeat("a", 64): false} {
		if err := dkim.ParseSelector(selector); (err == nil) != good {
			t.Errorf("selector %q: %v", selector, err)
		}
	}
}
