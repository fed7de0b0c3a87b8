package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/xdg-go/scram"
)

// scramIterations is what one login costs a client, and each guess somebody
// who stole the table: about 40 ms. RFC 7677 §4 asks for 4096 at least.
// All users must have the same, or those who do not exist stand out.
const scramIterations = 65536

const scramSalt = 16 // octets

// SCRAMKeys verify a SCRAM-SHA-256 exchange without the password: RFC 5802
// §3, RFC 7677.
type SCRAMKeys struct {
	Salt       []byte
	Iterations int
	StoredKey  []byte
	ServerKey  []byte
}

// NewSCRAMKeys returns the keys of a new password. Error: ErrPassword.
func NewSCRAMKeys(password string) (SCRAMKeys, error) {
	if _, err := prepare(password); err != nil {
		return SCRAMKeys{}, err
	}
	client, err := scram.SHA256.NewClient("", password, "")
	if err != nil {
		return SCRAMKeys{}, ErrPassword
	}
	factors := scram.KeyFactors{Salt: string(random(scramSalt)), Iters: scramIterations}
	stored, err := client.GetStoredCredentialsWithError(factors)
	if err != nil {
		return SCRAMKeys{}, fmt.Errorf("SCRAM keys: %w", err)
	}
	return SCRAMKeys{[]byte(factors.Salt), factors.Iters, stored.StoredKey, stored.ServerKey}, nil
}

// Decoy returns the keys that a user who does not exist appears to have: the
// same for the same secret and user, as Fold has it, and verified by no
// password.
func Decoy(secret []byte, user string) SCRAMKeys {
	part := func(what string) []byte {
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(what + "\x00" + Fold(user)))
		return mac.Sum(nil)
	}
	return SCRAMKeys{part("salt")[:scramSalt], scramIterations, part("stored key"), part("server key")}
}

// Exchange is the server's side of one SCRAM-SHA-256 exchange. It is used by
// one goroutine, once.
type Exchange struct {
	conversation *scram.ServerConversation
	lookedUp     error
}

// Binding ties an exchange to its TLS connection: RFC 5802 §6, RFC 9266.
type Binding struct {
	Exporter []byte // the tls-exporter value of the connection; nil: SCRAM-SHA-256-PLUS was not offered
	Required bool   // the client chose SCRAM-SHA-256-PLUS
}

// The ways in which an exchange goes wrong, other than by the error of its
// look-up.
var (
	ErrExchange = errors.New("malformed SCRAM message")               // 501 5.5.2
	ErrProof    = errors.New("the client does not know the password") // 535 5.7.8
)

// NewExchange begins an exchange. keys is called once, with the user name of
// the client's first message.
func NewExchange(binding Binding, keys func(user string) (SCRAMKeys, error)) (*Exchange, error) {
	e := &Exchange{}
	server, err := scram.SHA256.NewServer(func(user string) (scram.StoredCredentials, error) {
		k, err := keys(user)
		if err != nil {
			e.lookedUp = err
			return scram.StoredCredentials{}, err
		}
		return scram.StoredCredentials{
			KeyFactors: scram.KeyFactors{Salt: string(k.Salt), Iters: k.Iterations}, StoredKey: k.StoredKey, ServerKey: k.ServerKey,
		}, nil
	})
	if err != nil {
		return nil, fmt.Errorf("SCRAM: %w", err)
	}
	bound := scram.ChannelBinding{Type: scram.ChannelBindingTLSExporter, Data: binding.Exporter}
	switch {
	case binding.Exporter == nil && binding.Required:
		return nil, errors.New("SCRAM: channel binding is required and there is none")
	case binding.Exporter == nil:
		e.conversation = server.NewConversation()
	case binding.Required:
		e.conversation = server.NewConversationWithChannelBindingRequired(bound)
	default:
		e.conversation = server.NewConversationWithChannelBinding(bound)
	}
	return e, nil
}

// Step takes a message of the client and returns ours. done tells that the
// client has proved that it knows the password. Errors: ErrExchange,
// ErrProof (wrong password, wrong channel binding, or a request to act for
// another user), or the error of the look-up.
func (e *Exchange) Step(message string) (reply string, done bool, err error) {
	first := e.conversation.Username() == ""
	reply, err = e.conversation.Step(message)
	switch {
	case e.lookedUp != nil:
		return "", false, e.lookedUp
	case err != nil && (reply == scram.ErrInvalidProof || reply == scram.ErrChannelBindingsDontMatch):
		return "", false, ErrProof
	case err != nil:
		return "", false, fmt.Errorf("%w: %w", ErrExchange, err)
	case first && e.conversation.AuthzID() != "" && e.conversation.AuthzID() != e.conversation.Username():
		return "", false, ErrProof // RFC 4422 §3.4.1: nobody may act for another
	}
	return reply, e.conversation.Valid(), nil
}
