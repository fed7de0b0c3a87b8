package store

import (
	"net/netip"
	"time"
)

// CredentialKind says by what a credential is proved.
type CredentialKind string

// The kinds of credential.
const (
	PasswordCredential    CredentialKind = "password"
	APIKeyCredential      CredentialKind = "api_key"
	CertificateCredential CredentialKind = "certificate"
)

// SCRAMKeys verify a SCRAM-SHA-256 exchange: RFC 5802 §3, RFC 7677.
type SCRAMKeys struct {
	Salt       []byte
	Iterations int
	StoredKey  []byte // 32 octets
	ServerKey  []byte // 32 octets
}

// Credential is what a client proves itself by, as package auth made it.
// Names are unique without regard to the case of letters.
type Credential struct {
	Name         string
	Tenant       string
	Kind         CredentialKind
	Password     string    // argon2id in PHC string format
	SCRAM        SCRAMKeys // zero: not offered for this user
	KeySHA256    []byte    // of an API key
	Certificate  string    // "sha256:" and hex of the whole certificate, or a DNS name in it
	ReversePaths []string  // patterns of package auth; none: the tenant's domains
	FromDomains  []string  // likewise, of the From field; none: as ReversePaths
	Networks     []netip.Prefix
	Limits       Limits
	ExpiresAt    time.Time // zero: never
	Disabled     bool
	CreatedAt    time.Time
}

// Grant is a credential with the tenant and the domains that it stands for.
type Grant struct {
	Credential Credential
	Tenant     Tenant
	Domains    []string // of the tenant; patterns of package auth
}
