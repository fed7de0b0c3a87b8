package auth

import (
	"fmt"

	"github.com/xdg-go/scram"
)

// Client is the client's side of one SCRAM-SHA-256 exchange: RFC 5802 §5. It
// is used by one goroutine, once.
type Client struct{ conversation *scram.ClientConversation }

// NewClient begins an exchange. Error: ErrPassword.
func NewClient(user, password string) (*Client, error) {
	client, err := scram.SHA256.NewClient(user, password, "")
	if err != nil {
		return nil, ErrPassword
	}
	// RFC 7677 §4 wants 4096 at least: fewer make the proof that we send easy
	// to guess from.
	return &Client{client.WithMinIterations(4096).NewConversation()}, nil
}

// Step takes a message of the server, "" before the first, and returns ours.
// It fails with ErrExchange if the message makes no sense, and with ErrProof
// if the server has not proved that it knows the password.
func (c *Client) Step(message string) (string, error) {
	if c.conversation.Done() {
		return "", fmt.Errorf("%w: a message after the last", ErrExchange)
	}
	reply, err := c.conversation.Step(message)
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: %w", ErrExchange, err)
	case c.conversation.Done() && !c.conversation.Valid():
		return "", ErrProof
	}
	return reply, nil
}

// Done reports whether the server has proved that it knows the password.
func (c *Client) Done() bool { return c.conversation.Done() && c.conversation.Valid() }
