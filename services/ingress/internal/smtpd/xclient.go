package smtpd

import (
	"errors"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"

	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/ingress/internal/access"
)

// What XCLIENT and XFORWARD may say: Postfix's XCLIENT_README and
// XFORWARD_README.
const (
	xclientAttributes  = "NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"
	xforwardAttributes = "NAME ADDR PORT PROTO HELO IDENT SOURCE"
)

// said is one name=value of XCLIENT or XFORWARD, decoded.
type said struct{ name, value string }

// absent reports a value that the peer does not have.
func (a said) absent() bool {
	return strings.EqualFold(a.value, "[UNAVAILABLE]") || strings.EqualFold(a.value, "[TEMPUNAVAIL]")
}

// parseAttributes reads those that are allowed; ok is false for all else.
func parseAttributes(arguments, allowed string) (attributes []said, ok bool) {
	for field := range strings.FieldsSeq(arguments) {
		name, text, _ := strings.Cut(field, "=")
		name = strings.ToUpper(name)
		value, err := smtp.DecodeXtext(text)
		if err != nil || value == "" || !hasWord(allowed, name) {
			return nil, false
		}
		attributes = append(attributes, said{name, value})
	}
	return attributes, len(attributes) > 0
}

func hasWord(words, word string) bool {
	for w := range strings.FieldsSeq(words) {
		if w == word {
			return true
		}
	}
	return false
}

// doXClient makes the session that of another client, as if it had just
// connected.
func (s *session) doXClient(arguments string) {
	switch {
	case !s.trusted:
		s.refuse("XCLIENT", replyNotAllowed)
		return
	case s.mail.open:
		s.refuse("XCLIENT", replyNested)
		return
	}
	attributes, ok := parseAttributes(arguments, xclientAttributes)
	client := s.client
	client.Hello, client.Protocol = "", ""
	var esmtp bool
	var login string
	for _, a := range attributes {
		if a.absent() {
			if a.name == "ADDR" { // nobody, as far as we can know
				client.Address = netip.Addr{}
			}
			continue
		}
		valid := true
		switch a.name {
		case "ADDR":
			client.Address, valid = parseAddress(a.value)
		case "PORT", "DESTPORT":
			valid = isPort(a.value)
		case "DESTADDR":
			_, valid = parseAddress(a.value)
		case "PROTO":
			esmtp = strings.EqualFold(a.value, "ESMTP")
			valid = esmtp || strings.EqualFold(a.value, "SMTP")
		case "LOGIN":
			login = a.value
		case "HELO":
			client.Hello, valid = smtp.CleanHello(a.value)
		}
		ok = ok && valid
	}
	if !ok {
		s.refuse("XCLIENT", replyAttributes)
		return
	}
	s.leaveCrowd()
	s.client, s.esmtp = client, esmtp
	s.recognise()
	if refusal := s.enterCrowd(); refusal.Code != 0 {
		s.end(refusal)
		return
	}
	if login == "" || s.vouched(login) {
		s.greet()
	}
}

// vouched makes the client who the peer has authenticated it to be. Without
// success the reply is given: the client is nobody then, for the peer is wrong.
func (s *session) vouched(login string) bool {
	if s.server.access == nil {
		s.refuse("XCLIENT", replyCredentials)
		return false
	}
	s.id = access.Identity{}
	id, err := s.server.access.Vouched(s.server.ctx, s.client.Address, login)
	switch {
	case err == nil:
		s.id, s.authed = id, true
	case errors.Is(err, access.ErrRefused):
		s.refuse("XCLIENT", replyCredentials)
	default:
		s.server.lookups.Failed("client not looked up", err, "client", s.client.Address)
		s.refuse("XCLIENT", replyAuthLater)
	}
	return err == nil
}

// doXForward notes for whom a relay in front of us works.
func (s *session) doXForward(arguments string) {
	if !s.trusted {
		s.refuse("XFORWARD", replyNotAllowed)
		return
	}
	attributes, ok := parseAttributes(arguments, xforwardAttributes)
	if !ok {
		s.refuse("XFORWARD", replyAttributes)
		return
	}
	for _, a := range attributes {
		if a.absent() {
			a.value = ""
		}
		slog.Debug("forwarded for", "client", s.client.Address, "attribute", strings.ToLower(a.name), "value", a.value)
	}
	s.wire.reply(replyReset)
}

// parseAddress reads an address as these commands write it.
func parseAddress(text string) (netip.Addr, bool) {
	const tag = "IPV6:"
	if len(text) > len(tag) && strings.EqualFold(text[:len(tag)], tag) {
		text = text[len(tag):]
	}
	a, err := netip.ParseAddr(text)
	return a.Unmap(), err == nil && a.Zone() == ""
}

func isPort(text string) bool {
	_, err := strconv.ParseUint(text, 10, 16)
	return err == nil
}
