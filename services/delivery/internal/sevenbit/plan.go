package sevenbit

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"unicode/utf8"
)

// maxLineOctets is the longest line of SMTP without its CRLF: RFC 5321
// §4.5.3.1.6.
const maxLineOctets = 998

// ErrNoConversion says that content cannot be made 7-bit without loss: it has
// octets over 127 in a header section, or in a body that may not be encoded.
var ErrNoConversion = errors.New("content has no 7-bit form")

// Plan is what Scan found in a content, and what Convert makes of it.
type Plan struct {
	EightBit    bool // octets over 127 outside header sections
	LongLines   bool // lines of more than 998 octets, NUL, or a bare CR or LF
	EightFields bool // octets over 127 in a header section, of a part or enclosed message too: RFC 6532
	Signed      bool // a signature covers the content: DKIM, ARC or multipart/signed

	entities []change
	hopeless bool
}

// encoding is what becomes of the body of an entity.
type encoding byte

const (
	keep            encoding = iota
	relabel                  // as it stands, for what is in it becomes 7-bit: "7bit"
	quotedPrintable          // RFC 2045 §6.7
	base64Encoding           // RFC 2045 §6.8
	mend                     // labelled quoted-printable or base64, with octets that have no place there
)

// change is what Convert does to an entity.
type change struct {
	to      encoding
	name    bool // a body without Content-Type gets one
	charset string
	version bool // it gets a MIME-Version
}

// seen is what Scan counts of one body.
type seen struct {
	size, high int64
	long       bool // a line that is too long
	binary     bool // NUL, or a bare CR or LF
	noUTF8     bool
	line       int
	afterCR    bool
}

// raw reports whether a body may not stand as it is, 8-bit or not.
func (b *seen) raw() bool { return b.long || b.binary }

// Scan reads content to its end.
func Scan(r io.Reader) (*Plan, error) {
	p := &Plan{}
	parser := newParser(r)
	var bodies []seen
	var entities []*entity
	err := parser.walk(func(c piece) error {
		switch c.kind {
		case field:
			p.EightFields = p.EightFields || high(c.octets) > 0
		case fieldsEnd:
			entities = append(entities, c.of)
			bodies = append(bodies, seen{})
		case body:
			bodies[c.of.no].look(c.octets, c.starts)
		case filling:
			p.EightBit = p.EightBit || high(c.octets) > 0
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, e := range entities {
		b := &bodies[i]
		b.binary = b.binary || b.afterCR
		p.Signed = p.Signed || i == 0 && e.signed || e.types == "multipart/signed"
		p.EightBit = p.EightBit || b.high > 0
		p.LongLines = p.LongLines || b.raw()
		p.entities = append(p.entities, p.decide(e, b))
	}
	if len(p.entities) > 0 {
		p.entities[0].version = !entities[0].versioned
	}
	return p, nil
}

func high(octets []byte) (n int64) {
	for _, c := range octets {
		if c >= 0x80 {
			n++
		}
	}
	return n
}

// look counts a piece of a body.
func (b *seen) look(octets []byte, starts bool) {
	if starts {
		b.line = 0
	}
	b.size += int64(len(octets))
	b.high += high(octets)
	text := bytes.TrimSuffix(octets, []byte("\r\n"))
	ended := len(text) < len(octets)
	if b.afterCR && string(octets) == "\n" {
		text, ended = nil, true
	} else if b.afterCR {
		b.binary = true
	}
	b.afterCR = !ended && octets[len(octets)-1] == '\r'
	if b.afterCR {
		text = octets[:len(octets)-1]
	}
	b.line += len(text)
	b.long = b.long || b.line > maxLineOctets
	b.binary = b.binary || bytes.ContainsAny(text, "\r\n\x00")
	b.noUTF8 = b.noUTF8 || !utf8.Valid(text)
}

// decide says what becomes of an entity.
func (p *Plan) decide(e *entity, b *seen) change {
	if e.multipart() || e.message() {
		if e.encoding == "8bit" || e.encoding == "binary" {
			return change{to: relabel}
		}
		return change{}
	}
	if b.high == 0 && !b.raw() {
		if e.encoding == "8bit" || e.encoding == "binary" {
			return change{to: relabel}
		}
		return change{}
	}
	switch {
	case e.encoding == "quoted-printable" || e.encoding == "base64":
		return change{to: mend}
	case !e.plain(), strings.HasPrefix(e.types, "multipart/"), e.types == "message/partial", e.types == "message/external-body",
		e.types == "message/rfc822", e.types == "message/global":
		// RFC 2046 §5.2.2: parts of a message are 7-bit; RFC 2045 §6.4: no
		// encoding of composite types.
		p.hopeless = true
		return change{}
	}
	c := change{to: quotedPrintable}
	if !e.typed && e.no == 0 {
		// Not MIME, so nothing says what the octets mean. RFC 1428 has a word
		// for that; where they are UTF-8 it is no guess.
		c.name, c.charset = true, "unknown-8bit"
		if !b.noUTF8 {
			c.charset = "utf-8"
		}
	}
	// A bare CR or LF in text is not a line end; base64 keeps what it is.
	// Text that is mostly not ASCII is shorter in base64.
	if !strings.HasPrefix(e.types, "text/") || b.binary || 4*b.high > b.size {
		c.to = base64Encoding
	}
	return c
}

// Convertible reports whether Convert can work.
func (p *Plan) Convertible() bool { return !p.hopeless && !p.EightFields }
