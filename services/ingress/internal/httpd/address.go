package httpd

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
)

// address is a mailbox that has passed the grammar.
type address struct {
	text   string // canonical: as it stands in paths and header fields
	domain mail.Domain
	utf8   bool // needs RFC 6531
}

// parseAddress reads local-part, "@" and domain: RFC 5321 §4.1.2. An
// international domain becomes A-labels, unless the local-part is not ASCII
// either: then every host on the way must know SMTPUTF8 anyway.
func parseAddress(text string) (address, error) {
	if strings.HasPrefix(text, "@") { // a source route
		return address{}, smtp.ErrPath
	}
	path, rest, err := smtp.ParseForwardPath("<"+text+">", true)
	switch {
	case err != nil:
		return address{}, err
	case rest != "":
		return address{}, smtp.ErrPath
	case path == smtp.Postmaster:
		return address{}, smtp.ErrNoDomain
	}
	domain, err := mail.ParseDomain(path.DomainText())
	if err != nil {
		return address{}, err
	}
	local := string(path)[:len(path)-len(path.DomainText())]
	a := address{text: string(path), domain: domain, utf8: !isASCII(local)}
	if !a.utf8 && !isASCII(path.DomainText()) {
		a.text = local + string(domain)
	}
	if len(a.text) > smtp.MaxPath-len("<>") {
		return address{}, smtp.ErrLongPath
	}
	return a, nil
}

// headerText reports why text cannot stand in a header field: "" if it can.
// A line break would begin another field.
func headerText(text string) string {
	for _, r := range text {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return fmt.Sprintf("control character %U", r)
		}
	}
	return ""
}

func isASCII[T ~string | ~[]byte](s T) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
