package smtpd

import (
	"crypto/tls"
	"io"
	"mime"
	netmail "net/mail"
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

// appendMissing appends the fields that a submission must have and may leave
// to us: RFC 6409 §8.2, §8.3.
func (s *session) appendMissing(dst []byte, h header) []byte {
	if !h.date {
		dst = append(dst, "Date: "...)
		dst = s.sub.AcceptedAt.AppendFormat(dst, time.RFC1123Z)
		dst = append(dst, "\r\n"...)
	}
	if h.messageID == "" {
		s.sub.HeaderID = "<" + s.sub.ID.String() + "@" + s.cfg.Hostname + ">"
		dst = append(dst, "Message-ID: "...)
		dst = append(dst, s.sub.HeaderID...)
		dst = append(dst, "\r\n"...)
	}
	return dst
}

// mayFrom reports whether the client may name the addresses of the From
// fields (RFC 5322 §3.6.2: one). What cannot be read is refused: others may
// read something else in it than we do.
func (s *session) mayFrom(fields []string) bool {
	if len(fields) != 1 {
		return false
	}
	authors, err := fromParser.ParseList(fields[0])
	if err != nil {
		return false
	}
	addresses := make([]string, 0, len(authors))
	for _, author := range authors {
		addresses = append(addresses, author.Address)
	}
	return s.id.MayFrom(addresses...)
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

// fromParser reads addresses; what a display name says in which charset is
// nothing to us.
var fromParser = netmail.AddressParser{WordDecoder: &mime.WordDecoder{
	CharsetReader: func(_ string, text io.Reader) (io.Reader, error) { return text, nil },
}}
