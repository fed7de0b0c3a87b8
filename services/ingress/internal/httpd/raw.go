package httpd

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"net/http"
	netmail "net/mail"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/postrider/postrider/pkg/mail"
)

const (
	maxHeader    = 256 << 10 // of a header section
	maxHops      = 100       // RFC 5321 §6.3
	maxLine      = 998       // RFC 5322 §2.1.1
	streamMemory = largeContent + 256<<10
)

// takeRaw has a whole message accepted, streamed when it is large.
func (q *request) takeRaw(body *timed) (*result, error) {
	e, recipients, from, err := q.envelopeOf(q.http.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	hold := int64(streamMemory)
	if n := q.http.ContentLength; n >= 0 {
		hold = min(hold, 2*n+4096)
	}
	if err := q.memory.take(hold); err != nil {
		return nil, err
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n%s\n", rawType, q.http.URL.RawQuery) // a hash takes everything
	in := &wholeMessage{in: io.TeeReader(body, sum)}
	first := make([]byte, 0, min(hold, largeContent))
	first, ended, err := fill(in, first)
	if err != nil {
		return nil, broken(err)
	}
	h, err := readHeader(first)
	if err != nil {
		return nil, err
	}
	if !from {
		e.reversePath = h.author
	}
	if err := q.mayName(e.reversePath, "", h.from, ""); err != nil {
		return nil, err
	}
	sub := q.submission(e, recipients)
	sub.HeaderID, sub.TLSOptional = h.messageID, h.tlsOptional
	head := q.s.appendReceived(nil, sub)
	if !h.date {
		head = append(head, "Date: "+sub.AcceptedAt.Format(time.RFC1123Z)+"\r\n"...)
	}
	if h.messageID == "" {
		sub.HeaderID = "<" + sub.ID.String() + "@" + q.s.cfg.Hostname + ">"
		head = append(head, "Message-ID: "+sub.HeaderID+"\r\n"...)
	}
	head = append(head, h.kept...)
	sub.needsUTF8(!isASCII(h.kept))
	rest := first[h.length:]
	if ended {
		sub.Content = append(head, rest...)
		sub.SizeBytes = int64(len(sub.Content))
		sub.has8Bit(in.eightBit)
		return q.accept([]*submission{sub}, sum.Sum(nil))
	}
	return q.streamRaw(sub, io.MultiReader(bytes.NewReader(head), bytes.NewReader(rest), in), in, sum)
}

func (s *submission) has8Bit(eightBit bool) {
	if eightBit {
		s.Envelope.Body = mail.Body8BitMIME
	}
}

// streamRaw has a message accepted that goes on coming. What can only be
// known at its end is filled in there: see store.AcceptStream.
func (q *request) streamRaw(sub *submission, content io.Reader, in *wholeMessage, sum hash.Hash) (*result, error) {
	messages := []*submission{sub}
	receipt := q.finish(messages)
	if sub.SizeBytes = q.http.ContentLength; sub.SizeBytes < 0 {
		sub.SizeBytes = q.s.cfg.MaxMessageBytes // for the quota, until it is known
	}
	var failed error
	ending := readerFunc(func(p []byte) (int, error) {
		n, err := content.Read(p)
		switch {
		case errors.Is(err, io.EOF):
			sub.has8Bit(in.eightBit)
			if q.key != "" {
				sub.IdempotencyKey, sub.Fingerprint, sub.Receipt = q.key, sum.Sum(nil), receipt
			}
		case err != nil:
			failed = broken(err)
		}
		return n, err
	})
	result, err := q.conclude(messages, receipt, func() error { return q.stream(sub, ending) })
	if failed != nil {
		return nil, failed
	}
	return result, err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// fill reads until buf is full or in has ended.
func fill(in io.Reader, buf []byte) (filled []byte, ended bool, err error) {
	for len(buf) < cap(buf) {
		n, err := in.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if errors.Is(err, io.EOF) {
			return buf, true, nil
		}
		if err != nil {
			return buf, false, err
		}
	}
	return buf, false, nil
}

// envelopeOf reads the query. reverse tells that it named a reverse-path.
func (q *request) envelopeOf(query string) (e envelope, recipients []address, reverse bool, err error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return e, nil, false, refuse(http.StatusBadRequest, "malformed query")
	}
	var f faults
	where := func(name string) Fault { return Fault{Parameter: name} }
	var o Options
	moment := func(name string) *time.Time {
		text := values.Get(name)
		if text == "" {
			return nil
		}
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			f.add(where(name), "want a time as in RFC 3339")
		}
		return &t
	}
	for name, all := range values {
		switch name {
		case "to":
			for _, text := range all {
				a, err := parseAddress(text)
				if err != nil {
					f.add(where(name), err.Error()+": "+strconv.Quote(text))
				}
				recipients = append(recipients, a)
			}
			continue
		case "reverse_path":
			reverse = true
			if all[0] != "" {
				if e.reversePath, err = parseAddress(all[0]); err != nil {
					f.add(where(name), err.Error())
				}
			}
		case "notify":
			o.Notify = strings.Split(all[0], ",")
		case "ret":
			o.Ret = all[0]
		case "envid":
			o.EnvID = all[0]
		case "campaign":
			o.Campaign = all[0]
		case "priority":
			n, err := strconv.ParseInt(all[0], 10, 16)
			if err != nil {
				f.add(where(name), "want -9 to 9")
			}
			o.Priority = int16(n)
		case "send_at":
			o.SendAt = moment(name)
		case "expires_at":
			o.ExpiresAt = moment(name)
		default:
			f.add(where(name), "no such parameter")
		}
		if len(all) > 1 {
			f.add(where(name), "given more than once")
		}
	}
	recipients = unique(recipients)
	switch n := len(recipients); {
	case n == 0:
		f.add(where("to"), "no recipients")
	case n > q.s.cfg.MaxRecipients:
		f.add(where("to"), fmt.Sprintf("%d recipients, at most %d", n, q.s.cfg.MaxRecipients))
	}
	path := e.reversePath
	e = o.envelope(q.began, where, &f)
	e.reversePath = path
	return e, recipients, reverse, f.problem("the query does not give a good envelope")
}

// wholeMessage passes a message on and checks each octet: lines end with CRLF
// and are at most 998 octets long, and there is no NUL (RFC 5322 §2.1.1,
// §2.3). A last line without an end gets one.
type wholeMessage struct {
	in       io.Reader
	eightBit bool
	line     int // octets of the line so far
	number   int // lines that have ended
	cr       bool
	over     bool   // in has ended
	end      string // what is still to come then
}

// Read reads on. Its errors are those of in, and Problems.
func (w *wholeMessage) Read(p []byte) (int, error) {
	if w.over {
		n := copy(p, w.end)
		if w.end = w.end[n:]; w.end == "" {
			return n, io.EOF
		}
		return n, nil
	}
	n, err := w.in.Read(p)
	for _, c := range p[:n] {
		if fault := w.octet(c); fault != "" {
			return 0, w.refuse(fault)
		}
	}
	if errors.Is(err, io.EOF) {
		if w.cr {
			return 0, w.refuse(bareNewline)
		}
		w.over, err = true, nil
		if w.line > 0 || w.number == 0 {
			w.end = "\r\n"
		}
	}
	return n, err
}

func (w *wholeMessage) refuse(fault string) error {
	return refuse(http.StatusBadRequest, "the message cannot be sent as it is", Fault{Detail: fmt.Sprintf("line %d: %s", w.number+1, fault)})
}

const bareNewline = "bare CR or LF; lines end with CR LF"

func (w *wholeMessage) octet(c byte) string {
	switch {
	case w.cr != (c == '\n'):
		return bareNewline
	case c == '\n':
		w.cr, w.line = false, 0
		w.number++
		return ""
	case c == '\r':
		w.cr = true
		return ""
	case c == 0:
		return "NUL"
	}
	w.eightBit = w.eightBit || c >= 0x80
	if w.line++; w.line > maxLine {
		return "more than 998 octets"
	}
	return ""
}

// header is what we have to know of a header section.
type header struct {
	length    int    // octets of the content that it takes, with the empty line
	kept      []byte // what is relayed of it, with the empty line
	messageID string
	date      bool
	from      []string // addresses of From
	author    address  // of Sender, else the first of From

	tlsOptional bool // TLS-Required: No
}

// dropped are fields that nobody is to see: RFC 5322 §3.6.3, and our own.
var dropped = []string{"bcc", "resent-bcc", "x-traceparent", "x-idempotency-key", "x-postrider-campaign"}

// readHeader reads the header section at the beginning of content, of which
// the whole header section is there.
func readHeader(content []byte) (header, error) {
	h := header{}
	bad := func(format string, args ...any) (header, error) {
		return h, refuse(http.StatusBadRequest, "the message cannot be sent as it is", Fault{Detail: fmt.Sprintf(format, args...)})
	}
	hops := 0
	var from, sender string
	at := 0
	for at < len(content) && !bytes.HasPrefix(content[at:], []byte("\r\n")) {
		end := fieldEnd(content, at)
		field := content[at:end]
		name, value, found := strings.Cut(string(field), ":")
		name = strings.ToLower(strings.TrimRight(name, " \t"))
		if !found || name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			return bad("malformed header field: %.60q", field)
		}
		value = strings.TrimSpace(strings.NewReplacer("\r\n", "").Replace(value))
		at = end
		if at > maxHeader {
			return bad("header section of more than %d octets", maxHeader)
		}
		switch name {
		case "received":
			hops++
		case "from", "sender":
			to := map[string]*string{"from": &from, "sender": &sender}[name]
			if *to != "" {
				return bad("%s more than once", name)
			}
			*to = value
		case "date":
			h.date = true
		case "tls-required": // RFC 8689 §3
			h.tlsOptional = h.tlsOptional || strings.EqualFold(value, "No")
		case "message-id":
			if h.messageID = strings.ToValidUTF8(value[:min(len(value), maxLine)], "?"); h.messageID == "" {
				return bad("empty Message-ID")
			}
		}
		if !slices.Contains(dropped, name) {
			h.kept = append(h.kept, field...)
		}
	}
	h.kept = append(h.kept, "\r\n"...)
	h.length = min(at+len("\r\n"), len(content))
	if !utf8.Valid(h.kept) { // RFC 6532 §3.1
		return bad("header section in neither ASCII nor UTF-8")
	}
	if hops >= maxHops {
		return bad("%d Received fields: the message loops", hops)
	}
	return h, h.authors(from, sender)
}

// addresses reads address lists whatever charset their names are in.
var addresses = netmail.AddressParser{WordDecoder: &mime.WordDecoder{
	CharsetReader: func(_ string, in io.Reader) (io.Reader, error) { return in, nil },
}}

// authors reads the addresses of From and Sender.
func (h *header) authors(from, sender string) error {
	for _, field := range []struct{ name, value string }{{"From", from}, {"Sender", sender}} {
		if field.value == "" && field.name == "Sender" {
			continue
		}
		boxes, err := addresses.ParseList(field.value)
		if err != nil || len(boxes) == 0 {
			return refuse(http.StatusBadRequest, "the message cannot be sent as it is", Fault{Detail: "no address in the " + field.name + " field"})
		}
		for i, box := range boxes {
			a, err := parseAddress(quoted(box.Address))
			if err != nil {
				return refuse(http.StatusBadRequest, "the message cannot be sent as it is", Fault{Detail: field.name + ": " + err.Error()})
			}
			if field.name == "From" {
				h.from = append(h.from, a.text)
			}
			if i == 0 {
				h.author = a
			}
		}
	}
	return nil
}

// quoted gives the local-part the quotes back that net/mail takes away.
func quoted(address string) string {
	text := (&netmail.Address{Address: address}).String()
	return strings.TrimSuffix(strings.TrimPrefix(text, "<"), ">")
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
