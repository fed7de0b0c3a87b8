package smtpd

import (
	"crypto/tls"
	"net/netip"
	"time"
)

// appendReceived appends our trace field: RFC 5321 §4.4. A recipient is named
// only when it is the only one, for the others must not learn of each other
// (§7.2).
func (s *session) appendReceived(dst []byte) []byte {
	dst = append(dst, "Received: from "...)
	if s.cfg.HideClients && s.id.Tenant != "" {
		dst = append(dst, "unknown (hidden)"...)
	} else {
		dst = append(dst, s.client.Hello...)
		dst = append(dst, " ("...)
		dst = appendLiteral(dst, s.client.Address)
		dst = append(dst, ')')
	}
	dst = append(dst, "\r\n\tby "...)
	dst = append(dst, s.cfg.Hostname...)
	dst = append(dst, " with "...)
	dst = append(dst, s.sub.Client.Protocol...)
	dst = append(dst, " id "...)
	dst = append(dst, s.sub.ID.String()...)
	if len(s.sub.Recipients) == 1 {
		dst = append(dst, "\r\n\tfor "...)
		dst = append(dst, s.sub.Recipients[0].ForwardPath.String()...)
	}
	if s.tls != nil { // RFC 8314 §4.3
		dst = append(dst, "\r\n\ttls "...)
		dst = append(dst, tls.CipherSuiteName(s.tls.CipherSuite)...)
	}
	dst = append(dst, ";\r\n\t"...)
	dst = s.sub.AcceptedAt.AppendFormat(dst, time.RFC1123Z)
	return append(dst, '\r', '\n')
}

// appendLiteral appends an address literal: RFC 5321 §4.1.3.
func appendLiteral(dst []byte, address netip.Addr) []byte {
	if !address.IsValid() { // XCLIENT may have said so
		return append(dst, "unknown"...)
	}
	dst = append(dst, '[')
	if address.Is6() {
		dst = append(dst, "IPv6:"...)
	}
	dst = address.WithZone("").AppendTo(dst)
	return append(dst, ']')
}

// protocol is the "with" of the trace field: RFC 5321 §4.4, RFC 3848, RFC
// 6531 §4.3.
type protocol struct{ esmtp, utf8, tls, auth bool }

func (p protocol) String() string {
	name := "SMTP"
	switch {
	case p.utf8:
		name = "UTF8SMTP"
	case p.esmtp:
		name = "ESMTP"
	default:
		return name // STARTTLS and AUTH come after EHLO, so TLS with HELO is implicit
	}
	if p.tls {
		name += "S"
	}
	if p.auth {
		name += "A"
	}
	return name
}
