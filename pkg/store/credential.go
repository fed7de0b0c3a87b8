package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5"
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
	Name         string // the user name; at most 255 characters
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

const credentialColumns = `c.credential, c.tenant, c.kind, coalesce(c.password, ''), c.scram_salt, coalesce(c.scram_iterations, 0),
	c.scram_stored_key, c.scram_server_key, c.api_key_sha256, ` + credentialFacts

const credentialFacts = `coalesce(c.certificate, ''), c.reverse_paths, c.from_domains, c.networks,
	c.messages_per_second, c.recipients_per_day, c.bytes_per_day, c.expires_at, c.disabled, c.created_at`

// credentialRow is where credentialColumns are scanned to.
type credentialRow struct {
	Credential
	expires *time.Time
}

func (r *credentialRow) targets() []any {
	return []any{&r.Name, &r.Tenant, &r.Kind, &r.Password, &r.SCRAM.Salt, &r.SCRAM.Iterations,
		&r.SCRAM.StoredKey, &r.SCRAM.ServerKey, &r.KeySHA256, &r.Certificate, &r.ReversePaths, &r.FromDomains, &r.Networks,
		&r.Limits.MessagesPerSecond, &r.Limits.RecipientsPerDay, &r.Limits.BytesPerDay, &r.expires, &r.Disabled, &r.CreatedAt}
}

func (r *credentialRow) credential() Credential {
	r.ExpiresAt = timeOf(r.expires)
	return r.Credential
}

func credentialArgs(c Credential) pgx.NamedArgs {
	args := pgx.NamedArgs{
		"name": c.Name, "tenant": c.Tenant, "kind": c.Kind, "password": nullText(c.Password),
		"salt": nil, "iterations": nil, "stored": nil, "server": nil,
		"key": c.KeySHA256, "certificate": nullText(c.Certificate),
		"paths": append([]string{}, c.ReversePaths...), "from": append([]string{}, c.FromDomains...),
		"networks": append([]netip.Prefix{}, c.Networks...),
		"rate":     c.Limits.MessagesPerSecond, "recipients": c.Limits.RecipientsPerDay, "bytes": c.Limits.BytesPerDay,
		"expires": nullTime(c.ExpiresAt), "disabled": c.Disabled,
	}
	if c.SCRAM.Iterations > 0 {
		args["salt"], args["iterations"], args["stored"], args["server"] = c.SCRAM.Salt, c.SCRAM.Iterations, c.SCRAM.StoredKey, c.SCRAM.ServerKey
	}
	return args
}

// CreateCredential adds a credential. Its CreatedAt does not count. ErrExists:
// there is one of this name or certificate. ErrNotFound: there is no such
// tenant.
func (s *Store) CreateCredential(ctx context.Context, c Credential) error {
	const q = `
		INSERT INTO credentials (credential, tenant, kind, password, scram_salt, scram_iterations, scram_stored_key, scram_server_key,
		                         api_key_sha256, certificate, reverse_paths, from_domains, networks,
		                         messages_per_second, recipients_per_day, bytes_per_day, expires_at, disabled)
		VALUES (@name, @tenant, @kind, @password, @salt, @iterations, @stored, @server,
		        @key, @certificate, @paths, @from, @networks,
		        @rate, @recipients, @bytes, @expires, @disabled)`
	_, err := s.plain.Exec(ctx, q, credentialArgs(c))
	return refused("create credential "+c.Name, err)
}

// Credentials returns the credentials of a tenant, or of all for "", without
// what verifies a secret, which readers may not see.
func (s *Store) Credentials(ctx context.Context, tenant string) ([]Credential, error) {
	const q = `
		SELECT c.credential, c.tenant, c.kind, '', NULL::bytea, coalesce(c.scram_iterations, 0), NULL::bytea, NULL::bytea, NULL::bytea,
		       ` + credentialFacts + `
		FROM credentials c
		WHERE $1 IN ('', c.tenant)
		ORDER BY c.tenant, lower(c.credential)`
	rows, err := s.plain.Query(ctx, q, tenant)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	credentials, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Credential, error) {
		var r credentialRow
		err := row.Scan(r.targets()...)
		return r.credential(), err
	})
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	return credentials, nil
}

// ChangeCredential lets change alter a credential, but for its name, tenant
// and kind, while nobody else does. An error of change is returned and alters
// nothing. ErrNotFound: there is no such credential.
func (s *Store) ChangeCredential(ctx context.Context, name string, change func(*Credential) error) error {
	const read = `
		SELECT ` + credentialColumns + `
		FROM credentials c
		WHERE lower(c.credential) = lower($1)
		FOR UPDATE`
	const write = `
		UPDATE credentials
		SET password = @password,
		    scram_salt = @salt,
		    scram_iterations = @iterations,
		    scram_stored_key = @stored,
		    scram_server_key = @server,
		    api_key_sha256 = @key,
		    certificate = @certificate,
		    reverse_paths = @paths,
		    from_domains = @from,
		    networks = @networks,
		    messages_per_second = @rate,
		    recipients_per_day = @recipients,
		    bytes_per_day = @bytes,
		    expires_at = @expires,
		    disabled = @disabled
		WHERE credential = @name`
	err := inTx(ctx, s.plain, func(tx pgx.Tx) error {
		var r credentialRow
		if err := tx.QueryRow(ctx, read, name).Scan(r.targets()...); err != nil {
			return err
		}
		stored := r.Name
		c := r.credential()
		if err := change(&c); err != nil {
			return err
		}
		c.Name = stored
		_, err := tx.Exec(ctx, write, credentialArgs(c))
		return err
	})
	return refused("change credential "+name, err)
}

// DeleteCredential removes a credential. ErrNotFound: there is none.
func (s *Store) DeleteCredential(ctx context.Context, name string) error {
	const q = `DELETE FROM credentials WHERE lower(credential) = lower($1)`
	tag, err := s.plain.Exec(ctx, q, name)
	if err == nil && tag.RowsAffected() == 0 {
		return ErrNotFound
	}
	return refused("delete credential "+name, err)
}

const grantColumns = `
		SELECT ` + credentialColumns + `,
		       ` + tenantColumns + `,
		       ARRAY(SELECT d.domain FROM domains d WHERE d.tenant = c.tenant ORDER BY d.domain)
		FROM credentials c
		JOIN tenants t ON t.tenant = c.tenant`

// Grant finds a credential by name, in any case of letters. ErrNotFound:
// there is none. Whether it is disabled or has expired is for the caller to
// see.
func (s *Store) Grant(ctx context.Context, name string) (Grant, error) {
	const q = grantColumns + `
		WHERE lower(c.credential) = lower($1)`
	return s.grant(ctx, q, name)
}

// AnySCRAM reports whether any credential can be used with SCRAM.
func (s *Store) AnySCRAM(ctx context.Context) (bool, error) {
	const q = `SELECT EXISTS (SELECT FROM credentials WHERE scram_salt IS NOT NULL AND NOT disabled)`
	var any bool
	if err := s.plain.QueryRow(ctx, q).Scan(&any); err != nil {
		return false, fmt.Errorf("credentials with SCRAM: %w", err)
	}
	return any, nil
}

// GrantOfKey is as Grant, by the SHA-256 of an API key.
func (s *Store) GrantOfKey(ctx context.Context, sha256 [32]byte) (Grant, error) {
	const q = grantColumns + `
		WHERE c.api_key_sha256 = $1`
	return s.grant(ctx, q, sha256[:])
}

// GrantOfCertificate is as Grant, by any of the ways in which a certificate
// may be stored; the first one that is there counts.
func (s *Store) GrantOfCertificate(ctx context.Context, certificates []string) (Grant, error) {
	const q = grantColumns + `
		WHERE c.certificate = ANY ($1)
		ORDER BY array_position($1, c.certificate)
		LIMIT 1`
	return s.grant(ctx, q, certificates)
}

func (s *Store) grant(ctx context.Context, q string, arg any) (Grant, error) {
	var c credentialRow
	var t tenantRow
	var domains []string
	err := s.plain.QueryRow(ctx, q, arg).Scan(append(append(c.targets(), t.targets()...), &domains)...)
	if errors.Is(err, pgx.ErrNoRows) {
		return Grant{}, ErrNotFound
	}
	if err != nil {
		return Grant{}, fmt.Errorf("grant: %w", err)
	}
	return Grant{Credential: c.credential(), Tenant: t.tenant(), Domains: domains}, nil
}

// nullText is null for the empty text.
func nullText(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
