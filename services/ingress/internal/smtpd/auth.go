package smtpd

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"strings"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/ingress/internal/access"
)

// The ways in which an AUTH exchange ends without a verdict.
var (
	errCancelled = errors.New("authentication cancelled")
	errBase64    = errors.New("response is not base64")
	errMessage   = errors.New("response does not fit the mechanism")
	errUnknown   = errors.New("mechanism is not known")
)

// channelBinding is the label of tls-exporter: RFC 9266 §2.
const channelBinding = "EXPORTER-Channel-Binding"

// mayAuth reports whether AUTH is offered.
func (s *session) mayAuth() bool {
	return s.server.access != nil && !s.door.NoAuth && !s.authed && !s.silent && (s.tls != nil || s.cfg.PlaintextAuth)
}

// mechanisms lists those that are offered, the strongest first.
func (s *session) mechanisms() string {
	const passwords = "PLAIN LOGIN"
	switch {
	case !s.mayScram():
		return passwords
	case s.exporter() != nil:
		return "SCRAM-SHA-256-PLUS SCRAM-SHA-256 " + passwords
	}
	return "SCRAM-SHA-256 " + passwords
}

// mayScram reports whether SCRAM is offered: clients that choose by themselves
// take it, and not all fall back when the credential has no keys for it.
func (s *session) mayScram() bool { return s.cfg.AuthSCRAM && s.server.access.MaySCRAM() }

// exporter returns what binds SCRAM to the TLS connection; nil: nothing does.
// That is tls-exporter, the binding of TLS 1.3 (RFC 9266 §3). Below, clients
// have tls-unique (RFC 5802 §6.1), and would take an offer of -PLUS for one.
func (s *session) exporter() []byte {
	if s.tls == nil || s.tls.Version < tls.VersionTLS13 {
		return nil
	}
	exported, err := s.tls.ExportKeyingMaterial(channelBinding, nil, 32)
	if err != nil {
		return nil
	}
	return exported
}

// doAuth: RFC 4954 §4.
func (s *session) doAuth(arguments string) {
	mechanism, initial, given := strings.Cut(arguments, " ")
	switch {
	case s.server.access == nil || s.door.NoAuth || s.silent:
		s.refuse("AUTH", replyNotHere)
	case s.tls == nil && !s.cfg.PlaintextAuth:
		s.refuse("AUTH", replyAuthNeedsTLS)
	case s.client.Hello == "" || !s.esmtp:
		s.refuse("AUTH", replyEHLOFirst)
	case s.authed: // RFC 4954 §4: once
		s.refuse("AUTH", replyAuthTwice)
	case s.mail.open: // RFC 4954 §4: not in a transaction
		s.refuse("AUTH", replyNested)
	case mechanism == "":
		s.refuse("AUTH", replyNeedArgument)
	default:
		d := &dialogue{s: s, initial: strings.TrimLeft(initial, " "), given: given}
		s.authenticated(d.run(strings.ToUpper(mechanism)))
	}
}

// authenticated replies to the end of an exchange.
func (s *session) authenticated(id access.Identity, err error) {
	var tooMany *access.TooManyError
	switch {
	case err == nil:
		s.id, s.authed = id, true
		s.server.lookups.Worked("clients are looked up again")
		s.wire.reply(replyAuthenticated)
	case errors.Is(err, access.ErrRefused):
		s.refuse("AUTH", replyCredentials)
	case errors.As(err, &tooMany):
		s.end(say(421, 7, 0, tooMany.Error()))
	case errors.Is(err, errCancelled):
		s.refuse("AUTH", say(501, 7, 0, err.Error()))
	case errors.Is(err, errUnknown): // RFC 4954 §4
		s.refuse("AUTH", say(504, 5, 4, err.Error()))
	case errors.Is(err, errBase64), errors.Is(err, errMessage):
		s.refuse("AUTH", say(501, 5, 2, err.Error()))
	case errors.Is(err, access.ErrExchange):
		s.refuse("AUTH", say(501, 5, 2, errMessage.Error()))
	case errors.Is(err, errLongLine): // RFC 4954 §6
		s.refuse("AUTH", replyAuthLine)
	default:
		var broken *brokenError
		if errors.As(err, &broken) {
			s.broken(broken.error)
			return
		}
		s.server.lookups.Failed("client not authenticated", err, "client", s.client.Address)
		s.refuse("AUTH", replyAuthLater)
	}
}

// brokenError is the failure of the connection in an exchange.
type brokenError struct{ error }

// dialogue is one AUTH exchange.
type dialogue struct {
	s       *session
	initial string // the initial response, in base64
	given   bool
}

func (d *dialogue) run(mechanism string) (access.Identity, error) {
	switch mechanism {
	case "PLAIN":
		return d.plain()
	case "LOGIN":
		return d.login()
	case "SCRAM-SHA-256":
		if d.s.mayScram() {
			return d.scram(access.Binding{Exporter: d.s.exporter()})
		}
	case "SCRAM-SHA-256-PLUS":
		if exporter := d.s.exporter(); exporter != nil && d.s.mayScram() {
			return d.scram(access.Binding{Exporter: exporter, Required: true})
		}
	}
	return access.Identity{}, errUnknown
}

// first returns the client's first message, which it may have sent with AUTH.
func (d *dialogue) first(challenge string) (string, error) {
	switch {
	case !d.given:
		return d.ask(challenge)
	case d.initial == "=": // RFC 4954 §4: empty
		return "", nil
	case d.initial == "":
		return "", errBase64
	}
	return decode([]byte(d.initial))
}

// ask sends a challenge and returns the response.
func (d *dialogue) ask(challenge string) (string, error) {
	d.s.wire.reply(mail.Reply{Code: 334, Lines: []string{base64.StdEncoding.EncodeToString([]byte(challenge))}})
	line, err := d.s.wire.readUpTo(smtp.MaxAuthLine)
	switch {
	case errors.Is(err, errLongLine):
		return "", err
	case err != nil:
		return "", &brokenError{err}
	case bytes.Equal(line, []byte("*")):
		return "", errCancelled
	}
	return decode(line)
}

func decode(text []byte) (string, error) {
	// The decoder passes over CR and LF, which have no place here.
	if bytes.ContainsAny(text, "\r\n") {
		return "", errBase64
	}
	decoded, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil {
		return "", errBase64
	}
	return string(decoded), nil
}

// plain: RFC 4616.
func (d *dialogue) plain() (access.Identity, error) {
	message, err := d.first("")
	if err != nil {
		return access.Identity{}, err
	}
	parts := strings.Split(message, "\x00")
	if len(parts) != 3 || parts[1] == "" || parts[2] == "" {
		return access.Identity{}, errMessage
	}
	if parts[0] != "" && parts[0] != parts[1] { // nobody may act for another
		return access.Identity{}, access.ErrRefused
	}
	return d.s.server.access.Password(d.s.server.ctx, d.s.client.Address, parts[1], parts[2])
}

// login: draft-murchison-sasl-login.
func (d *dialogue) login() (access.Identity, error) {
	user, err := d.first("Username:")
	if err != nil {
		return access.Identity{}, err
	}
	password, err := d.ask("Password:")
	if err != nil {
		return access.Identity{}, err
	}
	if user == "" || password == "" {
		return access.Identity{}, errMessage
	}
	return d.s.server.access.Password(d.s.server.ctx, d.s.client.Address, user, password)
}

// scram: RFC 5802, RFC 7677.
func (d *dialogue) scram(binding access.Binding) (access.Identity, error) {
	exchange, err := d.s.server.access.SCRAM(d.s.client.Address, binding)
	if err != nil {
		return access.Identity{}, err
	}
	message, err := d.first("")
	for err == nil {
		var reply string
		var done bool
		reply, done, err = exchange.Step(d.s.server.ctx, message)
		if err != nil {
			break
		}
		message, err = d.ask(reply)
		if err == nil && done {
			if message != "" { // our signature needs no answer
				return access.Identity{}, errMessage
			}
			return exchange.Identity(), nil
		}
	}
	return access.Identity{}, err
}
