package smtpclient

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/postrider/postrider/pkg/auth"
	"github.com/postrider/postrider/pkg/mail"
)

// Credential is what we authenticate by: RFC 4954.
type Credential struct{ Username, Secret string }

// authenticate proves who we are, by the strongest mechanism that both know.
// Nothing of the credential leaves over a connection that is not verified TLS:
// who else sits there would have it. The zero Answer is success.
func (s *Session) authenticate(ctx context.Context, c *Credential) Answer {
	if c == nil {
		return Answer{}
	}
	if s.secure == "" || !s.verified {
		return Answer{Phase: mail.PhaseAuth, Err: ErrAuthUnverified}
	}
	var reply mail.Reply
	var err error
	switch {
	case s.offers.mechanism("SCRAM-SHA-256"):
		reply, err = s.scram(c)
	case s.offers.mechanism("PLAIN"):
		reply, err = s.respond("AUTH PLAIN " + encode("\x00"+c.Username+"\x00"+c.Secret))
	case s.offers.mechanism("LOGIN"):
		reply, err = s.login(c)
	default:
		return Answer{Phase: mail.PhaseAuth, Err: fmt.Errorf("%w: it offers %q", ErrNoAuth, s.offers.auth)}
	}
	switch {
	case err != nil:
		return Answer{Phase: mail.PhaseAuth, Err: fault(ctx, err)}
	case reply.Code/100 == 3:
		// It wants more than the mechanism has: RFC 4954 §4.
		reply, err = s.respond("*")
		if err == nil && reply.Code/100 == 2 {
			err = ErrOutOfStep
		}
	}
	if err != nil || reply.Code/100 != 2 {
		return refused(mail.PhaseAuth, reply, fault(ctx, err))
	}
	return Answer{}
}

// respond sends one line of the exchange.
func (s *Session) respond(line string) (mail.Reply, error) {
	return s.ask(mail.PhaseAuth, s.timeouts.Hello, line)
}

// login is the mechanism LOGIN, which no RFC describes: the prompts are for
// the user name, then the password, whatever they say.
func (s *Session) login(c *Credential) (mail.Reply, error) {
	reply, err := s.respond("AUTH LOGIN")
	for _, answer := range []string{c.Username, c.Secret} {
		if err != nil || reply.Code != 334 {
			break
		}
		reply, err = s.respond(encode(answer))
	}
	return reply, err
}

// scram is SCRAM-SHA-256: RFC 7677. The host must prove that it knows the
// password too.
func (s *Session) scram(c *Credential) (mail.Reply, error) {
	client, err := auth.NewClient(c.Username, c.Secret)
	if err != nil {
		return mail.Reply{}, fmt.Errorf("%w: %w", ErrAuthExchange, err)
	}
	said, err := client.Step("")
	line := "AUTH SCRAM-SHA-256 "
	for err == nil {
		var reply mail.Reply
		if reply, err = s.respond(line + encode(said)); err != nil || reply.Code != 334 {
			if err == nil && reply.Code/100 == 2 && !client.Done() {
				err = fmt.Errorf("%w: the host did not prove that it knows the password", ErrAuthExchange)
			}
			return reply, err
		}
		line = ""
		challenge, wrong := base64.StdEncoding.DecodeString(strings.TrimSpace(reply.Text()))
		if wrong != nil {
			err = wrong
			break
		}
		said, err = client.Step(string(challenge))
	}
	// Cancelled: RFC 4954 §4. What it says to that changes nothing.
	if _, cancelled := s.respond("*"); cancelled != nil {
		return mail.Reply{}, cancelled
	}
	return mail.Reply{}, fmt.Errorf("%w: %w", ErrAuthExchange, err)
}

func encode(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

// The ways in which AUTH fails before the host refuses it.
var (
	// ErrAuthUnverified says that the connection is not TLS with a verified
	// certificate, so the credential was not sent.
	ErrAuthUnverified = errors.New("credentials are sent over verified TLS only")
	// ErrNoAuth says that the host offers no mechanism that we know.
	ErrNoAuth = errors.New("host offers no mechanism of AUTH that we know")
	// ErrAuthExchange says that the exchange made no sense, or that the host
	// could not prove that it knows the password.
	ErrAuthExchange = errors.New("AUTH exchange failed")
)
