package mend

import (
	"bytes"
	"strings"
)

// entity is a header section and a body: RFC 2045 §2.4.
type entity struct {
	fields [][]byte // with their line ends
	gap    []byte   // the empty line; none if there is no body
	body   []byte
}

func parse(content []byte) entity {
	var e entity
	at := 0
	for at < len(content) && !bytes.HasPrefix(content[at:], crlf) {
		end := lineEnd(content, at)
		for end < len(content) && (content[end] == ' ' || content[end] == '\t') {
			end = lineEnd(content, end)
		}
		if bytes.IndexByte(content[at:end], ':') <= 0 { // no field: the body begins here
			e.body = content[at:]
			return e
		}
		e.fields = append(e.fields, content[at:end])
		at = end
	}
	e.gap = content[at:min(at+len(crlf), len(content))]
	e.body = content[at+len(e.gap):]
	return e
}

// append appends the header section and a body.
func (e entity) append(dst, body []byte) []byte {
	for _, field := range e.fields {
		dst = append(dst, field...)
	}
	return append(append(dst, e.gap...), body...)
}

// field returns the value of a field, unfolded.
func (e entity) field(name string) (string, bool) {
	for _, field := range e.fields {
		if n, value, _ := strings.Cut(string(field), ":"); strings.EqualFold(strings.TrimRight(n, " \t"), name) {
			return strings.TrimSpace(strings.ReplaceAll(value, "\r\n", "")), true
		}
	}
	return "", false
}

// encoding returns how the body is encoded, "" if it is not.
func (e entity) encoding() string {
	value, _ := e.field("Content-Transfer-Encoding")
	return parseEncoding(value)
}

// encoded says in the header section how the body is encoded now.
func (e *entity) encoded(encoding string, top, typed bool) {
	if len(e.gap) == 0 {
		e.gap = crlf
	}
	set := []byte("Content-Transfer-Encoding: " + encoding + "\r\n")
	kept := make([][]byte, 0, len(e.fields)+3)
	for _, field := range e.fields {
		name, _, _ := bytes.Cut(field, []byte(":"))
		if !strings.EqualFold(strings.TrimRight(string(name), " \t"), "Content-Transfer-Encoding") {
			kept = append(kept, field)
			continue
		}
		if set != nil {
			kept = append(kept, set)
			set = nil
		}
	}
	if _, is := e.field("MIME-Version"); top && !is {
		kept = append(kept, []byte("MIME-Version: 1.0\r\n"))
		if !typed {
			kept = append(kept, []byte("Content-Type: text/plain; charset="+charset(e.body)+"\r\n"))
		}
	}
	if set != nil {
		kept = append(kept, set)
	}
	e.fields = kept
}
