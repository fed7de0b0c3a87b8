package access

import (
	"context"
	"errors"
	"net/netip"
)

var errUnfinished = errors.New("access: being built")

// Keeper knows the credentials, and counts what clients send. Its methods are
// safe for concurrent use. Errors other than ErrRefused, *TooManyError and
// *QuotaError are temporary: 454 4.7.0, HTTP 503.
type Keeper struct{}

// Password verifies user and password of AUTH PLAIN or LOGIN. It may take
// seconds when the client or the user has failed before.
func (k *Keeper) Password(ctx context.Context, client netip.Addr, user, password string) (Identity, error) {
	return Identity{}, errUnfinished
}

// APIKey verifies the key of an HTTP client ("pr_...").
func (k *Keeper) APIKey(ctx context.Context, client netip.Addr, key string) (Identity, error) {
	return Identity{}, errUnfinished
}

// Certificate is what a client showed in its TLS handshake.
type Certificate struct {
	SHA256 [32]byte // of the whole certificate, DER
	Names  []string // its DNS names, only if its chain was verified; else none
}

// Certificate finds who a client certificate stands for.
func (k *Keeper) Certificate(ctx context.Context, client netip.Addr, c Certificate) (Identity, error) {
	return Identity{}, errUnfinished
}

// Exchange is one SCRAM-SHA-256 exchange. It is used by one goroutine.
type Exchange struct{}

// Step takes a message of the client (not base64) and returns ours. done
// tells that the exchange has succeeded: reply is then the server's signature,
// to which the client answers with an empty line before the 235. Errors as of
// Password.
func (e *Exchange) Step(ctx context.Context, message string) (reply string, done bool, err error) {
	return "", false, errUnfinished
}

// Identity returns who the client is, after Step was done.
func (e *Exchange) Identity() Identity { return Identity{} }

// Binding binds an exchange to its TLS connection (tls-exporter, RFC 9266).
type Binding struct {
	Exporter []byte // tls.ConnectionState.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32); nil: -PLUS was not offered
	Required bool   // the client chose SCRAM-SHA-256-PLUS
}

// SCRAM begins an exchange.
func (k *Keeper) SCRAM(client netip.Addr, binding Binding) *Exchange { return &Exchange{} }

// Renew returns the identity as it is now: call it for each message of a
// connection that lasts. ErrRefused: it was disabled or deleted, or has
// expired, since; end the session.
func (k *Keeper) Renew(ctx context.Context, client netip.Addr, id Identity) (Identity, error) {
	return id, errUnfinished
}

// Take counts one message against the rates and quotas of the identity, or
// returns a *QuotaError and counts nothing. Of an identity without a tenant
// nothing is counted.
func (k *Keeper) Take(ctx context.Context, id Identity, recipients int, bytes int64) error {
	return errUnfinished
}

// GiveBack undoes Take for a message that was not accepted after all.
func (k *Keeper) GiveBack(id Identity, recipients int, bytes int64) {}

// Run writes what was taken to Postgres until ctx is done, and once more
// then: it must outlive the sessions.
func (k *Keeper) Run(ctx context.Context) error { return errUnfinished }
