package submission

import (
	"bytes"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/postrider/postrider/pkg/mail"
)

// MaxHops is the number of Received fields from which a message is taken to
// loop. RFC 5321 §6.3: at least 100.
const MaxHops = 100

// What a header section may have: more is no mail that anybody wrote, and
// costs every reader behind us.
const (
	MaxHeaderBytes  = 256 << 10
	MaxHeaderFields = 1000
)

// What is kept of fields, in octets.
const (
	maxHeaderID = 998
	maxKey      = 255 // X-Idempotency-Key
	maxCampaign = 100 // X-Postrider-Campaign
)

// Rules are what differs from client to client.
type Rules struct {
	// Authors: the client has proved who it is, so whom it names as author is
	// held against that, and what readers may understand differently is refused.
	Authors bool
	// KeepBcc: Bcc and Resent-Bcc are relayed.
	KeepBcc bool
	// Complete: Date and Message-ID are added where they are missing or empty.
	Complete bool
}

// Span is content[From:To].
type Span struct{ From, To int }

// Header is what is to be known of a header section.
type Header struct {
	Hops           int    // Received fields
	MessageID      string // RFC 5322 §3.6.4; "" if there is none
	Date           bool   // there is a Date field that says something
	Traceparent    string // of X-Traceparent
	IdempotencyKey string // of X-Idempotency-Key
	Campaign       string // of X-Postrider-Campaign
	TLSOptional    bool   // TLS-Required: No (RFC 8689 §3)
	ASCII          bool   // no octet outside ASCII
	Cuts           []Span // what is not relayed, in order
	End            int    // where the header section ends, without the empty line
	Gap            string // what has to be put there, so that an empty line follows

	authors []author
}

// author is a field that says who wrote or sent the message.
type author struct{ name, value string }

// Read looks at the header section at the beginning of content, of which the
// first MaxHeaderBytes must be there. It ends at an empty line or, as in
// Postfix, at a line that is no field: what follows is text then, and an empty
// line has to be put before it. Errors: *Refusal.
func Read(content []byte, rules Rules) (Header, error) {
	h := Header{ASCII: true}
	at := h.mbox(content)
	for fields := 0; at < len(content); {
		end := FieldEnd(content, at)
		field := content[at:end]
		name, body, ok := split(field)
		if !ok {
			if !bytes.HasPrefix(field, []byte("\r\n")) {
				h.Gap = "\r\n"
			}
			if h.End = at; rules.Authors && disguised(field) {
				return h, refuse(Malformed, "malformed name of a header field: %+.60q", firstLine(field))
			}
			return h, h.loops()
		}
		if fields++; end > MaxHeaderBytes || fields > MaxHeaderFields {
			return h, refuse(TooLarge, "header section of more than %d octets or %d fields", MaxHeaderBytes, MaxHeaderFields)
		}
		h.ASCII = h.ASCII && isASCII(field)
		if rules.Authors {
			if c, found := control(field); found {
				return h, refuse(Malformed, "control character %#02x in the header field %s", c, name)
			}
		}
		h.look(name, body, Span{at, end}, rules)
		at = end
	}
	h.End, h.Gap = at, "\r\n"
	if len(content) > 0 && content[len(content)-1] != '\n' {
		h.Gap = "\r\n\r\n"
	}
	return h, h.loops()
}

func (h *Header) loops() error {
	if h.Hops >= MaxHops {
		return refuse(Looping, "too many Received fields: the message loops")
	}
	return nil
}

// mbox takes out the lines that separate messages in a file, and which
// programs leave before the header section: "From ann Mon Nov 14 ...".
// Readers would find the end of the header section in them.
func (h *Header) mbox(content []byte) (at int) {
	for {
		rest, found := bytes.CutPrefix(bytes.TrimLeft(content[at:], ">"), []byte("From "))
		rest = bytes.TrimLeft(rest, " \t")
		if !found || len(rest) == 0 || rest[0] == ':' { // RFC 5322 §4.5: blanks before the colon
			return at
		}
		end := len(content)
		if i := bytes.IndexByte(content[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		h.Cuts = append(h.Cuts, Span{at, end})
		at = end
	}
}

// split returns name and body of a field; !ok: it is none. Blanks may stand
// before the colon: RFC 5322 §3.6.8, §4.5.
func split(field []byte) (name, body []byte, ok bool) {
	end := 0
	for end < len(field) && field[end] > ' ' && field[end] <= '~' && field[end] != ':' {
		end++
	}
	colon := end
	for colon < len(field) && (field[colon] == ' ' || field[colon] == '\t') {
		colon++
	}
	if end == 0 || colon == len(field) || field[colon] != ':' {
		return nil, nil, false
	}
	return field[:end], field[colon+1:], true
}

// disguised reports whether a line that is no field is one for a reader who
// passes over the octets that no name has: NUL, VT, a no-break space, a byte
// order mark.
func disguised(line []byte) bool {
	name, _, found := bytes.Cut(firstLine(line), []byte(":"))
	odd, letters, blank := false, false, false
	for _, c := range name {
		switch {
		case c == ' ' || c == '\t':
			blank = letters
		case c < ' ' || c > '~':
			odd = true
		case blank: // several words
			return false
		default:
			letters = true
		}
	}
	return found && odd && letters
}

func firstLine(field []byte) []byte {
	line, _, _ := bytes.Cut(field, []byte("\r\n"))
	return line
}

// control returns a control character of a field, if it has one. A tab is
// none here, nor is what begins another alphabet in raw ISO-2022-JP (RFC 1468).
func control(field []byte) (c byte, found bool) {
	for i, c := range field {
		if c >= ' ' && c != 0x7f || c == '\t' || c == '\r' || c == '\n' {
			continue
		}
		if c == 0x1b && i+1 < len(field) && (field[i+1] == '(' || field[i+1] == '$') {
			continue
		}
		return c, true
	}
	return 0, false
}

// look takes what is wanted from a field.
func (h *Header) look(name, body []byte, where Span, rules Rules) {
	switch {
	case equalFold(name, "Received"):
		h.Hops++
	case equalFold(name, "Message-ID"):
		id := headerID(body)
		if h.MessageID == "" {
			h.MessageID = id
		}
		if id == "" && rules.Complete {
			h.cut(where)
		}
	case equalFold(name, "Date"):
		said := len(bytes.TrimSpace(body)) > 0
		if h.Date = h.Date || said; !said && rules.Complete {
			h.cut(where)
		}
	case equalFold(name, "X-Traceparent"):
		if h.Traceparent == "" {
			h.Traceparent = string(bytes.TrimSpace(body))
		}
		h.cut(where)
	case equalFold(name, "X-Idempotency-Key"):
		if h.IdempotencyKey == "" {
			h.IdempotencyKey = word(body, maxKey)
		}
		h.cut(where)
	case equalFold(name, "X-Postrider-Campaign"):
		if h.Campaign == "" {
			h.Campaign = word(body, maxCampaign)
		}
		h.cut(where)
	case equalFold(name, "TLS-Required"): // it stays: the next hop is to know it, too
		h.TLSOptional = h.TLSOptional || strings.EqualFold(strings.TrimSpace(unfold(body)), "No")
	case equalFold(name, "Bcc"), equalFold(name, "Resent-Bcc"): // RFC 5322 §3.6.3
		if !rules.KeepBcc {
			h.cut(where)
		}
	case rules.Authors && isAuthor(name):
		h.authors = append(h.authors, author{string(name), unfold(body)})
	}
}

func (h *Header) cut(where Span) { h.Cuts = append(h.Cuts, where) }

// isAuthor: RFC 5322 §3.6.2, §3.6.6.
func isAuthor(name []byte) bool {
	return equalFold(name, "From") || equalFold(name, "Sender") || equalFold(name, "Resent-From") || equalFold(name, "Resent-Sender")
}

// AppendMissing appends the fields that a message must have and its client
// may leave to us: RFC 6409 §8.2, §8.3. It says in sub what its Message-ID is.
func (h *Header) AppendMissing(dst []byte, sub *mail.Submission, hostname string) []byte {
	if !h.Date {
		dst = append(dst, "Date: "...)
		dst = sub.AcceptedAt.AppendFormat(dst, time.RFC1123Z)
		dst = append(dst, "\r\n"...)
	}
	if sub.HeaderID = h.MessageID; h.MessageID == "" {
		sub.HeaderID = "<" + sub.ID.String() + "@" + hostname + ">"
		dst = append(dst, "Message-ID: "...)
		dst = append(dst, sub.HeaderID...)
		dst = append(dst, "\r\n"...)
	}
	return dst
}

// AppendKept appends the header section of content as it is relayed, with the
// empty line if it was not there.
func (h *Header) AppendKept(dst, content []byte) []byte {
	at := 0
	for _, cut := range h.Cuts {
		dst = append(dst, content[at:cut.From]...)
		at = cut.To
	}
	return append(append(dst, content[at:h.End]...), h.Gap...)
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

// FieldEnd returns where the field that begins at at ends, its continuation
// lines included: RFC 5322 §2.2.3.
func FieldEnd(content []byte, at int) int {
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
// the unfolded body where there is none. It is text that may be stored and
// shown; "" if it says nothing.
func headerID(body []byte) string {
	if i := bytes.IndexByte(body, '<'); i >= 0 {
		if j := bytes.IndexByte(body[i:], '>'); j >= 0 {
			body = body[i : i+j+1]
		}
	}
	body = bytes.TrimSpace(body)
	id := string(body[:min(len(body), maxHeaderID)])
	for i := range len(id) {
		if id[i] < ' ' || id[i] > '~' {
			id = strings.TrimSpace(printable(id))
			break
		}
	}
	if id == "<>" {
		return ""
	}
	return id
}

// printable returns text without the characters that control a terminal or
// are not seen, and with "?" for what is no UTF-8.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if mail.Invisible(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
}

func isASCII[T ~string | ~[]byte](text T) bool {
	for i := range len(text) {
		if text[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// Kind is in what way content cannot be taken.
type Kind int

// The kinds of refusals.
const (
	Malformed Kind = iota // 550 5.6.0, HTTP 400
	TooLarge              // 552 5.3.4, HTTP 400
	Looping               // 554 5.4.6, HTTP 400
	NoAuthor              // 550 5.7.1, HTTP 400: it does not say who wrote it
	Forbidden             // 550 5.7.1, HTTP 403: it names somebody else
)

// Refusal is why content cannot be taken. Text is printable ASCII, fit for the
// client.
type Refusal struct {
	Kind Kind
	Text string
}

// Error returns the text.
func (r *Refusal) Error() string { return r.Text }

func refuse(kind Kind, format string, args ...any) *Refusal {
	return &Refusal{kind, fmt.Sprintf(format, args...)}
}
