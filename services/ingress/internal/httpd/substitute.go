package httpd

import (
	"html"
	"regexp"
	"strings"
)

// placeholder is {{name}}. Other braces are text.
var placeholder = regexp.MustCompile(`\{\{\s*([A-Za-z0-9_.-]{1,64})\s*\}\}`)

func asIs(value string) string { return value }

func escapeHTML(value string) string { return html.EscapeString(value) }

// substitute replaces the placeholders that have a value. What a value
// contains is text: it is not looked at again.
func substitute(text string, value func(name string) (string, bool), escape func(string) string) string {
	if !strings.Contains(text, "{{") {
		return text
	}
	return placeholder.ReplaceAllStringFunc(text, func(found string) string {
		v, ok := value(placeholder.FindStringSubmatch(found)[1])
		if !ok {
			return found
		}
		return escape(v)
	})
}
