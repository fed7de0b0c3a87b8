package mail

import (
	"fmt"
	"strings"
	"unicode"

	"golang.org/x/net/idna"
)

// ReversePath is the mailbox that reports go to, without the angle brackets:
// RFC 5321 §4.1.1.2. The zero value is the null reverse-path "<>". Its text
// has passed the grammar of package smtp.
type ReversePath string

// IsNull reports whether the path is "<>": RFC 5321 §4.5.5.
func (p ReversePath) IsNull() bool { return p == "" }

// String returns the path in angle brackets, as on the wire.
func (p ReversePath) String() string { return "<" + string(p) + ">" }

// ForwardPath is the mailbox of one recipient, without the angle brackets
// and without a source route: RFC 5321 §4.1.1.3. Its text has passed the
// grammar of package smtp.
type ForwardPath string

// String returns the path in angle brackets, as on the wire.
func (p ForwardPath) String() string { return "<" + string(p) + ">" }

// DomainText returns the part behind the last "@" as the client wrote it, or
// "" if there is none. A domain has no "@", so a quoted local-part that has
// one does no harm.
func (p ForwardPath) DomainText() string { return domainText(string(p)) }

// DomainText is as ForwardPath.DomainText.
func (p ReversePath) DomainText() string { return domainText(string(p)) }

func domainText(path string) string {
	at := strings.LastIndexByte(path, '@')
	if at < 0 {
		return ""
	}
	return path[at+1:]
}

// Domain is a domain name in lower-case A-label form without a final dot, or
// an address literal such as "[192.0.2.1]". It is what routes and limits are
// looked up by.
type Domain string

// IsLiteral reports whether d is an address literal: RFC 5321 §4.1.3.
func (d Domain) IsLiteral() bool { return strings.HasPrefix(string(d), "[") }

// names converts U-labels without refusing names that DNS allows and IDNA
// does not, such as those with an underscore.
var names = idna.New(idna.MapForLookup(), idna.StrictDomainName(false), idna.BidiRule())

// ParseDomain returns the domain that text names. Errors: spaces and control
// characters, an @, empty labels, a label over 63 or a name over 255 octets (RFC 5321 §4.5.3.1.2), or a U-label
// that IDNA does not allow.
func ParseDomain(text string) (Domain, error) {
	if strings.HasPrefix(text, "[") {
		return Domain(strings.ToLower(text)), nil
	}
	name := strings.ToLower(strings.TrimSuffix(text, "."))
	if !isASCII(name) {
		a, err := names.ToASCII(name)
		if err != nil {
			return "", fmt.Errorf("domain %q: %w", text, err)
		}
		name = a
	}
	if i := strings.IndexFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '@' }); i >= 0 {
		return "", fmt.Errorf("domain %q: %q is not of a domain", text, name[i])
	}
	if name == "" || len(name) > 255 {
		return "", fmt.Errorf("domain %q: length %d, want 1 to 255", text, len(name))
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return "", fmt.Errorf("domain %q: label of length %d, want 1 to 63", text, len(label))
		}
	}
	return Domain(name), nil
}

// Invisible reports whether nobody sees the character, though it is there:
// controls, format characters (U+200B, U+202E, U+FEFF), blanks other than the
// space, and letters that are blank.
func Invisible(r rune) bool {
	switch r {
	case ' ':
		return false
	case '\u115f', '\u1160', '\u2800', '\u3164', '\uffa0':
		return true
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Z)
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
