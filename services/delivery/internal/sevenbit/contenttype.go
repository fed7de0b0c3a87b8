package sevenbit

import "strings"

// parseContentType reads the value of a Content-Type: the type in lower case
// and the boundary, without white space at its end. What makes no sense is
// text/plain, RFC 2045 §5.2.
func parseContentType(value string) (types, boundary string) {
	parameters := splitParameters(withoutComments(value))
	types = strings.ToLower(strings.Join(strings.Fields(parameters[0]), ""))
	if major, minor, found := strings.Cut(types, "/"); !found || major == "" || minor == "" {
		return "text/plain", ""
	}
	for _, p := range parameters[1:] {
		name, text, _ := strings.Cut(p, "=")
		if strings.EqualFold(strings.TrimSpace(name), "boundary") {
			return types, strings.TrimRight(unquote(strings.TrimSpace(text)), " \t")
		}
	}
	return types, ""
}

// splitParameters splits at the semicolons that are in no quoted string.
func splitParameters(value string) (parts []string) {
	begin := 0
	quoted(value, func(i int, inside bool) {
		if value[i] == ';' && !inside {
			parts = append(parts, value[begin:i])
			begin = i + 1
		}
	})
	return append(parts, value[begin:])
}

// withoutComments removes comments, RFC 5322 §3.2.2, and line ends.
func withoutComments(value string) string {
	var b strings.Builder
	depth := 0
	quoted(value, func(i int, inside bool) {
		switch c := value[i]; {
		case c == '\r' || c == '\n':
		case c == '(' && !inside:
			depth++
		case c == ')' && !inside && depth > 0:
			depth--
		case depth == 0:
			b.WriteByte(c)
		}
	})
	return b.String()
}

// quoted calls see for each octet and says whether it is part of a quoted
// string.
func quoted(value string, see func(i int, inside bool)) {
	inside := false
	for i := 0; i < len(value); i++ {
		switch {
		case value[i] == '\\' && inside && i+1 < len(value):
			see(i, true)
			i++
			see(i, true)
		case value[i] == '"':
			see(i, true)
			inside = !inside
		default:
			see(i, inside)
		}
	}
}

func unquote(text string) string {
	if !strings.HasPrefix(text, `"`) {
		token, _, _ := strings.Cut(text, " ")
		return token
	}
	var b strings.Builder
	for i := 1; i < len(text) && text[i] != '"'; i++ {
		if text[i] == '\\' && i+1 < len(text) {
			i++
		}
		b.WriteByte(text[i])
	}
	return b.String()
}
