package compose

import (
	"crypto/rand"
	"encoding/hex"
	"mime"
	"time"
)

// Mailbox is an address with the name to show for it.
type Mailbox struct {
	Name    string // "" for none
	Address string // addr-spec in the canonical form of package smtp
}

// Field is a header field of the client's own.
type Field struct{ Name, Value string }

// File is an attachment, or, with a ContentID, a part that the HTML text
// refers to as "cid:".
type File struct {
	Name      string // "" for none
	MediaType string // RFC 2045 §5.1, with parameters; neither multipart nor message
	ContentID string // without angle brackets; "" for an attachment
	Content   []byte
}

// Message is what a message is made of.
type Message struct {
	MessageID string // with angle brackets; "" when Fields have it
	Date      time.Time
	From      Mailbox
	Sender    *Mailbox
	ReplyTo   []Mailbox
	To, Cc    []Mailbox
	Subject   string
	Fields    []Field
	Text      *string // nil: none
	HTML      *string
	Files     []File
}

// Content is a message whose parts have their encodings, and which is not
// written yet.
type Content struct {
	message *Message
	body    part
}

// Prepare chooses the encodings. The message must not change until it is
// written.
func Prepare(m *Message) *Content { return &Content{m, m.body()} }

// Size is at least what Append appends, in octets, and close to it.
func (c *Content) Size() int { return headerSize(c.message) + c.body.total() }

// Append appends the content of the message: header section and body, each
// line with its CRLF.
func (c *Content) Append(dst []byte) []byte {
	return c.body.append(appendHeader(dst, c.message))
}

// body is the tree of MIME parts: mixed(alternative(text, related(html,
// inline files)), attachments), without the levels that have one child.
func (m *Message) body() part {
	var inline, attached []part
	for _, f := range m.Files {
		if f.ContentID != "" && m.HTML != nil {
			inline = append(inline, filePart(f, "inline"))
			continue
		}
		attached = append(attached, filePart(f, "attachment"))
	}
	var texts []part
	if m.Text != nil || m.HTML == nil {
		var text string
		if m.Text != nil {
			text = *m.Text
		}
		texts = append(texts, textPart("text/plain", text))
	}
	if m.HTML != nil {
		html := []part{textPart("text/html", *m.HTML)}
		// RFC 2387 §3.1: type names the kind of the root.
		texts = append(texts, combine("related", map[string]string{"type": "text/html"}, append(html, inline...)))
	}
	body := combine("alternative", map[string]string{}, texts)
	return combine("mixed", map[string]string{}, append([]part{body}, attached...))
}

// part is a node of the tree: with parts inside, or with content.
type part struct {
	fields   [][2]string // name and value
	parts    []part
	boundary string
	content  content
}

// content is what a part without parts holds.
type content struct {
	size   int                     // at least what append appends
	append func(dst []byte) []byte // encoded; ends with CRLF
}

// total is at least the octets of the part, and close to them.
func (p part) total() int {
	n := p.content.size + len("\r\n")
	for _, f := range p.fields {
		n += fieldSize(f[0], f[1])
	}
	for _, inside := range p.parts {
		n += inside.total() + len(p.boundary) + len("\r\n--\r\n")
	}
	return n + len(p.boundary) + len("\r\n----\r\n")
}

// combine returns a part with the parts inside, or the only one itself.
func combine(subtype string, parameters map[string]string, parts []part) part {
	if len(parts) == 1 {
		return parts[0]
	}
	var random [12]byte
	rand.Read(random[:]) // it never fails
	// RFC 2045 §6.7: "=_" is in no quoted-printable or base64 content.
	boundary := "=_" + hex.EncodeToString(random[:])
	parameters["boundary"] = boundary
	return part{
		fields:   [][2]string{{"Content-Type", mime.FormatMediaType("multipart/"+subtype, parameters)}},
		parts:    parts,
		boundary: boundary,
	}
}

// append appends the fields of the part, an empty line, and what it has.
func (p part) append(dst []byte) []byte {
	for _, f := range p.fields {
		dst = appendFolded(dst, f[0], f[1])
	}
	dst = append(dst, "\r\n"...)
	if p.boundary == "" {
		return p.content.append(dst)
	}
	// RFC 2046 §5.1.1: the CRLF before a delimiter belongs to it.
	delimiter := "--" + p.boundary
	for _, inside := range p.parts {
		dst = append(dst, delimiter+"\r\n"...)
		dst = inside.append(dst)
		delimiter = "\r\n--" + p.boundary
	}
	return append(dst, delimiter+"--\r\n"...)
}
