package httpd

import (
	"html"
	"strings"
)

// values gives what stands for {{name}}.
type values func(name string) (value string, ok bool)

func asIs(value string) string { return value }

func escapeHTML(value string) string { return html.EscapeString(value) }

// escapedLen is the length of escapeHTML(value).
func escapedLen(value string) int {
	n := len(value)
	for i := range len(value) {
		switch value[i] {
		case '<', '>': // &lt;
			n += len("lt;")
		case '&', '\'', '"': // &amp;
			n += len("amp;")
		}
	}
	return n
}

// placeholder finds the first {{name}}, with white space around the name: what
// is before it, its length, and the name. Other braces are text.
func placeholder(text string) (before, length int, name string) {
	for at := 0; ; at++ {
		i := strings.Index(text[at:], "{{")
		if i < 0 {
			return len(text), 0, ""
		}
		at += i
		inner := strings.TrimLeft(text[at+len("{{"):], "\t\n\f\r ")
		n := 0
		for n < len(inner) && n <= maxPlaceholder && isName(inner[n]) {
			n++
		}
		behind := strings.TrimLeft(inner[n:], "\t\n\f\r ")
		if n > 0 && n <= maxPlaceholder && strings.HasPrefix(behind, "}}") {
			return at, len(text) - at - len(behind) + len("}}"), inner[:n]
		}
	}
}

const maxPlaceholder = 64

func isName(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || strings.IndexByte("_.-", c) >= 0
}

// filledLen is how long text becomes with its values, where each placeholder
// takes at least its own length: so it bounds the work of substitute, too. It
// looks no further than to atMost.
func filledLen(text string, of values, length func(string) int, atMost int) (n int) {
	for n <= atMost {
		before, length1, name := placeholder(text)
		n += before
		if length1 == 0 {
			break
		}
		value, _ := of(name)
		n += max(length1, length(value))
		text = text[before+length1:]
	}
	return n
}

// substitute replaces the placeholders that have a value. What a value
// contains is text: it is not looked at again.
func substitute(text string, of values, escape func(string) string) string {
	if before, length, _ := placeholder(text); length == 0 && before == len(text) {
		return text
	}
	var b strings.Builder
	for {
		before, length, name := placeholder(text)
		b.WriteString(text[:before])
		if length == 0 {
			return b.String()
		}
		if value, ok := of(name); ok {
			b.WriteString(escape(value))
		} else {
			b.WriteString(text[before : before+length])
		}
		text = text[before+length:]
	}
}
