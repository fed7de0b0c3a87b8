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
	reply, done, err = e.inner.Step(message)
	switch {
	case errors.Is(err, auth.ErrProof):
		err = e.refuse("wrong password")
	case done:
		err = e.succeed()
	}
	if done || err != nil {
		e.keeper.metrics.attempt(BySCRAM, err)
	}
	if err != nil {
		return "", false, err
	}
	return reply, done, nil
}

// Identity returns who the client is, after Step was done.
func (e *Exchange) Identity() Identity { return e.id }

// keys are those of a user, real or not.
func (e *Exchange) keys(user string) (auth.SCRAMKeys, error) {
	var err error
	e.user = user
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

func (e *Exchange) succeed() error {
	if cause := e.found.unusable(store.PasswordCredential, e.client); cause != "" {
		return e.refuse(cause)
	}
	if err := e.keeper.guard.succeeded(e.ctx, e.gate); err != nil {
		return err
	}
	e.id = newIdentity(e.found.grant, BySCRAM)
	return nil
}

func (e *Exchange) refuse(cause string) error {
	if !e.found.exists {
		cause = "unknown"
	}
	refusal(BySCRAM, e.client, e.user, cause)
	return e.keeper.guard.failed(e.ctx, e.gate)
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
