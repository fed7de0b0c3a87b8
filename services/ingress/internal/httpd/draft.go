package httpd

import (
	"context"
	"encoding/base64"
	"fmt"
	"mime"
	"net/http"
	netmail "net/mail"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/postrider/postrider/services/ingress/internal/compose"
)

// draft is one message of a request, checked and not yet written.
type draft struct {
	message    compose.Message
	recipients []address
	utf8       bool   // a header field is not ASCII: RFC 6532
	values     values // of the texts, which have their placeholders until fill; nil: they have none
	expanded   int64  // at least what fill makes, in octets
}

// tlsOptional reports whether a header field says that no TLS is needed: RFC
// 8689 §3.
func (d *draft) tlsOptional() bool {
	return slices.ContainsFunc(d.message.Fields, func(f compose.Field) bool {
		return strings.EqualFold(f.Name, "TLS-Required") && strings.EqualFold(f.Value, "No")
	})
}

// checker turns a Message into drafts. It goes on after a fault, so that the
// client hears of all.
type checker struct {
	ctx           context.Context // of the client
	m             *Message
	now           time.Time
	maxRecipients int
	memory        *share
	faults        faults

	envelope envelope
	from     address
	base     compose.Message
	utf8     bool
}

func at(format string, args ...any) Fault { return Fault{Pointer: "#/" + fmt.Sprintf(format, args...)} }

// check returns the drafts of a message, and what its envelope says.
func (c *checker) check() ([]draft, error) {
	m := c.m
	c.envelope = m.envelope(c.now, func(name string) Fault { return at("%s", name) }, &c.faults)
	c.from = c.mailbox(at("from"), m.From, &c.base.From)
	c.envelope.reversePath = c.from
	if m.Sender != nil {
		c.base.Sender = &compose.Mailbox{}
		c.envelope.reversePath = c.mailbox(at("sender"), *m.Sender, c.base.Sender)
	}
	if m.ReversePath != nil {
		c.envelope.reversePath = address{}
		if *m.ReversePath != "" {
			c.envelope.reversePath = c.address(at("reverse_path"), *m.ReversePath)
		}
	}
	c.base.ReplyTo, _ = c.mailboxes("reply_to", m.ReplyTo)
	c.fields()
	c.files()
	for _, text := range []struct {
		name string
		text *string
		to   **string
	}{{"text", m.Text, &c.base.Text}, {"html", m.HTML, &c.base.HTML}} {
		if text.text != nil && strings.ContainsRune(*text.text, 0) {
			c.faults.add(at("%s", text.name), "NUL character")
		}
		*text.to = text.text
	}
	if len(m.Recipients) > 0 {
		return c.each()
	}
	drafts := c.together()
	return drafts, c.problem()
}

func (c *checker) problem() error { return c.faults.problem("the message cannot be sent as it is") }

func (c *checker) address(where Fault, text string) address {
	a, err := parseAddress(text)
	if err != nil {
		c.faults.add(where, err.Error())
	}
	return a
}

// mailbox checks one and puts it where it is to be shown.
func (c *checker) mailbox(where Fault, box Mailbox, to *compose.Mailbox) address {
	a := c.address(Fault{Pointer: where.Pointer + "/address"}, box.Address)
	c.text(Fault{Pointer: where.Pointer + "/name"}, box.Name, 255)
	c.utf8 = c.utf8 || !isASCII(a.text)
	*to = compose.Mailbox{Name: strings.TrimSpace(box.Name), Address: a.text}
	return a
}

func (c *checker) mailboxes(name string, boxes []Mailbox) (shown []compose.Mailbox, addresses []address) {
	shown = make([]compose.Mailbox, len(boxes))
	for i, box := range boxes {
		addresses = append(addresses, c.mailbox(at("%s/%d", name, i), box, &shown[i]))
	}
	return shown, addresses
}

// text checks what is to stand in a header field.
func (c *checker) text(where Fault, text string, maxBytes int) {
	if why := headerText(text); why != "" {
		c.faults.add(where, why)
	}
	if len(text) > maxBytes {
		c.faults.add(where, fmt.Sprintf("longer than %d octets", maxBytes))
	}
}

// ours are the header fields that the client cannot name: they have members
// of their own, or are made here.
var ours = []string{"from", "sender", "reply-to", "to", "cc", "bcc", "subject", "mime-version", "received", "return-path",
	"resent-from", "resent-sender", "resent-to", "resent-cc", "resent-bcc", "x-traceparent", "x-idempotency-key", "x-postrider-campaign"}

var messageID = regexp.MustCompile(`^<[!-;=?-~]+@[!-;=?-~]+>$`)

func (c *checker) fields() {
	c.text(at("subject"), c.m.Subject, 8000)
	c.base.Subject = c.m.Subject
	for i, f := range c.m.Headers {
		where := at("headers/%d/value", i)
		c.text(where, f.Value, 10000)
		name := strings.ToLower(f.Name)
		if slices.Contains(ours, name) || strings.HasPrefix(name, "content-") {
			c.faults.add(at("headers/%d/name", i), "this field cannot be given here")
		}
		for j := range len(f.Name) { // RFC 5322 §3.6.8
			if ch := f.Name[j]; ch <= ' ' || ch >= 0x7f || ch == ':' {
				c.faults.add(at("headers/%d/name", i), "malformed field name")
				break
			}
		}
		value := strings.TrimSpace(f.Value)
		switch name {
		case "message-id":
			if !messageID.MatchString(value) || len(value) > 255 || c.base.MessageID != "" {
				c.faults.add(where, "want one <left@right> of at most 255 octets")
			}
			c.base.MessageID = value
			continue
		case "date":
			if _, err := netmail.ParseDate(value); err != nil || !isASCII(value) {
				c.faults.add(where, "want a date as RFC 5322 writes it")
			}
		}
		if value == "" {
			c.faults.add(where, "empty")
		}
		field := compose.Field{Name: f.Name, Value: value}
		if why := field.Fault(); why != "" {
			c.faults.add(where, why)
		}
		c.base.Fields = append(c.base.Fields, field)
	}
}

func (c *checker) files() {
	for i, a := range c.m.Attachments {
		mediaType := "application/octet-stream"
		if a.ContentType != "" {
			kind, parameters, err := mime.ParseMediaType(a.ContentType)
			mediaType = mime.FormatMediaType(kind, parameters)
			switch {
			case err != nil || mediaType == "" || !strings.Contains(kind, "/"):
				c.faults.add(at("attachments/%d/content_type", i), "malformed media type")
			case strings.HasPrefix(kind, "multipart/"), strings.HasPrefix(kind, "message/"): // RFC 2046 §5.1, §5.2.1: no base64
				c.faults.add(at("attachments/%d/content_type", i), "multipart/* and message/* cannot be attached; send the whole message as message/rfc822")
			}
		}
		c.text(at("attachments/%d/filename", i), a.Filename, 255)
		if a.ContentID != "" {
			if !messageID.MatchString("<"+a.ContentID+">") && !plainContentID.MatchString(a.ContentID) || len(a.ContentID) > 255 {
				c.faults.add(at("attachments/%d/content_id", i), "want printable ASCII without spaces and angle brackets")
			}
		}
		content, err := base64.StdEncoding.DecodeString(a.Content)
		if err != nil {
			c.faults.add(at("attachments/%d/content", i), "not base64")
		}
		c.base.Files = append(c.base.Files, compose.File{Name: a.Filename, MediaType: mediaType, ContentID: a.ContentID, Content: content})
	}
}

var plainContentID = regexp.MustCompile(`^[!-;=?-~]+$`)

// together is one message for to, cc and bcc.
func (c *checker) together() []draft {
	d := draft{message: c.base}
	if len(c.m.Substitutions) > 0 {
		c.faults.add(at("substitutions"), "only for recipients")
	}
	for _, list := range []struct {
		name  string
		boxes []Mailbox
		shown *[]compose.Mailbox
	}{{"to", c.m.To, &d.message.To}, {"cc", c.m.Cc, &d.message.Cc}, {"bcc", c.m.Bcc, nil}} {
		before := c.utf8
		shown, addresses := c.mailboxes(list.name, list.boxes)
		if list.shown != nil {
			*list.shown = shown
		} else {
			c.utf8 = before // nobody is to see them, in the header section neither
		}
		d.recipients = append(d.recipients, addresses...)
	}
	d.recipients = unique(d.recipients)
	d.utf8 = c.utf8
	switch n := len(d.recipients); {
	case n == 0:
		c.faults.add(at("to"), "no recipients: give to, cc, bcc or recipients")
	case n > c.maxRecipients:
		c.faults.add(at("to"), fmt.Sprintf("%d recipients, at most %d", n, c.maxRecipients))
	}
	return []draft{d}
}

// unique drops the second of equal addresses.
func unique(addresses []address) []address {
	type mailbox struct{ local, domain string }
	seen := map[mailbox]bool{}
	return slices.DeleteFunc(addresses, func(a address) bool {
		key := mailbox{a.text[:strings.LastIndexByte(a.text, '@')+1], string(a.domain)}
		had := seen[key]
		seen[key] = true
		return had
	})
}

// each is one message for each of recipients.
func (c *checker) each() ([]draft, error) {
	m := c.m
	if len(m.To)+len(m.Cc)+len(m.Bcc) > 0 {
		c.faults.add(at("recipients"), "not together with to, cc, bcc")
	}
	if len(m.Recipients) > c.maxRecipients {
		c.faults.add(at("recipients"), fmt.Sprintf("%d recipients, at most %d", len(m.Recipients), c.maxRecipients))
		return nil, c.problem()
	}
	if c.base.MessageID != "" && len(m.Recipients) > 1 {
		c.faults.add(at("headers"), "Message-ID names one message, and there are several")
	}
	c.noNUL(at("substitutions"), m.Substitutions)
	if err := c.memory.take(int64(len(m.Recipients)) * draftMemory); err != nil {
		return nil, err
	}
	drafts := make([]draft, len(m.Recipients))
	left := maxTogether
	for i, r := range m.Recipients {
		if err := gone(c.ctx); err != nil {
			return nil, err
		}
		d := &drafts[i]
		d.message, d.message.To = c.base, make([]compose.Mailbox, 1)
		before := c.utf8
		d.recipients = []address{c.mailbox(at("recipients/%d", i), r.Mailbox, &d.message.To[0])}
		d.utf8, c.utf8 = c.utf8, before
		c.noNUL(at("recipients/%d/substitutions", i), r.Substitutions)
		if c.prepare(i, d, left); c.faults.full() {
			break
		}
		left -= int(d.expanded)
		for _, f := range d.message.Files {
			if len(m.Recipients) > 1 {
				left -= len(f.Content)
			}
		}
		if left < 0 {
			return nil, tooMuchTogether()
		}
	}
	return drafts, c.problem()
}

func tooMuchTogether() *Problem {
	return refuse(http.StatusRequestEntityTooLarge, fmt.Sprintf("the messages of one request have more than %d bytes; split it", maxTogether))
}

func (c *checker) noNUL(where Fault, values map[string]string) {
	for name, value := range values {
		if strings.ContainsRune(value, 0) {
			c.faults.add(Fault{Pointer: where.Pointer}, fmt.Sprintf("NUL character in the value for {{%.*s}}", maxPlaceholder, name))
			return
		}
	}
}

// prepare looks how long the message of recipient i becomes, no further than
// to atMost, and puts the values into its header fields if it becomes no
// longer. The texts wait until it is their turn to be composed.
func (c *checker) prepare(i int, d *draft, atMost int) {
	m, where := &d.message, at("recipients/%d/substitutions", i)
	d.values = func(name string) (string, bool) {
		v, ok := c.m.Recipients[i].Substitutions[name]
		if !ok {
			v, ok = c.m.Substitutions[name]
		}
		return v, ok
	}
	known := func(name string) (string, bool) {
		v, ok := d.values(name)
		if !ok && !c.faults.full() {
			c.faults.add(where, fmt.Sprintf("no value for {{%s}}", name))
		}
		return v, ok
	}
	plain := func(value string) int { return len(value) }
	size := func(text string, length func(string) int) {
		if left := atMost - int(d.expanded); left >= 0 && !c.faults.full() {
			d.expanded += int64(filledLen(text, known, length, left))
		}
	}
	size(m.Subject, plain)
	for _, f := range m.Fields {
		size(f.Value, plain)
	}
	if m.Text != nil {
		size(*m.Text, plain)
	}
	if m.HTML != nil {
		size(*m.HTML, escapedLen)
	}
	if int(d.expanded) > atMost {
		return
	}
	field := func(f compose.Field) string {
		filled := substitute(f.Value, d.values, asIs)
		if filled != f.Value {
			c.text(where, filled, 10000)
			if f.Value = strings.TrimSpace(filled); f.Fault() != "" {
				c.faults.add(where, f.Name+": "+f.Fault())
			}
		}
		return strings.TrimSpace(filled)
	}
	m.Subject = field(compose.Field{Name: "Subject", Value: m.Subject})
	m.Fields = slices.Clone(m.Fields)
	for j := range m.Fields {
		m.Fields[j].Value = field(m.Fields[j])
	}
}

// fill puts the values into the texts.
func (d *draft) fill() {
	if d.values == nil {
		return
	}
	fill := func(text *string, escape func(string) string) *string {
		if text == nil {
			return nil
		}
		filled := substitute(*text, d.values, escape)
		return &filled
	}
	d.message.Text, d.message.HTML = fill(d.message.Text, asIs), fill(d.message.HTML, escapeHTML)
}

// validText reports whether JSON text is UTF-8: encoding/json would replace
// what is not.
func validText(body []byte) bool { return utf8.Valid(body) }
