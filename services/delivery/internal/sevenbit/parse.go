package sevenbit

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
)

const (
	// maxLine bounds a piece of a line that is looked at in one go. A
	// delimiter, and a field that matters, is shorter.
	maxLine = 64 << 10
	// maxField bounds the value of a field that is remembered.
	maxField = 8 << 10
	// maxEntities and maxDepth bound what hostile content can make us
	// remember. What lies deeper is taken for a body without structure.
	maxEntities = 10000
	maxDepth    = 100
)

// kind is what a piece of content is part of.
type kind int

const (
	field     kind = iota // a line of a header section
	fieldsEnd             // the empty line behind a header section, or nothing where it is missing
	body                  // of an entity without parts
	delimiter             // a boundary line, RFC 2046 §5.1.1
	filling               // preamble and epilogue: RFC 2046 §5.1.1
)

// entity is a header section with its body: RFC 2045 §2.4. The message is
// one, and each part.
type entity struct {
	no       int
	types    string // "text/plain"
	boundary string // of a multipart
	encoding string // the value of Content-Transfer-Encoding, lower case; "" is 7bit
	typed    bool   // it has a Content-Type
	signed   bool   // it has a DKIM-Signature or the like

	versioned bool // it has a MIME-Version
	flat      bool // its structure is not looked into

	last  string // the field that goes on, lower case
	value []byte // of last, if it matters
}

// piece is a line of content or, if that is long, a part of it.
type piece struct {
	kind    kind
	of      *entity
	octets  []byte // with its CRLF; valid until the next piece
	starts  bool   // it begins a line
	closing bool   // of a delimiter: the multipart ends
}

// parser cuts content into pieces.
type parser struct {
	r       *bufio.Reader
	count   int
	open    []*entity // multiparts, the innermost last
	now     *entity   // whose header section or body this is
	state   kind
	starts  bool // the next octet begins a line
	afterCR bool
	digest  []bool // by open: its parts are messages by default
}

func newParser(r io.Reader) *parser {
	p := &parser{r: bufio.NewReaderSize(r, maxLine), starts: true}
	p.begin("text/plain")
	return p
}

func (p *parser) begin(types string) {
	p.now = &entity{no: p.count, types: types}
	p.count++
	p.state = field
}

// walk hands each piece to see, until the content ends.
func (p *parser) walk(see func(piece) error) error {
	for {
		octets, err := p.r.ReadSlice('\n')
		if len(octets) > 0 {
			if err := p.line(octets, see); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return err
		}
	}
}

// line takes the next piece of a line.
func (p *parser) line(octets []byte, see func(piece) error) error {
	starts := p.starts
	whole := bytes.HasSuffix(octets, []byte("\r\n")) || p.afterCR && octets[0] == '\n' && len(octets) == 1
	p.starts, p.afterCR = whole, octets[len(octets)-1] == '\r'
	if starts {
		if at, closing, is := p.delimits(octets); is {
			return p.delimited(piece{kind: delimiter, of: p.open[at], octets: octets, starts: true, closing: closing}, at, see)
		}
	}
	switch p.state {
	case field:
		if starts && string(octets) == "\r\n" {
			p.now.end()
			err := see(piece{kind: fieldsEnd, of: p.now, octets: octets, starts: true})
			p.headed()
			return err
		}
		p.now.take(octets, starts)
		return see(piece{kind: field, of: p.now, octets: octets, starts: starts})
	default:
		return see(piece{kind: p.state, of: p.now, octets: octets, starts: starts})
	}
}

// delimits reports whether a line is a boundary of an open multipart: the
// innermost that it fits. One of an outer multipart ends the inner ones.
func (p *parser) delimits(line []byte) (at int, closing, is bool) {
	rest, found := bytes.CutPrefix(line, []byte("--"))
	if !found {
		return 0, false, false
	}
	rest = bytes.TrimRight(rest, " \t\r\n")
	for i := len(p.open) - 1; i >= 0; i-- {
		after, found := bytes.CutPrefix(rest, []byte(p.open[i].boundary))
		if found && (len(after) == 0 || string(after) == "--") {
			return i, len(after) > 0, true
		}
	}
	return 0, false, false
}

// delimited takes a boundary line.
func (p *parser) delimited(d piece, at int, see func(piece) error) error {
	if p.state == field {
		// A header section without an empty line behind it.
		p.now.end()
		if err := see(piece{kind: fieldsEnd, of: p.now}); err != nil {
			return err
		}
	}
	if err := see(d); err != nil {
		return err
	}
	if d.closing {
		p.now = p.open[at]
		p.open, p.digest = p.open[:at], p.digest[:at]
		p.state = filling
		return nil
	}
	p.open, p.digest = p.open[:at+1], p.digest[:at+1]
	types := "text/plain"
	if p.digest[at] {
		types = "message/rfc822" // RFC 2046 §5.1.5
	}
	p.begin(types)
	return nil
}

// headed goes on behind a header section.
func (p *parser) headed() {
	e := p.now
	switch {
	case p.count >= maxEntities || len(p.open) >= maxDepth:
		e.flat = true
		p.state = body
	case e.multipart():
		p.open = append(p.open, e)
		p.digest = append(p.digest, e.types == "multipart/digest")
		p.state = filling
	case e.message():
		p.begin("text/plain")
	default:
		p.state = body
	}
}

// multipart reports whether the body is parts.
func (e *entity) multipart() bool {
	return strings.HasPrefix(e.types, "multipart/") && e.boundary != "" && e.plain() && !e.flat
}

// message reports whether the body is a message with a header section.
func (e *entity) message() bool {
	return (e.types == "message/rfc822" || e.types == "message/global") && e.plain() && !e.flat
}

// plain reports whether the body stands as it is: RFC 2045 §6.4.
func (e *entity) plain() bool {
	switch e.encoding {
	case "", "7bit", "8bit", "binary":
		return true
	}
	return false
}

// take reads a line of the header section, or a part of one.
func (e *entity) take(octets []byte, starts bool) {
	if !starts || octets[0] == ' ' || octets[0] == '\t' {
		e.add(octets)
		return
	}
	e.end()
	name, value, found := bytes.Cut(octets, []byte(":"))
	if !found {
		return
	}
	e.last = strings.ToLower(string(bytes.TrimRight(name, " \t")))
	e.add(value)
}

func (e *entity) add(octets []byte) {
	if e.last == "content-type" || e.last == "content-transfer-encoding" {
		e.value = append(e.value, octets[:min(len(octets), maxField-min(len(e.value), maxField))]...)
	}
}

// end takes what the last field said.
func (e *entity) end() {
	switch e.last {
	case "content-type":
		if !e.typed { // of two the first counts, as for most readers
			e.typed = true
			e.types, e.boundary = parseContentType(string(e.value))
		}
	case "content-transfer-encoding":
		if e.encoding == "" {
			e.encoding = strings.ToLower(strings.TrimSpace(withoutComments(string(e.value))))
		}
	case "mime-version":
		e.versioned = true
	case "dkim-signature", "arc-message-signature", "domainkey-signature":
		e.signed = true
	}
	e.last, e.value = "", e.value[:0]
}
