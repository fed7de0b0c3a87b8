package sevenbit

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"io"
	"strings"
)

// maxEncoded is the longest line of an encoded body without its CRLF: RFC 2045
// §6.7, §6.8. mendedLine is where a body that was encoded wrongly is broken.
const (
	maxEncoded = 76
	mendedLine = 900
)

// Convert writes the content that was scanned as 7-bit content. The error is
// that of r or w, or ErrNoConversion before anything is written.
func (p *Plan) Convert(w io.Writer, r io.Reader) error {
	if !p.Convertible() {
		return ErrNoConversion
	}
	c := converter{plan: p, w: bufio.NewWriter(w)}
	if err := newParser(r).walk(c.see); err != nil {
		return err
	}
	if err := c.finish(false); err != nil {
		return err
	}
	return c.w.Flush()
}

// encoder writes a body. close ends it; before says that a boundary follows,
// to which the last CRLF belongs.
type encoder interface {
	write(octets []byte) error
	close(before bool) error
}

type converter struct {
	plan     *Plan
	w        *bufio.Writer
	dropping bool    // inside a field that goes
	body     encoder // nil: as it stands
	column   int     // of filling
}

// of returns what becomes of an entity. One that ended before its header
// section did has no body.
func (c *converter) of(e *entity) change {
	if e.no < len(c.plan.entities) {
		return c.plan.entities[e.no]
	}
	return change{}
}

func (c *converter) see(p piece) error {
	switch p.kind {
	case field:
		return c.field(p)
	case fieldsEnd:
		return c.fieldsEnd(p)
	case body:
		if c.body != nil {
			return c.body.write(p.octets)
		}
	case filling:
		return c.filling(p)
	case delimiter:
		if err := c.finish(true); err != nil {
			return err
		}
	}
	_, err := c.w.Write(p.octets)
	return err
}

// field copies a header field, unless it is the one that is written anew.
func (c *converter) field(p piece) error {
	if p.starts && p.octets[0] != ' ' && p.octets[0] != '\t' {
		name, _, _ := bytes.Cut(p.octets, []byte(":"))
		to := c.of(p.of).to
		c.dropping = to != keep && to != mend && bytes.EqualFold(bytes.TrimRight(name, " \t"), []byte("Content-Transfer-Encoding"))
	}
	if c.dropping {
		return nil
	}
	_, err := c.w.Write(p.octets)
	return err
}

// fieldsEnd adds the fields that say how the body is encoded from now on.
func (c *converter) fieldsEnd(p piece) error {
	do := c.of(p.of)
	var fields strings.Builder
	if do.version {
		fields.WriteString("MIME-Version: 1.0\r\n")
	}
	if do.name {
		fields.WriteString("Content-Type: text/plain; charset=" + do.charset + "\r\n")
	}
	c.body = nil
	switch do.to {
	case keep:
	case relabel:
		fields.WriteString("Content-Transfer-Encoding: 7bit\r\n")
	case quotedPrintable:
		fields.WriteString("Content-Transfer-Encoding: quoted-printable\r\n")
		c.body = &quoter{w: c.w}
	case base64Encoding:
		fields.WriteString("Content-Transfer-Encoding: base64\r\n")
		c.body = newBase64(c.w)
	case mend:
		c.body = &mender{w: c.w, quoted: p.of.encoding == "quoted-printable"}
	}
	if _, err := c.w.WriteString(fields.String()); err != nil {
		return err
	}
	_, err := c.w.Write(p.octets)
	return err
}

// filling copies what no reader shows.
func (c *converter) filling(p piece) error {
	if p.starts {
		c.column = 0
	}
	text := bytes.TrimSuffix(p.octets, []byte("\r\n"))
	ends := p.octets[len(text):]
	kept := make([]byte, 0, min(len(text), maxLineOctets))
	for _, o := range text {
		if o >= 0x80 || o == 0 || o == '\r' || o == '\n' {
			o = '?'
		}
		if c.column++; c.column <= maxLineOctets {
			kept = append(kept, o)
		}
	}
	_, err := c.w.Write(append(kept, ends...))
	return err
}

func (c *converter) finish(before bool) error {
	if c.body == nil {
		return nil
	}
	err := c.body.close(before)
	c.body = nil
	return err
}

// quoter writes quoted-printable: RFC 2045 §6.7.
type quoter struct {
	w       *bufio.Writer
	column  int
	space   byte // a space or tab that may end the line; 0 is none
	afterCR bool
}

const hexDigits = "0123456789ABCDEF"

func (q *quoter) write(octets []byte) error {
	for _, c := range octets {
		if q.afterCR {
			q.afterCR = false
			if c == '\n' {
				q.end()
				q.w.WriteString("\r\n")
				q.column = 0
				continue
			}
			q.escape('\r')
		}
		switch {
		case c == '\r':
			q.afterCR = true
		case c == ' ' || c == '\t':
			q.let()
			q.space = c
		case c > ' ' && c < 0x7f && c != '=':
			q.let()
			q.plain(c)
		default:
			q.let()
			q.escape(c)
		}
	}
	return q.failed()
}

// failed returns the first error of the writer, which keeps it.
func (q *quoter) failed() error {
	_, err := q.w.Write(nil)
	return err
}

// let writes the white space that turned out to be inside the line.
func (q *quoter) let() {
	if s := q.space; s != 0 {
		q.space = 0
		q.plain(s)
	}
}

// end writes white space at the end of a line, which must be encoded.
func (q *quoter) end() {
	if s := q.space; s != 0 {
		q.space = 0
		q.escape(s)
	}
}

func (q *quoter) plain(c byte) {
	q.room(1)
	if c == '-' && q.column == 0 {
		// A line that a soft break begins must not look like a boundary.
		q.escape(c)
		return
	}
	q.w.WriteByte(c)
	q.column++
}

func (q *quoter) escape(c byte) {
	q.room(3)
	q.w.Write([]byte{'=', hexDigits[c>>4], hexDigits[c&15]})
	q.column += 3
}

// room begins a new line by a soft break if n octets do not fit.
func (q *quoter) room(n int) {
	if q.column+n > maxEncoded-1 {
		q.w.WriteString("=\r\n")
		q.column = 0
	}
}

func (q *quoter) close(before bool) error {
	q.end()
	if q.afterCR {
		q.afterCR = false
		q.escape('\r')
	}
	if q.column > 0 && !before {
		// The content does not end in CRLF, and what follows adds one.
		q.w.WriteString("=\r\n")
	}
	return q.failed()
}

// base64Body writes base64: RFC 2045 §6.8.
type base64Body struct {
	lines   *lineBreaker
	encoder io.WriteCloser
	held    []byte // a CRLF that may belong to the boundary
}

func newBase64(w *bufio.Writer) *base64Body {
	lines := &lineBreaker{w: w}
	return &base64Body{lines: lines, encoder: base64.NewEncoder(base64.StdEncoding, lines)}
}

func (b *base64Body) write(octets []byte) error {
	// Of all that is held and new, up to two octets that may begin or be the
	// last CRLF are held.
	all := append(b.held, octets...)
	n := len(all)
	switch {
	case bytes.HasSuffix(all, []byte("\r\n")):
		n -= 2
	case bytes.HasSuffix(all, []byte("\r")):
		n--
	}
	if _, err := b.encoder.Write(all[:n]); err != nil {
		return err
	}
	b.held = append(b.held[:0], all[n:]...)
	return nil
}

func (b *base64Body) close(before bool) error {
	if !before || len(b.held) < 2 {
		if _, err := b.encoder.Write(b.held); err != nil {
			return err
		}
	}
	if err := b.encoder.Close(); err != nil {
		return err
	}
	return b.lines.end()
}

// lineBreaker breaks what it is given into lines of 76 octets.
type lineBreaker struct {
	w      *bufio.Writer
	column int
}

func (l *lineBreaker) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		if l.column == maxEncoded {
			if err := l.end(); err != nil {
				return 0, err
			}
		}
		n := min(len(rest), maxEncoded-l.column)
		if _, err := l.w.Write(rest[:n]); err != nil {
			return 0, err
		}
		l.column += n
		rest = rest[n:]
	}
	return len(p), nil
}

func (l *lineBreaker) end() error {
	l.column = 0
	_, err := l.w.WriteString("\r\n")
	return err
}

// mender passes a body that is encoded already, and takes out of it what has
// no place there: octets over 127, NUL, bare CR and LF. In quoted-printable
// each is written as what it is; in base64 readers ignore them, RFC 2045 §6.8.
type mender struct {
	w       *bufio.Writer
	quoted  bool
	column  int
	escape  int // octets of an escape that are still to come
	afterCR bool
}

func (m *mender) write(octets []byte) error {
	for _, c := range octets {
		if m.afterCR {
			m.afterCR = false
			if c == '\n' {
				m.w.WriteString("\r\n")
				m.column, m.escape = 0, 0
				continue
			}
			m.odd('\r')
		}
		switch {
		case c == '\r':
			m.afterCR = true
		case c == 0 || c == '\n' || c >= 0x80:
			m.odd(c)
		default:
			m.room()
			m.w.WriteByte(c)
			m.column++
			if m.escape > 0 {
				m.escape--
			} else if c == '=' {
				m.escape = 2
			}
		}
	}
	_, err := m.w.Write(nil)
	return err
}

func (m *mender) odd(c byte) {
	if !m.quoted {
		return
	}
	m.escape = 0
	m.room()
	m.w.Write([]byte{'=', hexDigits[c>>4], hexDigits[c&15]})
	m.column += 3
}

// room breaks a line that is too long, where that means nothing.
func (m *mender) room() {
	if m.column < mendedLine || m.quoted && m.escape > 0 {
		return
	}
	if m.quoted {
		m.w.WriteByte('=')
	}
	m.w.WriteString("\r\n")
	m.column = 0
}

func (m *mender) close(bool) error {
	if m.afterCR {
		m.odd('\r')
	}
	_, err := m.w.Write(nil)
	return err
}
