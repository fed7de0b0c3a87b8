package smtpd

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"github.com/postrider/postrider/services/ingress/internal/certs"
)

// RFC 5321 §3.1: who talks before the greeting is refused.
func TestEarlyTalker(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "EHLO client.example\r\n"); err != nil {
		t.Fatal(err)
	}
	store := &fakeStore{}
	startOn(t, testConfig(), store, listener)
	c := &client{t: t, conn: conn, in: bufio.NewReader(conn)}
	c.expect("554 5.5.1")
	c.closed()
}

func startTLS(t *testing.T, implicit bool) *running {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	keeper, _ := newAccess(t)
	cfg := testConfig()
	cfg.RelayNetworks = nil
	return startDoor(t, cfg, &fakeStore{}, Door{Listener: listener, ImplicitTLS: implicit}, Deps{Access: keeper, TLS: newCertificates(t)})
}

// RFC 3207 §6: what somebody puts behind STARTTLS in the clear is not done in
// the secured session, and a failed handshake is the end.
func TestTalkBeforeHandshake(t *testing.T) {
	for _, injected := range []string{"MAIL FROM:<evil@example.com>\r\n", "x", "\x16\x03\x01"} {
		c := startTLS(t, false).client(t)
		c.expect("220")
		c.send("EHLO client.example\r\n")
		c.expect("250")
		c.send("STARTTLS\r\n" + injected)
		c.expect("554 5.5.1")
		c.closed()
	}
}

func TestHandshakeFails(t *testing.T) {
	for _, implicit := range []bool{false, true} {
		c := startTLS(t, implicit).client(t)
		if !implicit {
			c.expect("220")
			c.send("EHLO client.example\r\n")
			c.expect("250")
			c.send("STARTTLS\r\n")
			c.expect("220 2.0.0")
		}
		c.send("MAIL FROM:<a@example.com>\r\nNOOP\r\n")
		rest, err := io.ReadAll(c.in)
		if err != nil || strings.Contains(string(rest), "250") || strings.Contains(string(rest), "503") {
			t.Errorf("after a failed handshake: %q, %v", rest, err)
		}
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	server := startTLS(t, true)
	conn := tls.Client(server.dial(t), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}) //nolint:gosec // the point
	if err := conn.Handshake(); err == nil {
		t.Error("TLS 1.1 was spoken")
	}
}

// secured returns a client that has said EHLO under TLS.
func secured(t *testing.T, server *running, config *tls.Config) (*client, *tls.Conn) {
	t.Helper()
	config.InsecureSkipVerify = true
	conn := tls.Client(server.dial(t), config)
	c := &client{t: t, conn: conn, in: bufio.NewReader(conn)}
	c.expect("220")
	c.send("EHLO client.example\r\n")
	c.expect("250")
	return c, conn
}

// RFC 5802, RFC 7677, RFC 9266: SCRAM with a client of another make.
func TestSCRAM(t *testing.T) {
	server := startTLS(t, true)
	for _, plus := range []bool{false, true} {
		for _, password := range []string{"secret", "wrong"} {
			c, conn := secured(t, server, &tls.Config{})
			scramClient, err := scram.SHA256.NewClient("user", password, "")
			if err != nil {
				t.Fatal(err)
			}
			mechanism, conversation := "SCRAM-SHA-256", scramClient.NewConversation()
			if plus {
				state := conn.ConnectionState()
				binding, err := scram.NewTLSExporterBinding(&state)
				if err != nil {
					t.Fatal(err)
				}
				mechanism, conversation = mechanism+"-PLUS", scramClient.NewConversationWithChannelBinding(binding)
			}
			first, err := conversation.Step("")
			if err != nil {
				t.Fatal(err)
			}
			c.send("AUTH " + mechanism + " " + encoded(first) + "\r\n")
			second, err := conversation.Step(challenge(t, c))
			if err != nil {
				t.Fatal(err)
			}
			c.send(encoded(second) + "\r\n")
			if password == "wrong" {
				c.expect("535 5.7.8")
				continue
			}
			if _, err := conversation.Step(challenge(t, c)); err != nil || !conversation.Valid() {
				t.Fatalf("the server has not proved itself: %v", err)
			}
			c.send("\r\n")
			c.expect("235 2.7.0")
			c.send("MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\n")
			c.expect("250")
			c.expect("250")
		}
	}
}

// Mechanisms are offered where they can succeed: -PLUS where its binding is
// tls-exporter, which is that of TLS 1.3 (RFC 9266), SCRAM where it is wanted.
func TestMechanismsOffered(t *testing.T) {
	for _, tt := range []struct {
		version uint16
		scram   bool
		want    string
	}{
		{tls.VersionTLS13, true, "AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN"},
		{tls.VersionTLS12, true, "AUTH SCRAM-SHA-256 PLAIN LOGIN"},
		{tls.VersionTLS13, false, "AUTH PLAIN LOGIN"},
	} {
		server := startTLS(t, true)
		server.cfg.AuthSCRAM = tt.scram
		c, _ := secured(t, server, &tls.Config{MaxVersion: tt.version})
		c.send("EHLO client.example\r\n")
		offered := ""
		for _, line := range c.expect("250").Lines {
			if strings.HasPrefix(line, "AUTH ") {
				offered = line
			}
		}
		if offered != tt.want {
			t.Errorf("%s, SCRAM %v: %q, want %q", tls.VersionName(tt.version), tt.scram, offered, tt.want)
		}
		for _, mechanism := range []string{"SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"} {
			if !strings.Contains(tt.want+" ", " "+mechanism+" ") {
				c.send("AUTH " + mechanism + "\r\n")
				c.expect("504 5.5.4")
			}
		}
	}
}

func encoded(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func challenge(t *testing.T, c *client) string {
	t.Helper()
	decoded, err := base64.StdEncoding.DecodeString(c.expect("334").Text())
	if err != nil {
		t.Fatal(err)
	}
	return string(decoded)
}

// A credential that is taken away ends the sessions that have it.
func TestRevoked(t *testing.T) {
	keeper, db := newAccess(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig()
	cfg.PlaintextAuth = true
	c := startDoor(t, cfg, &fakeStore{}, Door{Listener: listener, Submission: true}, Deps{Access: keeper}).client(t)
	c.expect("220")
	c.send("EHLO client.example\r\nAUTH PLAIN " + encoded("\x00user\x00secret") + "\r\nMAIL FROM:<a@example.com>\r\n")
	c.expect("250")
	c.expect("235")
	c.expect("250")
	db.mu.Lock()
	db.revoked = true
	db.mu.Unlock()
	eventually(t, "the session ends", func() bool { // the keeper may know the row for some seconds
		c.send("RSET\r\nMAIL FROM:<a@example.com>\r\n")
		c.expect("250")
		return strings.HasPrefix(c.expect("").String(), "421 4.7.0")
	})
	c.closed()
}

// authority issues certificates into files.
type authority struct {
	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.key = key
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.write("ca.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) write(name, kind string, der []byte) string {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// issue writes a certificate for a name.
func (a *authority) issue(file, name string) (certFile, keyFile string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.write(file+".pem", "CERTIFICATE", der), a.write(file+"-key.pem", "PRIVATE KEY", private)
}

// Certificates are chosen by SNI and read again when they change; a client
// with the certificate of a credential may relay, another may not.
func TestCertificates(t *testing.T) {
	a := newAuthority(t)
	firstCert, firstKey := a.issue("first", "first.example")
	secondCert, secondKey := a.issue("second", "second.example")
	holder, err := certs.Load(certs.Config{
		CertFiles: []string{firstCert, secondCert}, KeyFiles: []string{firstKey, secondKey}, ClientCAFile: filepath.Join(a.dir, "ca.pem"),
	}, "mx.example")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	watching := make(chan error, 1)
	go func() { watching <- holder.Run(ctx) }()
	defer func() {
		stop()
		if err := <-watching; err != nil {
			t.Error(err)
		}
	}()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	keeper, _ := newAccess(t)
	cfg := testConfig()
	cfg.RelayNetworks = nil
	server := startDoor(t, cfg, &fakeStore{}, Door{Listener: listener, ImplicitTLS: true, Submission: true}, Deps{Access: keeper, TLS: holder})

	shown := func(sni string) *x509.Certificate {
		conn := tls.Client(server.dial(t), &tls.Config{InsecureSkipVerify: true, ServerName: sni})
		defer conn.Close()
		if err := conn.Handshake(); err != nil {
			t.Fatal(err)
		}
		return conn.ConnectionState().PeerCertificates[0]
	}
	for sni, want := range map[string]string{"first.example": "first.example", "second.example": "second.example", "third.example": "first.example"} {
		if got := shown(sni).DNSNames[0]; got != want {
			t.Errorf("for %s the server shows %s", sni, got)
		}
	}

	for name, reply := range map[string]string{"robot.example.com": "250 2.1.0", "stranger.example.com": "530 5.7.0"} {
		certFile, keyFile := a.issue("client", name)
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			t.Fatal(err)
		}
		c, _ := secured(t, server, &tls.Config{Certificates: []tls.Certificate{pair}})
		c.send("MAIL FROM:<a@example.com>\r\n")
		c.expect(reply)
	}
	forged := newAuthority(t) // of the right name, by somebody else
	certFile, keyFile := forged.issue("client", "robot.example.com")
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := secured(t, server, &tls.Config{Certificates: []tls.Certificate{pair}})
	c.send("MAIL FROM:<a@example.com>\r\n")
	c.expect("530 5.7.0")

	before := shown("first.example")
	a.issue("first", "first.example")
	eventually(t, "the new certificate is shown", func() bool { return !shown("first.example").Equal(before) })
}

func TestCertificateFilesThatDoNotWork(t *testing.T) {
	a := newAuthority(t)
	certFile, keyFile := a.issue("first", "first.example")
	_, otherKey := a.issue("second", "second.example")
	for _, cfg := range []certs.Config{
		{CertFiles: []string{certFile}, KeyFiles: []string{otherKey}},
		{CertFiles: []string{"/nowhere"}, KeyFiles: []string{keyFile}},
		{CertFiles: []string{certFile}, KeyFiles: []string{keyFile}, ClientCAFile: keyFile},
	} {
		if _, err := certs.Load(cfg, "mx.example"); err == nil {
			t.Errorf("Load(%+v) worked", cfg)
		}
	}
	if err := (&certs.Config{CertFiles: []string{certFile}}).Validate(); err == nil {
		t.Error("a certificate without a key is valid")
	}
	if h, err := certs.Load(certs.Config{}, "mx.example"); h != nil || err != nil {
		t.Errorf("nothing configured: %v, %v", h, err)
	}
}

// A load balancer that sends no header gets no session.
func TestProxyWithoutHeader(t *testing.T) {
	cfg := testConfig()
	cfg.ProxyNetworks = prefixes("127.0.0.0/8")
	server := startServer(t, cfg, &fakeStore{})
	conn := server.dial(t)
	if _, err := io.WriteString(conn, "EHLO client.example\r\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); len(got) > 0 || err != nil && !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("got %q, %v", got, err)
	}
	// The limits are those of the clients behind it.
	cfg.MaxConnectionsPerIP = 1
	server = startServer(t, cfg, &fakeStore{})
	for i, want := range []string{"220", "421 4.7.0", "220"} {
		conn := server.dial(t)
		if _, err := io.WriteString(conn, []string{"PROXY TCP4 192.0.2.1 192.0.2.9 1 25\r\n", "PROXY TCP4 192.0.2.1 192.0.2.9 2 25\r\n", "PROXY TCP4 192.0.2.2 192.0.2.9 1 25\r\n"}[i]); err != nil {
			t.Fatal(err)
		}
		c := &client{t: t, conn: conn, in: bufio.NewReader(conn)}
		c.expect(want)
	}
}
