package dsn

import (
	"bytes"
	"mime"
	"mime/quotedprintable"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxAddress = 900  // bytes of an address, envelope id or host name in a field
	maxReply   = 1000 // bytes of a reply, its lines joined
	lineWidth  = 76   // where fields and text are folded, if they can be
	// RFC 5322 §2.1.1: a line has at most 998 bytes. A word that is longer
	// than this is cut.
	maxWord = 900
)

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(c rune) bool { return c >= utf8.RuneSelf }) < 0
}

// oneLine makes text that others wrote fit for one line of ours: what is not
// printable becomes a space, what is not UTF-8 a U+FFFD, and it ends after
// limit bytes.
func oneLine(text string, limit int) string {
	clean := strings.Map(func(c rune) rune {
		if c == utf8.RuneError || unicode.IsPrint(c) {
			return c
		}
		return ' '
	}, text)
	return strings.TrimSpace(truncate(clean, limit))
}

// asciiLine is oneLine for what can only be ASCII, such as an envelope id.
func asciiLine(text string) string {
	return strings.Map(func(c rune) rune {
		if c >= utf8.RuneSelf {
			return '?'
		}
		return c
	}, oneLine(text, maxAddress))
}

// truncate ends text after at most limit bytes, between two runes.
func truncate(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	for limit > 0 && !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit]
}

// fold writes first and the words of text, in lines that each begin with
// indent and are of lineWidth where the words allow it.
func fold(first, indent, text string) string {
	var b strings.Builder
	b.WriteString(first)
	width := len(first)
	fresh := true // no word stands on this line yet
	for word := range strings.FieldsSeq(text) {
		for len(word) > 0 {
			piece := truncate(word, maxWord)
			word = word[len(piece):]
			if !fresh && width+1+len(piece) > lineWidth {
				b.WriteString("\r\n" + indent)
				width, fresh = len(indent), true
			}
			if !fresh {
				b.WriteByte(' ')
				width++
			}
			b.WriteString(piece)
			width += len(piece)
			fresh = false
		}
	}
	b.WriteString("\r\n")
	return b.String()
}

// fieldText prepares unstructured text for a field of ASCII: RFC 3464 §2.1.1
// has it in encoded-words (RFC 2047). A text that only looks like one is
// broken up, since a reader would decode it.
func fieldText(text string) string {
	return mime.QEncoding.Encode("utf-8", strings.ReplaceAll(text, "=?", "= ?"))
}

// width says which transfer a body can stand as it is: RFC 2045 §2.7-2.9.
type width int

const (
	sevenBit width = iota
	eightBit
	binary
)

func widthOf(body []byte) width {
	w := sevenBit
	line := 0
	for i, c := range body {
		switch {
		case c == '\n' && i > 0 && body[i-1] == '\r':
			line = 0
			continue
		case c == '\r' && i+1 < len(body) && body[i+1] == '\n':
			continue
		case c == 0, c == '\r', c == '\n':
			return binary
		case c >= utf8.RuneSelf:
			w = eightBit
		}
		if line++; line > 998 {
			return binary
		}
	}
	return w
}

// encode chooses the Content-Transfer-Encoding of a body and applies it.
// RFC 6532 §3.5 and RFC 6533 §6 allow one for the "global" types too.
func encode(body []byte, allowEightBit bool) (encoding string, encoded []byte) {
	switch w := widthOf(body); {
	case w == sevenBit:
		return "7bit", body
	case w == eightBit && allowEightBit:
		return "8bit", body
	case w == binary:
		body = wholeLines(body)
	}
	var b bytes.Buffer
	q := quotedprintable.NewWriter(&b)
	q.Write(body) //nolint:errcheck // neither fails: a bytes.Buffer takes everything
	q.Close()
	return "quoted-printable", b.Bytes()
}

// wholeLines makes a lone CR or LF a line ending, since quoted-printable text
// knows no other.
func wholeLines(body []byte) []byte {
	body = bytes.ReplaceAll(body, []byte("\r\n"), []byte("\n"))
	body = bytes.ReplaceAll(body, []byte("\r"), []byte("\n"))
	return bytes.ReplaceAll(body, []byte("\n"), []byte("\r\n"))
}
