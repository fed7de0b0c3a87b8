package auth

import (
	"fmt"
	"strings"

	"github.com/postrider/postrider/pkg/mail"
)

// Patterns say which addresses a client may send from. Each is, in the form
// that ParsePattern returns, "user@example.com", "example.com" (every
// address in this domain), "*.example.com" (in every domain below it, not in
// itself), or "*".
type Patterns []string

// ParsePattern returns the canonical form of a pattern: its domain in
// lower-case A-labels. Errors: no domain, or one that mail.ParseDomain
// refuses.
func ParsePattern(text string) (string, error) {
	if text == "*" {
		return text, nil
	}
	local, domain, found := cutAddress(text)
	if found && local == "" {
		return "", fmt.Errorf("%q: no local-part before @", text)
	}
	below := ""
	if !found {
		if rest, wild := strings.CutPrefix(domain, "*."); wild {
			below, domain = "*.", rest
		}
	}
	if strings.ContainsAny(domain, "* \t\r\n") {
		return "", fmt.Errorf("%q: want user@example.com, example.com, *.example.com or *", text)
	}
	d, err := mail.ParseDomain(domain)
	if err != nil {
		return "", err
	}
	if found {
		return local + "@" + string(d), nil
	}
	return below + string(d), nil
}

// Match reports whether one of the patterns allows the address, which stands
// without angle brackets. Local-parts are compared without regard to the case
// of ASCII letters, and by what they stand for when they are in quotes: whoever
// owns a mailbox owns its spellings.
func (p Patterns) Match(address string) bool {
	local, domain, found := cutAddress(address)
	d, err := mail.ParseDomain(domain)
	if !found || local == "" || err != nil {
		return false
	}
	for _, pattern := range p {
		if matches(pattern, local, string(d)) {
			return true
		}
	}
	return false
}

func matches(pattern, local, domain string) bool {
	if pattern == "*" {
		return true
	}
	if below, wild := strings.CutPrefix(pattern, "*."); wild {
		return strings.HasSuffix(domain, "."+below)
	}
	l, d, found := cutAddress(pattern)
	return d == domain && (!found || Fold(unquote(l)) == Fold(unquote(local)))
}

// unquote returns what a local-part stands for: "a" in quotes and a are one
// (RFC 5321 §4.1.2).
func unquote(local string) string {
	if len(local) < 2 || local[0] != '"' || local[len(local)-1] != '"' {
		return local
	}
	var b strings.Builder
	for i := 1; i < len(local)-1; i++ {
		if local[i] == '\\' && i+1 < len(local)-1 {
			i++
		}
		b.WriteByte(local[i])
	}
	return b.String()
}

// cutAddress splits at the last "@": a domain has none, a quoted local-part
// may. Without one, all is domain.
func cutAddress(address string) (local, domain string, found bool) {
	i := strings.LastIndexByte(address, '@')
	if i < 0 {
		return "", address, false
	}
	return address[:i], address[i+1:], true
}

// Fold makes texts equal that differ in the case of ASCII letters, and no
// others: the Kelvin sign is not a "k". Names of credentials and local-parts are
// compared so, whatever the locale of Postgres says.
func Fold(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}
