package smtpd

import (
	"bytes"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/postrider/postrider/pkg/mail"
)

// maxHops is the number of Received fields from which a message is taken to
// loop. RFC 5321 §6.3: at least 100.
const maxHops = 100

// maxHeaderID bounds what is kept of a Message-ID field, in octets.
const maxHeaderID = 998

// header is what ingress has to know of a header section.
type header struct {
	hops        int    // Received fields
	messageID   string // RFC 5322 §3.6.4
	traceparent string // of X-Traceparent, which is ours to take out
	cutFrom     int    // where that field is, in octets of content
	cutTo       int
	ascii       bool // no octet outside ASCII
}

// readHeader looks at the header section at the beginning of content. The
// section ends at an empty line, or at a line that is no field.
func readHeader(content []byte) header {
	h := header{ascii: true}
	for at := 0; at < len(content); {
		end := fieldEnd(content, at)
		field := content[at:end]
		colon := bytes.IndexByte(field, ':')
		if colon <= 0 {
			break
		}
		h.ascii = h.ascii && isASCII(field)
		switch name := bytes.TrimRight(field[:colon], " \t"); {
		case equalFold(name, "Received"):
			h.hops++
		case equalFold(name, "Message-ID") && h.messageID == "":
			h.messageID = headerID(field[colon+1:])
		case equalFold(name, "X-Traceparent") && h.cutTo == 0:
			h.traceparent = string(bytes.TrimSpace(field[colon+1:]))
			h.cutFrom, h.cutTo = at, end
		}
		at = end
	}
	return h
}

// fieldEnd returns where the field that begins at at ends, its continuation
// lines included: RFC 5322 §2.2.3.
func fieldEnd(content []byte, at int) int {
	for {
		i := bytes.IndexByte(content[at:], '\n')
		if i < 0 {
			return len(content)
		}
		at += i + 1
		if at == len(content) || content[at] != ' ' && content[at] != '\t' {
			return at
		}
	}
}

func equalFold(name []byte, want string) bool {
	return len(name) == len(want) && strings.EqualFold(string(name), want)
}

// headerID returns the msg-id of a field body, with its angle brackets, or
// the unfolded body where there is none. It is text that may be stored.
func headerID(body []byte) string {
	if i := bytes.IndexByte(body, '<'); i >= 0 {
		if j := bytes.IndexByte(body[i:], '>'); j >= 0 {
			body = body[i : i+j+1]
		}
	}
	body = bytes.TrimSpace(body)
	body = body[:min(len(body), maxHeaderID)]
	for _, c := range body {
		if c < ' ' || c >= utf8.RuneSelf {
			return strings.Map(func(r rune) rune {
				if r < ' ' {
					return -1
				}
				return r
			}, strings.ToValidUTF8(string(body), "?"))
		}
	}
	return string(body)
}

func isASCII[T ~string | ~[]byte](s T) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// appendReceived appends our trace field: RFC 5321 §4.4. A recipient is named
// only when it is the only one, for the others must not learn of each other
// (§7.2).
func appendReceived(dst []byte, hostname string, sub *mail.Submission) []byte {
	dst = append(dst, "Received: from "...)
	dst = append(dst, sub.Client.Hello...)
	dst = append(dst, " ("...)
	dst = appendLiteral(dst, sub)
	dst = append(dst, ")\r\n\tby "...)
	dst = append(dst, hostname...)
	dst = append(dst, " with "...)
	dst = append(dst, sub.Client.Protocol...)
	dst = append(dst, " id "...)
	dst = append(dst, sub.ID.String()...)
	if len(sub.Recipients) == 1 {
		dst = append(dst, "\r\n\tfor "...)
		dst = append(dst, sub.Recipients[0].ForwardPath.String()...)
	}
	dst = append(dst, ";\r\n\t"...)
	dst = sub.AcceptedAt.AppendFormat(dst, time.RFC1123Z)
	return append(dst, '\r', '\n')
}

// appendLiteral appends the client's address literal: RFC 5321 §4.1.3.
func appendLiteral(dst []byte, sub *mail.Submission) []byte {
	dst = append(dst, '[')
	if sub.Client.Address.Is6() {
		dst = append(dst, "IPv6:"...)
	}
	dst = sub.Client.Address.WithZone("").AppendTo(dst)
	return append(dst, ']')
}

// protocol is the "with" of the trace field: RFC 5321 §4.4, RFC 3848, RFC
// 6531 §4.3.
func protocol(esmtp, utf8 bool) string {
	switch {
	case utf8:
		return "UTF8SMTP"
	case esmtp:
		return "ESMTP"
	}
	return "SMTP"
}
