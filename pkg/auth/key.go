package auth

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strings"
)

// keyPrefix begins every API key, so that scanners of source code and logs
// can find one that leaked.
const keyPrefix = "pr_"

// NewKey returns a fresh API key of 256 random bits, "pr_" and 43 characters,
// and its SHA-256, which is all that is stored: a random key needs no slow
// hash.
func NewKey() (key string, sum [32]byte) {
	key = keyPrefix + base64.RawURLEncoding.EncodeToString(random(32))
	return key, sha256.Sum256([]byte(key))
}

// KeySum returns the SHA-256 of what a client gives as its API key. ok is
// false if no key of ours has this form.
func KeySum(key string) (sum [32]byte, ok bool) {
	text, found := strings.CutPrefix(key, keyPrefix)
	bits, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if !found || err != nil || len(bits) != 32 {
		return sum, false
	}
	return sha256.Sum256([]byte(key)), true
}

// NewPassword returns a fresh password of 160 random bits, for people who do
// not bring their own.
func NewPassword() string { return base64.RawURLEncoding.EncodeToString(random(20)) }

// CertificateName returns the form in which a certificate is stored: the
// SHA-256 of the whole of it.
func CertificateName(sum [32]byte) string { return "sha256:" + hex.EncodeToString(sum[:]) }
