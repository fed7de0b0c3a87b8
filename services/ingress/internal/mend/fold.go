package mend

import (
	"bytes"
	"mime"
	"strings"
	"unicode/utf8"

	"github.com/postrider/postrider/services/ingress/internal/compose"
)

// fold breaks the long lines of a field: before white space (RFC 5322 §2.2.3),
// between addresses or identifiers, or, in text that has nothing of it, by
// encoding it (RFC 2047).
func fold(field []byte) []byte {
	folded := breakLines(field, beforeBlank)
	if !long(folded) {
		return folded
	}
	name, value, _ := strings.Cut(string(field), ":")
	switch name = strings.ToLower(strings.TrimRight(name, " \t")); {
	case compose.IsList(name):
		return breakLines(folded, behindAddress)
	case strings.HasPrefix(name, "list-"): // RFC 2369 §2: white space in the brackets is nothing
		return breakLines(folded, inBrackets)
	case name == "thread-index": // base64
		return breakLines(folded, func(line []byte) int { return len(line) })
	case name == "references", name == "in-reply-to":
		return breakLines(folded, betweenIDs)
	case name == "subject", name == "comments", name == "content-description", strings.HasPrefix(name, "x-") && !strings.Contains(name, "signature"):
		if text, ok := readText(value); ok {
			return encodeField(field[:len(field)-len(value)], text)
		}
	}
	return folded
}

// breakLines breaks lines where at says, as late as it can be. at returns 0
// where there is no such place.
func breakLines(field []byte, at func(line []byte) int) []byte {
	var out []byte
	for begin := 0; begin < len(field); {
		end := lineEnd(field, begin)
		line, indent := field[begin:end], 0
		for len(bytes.TrimSuffix(line, crlf)) > maxLine-indent {
			i := at(line[:maxLine-indent])
			// A line of white space alone is none: RFC 5322 §2.2.3.
			if i <= 0 || len(bytes.TrimSpace(line[:i])) == 0 || len(bytes.TrimSpace(line[i:])) == 0 {
				break
			}
			out = append(out, " "[:indent]...)
			out = append(append(out, line[:i]...), crlf...)
			if line, indent = line[i:], 0; line[0] != ' ' && line[0] != '\t' {
				indent = 1
			}
		}
		out = append(out, " "[:indent]...)
		out = append(out, line...)
		begin = end
	}
	return out
}

func beforeBlank(line []byte) int { return bytes.LastIndexAny(line[1:], " \t") + 1 }

// behindAddress returns the end of the last comma between addresses, or of what
// some write for it. A quote or a parenthesis that does not end in the line has
// what follows it together.
func behindAddress(line []byte) (at int) {
	quoted, depth := false, 0
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\':
			i++
		case c == '"' && depth == 0:
			quoted = !quoted
		case quoted:
		case c == '(':
			depth++
		case c == ')' && depth > 0:
			depth--
		case (c == ',' || c == ';') && depth == 0:
			at = i + 1
		}
	}
	return at
}

// inBrackets returns the last place between angle brackets.
func inBrackets(line []byte) int {
	if open, end := bytes.LastIndexByte(line, '<'), bytes.LastIndexByte(line, '>'); open < end {
		return end
	}
	return len(line)
}

// betweenIDs returns where the last identifier begins: RFC 5322 §3.6.4.
func betweenIDs(line []byte) int { return bytes.LastIndex(line, []byte("><")) + 1 }

// readText returns what an unstructured value says, with the encoded-words in
// it decoded; !ok: they are in a charset of which that is not known here.
func readText(value string) (text string, ok bool) {
	text = strings.TrimSpace(strings.ReplaceAll(value, "\r\n", ""))
	if strings.Contains(text, "=?") {
		decoded, err := new(mime.WordDecoder).DecodeHeader(text)
		if err != nil {
			return "", false
		}
		text = decoded
	}
	return text, utf8.ValidString(text) && !strings.ContainsAny(text, "\r\n\x00")
}

// encodeField appends text to name and colon, one encoded-word a line: RFC
// 2047 §2.
func encodeField(name []byte, text string) []byte {
	out := bytes.Clone(name)
	for word := range strings.SplitSeq(compose.EncodedWords(text), " ") {
		if len(out) > len(name) {
			out = append(out, crlf...)
		}
		out = append(append(out, ' '), word...)
	}
	return append(out, crlf...)
}
