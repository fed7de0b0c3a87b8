package smtpd

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// maxHops is the number of Received fields from which a message is taken to
// loop. RFC 5321 §6.3: at least 100.
const maxHops = 100

// maxHeaderID bounds what is kept of a Message-ID field, in octets.
const maxHeaderID = 998

// What a header section may have: more is no mail that anybody wrote, and
// costs every reader behind us.
const (
	maxHeaderBytes  = 256 << 10
	maxHeaderFields = 1000
)

// What the values of our own fields may have, in octets.
const (
	maxKey      = 255 // X-Idempotency-Key
	maxCampaign = 100 // X-Postrider-Campaign
)

// span is content[from:to].
type span struct{ from, to int }

// header is what ingress has to know of a header section.
type header struct {
	hops           int    // Received fields
	messageID      string // RFC 5322 §3.6.4
	date           bool   // there is a Date field
	traceparent    string // of X-Traceparent
	idempotencyKey string // of X-Idempotency-Key
	campaign       string // of X-Postrider-Campaign
	tlsOptional    bool   // TLS-Required: No (RFC 8689 §3)
	cuts           []span // fields that are not relayed, in order
	from           []string
	ascii          bool // no octet outside ASCII
	tooLarge       bool
	broken         bool // it ends at a line that is no field, instead of an empty one
}

// readHeader looks at the header section at the beginning of content. The
// section ends at an empty line, or at a line that is no field. Of a
// submission it also wants to know who wrote it, and to whom in secret.
func readHeader(content []byte, submission bool) header {
	h := header{ascii: true}
	fields := 0
	for at := 0; at < len(content); {
		end := fieldEnd(content, at)
		field := content[at:end]
		colon := bytes.IndexByte(field, ':')
		if colon <= 0 || bytes.IndexByte(field[:colon], '\n') >= 0 {
			h.broken = !bytes.HasPrefix(field, []byte("\r\n"))
			break
		}
		if fields++; end > maxHeaderBytes || fields > maxHeaderFields {
			h.tooLarge = true
			break
		}
		h.ascii = h.ascii && isASCII(field)
		h.look(bytes.TrimRight(field[:colon], " \t"), field[colon+1:], span{at, end}, submission)
		at = end
	}
	return h
}

// look takes what is wanted from a field.
func (h *header) look(name, body []byte, where span, submission bool) {
	switch {
	case equalFold(name, "Received"):
		h.hops++
	case equalFold(name, "Message-ID"):
		if h.messageID == "" {
			h.messageID = headerID(body)
		}
	case equalFold(name, "X-Traceparent"):
		if h.traceparent == "" {
			h.traceparent = string(bytes.TrimSpace(body))
		}
		h.cuts = append(h.cuts, where)
	case equalFold(name, "X-Idempotency-Key"):
		if h.idempotencyKey == "" {
			h.idempotencyKey = word(body, maxKey)
		}
		h.cuts = append(h.cuts, where)
	case equalFold(name, "X-Postrider-Campaign"):
		if h.campaign == "" {
			h.campaign = word(body, maxCampaign)
		}
		h.cuts = append(h.cuts, where)
	case equalFold(name, "TLS-Required"): // it stays: the next hop is to know it, too
		h.tlsOptional = h.tlsOptional || strings.EqualFold(strings.TrimSpace(unfold(body)), "No")
	case !submission:
	case equalFold(name, "From"):
		h.from = append(h.from, unfold(body))
	case equalFold(name, "Date"):
		h.date = true
	case equalFold(name, "Bcc"), equalFold(name, "Resent-Bcc"): // RFC 5322 §3.6.3
		h.cuts = append(h.cuts, where)
	}
}

// word returns the value of a field of ours, or "" if it cannot be one.
func word(body []byte, most int) string {
	text := strings.TrimSpace(unfold(body))
	if len(text) > most {
		return ""
	}
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			return ""
		}
	}
	return text
}

// unfold takes the line ends out of a field body: RFC 5322 §2.2.3.
func unfold(body []byte) string {
	return string(bytes.ReplaceAll(body, []byte("\r\n"), nil))
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
