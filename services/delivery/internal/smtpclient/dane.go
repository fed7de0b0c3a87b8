package smtpclient

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/postrider/postrider/pkg/mail"
)

var (
	errNoCertificate = errors.New("the host showed no certificate")
	errNoTLSAMatch   = errors.New("no TLSA record matches the certificate")
	errTANames       = errors.New("a TLSA record matches the authority, and the certificate has none of the host's names")
)

// verifyDANE authenticates a host by its TLSA records: RFC 7672 §3. One that
// matches is enough. names are those that a certificate may have where the
// record is of an authority.
func verifyDANE(state tls.ConnectionState, records []mail.TLSA, names []string) error {
	chain := state.PeerCertificates
	if len(chain) == 0 {
		return errNoCertificate
	}
	failed := errNoTLSAMatch
	for _, r := range records {
		switch r.Usage {
		case mail.DANEEE:
			// RFC 7672 §3.1.1: neither names nor dates count, for DNSSEC says
			// whose key it is and for how long.
			if matches(r, chain[0]) {
				return nil
			}
		case mail.DANETA:
			err := verifyAuthority(r, chain, names)
			if err == nil {
				return nil
			}
			if !errors.Is(err, errNoTLSAMatch) {
				failed = err
			}
		}
	}
	return failed
}

// verifyAuthority verifies a chain up to the certificate that a DANE-TA record
// matches: RFC 7672 §3.1.2, §3.2.2. A record that is the whole certificate may
// stand in for one that the host did not show.
func verifyAuthority(r mail.TLSA, chain []*x509.Certificate, names []string) error {
	anchors, between := x509.NewCertPool(), x509.NewCertPool()
	found := false
	for _, c := range chain {
		if matches(r, c) {
			anchors.AddCert(c)
			found = true
		} else {
			between.AddCert(c)
		}
	}
	if !found && r.Selector == 0 && r.Matching == 0 {
		if c, err := x509.ParseCertificate(r.Data); err == nil {
			anchors.AddCert(c)
			found = true
		}
	}
	if !found {
		return errNoTLSAMatch
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: anchors, Intermediates: between}); err != nil {
		return err
	}
	var wrong error
	for _, name := range names {
		if wrong = chain[0].VerifyHostname(name); wrong == nil {
			return nil
		}
	}
	return fmt.Errorf("%w: %w", errTANames, wrong)
}

// matches reports whether a record is of a certificate: RFC 6698 §2.1.
func matches(r mail.TLSA, c *x509.Certificate) bool {
	data := c.Raw
	if r.Selector == 1 {
		data = c.RawSubjectPublicKeyInfo
	}
	switch r.Matching {
	case 1:
		sum := sha256.Sum256(data)
		data = sum[:]
	case 2:
		sum := sha512.Sum512(data)
		data = sum[:]
	}
	return r.Selector <= 1 && r.Matching <= 2 && bytes.Equal(data, r.Data)
}
