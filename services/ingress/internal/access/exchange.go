package access

import (
	"context"
	"errors"
	"net/netip"

	"github.com/postrider/postrider/pkg/auth"
	"github.com/postrider/postrider/pkg/store"
)

// Binding binds an exchange to its TLS connection: its Exporter is
// tls.ConnectionState.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
// of RFC 9266.
type Binding = auth.Binding

// ErrExchange says that a client does not keep to SCRAM: 501 5.5.2.
var ErrExchange = auth.ErrExchange

// Exchange is one SCRAM-SHA-256 exchange. It is used by one goroutine.
type Exchange struct {
	keeper *Keeper
	client netip.Addr
	inner  *auth.Exchange
	ctx    context.Context // of the Step in progress
	asked  bool            // the client has its challenge
	user   string
	found  found
	gate   gate
	id     Identity
}

// SCRAM begins an exchange.
func (k *Keeper) SCRAM(client netip.Addr, binding Binding) (*Exchange, error) {
	e := &Exchange{keeper: k, client: client}
	var err error
	e.inner, err = auth.NewExchange(binding, e.keys)
	return e, err
}

// Step takes a message of the client (not base64) and returns ours. done
// tells that the exchange has succeeded: reply is then the server's signature,
// to which the client answers with an empty line before the 235. After an
// error the exchange is over. Errors: ErrExchange, or as of Password.
func (e *Exchange) Step(ctx context.Context, message string) (reply string, done bool, err error) {
	e.ctx = ctx
	var failed failure
	reply, done, failed, err = e.step(ctx, message)
	if errors.Is(err, ErrRefused) && len(failed.scores) > 0 {
		err = failed.answer(ctx)
	}
	if done || err != nil {
		e.keeper.metrics.attempt(BySCRAM, err)
	}
	if err != nil {
		return "", false, err
	}
	return reply, done, nil
}

// step is Step without the wait after a failure, which is counted. The message
// with the proof has a turn, as a password has: see Keeper.verify.
func (e *Exchange) step(ctx context.Context, message string) (reply string, done bool, failed failure, err error) {
	if e.asked {
		select {
		case e.keeper.proofs <- struct{}{}:
			defer func() { <-e.keeper.proofs }()
		case <-ctx.Done():
			return "", false, failure{}, ctx.Err()
		}
		if e.gate, err = e.keeper.guard.look(ctx, e.client, usable(e.user)); err != nil {
			return "", false, failure{}, err
		}
	}
	reply, done, err = e.inner.Step(message)
	switch {
	case errors.Is(err, auth.ErrProof):
		failed, err = e.refuse("wrong password")
	case done:
		if cause := e.found.unusable(store.PasswordCredential, e.client); cause != "" {
			failed, err = e.refuse(cause)
		} else if err = e.keeper.guard.succeeded(ctx, e.gate); err == nil {
			e.id = newIdentity(e.found.grant, BySCRAM)
		}
	}
	return reply, done, failed, err
}

// Identity returns who the client is, after Step was done.
func (e *Exchange) Identity() Identity { return e.id }

// keys are those of a user, real or not.
func (e *Exchange) keys(user string) (auth.SCRAMKeys, error) {
	var err error
	e.asked, e.user = true, user
	if e.gate, err = e.keeper.guard.look(e.ctx, e.client, usable(user)); err != nil {
		return auth.SCRAMKeys{}, err
	}
	if e.found, err = e.keeper.named(e.ctx, user); err != nil {
		return auth.SCRAMKeys{}, err
	}
	secret, err := e.keeper.decoySecret(e.ctx)
	if err != nil {
		return auth.SCRAMKeys{}, err
	}
	decoy := auth.Decoy(secret, user)
	if k := e.found.grant.Credential.SCRAM; k.Iterations > 0 {
		return auth.SCRAMKeys(k), nil
	}
	return decoy, nil
}

// refuse counts the failure and returns ErrRefused. SCRAM says nothing about
// the password of a credential that has no keys for it: that is no guess. Where
// the user is known it is not counted; elsewhere it is until the password comes,
// or strangers would see who has such a credential.
func (e *Exchange) refuse(cause string) (failure, error) {
	k, c := e.keeper, e.found.grant.Credential
	keyless := e.found.exists && c.Kind == store.PasswordCredential && c.SCRAM.Iterations == 0
	switch {
	case !e.found.exists:
		cause = "unknown"
	case keyless:
		cause = "no SCRAM keys"
	}
	refusal(BySCRAM, e.client, e.user, cause)
	if keyless && e.gate.known {
		return failure{}, ErrRefused
	}
	failed, err := k.guard.failed(e.ctx, e.gate)
	if err != nil {
		return failure{}, err
	}
	if keyless {
		name := k.keyed("vain", auth.Fold(e.user), network(e.client).String())
		n, _ := k.vain.entries.GetIfPresent(name)
		k.vain.entries.Set(name, n+1)
	}
	return failed, ErrRefused
}

// MaySCRAM reports whether any credential has keys for SCRAM, as far as is
// known: what nobody can use is not to be offered.
func (k *Keeper) MaySCRAM() bool { return !k.noSCRAM.Load() }

// lookForSCRAM finds that out.
func (k *Keeper) lookForSCRAM(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushWithin)
	defer cancel()
	if some, err := k.store.AnySCRAM(ctx); err == nil { // without Postgres it stays as it was
		k.noSCRAM.Store(!some)
	}
}

// decoySecret reads the secret of the decoys once.
func (k *Keeper) decoySecret(ctx context.Context) ([]byte, error) {
	k.decoyMu.Lock()
	defer k.decoyMu.Unlock()
	if k.decoy == nil {
		secret, err := k.store.Decoy(ctx)
		if err != nil {
			return nil, err
		}
		k.decoy = secret
	}
	return k.decoy, nil
}
