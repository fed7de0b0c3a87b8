// Package roots loads the certificate authorities that servers of other mail
// systems are verified by.
package roots

import (
	"crypto/x509"
	"fmt"
	"os"
)

// Config says which authorities count beside those of the system.
type Config struct {
	CAFile string `envconfig:"TLS_CA_FILE" desc:"Authorities in PEM that count beside those of the system, where certificates of mail exchangers, smart hosts and MTA-STS policy hosts are verified."`
}

// Load returns the authorities of the system and of the configured file; nil,
// which crypto/tls takes for those of the system, if there is no file.
func Load(cfg Config) (*x509.CertPool, error) {
	if cfg.CAFile == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("POSTRIDER_TLS_CA_FILE: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a machine without any
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("POSTRIDER_TLS_CA_FILE: %s holds no certificate in PEM", cfg.CAFile)
	}
	return pool, nil
}
