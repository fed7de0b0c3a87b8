// Package dkim signs messages for a domain (RFC 6376), with RSA or Ed25519
// (RFC 8463), relaxed/relaxed, and says what is to be published for that.
package dkim

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/emersion/go-msgauth/dkim"

	"github.com/postrider/postrider/pkg/mail"
)

// Bits of RSA keys, RFC 8301 §3.2: nobody may accept shorter ones than minRSA,
// nobody has to accept longer ones than maxRSA, and goodRSA is what they
// should have.
const minRSA, goodRSA, maxRSA = 1024, 2048, 4096

// ParseKey reads a private key in PEM: RSA in PKCS#8 or PKCS#1, or Ed25519 in
// PKCS#8. Errors do not tell what it holds.
func ParseKey(text string) (crypto.Signer, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("no private key in PEM")
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("%q in PEM, want an unencrypted PRIVATE KEY or RSA PRIVATE KEY", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("a private key that cannot be read: %w", err)
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		if bits := key.N.BitLen(); bits < minRSA || bits > maxRSA {
			return nil, fmt.Errorf("an RSA key of %d bits, want %d to %d (RFC 8301 §3.2)", bits, minRSA, maxRSA)
		}
		return key, nil
	case ed25519.PrivateKey:
		return key, nil
	}
	return nil, fmt.Errorf("a key of type %T, want RSA or Ed25519", key)
}

var selectorSyntax = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?)*$`)

// ParseSelector reports what is wrong with a selector: RFC 6376 §3.1.
func ParseSelector(text string) error {
	if len(text) > 63 || !selectorSyntax.MatchString(text) {
		return fmt.Errorf("%q, want the labels of a domain name, such as \"mail2026\"", text)
	}
	return nil
}

// Signer signs for one domain with one key.
type Signer struct {
	Domain   mail.Domain
	Selector string
	Key      crypto.Signer // of ParseKey
}

// sealed are the fields that show who wrote what to whom. Each stands in h=
// once more than in the message, so that nobody can add one: RFC 6376 §8.15.
var sealed = []string{
	"From", "Reply-To", "To", "Cc", "Subject", "Date", "Message-ID",
	"MIME-Version", "Content-Type", "Content-Transfer-Encoding", "TLS-Required",
}

// signed are signed where they are there: RFC 6376 §5.4.1, RFC 8058 §4,
// RFC 8460 §5.3.
var signed = []string{
	"Sender", "In-Reply-To", "References", "Auto-Submitted",
	"List-Id", "List-Help", "List-Unsubscribe", "List-Unsubscribe-Post", "List-Subscribe", "List-Post", "List-Owner", "List-Archive",
	"TLS-Report-Domain", "TLS-Report-Submitter",
}

// ErrRepeated says that a message has a field twice that RFC 5322 §3.6 allows
// once: which of them readers see, no signature can say.
var ErrRepeated = errors.New("the field is there more than once")

// Sign returns the DKIM-Signature field, with its line end, that goes before
// a message whose lines end with CRLF.
func (s *Signer) Sign(content []byte) (string, error) {
	names, err := toSign(content)
	if err != nil {
		return "", fmt.Errorf("sign for %s: %w", s.Domain, err)
	}
	signer, err := dkim.NewSigner(&dkim.SignOptions{
		Domain: string(s.Domain), Selector: s.Selector, Signer: s.Key, Hash: crypto.SHA256,
		HeaderCanonicalization: dkim.CanonicalizationRelaxed, BodyCanonicalization: dkim.CanonicalizationRelaxed,
		HeaderKeys: names,
	})
	if err != nil {
		return "", fmt.Errorf("sign for %s: %w", s.Domain, err)
	}
	_, err = signer.Write(content)
	if closed := signer.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return "", fmt.Errorf("sign for %s: %w", s.Domain, err)
	}
	return signer.Signature(), nil
}

// toSign lists the fields for h=.
func toSign(content []byte) ([]string, error) {
	count := map[string]int{}
	for line := range bytes.Lines(content) {
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			break
		}
		if name, _, found := bytes.Cut(line, []byte(":")); found && line[0] != ' ' && line[0] != '\t' {
			count[strings.ToLower(string(bytes.TrimRight(name, " \t")))]++
		}
	}
	if count["from"] == 0 {
		return nil, errors.New("there is no From field, which must be signed (RFC 6376 §5.4)")
	}
	var names []string
	add := func(name string, more int) error {
		n := count[strings.ToLower(name)]
		if n > 1 {
			return fmt.Errorf("%s: %w", name, ErrRepeated)
		}
		for range n + more {
			names = append(names, name)
		}
		return nil
	}
	for _, name := range sealed {
		if err := add(name, 1); err != nil {
			return nil, err
		}
	}
	for _, name := range signed {
		if err := add(name, 0); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// Weakness says why receivers may not take the signatures; it is empty if
// there is no reason that they should not.
func (s *Signer) Weakness() string {
	switch key := s.Key.Public().(type) {
	case ed25519.PublicKey:
		return "large receivers verify RSA only"
	case *rsa.PublicKey:
		if key.N.BitLen() < goodRSA {
			return "RSA keys should have 2048 bits (RFC 8301 §3.2)"
		}
	}
	return ""
}

// algorithm is the k= of the key.
func (s *Signer) algorithm() string {
	if _, is := s.Key.Public().(ed25519.PublicKey); is {
		return "ed25519"
	}
	return "rsa"
}

// Record returns the TXT record to publish. It names no service type, which
// is all of them (RFC 6376 §3.6.1): RFC 8460 §3 would have s=tlsrpt, with
// which those who verify mail of any kind say that the signature is invalid.
func (s *Signer) Record() (name, value string, err error) {
	var data []byte
	if key, is := s.Key.Public().(ed25519.PublicKey); is {
		data = key // RFC 8463 §4: without ASN.1 around it
	} else if data, err = x509.MarshalPKIXPublicKey(s.Key.Public()); err != nil {
		return "", "", fmt.Errorf("public key of %s: %w", s.Domain, err)
	}
	return s.Selector + "._domainkey." + string(s.Domain), "v=DKIM1; k=" + s.algorithm() + "; p=" + base64.StdEncoding.EncodeToString(data), nil
}
