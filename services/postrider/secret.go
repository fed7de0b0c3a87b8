package postrider

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/auth"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// secretFlags say what a credential is proved by.
type secretFlags struct {
	stdin, generate, apiKey, noSCRAM bool
	certificate, certificateName     string
}

// given counts the kinds of secret that were asked for.
func (f *secretFlags) given() (n int) {
	for _, is := range []bool{f.stdin || f.generate, f.apiKey, f.certificate != "", f.certificateName != ""} {
		if is {
			n++
		}
	}
	return n
}

// check reports flags that exclude each other.
func (f *secretFlags) check() error {
	if f.given() > 1 {
		return usageError{errors.New("a credential is one of password, API key and certificate")}
	}
	return nil
}

// apply gives the credential its secret, and returns what the user must be
// told because nobody knows it yet.
func (f *secretFlags) apply(ctx context.Context, in io.Reader, cr *store.Credential) (made credentialLine, err error) {
	switch {
	case f.apiKey:
		var sum [32]byte
		made.APIKey, sum = auth.NewKey()
		cr.Kind, cr.KeySHA256 = store.APIKeyCredential, sum[:]
	case f.certificate != "":
		cr.Kind = store.CertificateCredential
		cr.Certificate, err = certificateSum(f.certificate)
	case f.certificateName != "":
		name, wrong := mail.ParseDomain(f.certificateName)
		if wrong != nil {
			return made, usageError{wrong}
		}
		cr.Kind, cr.Certificate = store.CertificateCredential, string(name)
	default:
		password := auth.NewPassword()
		if f.stdin {
			if password, err = readPassword(in); err != nil {
				return made, err
			}
		} else {
			made.Password = password
		}
		err = setPassword(ctx, cr, password, !f.noSCRAM)
	}
	return made, err
}

func setPassword(ctx context.Context, cr *store.Credential, password string, withSCRAM bool) (err error) {
	cr.Kind, cr.SCRAM = store.PasswordCredential, store.SCRAMKeys{}
	if cr.Password, err = auth.NewHasher(1).Hash(ctx, password); err != nil {
		return err
	}
	if withSCRAM {
		keys, err := auth.NewSCRAMKeys(password)
		if err != nil {
			return err
		}
		cr.SCRAM = store.SCRAMKeys(keys)
	}
	return nil
}

// replaceSecret gives a credential the secret of a fresh one, if that has
// any.
func replaceSecret(cr *store.Credential, fresh store.Credential, noSCRAM bool) error {
	if fresh.Kind == "" {
		if noSCRAM {
			cr.SCRAM = store.SCRAMKeys{}
		}
		return nil
	}
	if fresh.Kind != cr.Kind {
		return usageError{fmt.Errorf("credential %s is of kind %s: add another one", cr.Name, cr.Kind)}
	}
	cr.Password, cr.SCRAM, cr.KeySHA256, cr.Certificate = fresh.Password, fresh.SCRAM, fresh.KeySHA256, fresh.Certificate
	return nil
}

// checkCredentialName reports what no client could send as its user name.
func checkCredentialName(name string) error {
	if name == "" || !utf8.ValidString(name) || utf8.RuneCountInString(name) > 255 || strings.ContainsFunc(name, unicode.IsControl) {
		return usageError{fmt.Errorf("credential %q: want 1 to 255 characters, none of them a control character", name)}
	}
	return nil
}

// readPassword reads the first line.
func readPassword(in io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(in, 2*auth.MaxPassword)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// certificateSum returns the form in which a certificate is stored, of a PEM
// file or of "sha256:" and hex digits.
func certificateSum(text string) (string, error) {
	if digits, found := strings.CutPrefix(strings.ToLower(text), "sha256:"); found {
		sum, err := hex.DecodeString(strings.ReplaceAll(digits, ":", ""))
		if err != nil || len(sum) != sha256.Size {
			return "", usageError{fmt.Errorf("certificate %q, want sha256: and 64 hex digits", text)}
		}
		return auth.CertificateName([32]byte(sum)), nil
	}
	file, err := os.ReadFile(text)
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(file)
	if block == nil || block.Type != "CERTIFICATE" {
		return "", fmt.Errorf("%s: no certificate in PEM form at its beginning", text)
	}
	return auth.CertificateName(sha256.Sum256(block.Bytes)), nil
}

func noSCRAMFlag(c *cobra.Command, f *secretFlags) {
	c.Flags().BoolVar(&f.noSCRAM, "no-scram", false, "keep no keys for SCRAM-SHA-256: clients then use PLAIN or LOGIN over TLS")
}
