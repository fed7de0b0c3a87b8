package access

import (
	"errors"
	"fmt"
	"time"

	"github.com/postrider/postrider/pkg/auth"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// Method is how a client has proved who it is.
type Method string

// The methods.
const (
	ByPassword    Method = "password"
	BySCRAM       Method = "SCRAM-SHA-256"
	ByAPIKey      Method = "api key"
	ByCertificate Method = "certificate"
	ByNetwork     Method = "network" // nothing but its address
	ByPeer        Method = "peer"    // a relay in front of us says so: XCLIENT LOGIN
)

// Identity is who a client has proved to be. The zero value is nobody: it may
// name no address.
type Identity struct {
	Credential string // "" for ByNetwork
	Tenant     string // "" for ByNetwork
	Method     Method
	Priority   int16 // of its messages

	reversePaths auth.Patterns
	from         auth.Patterns
	grant        store.Grant
}

// String names the identity in logs, without what verifies it.
func (id Identity) String() string {
	return fmt.Sprintf("credential %q of tenant %q by %s", id.Credential, id.Tenant, id.Method)
}

// Network returns the identity of a client that may relay for its address
// alone: any reverse-path, no tenant, no limits.
func Network() Identity {
	all := auth.Patterns{"*"}
	return Identity{Method: ByNetwork, reversePaths: all, from: all}
}

// newIdentity fills in what a credential leaves unsaid: reverse-paths are
// those of the tenant's domains, From fields as reverse-paths.
func newIdentity(g store.Grant, method Method) Identity {
	id := Identity{
		Credential: g.Credential.Name, Tenant: g.Tenant.Name, Method: method, Priority: g.Tenant.Priority,
		reversePaths: g.Credential.ReversePaths, from: g.Credential.FromDomains, grant: g,
	}
	if len(id.reversePaths) == 0 {
		id.reversePaths = g.Domains
	}
	if len(id.from) == 0 {
		id.from = id.reversePaths
	}
	return id
}

// MayReversePath reports whether the client may send with the reverse-path.
// The null reverse-path is everybody's: reports have it (RFC 5321 §4.5.5).
func (id Identity) MayReversePath(path mail.ReversePath) bool {
	return path.IsNull() && id.Method != "" || id.reversePaths.Match(string(path))
}

// MayFrom reports whether the client may name all of the addresses (without
// angle brackets) in the From field. No address at all is not allowed.
func (id Identity) MayFrom(addresses ...string) bool {
	for _, a := range addresses {
		if !id.from.Match(a) {
			return false
		}
	}
	return len(addresses) > 0
}

// Fits returns a *QuotaError if no day's quota has room for so much.
func (id Identity) Fits(recipients int, bytes int64) error {
	for _, c := range []struct {
		limits store.Limits
		of     string
	}{{id.grant.Credential.Limits, "credential"}, {id.grant.Tenant.Limits, "tenant"}} {
		switch {
		case c.limits.RecipientsPerDay > 0 && int64(recipients) > c.limits.RecipientsPerDay:
			return &QuotaError{Text: fmt.Sprintf("%d recipients, and the %s's quota is %d a day", recipients, c.of, c.limits.RecipientsPerDay), Never: true}
		case c.limits.BytesPerDay > 0 && bytes > c.limits.BytesPerDay:
			return &QuotaError{Text: fmt.Sprintf("%d bytes, and the %s's quota is %d a day", bytes, c.of, c.limits.BytesPerDay), Never: true}
		}
	}
	return nil
}

// ErrRefused says that a client is not who it says, or no longer: 535 5.7.8,
// HTTP 401. The cause is not told, and shows in no text or time.
var ErrRefused = errors.New("authentication credentials invalid")

// TooManyError says that the client or its user has failed too often: 421
// 4.7.0, HTTP 429. Nothing was verified.
type TooManyError struct{ RetryAfter time.Duration }

// Error says when to come back.
func (e *TooManyError) Error() string {
	return fmt.Sprintf("too many authentication failures, try again in %s", e.RetryAfter.Round(time.Second))
}

// QuotaError says that a limit of the tenant or the credential is reached:
// 452 4.7.1, HTTP 429; or, with Never, that it has no room for as much on any
// day: 552 5.7.1, HTTP 403. Error is fit for the client.
type QuotaError struct {
	Text       string
	RetryAfter time.Duration
	Never      bool
}

// Error returns the text.
func (e *QuotaError) Error() string { return e.Text }
