package mend

import (
	"mime"
	"strings"
)

// media is what a Content-Type says: RFC 2045 §5.1.
type media struct{ kind, boundary string }

// parseMedia reads the value of a Content-Type as readers do that are not
// strict, for programs write parameters without a semicolon, without quotes,
// or with nothing. A type that cannot be read is text (RFC 2045 §5.2).
func parseMedia(value string) (media, bool) {
	if kind, parameters, err := mime.ParseMediaType(value); err == nil {
		return media{kind, parameters["boundary"]}, true
	}
	m := media{kind: "text/plain"}
	pieces := pieces(value)
	kind, rest, _ := strings.Cut(pieces[0], " ")
	if major, minor, ok := strings.Cut(kind, "/"); ok && major != "" && minor != "" {
		m.kind = strings.ToLower(kind)
	}
	for _, piece := range append([]string{rest}, pieces[1:]...) {
		name, value, _ := strings.Cut(piece, "=")
		if value = unquote(strings.TrimSpace(value)); !strings.EqualFold(strings.TrimSpace(name), "boundary") || value == "" {
			continue
		}
		if m.boundary != "" && m.boundary != value { // readers do not agree
			return m, false
		}
		m.boundary = value
	}
	return m, true
}

// pieces cuts a value at its semicolons, without comments and with one space
// for any blanks. A quote that does not end goes to the end.
func pieces(value string) []string {
	var all []string
	var b strings.Builder
	depth, quoted := 0, false
	for i := 0; i < len(value); i++ {
		switch c := value[i]; {
		case c == '\\' && (quoted || depth > 0) && i+1 < len(value):
			if depth == 0 {
				b.WriteString(value[i : i+2])
			}
			i++
		case c == '"' && depth == 0:
			quoted = !quoted
			b.WriteByte(c)
		case quoted:
			b.WriteByte(c)
		case c == '(':
			depth++
		case c == ')' && depth > 0:
			depth--
		case depth > 0:
		case c == ';':
			all = append(all, strings.TrimSpace(b.String()))
			b.Reset()
		case c == '\t' || c == ' ':
			if b.Len() > 0 && !strings.HasSuffix(b.String(), " ") {
				b.WriteByte(' ')
			}
		default:
			b.WriteByte(c)
		}
	}
	return append(all, strings.TrimSpace(b.String()))
}

// unquote returns what stands in quotes, which may not end.
func unquote(text string) string {
	text, quoted := strings.CutPrefix(text, `"`)
	if !quoted {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text) && text[i] != '"'; i++ {
		if text[i] == '\\' && i+1 < len(text) {
			i++
		}
		b.WriteByte(text[i])
	}
	return b.String()
}

// parseEncoding reads the value of a Content-Transfer-Encoding: RFC 2045 §6.1.
// "" is an encoding that changes nothing, and what is none at all: readers
// take such a body as it is.
func parseEncoding(value string) string {
	text := strings.Trim(strings.ToLower(pieces(value)[0]), `" `)
	text, _, _ = strings.Cut(text, " ")
	switch {
	case text == "quoted-printable", text == "base64":
		return text
	case strings.HasPrefix(text, "x-"), strings.HasPrefix(text, "uu"), strings.HasPrefix(text, "yenc"), strings.HasPrefix(text, "binhex"):
		return text
	}
	return ""
}
