// Package certs holds the TLS certificates that ingress shows, and those of
// clients that it believes. They are files, which are read again when they
// change: whoever renews them has nothing to restart.
package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"slices"
	"sync/atomic"
	"time"
)

// lookEvery is how often the files are looked at.
const lookEvery = 5 * time.Second

// selfSignedLife is how long a certificate of our own making is good.
const selfSignedLife = 365 * 24 * time.Hour

// Config says where the certificates are.
type Config struct {
	CertFiles    []string `envconfig:"TLS_CERT_FILES" desc:"Certificate chains in PEM, comma-separated: the one that fits the name in the client's SNI is shown, else the first. Read again when they change."`
	KeyFiles     []string `envconfig:"TLS_KEY_FILES" desc:"Private keys in PEM, in the order of POSTRIDER_TLS_CERT_FILES."`
	ClientCAFile string   `envconfig:"TLS_CLIENT_CA_FILE" desc:"Authorities in PEM for certificates of clients, which are asked for then. A client with the certificate of a credential is authenticated by it."`
	SelfSigned   bool     `envconfig:"TLS_SELF_SIGNED" desc:"Without certificate files, make a certificate for POSTRIDER_HOSTNAME in memory. For tests: no client can verify it."`
}

// Validate reports every setting that cannot work.
func (c *Config) Validate() error {
	if len(c.CertFiles) != len(c.KeyFiles) {
		return fmt.Errorf("POSTRIDER_TLS_CERT_FILES has %d files and POSTRIDER_TLS_KEY_FILES %d, want as many", len(c.CertFiles), len(c.KeyFiles))
	}
	return nil
}

// Holder holds what was read last. Its methods are safe for concurrent use.
type Holder struct {
	cfg     Config
	seen    []stamp
	current atomic.Pointer[tls.Config]
}

// stamp tells whether a file has changed.
type stamp struct {
	modified time.Time
	size     int64
}

// Load reads the certificates. It returns nil when none are configured: there
// is no TLS then.
func Load(cfg Config, hostname string) (*Holder, error) {
	if len(cfg.CertFiles) == 0 && !cfg.SelfSigned {
		return nil, nil
	}
	h := &Holder{cfg: cfg}
	if len(cfg.CertFiles) == 0 {
		own, err := selfSigned(hostname)
		if err != nil {
			return nil, fmt.Errorf("certs: %w", err)
		}
		h.current.Store(&tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{own}})
		return h, nil
	}
	seen, err := h.look()
	if err != nil {
		return nil, fmt.Errorf("certs: %w", err)
	}
	if err := h.read(); err != nil {
		return nil, fmt.Errorf("certs: %w", err)
	}
	h.seen = seen
	return h, nil
}

// Server returns the configuration of a TLS server. It always uses the newest
// certificates.
func (h *Holder) Server() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return h.current.Load(), nil },
	}
}

// Names returns the DNS names of a client certificate (the first of chain), if
// one of the authorities vouches for it, else none.
func (h *Holder) Names(chain []*x509.Certificate) []string {
	pool := h.current.Load().ClientCAs
	if len(chain) == 0 || pool == nil {
		return nil
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil
	}
	return chain[0].DNSNames
}

// Run reads changed files until ctx is done. Files that cannot be used leave
// what was there before.
func (h *Holder) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			h.refresh()
		}
	}
}

// refresh reads the files if they have changed.
func (h *Holder) refresh() {
	if len(h.cfg.CertFiles) == 0 {
		return
	}
	seen, err := h.look()
	if err == nil && slices.Equal(seen, h.seen) {
		return
	}
	if err == nil {
		err = h.read()
	}
	if err != nil {
		// Renewal may be half done: it is tried again at the next look.
		slog.Warn("certificates not read, the old ones stay", "error", err)
		return
	}
	h.seen = seen
	slog.Info("certificates read", "files", h.cfg.CertFiles)
}

func (h *Holder) files() []string {
	files := slices.Concat(h.cfg.CertFiles, h.cfg.KeyFiles)
	if h.cfg.ClientCAFile != "" {
		files = append(files, h.cfg.ClientCAFile)
	}
	return files
}

func (h *Holder) look() ([]stamp, error) {
	var seen []stamp
	for _, name := range h.files() {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		seen = append(seen, stamp{info.ModTime(), info.Size()})
	}
	return seen, nil
}

func (h *Holder) read() error {
	next := &tls.Config{MinVersion: tls.VersionTLS12}
	for i, name := range h.cfg.CertFiles {
		pair, err := tls.LoadX509KeyPair(name, h.cfg.KeyFiles[i])
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		next.Certificates = append(next.Certificates, pair)
	}
	if name := h.cfg.ClientCAFile; name != "" {
		pem, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		next.ClientCAs = x509.NewCertPool()
		if !next.ClientCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s: %w", name, errNoCertificate)
		}
		// Asked for and not verified in the handshake: many mail servers show
		// one that nobody knows, and mean nothing by it.
		next.ClientAuth = tls.RequestClientCert
	}
	h.current.Store(next)
	return nil
}

var errNoCertificate = errors.New("no certificate in the file")

// selfSigned makes a certificate that only says who we say we are.
func selfSigned(hostname string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: hostname},
		DNSNames:     []string{hostname, "localhost"},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(selfSignedLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
