// Package mend makes messages with lines over 998 octets (RFC 5321
// §4.5.3.1.6) fit to be relayed: a body part with such a line is encoded anew
// (RFC 2045 §6), so that who decodes it finds what was there. Everything else
// stays octet for octet. Nothing that is signed is changed.
package mend

import (
	"bytes"
	"encoding/base64"
	"errors"
	"mime/quotedprintable"
	"slices"
	"strings"
	"unicode/utf8"
)

// The reasons to leave a message alone.
var (
	ErrSigned = errors.New("a line of signed content is too long")
	ErrShape  = errors.New("a line is too long, where no encoding helps")
)

const (
	maxLine  = 998 // RFC 5322 §2.1.1, without CRLF
	wrapAt   = 76  // RFC 2045 §6.7, §6.8
	maxDepth = 20
)

var crlf = []byte("\r\n")

// Lines returns the message with no line over 998 octets, or why it cannot
// be. Its lines end with CRLF.
func Lines(content []byte) ([]byte, error) {
	m := &mender{}
	return m.message(make([]byte, 0, len(content)+len(content)/4), content)
}

// mender knows the delimiters of the multiparts that it is in.
type mender struct{ delimiters []string }

// message appends a whole message, which may have a signature of its own.
func (m *mender) message(dst, content []byte) ([]byte, error) {
	if !long(content) {
		return append(dst, content...), nil
	}
	e := parse(content)
	for _, name := range []string{"DKIM-Signature", "ARC-Message-Signature"} { // RFC 6376, RFC 8617
		if _, signed := e.field(name); signed {
			return nil, ErrSigned
		}
	}
	return m.entity(dst, e, true)
}

// entity appends a header section and its body.
func (m *mender) entity(dst []byte, e entity, top bool) ([]byte, error) {
	if len(m.delimiters) > maxDepth {
		return nil, ErrShape
	}
	for i, field := range e.fields {
		if long(field) {
			if e.fields[i] = fold(field); long(e.fields[i]) {
				return nil, ErrShape
			}
		}
	}
	if !long(e.body) {
		return e.append(dst, e.body), nil
	}
	text, typed := e.field("Content-Type")
	what, readable := parseMedia(text)
	kind, encoding := what.kind, e.encoding()
	plain := encoding == ""
	switch {
	case !readable:
		return nil, ErrShape
	case kind == "multipart/signed", kind == "multipart/encrypted": // RFC 1847
		return nil, ErrSigned
	case kind == "multipart/digest": // its parts are messages, and say so nowhere
		return nil, ErrShape
	case strings.HasPrefix(kind, "multipart/"):
		return m.multipart(dst, e, what.boundary)
	case kind == "message/rfc822" && plain:
		m.delimiters = append(m.delimiters, "") // a level, too
		defer func() { m.delimiters = m.delimiters[:len(m.delimiters)-1] }()
		return m.message(e.append(dst, nil), e.body)
	case strings.HasPrefix(kind, "message/"): // RFC 2046 §5.2: not encoded
		return nil, ErrShape
	}
	var body []byte
	switch {
	case plain && strings.HasPrefix(kind, "text/"):
		body, encoding = quoted(e.body), "quoted-printable"
	case plain:
		body, encoding = wrap(base64.StdEncoding.AppendEncode(nil, e.body), top), "base64"
	case encoding == "quoted-printable":
		body = rewrapQuoted(e.body)
	case encoding == "base64":
		body = rewrapBase64(e.body, top)
	}
	if plain && m.delimits(body) { // where a line was broken
		body, encoding = wrap(base64.StdEncoding.AppendEncode(nil, e.body), top), "base64"
	}
	if body == nil || long(body) || m.delimits(body) {
		return nil, ErrShape
	}
	if plain {
		e.encoded(encoding, top, typed)
	}
	return e.append(dst, body), nil
}

// multipart appends a body of parts: RFC 2046 §5.1.1.
func (m *mender) multipart(dst []byte, e entity, boundary string) ([]byte, error) {
	if boundary == "" || e.encoding() != "" { // RFC 2045 §6.4: no multipart is encoded
		return nil, ErrShape
	}
	delimiter := "--" + boundary
	m.delimiters = append(m.delimiters, delimiter)
	defer func() { m.delimiters = m.delimiters[:len(m.delimiters)-1] }()
	dst = e.append(dst, nil)
	part, inside := 0, false // where the part began
	closed := false
	for at := 0; at <= len(e.body); {
		end := lineEnd(e.body, at)
		line := e.body[at:end]
		last := end == len(e.body)
		rest, isDelimiter := bytes.CutPrefix(line, []byte(delimiter))
		if isDelimiter {
			rest = bytes.TrimRight(rest, " \t\r\n")
			isDelimiter = !closed && (len(rest) == 0 || string(rest) == "--")
		}
		if isDelimiter || last {
			stop := at // the CRLF before a delimiter belongs to it
			if last && !isDelimiter {
				stop = end
			} else if inside && stop-len(crlf) >= part {
				stop -= len(crlf)
			}
			piece := e.body[part:stop]
			var err error
			switch {
			case inside:
				dst, err = m.entity(dst, parse(piece), false)
			default: // preamble or epilogue, which no reader shows
				dst, err = m.comment(dst, piece)
			}
			if err != nil {
				return nil, err
			}
			if isDelimiter {
				if long(line) {
					return nil, ErrShape
				}
				dst = append(dst, e.body[stop:end]...)
				part, inside = end, true
				if len(rest) > 0 {
					inside, closed = false, true
				}
			} else {
				part = end
			}
		}
		if last {
			break
		}
		at = end
	}
	return append(dst, e.body[part:]...), nil
}

// comment appends what stands before or behind the parts of a multipart, its
// long lines broken anywhere.
func (m *mender) comment(dst, piece []byte) ([]byte, error) {
	if !long(piece) {
		return append(dst, piece...), nil
	}
	broken := breakLines(piece, func(line []byte) int { return len(line) })
	if m.delimits(broken) {
		return nil, ErrShape
	}
	return append(dst, broken...), nil
}

// delimits reports whether a line of an encoded body would be taken for a
// delimiter around it.
func (m *mender) delimits(body []byte) bool {
	for at := 0; at < len(body); at = lineEnd(body, at) {
		for _, d := range m.delimiters {
			if d != "" && bytes.HasPrefix(body[at:], []byte(d)) {
				return true
			}
		}
	}
	return false
}

// quoted encodes text: RFC 2045 §6.7. Line ends stay.
func quoted(body []byte) []byte {
	var b bytes.Buffer
	w := quotedprintable.NewWriter(&b)
	w.Write(body) //nolint:errcheck // a bytes.Buffer takes everything
	w.Close()
	return b.Bytes()
}

// rewrapQuoted breaks the long lines of text that is encoded already.
func rewrapQuoted(body []byte) []byte {
	var out []byte
	for at := 0; at < len(body); {
		end := lineEnd(body, at)
		line := body[at:end]
		for len(line) > maxLine {
			n := wrapAt - 1
			for i := 1; i <= 2; i++ { // not within =XX
				if line[n-i] == '=' {
					n -= i
					break
				}
			}
			out = append(append(out, line[:n]...), "=\r\n"...)
			line = line[n:]
		}
		out = append(out, line...)
		at = end
	}
	return out
}

// rewrapBase64 gives encoded content lines of the usual length; nil: it is
// not base64.
func rewrapBase64(body []byte, top bool) []byte {
	joined := bytes.Join(bytes.Fields(body), nil)
	for _, c := range joined {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '+' && c != '/' && c != '=' {
			return nil
		}
	}
	return wrap(joined, top)
}

// wrap breaks text into lines. The last one has an end at the top, and not
// before a delimiter.
func wrap(text []byte, top bool) []byte {
	out := make([]byte, 0, len(text)+len(text)/wrapAt*len(crlf)+len(crlf))
	for len(text) > wrapAt {
		out = append(append(out, text[:wrapAt]...), crlf...)
		text = text[wrapAt:]
	}
	out = append(out, text...)
	if top {
		out = append(out, crlf...)
	}
	return out
}

// long reports whether a line has more than 998 octets.
func long(content []byte) bool {
	for len(content) > maxLine {
		// What ends within the most that a line may have is not long.
		end := bytes.LastIndexByte(content[:min(len(content), maxLine+len(crlf))], '\n') + 1
		if end == 0 {
			return true
		}
		if end > maxLine && len(bytes.TrimSuffix(content[:lineEnd(content, 0)], crlf)) > maxLine {
			return true
		}
		content = content[end:]
	}
	return false
}

// lineEnd returns where the line that begins at at ends, its CRLF included.
func lineEnd(content []byte, at int) int {
	if i := bytes.IndexByte(content[at:], '\n'); i >= 0 {
		return at + i + 1
	}
	return len(content)
}

// charset names what text is in that says nothing of it.
func charset(body []byte) string {
	switch {
	case !utf8.Valid(body):
		return "unknown-8bit" // RFC 1428
	case slices.ContainsFunc(body, func(c byte) bool { return c >= utf8.RuneSelf }):
		return "utf-8"
	}
	return "us-ascii"
}
