// Package dsn writes delivery status notifications: the multipart/report
// (RFC 6522) with which we tell a sender what became of a message (RFC 3464),
// in its international form where the message needs it (RFC 6533).
//
// Everything that others wrote - replies, addresses, the original header
// section - is bounded and quoted so that it can add no field, no part and no
// line that we did not mean. The package does no I/O and knows no clock.
package dsn

import (
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

// MaxReturned bounds what a report returns of the original message, in bytes.
const MaxReturned = 50_000

// Report is what one sender is told about one message.
type Report struct {
	ID         mail.QueueID // of the report itself
	Hostname   string       // ours: an ASCII domain name
	Date       time.Time
	Original   mail.Message
	HeaderID   string      // the Message-ID field of the original; "" if none
	Content    []byte      // the beginning of the original, as much as is at hand; empty when it is gone
	Recipients []Recipient // at least one
}

// Recipient is what is reported of one recipient.
type Recipient struct {
	mail.Recipient
	Action        mail.Action       // Relayed, Delayed, Failed or Expired
	Status        mail.EnhancedCode // zero: one is made up from the action
	Reply         mail.Reply        // zero Code: no remote host spoke, and Lines says what happened
	Phase         mail.Phase        // at which the reply was given; "" if that is not known
	Host          string            // that gave the reply; "" if none was involved
	LastAttemptAt time.Time         // zero: there was no attempt
}

// Composed is a report as a message, ready to be accepted.
type Composed struct {
	Content  []byte // header section and body, CRLF lines of at most 998 bytes
	HeaderID string // its Message-ID field
	Body     mail.BodyType
	SMTPUTF8 bool // the next hop must speak RFC 6531
}

// kind is what a report is mainly about. A report of several recipients is
// of the gravest kind among them.
type kind int

const (
	success kind = iota
	delay
	failure
)

// subject is the Subject field of each kind.
var subject = [...]string{
	success: "Delivery report: your message was relayed",
	delay:   "Delivery delayed: your message is still being sent",
	failure: "Delivery failed: your message was not delivered",
}

func kindOf(a mail.Action) kind {
	switch a {
	case mail.Relayed:
		return success
	case mail.Delayed:
		return delay
	default:
		return failure
	}
}

func (r *Report) kind() kind {
	gravest := success
	for i := range r.Recipients {
		gravest = max(gravest, kindOf(r.Recipients[i].Action))
	}
	return gravest
}

// international reports whether the report must name UTF-8 addresses, so that
// its parts are those of RFC 6533.
func (r *Report) international() bool {
	if r.Original.Envelope.SMTPUTF8 || !isASCII(string(r.Original.Envelope.ReversePath)) {
		return true
	}
	for i := range r.Recipients {
		if !isASCII(string(r.Recipients[i].ForwardPath)) || !isASCII(r.Recipients[i].ORCPT) {
			return true
		}
	}
	return false
}

// Compose writes the report. The same Report gives the same bytes.
func (r *Report) Compose() Composed {
	reversePath := oneLine(string(r.Original.Envelope.ReversePath), maxAddress)
	w := r.writer()
	parts := []part{w.text(r), w.status(r)}
	if original, ok := w.original(r); ok {
		parts = append(parts, original)
	}
	c := Composed{
		HeaderID: "<" + r.ID.String() + "@" + r.Hostname + ">",
		Body:     mail.Body7Bit,
		SMTPUTF8: !isASCII(reversePath), // it stands in our To field
	}
	encoding := "7bit"
	for _, p := range parts {
		if p.encoding == "8bit" {
			encoding, c.Body = "8bit", mail.Body8BitMIME // RFC 2045 §6.4: a multipart is as wide as its widest part
		}
	}
	if c.SMTPUTF8 {
		c.Body = mail.Body8BitMIME // RFC 6531 §3.1
	}

	// The boundary holds the fresh id of this report, which no text that
	// existed before can hold.
	boundary := "=_" + r.ID.String()
	var b strings.Builder
	field := func(name, value string) { b.WriteString(name + ": " + value + "\r\n") }
	field("Date", date(r.Date))
	field("From", "Mail Delivery System <MAILER-DAEMON@"+r.Hostname+">")
	field("To", "<"+reversePath+">")
	field("Subject", subject[r.kind()])
	field("Message-ID", c.HeaderID)
	if id, ok := threadID(r.HeaderID); ok && !r.Original.Envelope.RequireTLS {
		field("In-Reply-To", id)
		field("References", id)
	}
	field("Auto-Submitted", "auto-replied") // RFC 3834 §5
	field("MIME-Version", "1.0")
	field("Content-Type", "multipart/report; report-type=delivery-status;\r\n\tboundary=\""+boundary+`"`)
	field("Content-Transfer-Encoding", encoding)
	b.WriteString("\r\nThis is a MIME-encapsulated delivery status notification (RFC 3464).\r\n")
	for _, p := range parts {
		b.WriteString("\r\n--" + boundary + "\r\n")
		field("Content-Description", p.description)
		field("Content-Type", p.contentType)
		field("Content-Transfer-Encoding", p.encoding)
		b.WriteString("\r\n")
		b.Write(p.body)
	}
	b.WriteString("\r\n--" + boundary + "--\r\n")
	c.Content = []byte(b.String())
	return c
}

// writer writes the parts of one report.
type writer struct {
	// Parts are those of RFC 6533, in UTF-8 as it stands: who sends mail with
	// SMTPUTF8 takes 8BITMIME (RFC 6531 §3.1), and readers decode no message/*.
	international bool
	late          bool // the time of BY has come: RFC 2852 §4
}

func (r *Report) writer() writer {
	by := r.Original.Envelope.DeliverBy.At
	return writer{international: r.international(), late: !by.IsZero() && !r.Date.Before(by)}
}

// part is one body part of the multipart/report.
type part struct {
	description, contentType, encoding string
	body                               []byte
}

// date prints a moment as RFC 5322 §3.3 wants it.
func date(t time.Time) string { return t.UTC().Format("Mon, 02 Jan 2006 15:04:05 -0700") }

// threadID returns the msg-id (RFC 5322 §3.6.4) to which a report answers. A
// field that is not one plain msg-id is left out: it would be copied into our
// own header section.
func threadID(headerID string) (string, bool) {
	id := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(headerID), "<"), ">")
	if len(id) > 250 || strings.Count(id, "@") != 1 || strings.ContainsAny(id, "<>") {
		return "", false
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' {
			return "", false
		}
	}
	return "<" + id + ">", true
}
