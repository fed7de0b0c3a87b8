package access

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sync/singleflight"

	"github.com/postrider/postrider/pkg/auth"
	"github.com/postrider/postrider/pkg/store"
)

const (
	// rowLife is how old what we know of a credential may be.
	rowLife = 3 * time.Second

	// verifiedLife is how long a password that was verified is known again
	// without a hash, from the same network: who has failed too often learns
	// nothing by it. It is kept under a keyed hash together with the stored
	// hash, so a changed password is not known.
	verifiedLife = 5 * time.Minute

	// vainLife is how long a client may take to fall back from SCRAM to a
	// password.
	vainLife = time.Minute

	memoSize = 20_000 // entries of each memo
)

// accessStore keeps credentials and counts. *store.Store is one.
type accessStore interface {
	Grant(ctx context.Context, name string) (store.Grant, error)
	GrantOfKey(ctx context.Context, sha256 [32]byte) (store.Grant, error)
	GrantOfCertificate(ctx context.Context, certificates []string) (store.Grant, error)
	Standings(ctx context.Context, keys []string) ([]store.Standing, error)
	AuthFailed(ctx context.Context, keys []string) ([]float64, error)
	AuthSucceeded(ctx context.Context, key string) error
	AuthForgiven(ctx context.Context, keys []string, failures int) error
	AnySCRAM(ctx context.Context) (bool, error)
	ForgetAuth(ctx context.Context, clients time.Time) (int64, error)
	Decoy(ctx context.Context) ([]byte, error)
	AddUsage(ctx context.Context, add []store.Usage) (credentials, tenants []store.Usage, err error)
}

// verifier gives turns to verify passwords: so many at a time, and the same work
// for every hash, also for none. *auth.Hasher is one.
type verifier interface {
	Turn(ctx context.Context) (auth.Turn, error)
}

// Config is how strict the keeper is.
type Config struct {
	MaxFailures int `envconfig:"AUTH_MAX_FAILURES" default:"10" desc:"Failures to authenticate from one address (a /64 of IPv6), at all ingress processes together, after which it gets 421; a user has twice as many. Half are forgotten in 15 minutes."`
	Parallel    int `envconfig:"AUTH_PARALLEL" default:"2" desc:"Passwords that a process verifies at a time, and as many again of clients that it knows; each takes 19 MiB and a core for about 20 ms."`
}

// Validate reports every setting that cannot work.
func (c *Config) Validate() error {
	var errs []error
	if c.MaxFailures < 2 || c.MaxFailures > 1000 {
		errs = append(errs, fmt.Errorf("POSTRIDER_AUTH_MAX_FAILURES is %d, want 2 to 1000", c.MaxFailures))
	}
	if c.Parallel < 1 || c.Parallel > 256 {
		errs = append(errs, fmt.Errorf("POSTRIDER_AUTH_PARALLEL is %d, want 1 to 256", c.Parallel))
	}
	return errors.Join(errs...)
}

// Keeper knows the credentials, and counts what clients send. Its methods are
// safe for concurrent use. Errors other than ErrRefused, *TooManyError and
// *QuotaError are temporary: 454 4.7.0, HTTP 503.
type Keeper struct {
	store    accessStore
	known    verifier // for users whose network is known: a flood of strangers does not delay them
	unknown  verifier
	guard    guard
	meter    *meter
	metrics  *metrics
	grants   *memo[found] // by name, "key" and its hash, "certificate" and its names
	verified *memo[struct{}]
	vain     *memo[int]    // failures of SCRAM where the credential has no keys for it, by user and network
	proofs   chan struct{} // holds a token for each SCRAM proof that is looked at
	noSCRAM  atomic.Bool   // no credential has keys for it
	secret   [32]byte      // of the keyed hashes
	attempts singleflight.Group

	decoyMu sync.Mutex
	decoy   []byte // guarded by decoyMu; nil until it was read
}

// found is what a look-up of a credential found, perhaps nothing.
type found struct {
	grant  store.Grant
	exists bool
}

// New returns a Keeper. Run must run while it is used.
func New(db accessStore, cfg Config) (*Keeper, error) {
	k := &Keeper{
		store: db, known: auth.NewHasher(cfg.Parallel), unknown: auth.NewHasher(cfg.Parallel),
		guard: guard{db, cfg.MaxFailures}, meter: newMeter(db), metrics: newMetrics(), proofs: make(chan struct{}, cfg.Parallel),
	}
	var err error
	if k.grants, err = newMemo[found](memoSize, rowLife); err != nil {
		return nil, fmt.Errorf("access: %w", err)
	}
	if k.verified, err = newMemo[struct{}](memoSize, verifiedLife); err != nil {
		return nil, fmt.Errorf("access: %w", err)
	}
	if k.vain, err = newMemo[int](memoSize, vainLife); err != nil {
		return nil, fmt.Errorf("access: %w", err)
	}
	rand.Read(k.secret[:]) // it never fails: crypto/rand ends the process instead
	return k, nil
}

// Password verifies user and password of AUTH PLAIN or LOGIN. It may take
// seconds when the client or the user has failed before.
func (k *Keeper) Password(ctx context.Context, client netip.Addr, user, password string) (Identity, error) {
	id, err := k.password(ctx, client, user, password)
	k.metrics.attempt(ByPassword, err)
	return id, err
}

func (k *Keeper) password(ctx context.Context, client netip.Addr, user, password string) (Identity, error) {
	f, err := k.named(ctx, user)
	if err != nil {
		return Identity{}, err
	}
	cause := f.unusable(store.PasswordCredential, client)
	known := k.keyed("verified", f.grant.Credential.Password, password, network(client).String())
	if _, ok := k.verified.entries.GetIfPresent(known); ok && cause == "" {
		return newIdentity(f.grant, ByPassword), nil
	}
	// Many connections that a client opens at once cost one hash, and when
	// they are wrong they are one failure.
	attempt := k.keyed("attempt", user, password, network(client).String())
	return share(ctx, &k.attempts, attempt, func(ctx context.Context) (Identity, error) {
		at, err := k.guard.look(ctx, client, usable(user))
		if err != nil {
			return Identity{}, err
		}
		hasher := k.unknown
		if at.known {
			hasher = k.known
		}
		cause, failed, err := k.verify(ctx, hasher, client, user, password, f, cause)
		if err != nil {
			return Identity{}, err
		}
		if cause != "" {
			refusal(ByPassword, client, user, cause)
			return Identity{}, failed.answer(ctx)
		}
		if err := k.guard.succeeded(ctx, at); err != nil {
			return Identity{}, err
		}
		if err := k.forgive(ctx, client, user, at); err != nil {
			return Identity{}, err
		}
		k.verified.entries.Set(known, struct{}{})
		return newIdentity(f.grant, ByPassword), nil
	})
}

// verify finds out, in a turn, what is wrong with a password: "" is nothing. A
// failure is counted before the turn ends, and who waited for one is looked at
// again: of many guesses at once no more are heard than of as many one by one.
func (k *Keeper) verify(ctx context.Context, hasher verifier, client netip.Addr, user, password string, f found, cause string) (string, failure, error) {
	turn, err := hasher.Turn(ctx)
	if err != nil {
		return "", failure{}, fmt.Errorf("credential %q: %w", user, err)
	}
	defer turn.End()
	at, err := k.guard.look(ctx, client, usable(user))
	if err != nil {
		return "", failure{}, err
	}
	// Whatever is wrong, a hash is computed.
	ok, err := turn.Verify(f.grant.Credential.Password, password)
	if err != nil {
		return "", failure{}, fmt.Errorf("credential %q: %w", user, err)
	}
	if !ok && cause == "" {
		cause = "wrong password"
	}
	if cause == "" {
		return "", failure{}, nil
	}
	failed, err := k.guard.failed(ctx, at)
	return cause, failed, err
}

// forgive takes back what SCRAM cost a client that now has proved who it is:
// its credential has no keys for SCRAM, so that was no guess.
func (k *Keeper) forgive(ctx context.Context, client netip.Addr, user string, at gate) error {
	name := k.keyed("vain", auth.Fold(user), network(client).String())
	n, ok := k.vain.entries.GetIfPresent(name)
	if !ok {
		return nil
	}
	k.vain.entries.Invalidate(name)
	return k.store.AuthForgiven(ctx, at.keys, n)
}

// APIKey verifies the key of an HTTP client ("pr_..."). It may take seconds
// when the client has failed before.
func (k *Keeper) APIKey(ctx context.Context, client netip.Addr, key string) (Identity, error) {
	id, err := k.apiKey(ctx, client, key)
	k.metrics.attempt(ByAPIKey, err)
	return id, err
}

func (k *Keeper) apiKey(ctx context.Context, client netip.Addr, key string) (Identity, error) {
	var f found
	sum, ok := auth.KeySum(key)
	if ok {
		var err error
		f, err = k.lookUp(ctx, "key "+string(sum[:]), func(ctx context.Context) (store.Grant, error) {
			return k.store.GrantOfKey(ctx, sum)
		})
		if err != nil {
			return Identity{}, err
		}
	}
	cause := f.unusable(store.APIKeyCredential, client)
	if cause == "" {
		return newIdentity(f.grant, ByAPIKey), nil
	}
	at, err := k.guard.look(ctx, client, "")
	if err != nil {
		return Identity{}, err
	}
	refusal(ByAPIKey, client, f.grant.Credential.Name, cause)
	failed, err := k.guard.failed(ctx, at)
	if err != nil {
		return Identity{}, err
	}
	return Identity{}, failed.answer(ctx)
}

// Certificate is what a client showed in its TLS handshake.
type Certificate struct {
	SHA256 [32]byte // of the whole certificate, DER
	Names  []string // its DNS names, only if its chain was verified; else none
}

// Certificate finds who a client certificate stands for. TLS has proved that
// the client has the key, so there is nothing to guess and nobody waits.
func (k *Keeper) Certificate(ctx context.Context, client netip.Addr, c Certificate) (Identity, error) {
	names := []string{auth.CertificateName(c.SHA256)}
	for _, name := range c.Names {
		names = append(names, strings.ToLower(name))
	}
	f, err := k.lookUp(ctx, "certificate "+strings.Join(names, " "), func(ctx context.Context) (store.Grant, error) {
		return k.store.GrantOfCertificate(ctx, names)
	})
	var id Identity
	if err == nil {
		if cause := f.unusable(store.CertificateCredential, client); cause == "" {
			id = newIdentity(f.grant, ByCertificate)
		} else {
			refusal(ByCertificate, client, f.grant.Credential.Name, cause)
			err = ErrRefused
		}
	}
	k.metrics.attempt(ByCertificate, err)
	return id, err
}

// Vouched finds who a client is that a trusted peer has authenticated: the
// credential that it names, if that may be used at all.
func (k *Keeper) Vouched(ctx context.Context, client netip.Addr, user string) (Identity, error) {
	f, err := k.named(ctx, user)
	if err != nil {
		return Identity{}, err
	}
	var id Identity
	if cause := f.unusable(f.grant.Credential.Kind, client); cause == "" {
		id = newIdentity(f.grant, ByPeer)
	} else {
		refusal(ByPeer, client, user, cause)
		err = ErrRefused
	}
	k.metrics.attempt(ByPeer, err)
	return id, err
}

// Renew returns the identity as it is now: call it for each message of a
// connection that lasts. ErrRefused: the credential was disabled, deleted or
// given another secret since, or has expired; end the session.
func (k *Keeper) Renew(ctx context.Context, client netip.Addr, id Identity) (Identity, error) {
	if id.Method == ByNetwork {
		return id, nil
	}
	f, err := k.named(ctx, id.Credential)
	if err != nil {
		return Identity{}, err
	}
	was, is := id.grant.Credential, f.grant.Credential
	cause := f.unusable(was.Kind, client)
	if cause == "" && (was.Password != is.Password || subtle.ConstantTimeCompare(was.KeySHA256, is.KeySHA256) == 0 || was.Certificate != is.Certificate) {
		cause = "another secret since"
	}
	if cause != "" {
		refusal(id.Method, client, id.Credential, cause)
		return Identity{}, ErrRefused
	}
	return newIdentity(f.grant, id.Method), nil
}

// named looks up a credential by the name that a client gives.
func (k *Keeper) named(ctx context.Context, user string) (found, error) {
	if usable(user) == "" {
		return found{}, nil
	}
	f, err := k.lookUp(ctx, "name "+auth.Fold(user), func(ctx context.Context) (store.Grant, error) { return k.store.Grant(ctx, user) })
	if f.exists && auth.Fold(f.grant.Credential.Name) != auth.Fold(user) {
		// Postgres may know more letters than ASCII in two cases. Salts of
		// nobody do not, and would tell such a user from nobody.
		f = found{}
	}
	return f, err
}

func (k *Keeper) lookUp(ctx context.Context, key string, find func(context.Context) (store.Grant, error)) (found, error) {
	return k.grants.get(ctx, key, func(ctx context.Context) (found, error) {
		g, err := find(ctx)
		if errors.Is(err, store.ErrNotFound) {
			return found{}, nil
		}
		return found{g, err == nil}, err
	})
}

// unusable says why a credential does not do for the client; "": it does.
func (f found) unusable(kind store.CredentialKind, client netip.Addr) string {
	c := f.grant.Credential
	switch {
	case !f.exists:
		return "unknown"
	case c.Kind != kind:
		return "credential of another kind"
	case c.Disabled:
		return "disabled"
	case !c.ExpiresAt.IsZero() && !time.Now().Before(c.ExpiresAt):
		return "expired"
	case len(c.Networks) > 0 && !contains(c.Networks, client):
		return "client network not allowed"
	}
	return ""
}

func contains(networks []netip.Prefix, client netip.Addr) bool {
	client = client.Unmap().WithZone("")
	for _, n := range networks {
		if n.Contains(client) {
			return true
		}
	}
	return false
}

// usable returns user, or "" if no credential can have this name.
func usable(user string) string {
	if !utf8.ValidString(user) || utf8.RuneCountInString(user) > 255 || strings.ContainsFunc(user, unicode.IsControl) {
		return ""
	}
	return user
}

// keyed returns a hash of the parts that says nothing to who has not our key.
func (k *Keeper) keyed(parts ...string) string {
	mac := hmac.New(sha256.New, k.secret[:])
	for _, p := range parts {
		fmt.Fprintf(mac, "%d:%s", len(p), p)
	}
	return string(mac.Sum(nil))
}

// refusal tells operators what clients are not told.
func refusal(method Method, client netip.Addr, user, cause string) {
	slog.Info("authentication refused", "method", string(method), "client", client.String(), "user", user, "cause", cause)
}
