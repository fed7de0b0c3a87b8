package smtp

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/postrider/postrider/pkg/mail"
)

// Size limits of a path, in octets: RFC 5321 §4.5.3.1. Its 64 octets of a
// local-part are what everybody has to take, and no limit of ours: addresses that
// programs make, to reply to or to bounce to, are longer.
const (
	MaxDomain = 255
	MaxPath   = 256 // with the angle brackets, without a source route
	maxLabel  = 63
)

// The ways in which a path breaks the grammar of RFC 5321 §4.1.2, §4.1.3 and
// §4.5.3.1.
var (
	ErrPath       = errors.New("malformed path")
	ErrNoDomain   = errors.New("address without a domain")
	ErrDomain     = errors.New("malformed domain")
	ErrLiteral    = errors.New("malformed address literal")
	ErrLongDomain = errors.New("domain over 255 octets")
	ErrLongPath   = errors.New("path over 256 octets")
	ErrInvisible  = errors.New("a character that nobody sees in an address")
	ErrNonASCII   = errors.New("address is not ASCII and SMTPUTF8 was not given")
)

// Postmaster is the forward-path of "RCPT TO:<Postmaster>", which has no
// domain: RFC 5321 §4.1.1.3, §4.5.1. It stands for the postmaster of the
// server itself.
const Postmaster mail.ForwardPath = "postmaster"

// ParseReversePath reads the path at the beginning of s, "<...>" with its
// brackets, and returns the mailbox in canonical form and what follows.
//
// In the canonical form a source route is gone (RFC 5321 §3.6.1, appendix
// C), a local-part is quoted only where it must be (§4.1.2), and an IPv6
// literal is in its shortest form. Letters keep their case. Octets outside
// ASCII are allowed only when nonASCII is true (RFC 6531 §3.3).
func ParseReversePath(s string, nonASCII bool) (path mail.ReversePath, rest string, err error) {
	if rest, ok := strings.CutPrefix(s, "<>"); ok { // RFC 5321 §4.5.5
		return "", rest, nil
	}
	mailbox, rest, err := parsePath(s, nonASCII)
	return mail.ReversePath(mailbox), rest, err
}

// ParseForwardPath is as ParseReversePath for the path of RCPT: never null,
// and Postmaster in any case of letters needs no domain.
func ParseForwardPath(s string, nonASCII bool) (path mail.ForwardPath, rest string, err error) {
	const bare = "<postmaster>"
	if len(s) >= len(bare) && strings.EqualFold(s[:len(bare)], bare) {
		return Postmaster, s[len(bare):], nil
	}
	mailbox, rest, err := parsePath(s, nonASCII)
	return mail.ForwardPath(mailbox), rest, err
}

// parsePath reads "<" [ A-d-l ":" ] Mailbox ">".
func parsePath(s string, nonASCII bool) (mailbox, rest string, err error) {
	p := pathParser{s: s, nonASCII: nonASCII}
	if !p.take('<') {
		return "", "", ErrPath
	}
	if err := p.sourceRoute(); err != nil {
		return "", "", err
	}
	local, err := p.localPart()
	if err != nil {
		return "", "", err
	}
	if p.at('>') {
		return "", "", ErrNoDomain
	}
	if !p.take('@') {
		return "", "", p.refuse(ErrPath)
	}
	domain, err := p.domain()
	if err != nil {
		return "", "", err
	}
	if !p.take('>') {
		return "", "", p.refuse(ErrPath)
	}
	mailbox = local + "@" + domain
	if len(mailbox) > MaxPath-len("<>") {
		return "", "", ErrLongPath
	}
	return mailbox, p.s[p.i:], nil
}

// pathParser reads a path from s, of which s[:i] is done.
type pathParser struct {
	s        string
	i        int
	nonASCII bool
}

func (p *pathParser) at(c byte) bool { return p.i < len(p.s) && p.s[p.i] == c }

func (p *pathParser) take(c byte) bool {
	if !p.at(c) {
		return false
	}
	p.i++
	return true
}

// refuse returns why the octet at i does not fit: err, ErrNonASCII or
// ErrInvisible.
func (p *pathParser) refuse(err error) error {
	if p.i == len(p.s) || p.s[p.i] < utf8.RuneSelf {
		return err
	}
	if !p.nonASCII {
		return ErrNonASCII
	}
	if r, _ := utf8.DecodeRuneInString(p.s[p.i:]); mail.Invisible(r) {
		return fmt.Errorf("%w: %U", ErrInvisible, r)
	}
	return err
}

// run takes octets that are in the class, and valid UTF-8 where it is
// allowed.
func (p *pathParser) run(in func(byte) bool) string {
	start := p.i
	for p.i < len(p.s) {
		c := p.s[p.i]
		if c < utf8.RuneSelf {
			if !in(c) {
				break
			}
			p.i++
			continue
		}
		r, size := utf8.DecodeRuneInString(p.s[p.i:])
		// RFC 6531 §3.3 allows all of UTF8-non-ascii. What nobody sees has come
		// from a web page or a spreadsheet, and is no part of a mailbox.
		if !p.nonASCII || r == utf8.RuneError && size == 1 || mail.Invisible(r) && !p.joins(r, size) {
			break
		}
		p.i += size
	}
	return p.s[start:p.i]
}

// joins reports whether the character at i, which nobody sees, joins two
// letters outside ASCII, as some scripts need it: RFC 5892 appendix A.1.
func (p *pathParser) joins(r rune, size int) bool {
	if r != '\u200c' && r != '\u200d' {
		return false
	}
	before, _ := utf8.DecodeLastRuneInString(p.s[:p.i])
	behind, _ := utf8.DecodeRuneInString(p.s[p.i+size:])
	letter := func(r rune) bool { return r >= utf8.RuneSelf && r != utf8.RuneError && !mail.Invisible(r) }
	return letter(before) && letter(behind)
}

// sourceRoute passes over "@a,@b:". RFC 5321 §4.1.1.3: accepted and ignored.
func (p *pathParser) sourceRoute() error {
	if !p.at('@') {
		return nil
	}
	for {
		if !p.take('@') {
			return p.refuse(ErrPath)
		}
		if _, err := p.domain(); err != nil {
			return err
		}
		if p.take(':') {
			return nil
		}
		if !p.take(',') {
			return p.refuse(ErrPath)
		}
	}
}

// localPart reads Dot-string or Quoted-string: RFC 5321 §4.1.2. Dots may also
// stand first, last or side by side, as in addresses that mobile operators of
// Japan gave out: the local-part is quoted then.
func (p *pathParser) localPart() (string, error) {
	if p.at('"') {
		content, err := p.quotedString()
		return quoteLocalPart(content), err
	}
	content := p.run(func(c byte) bool { return isAtext(c) || c == '.' })
	if strings.Trim(content, ".") == "" {
		return "", p.refuse(ErrPath)
	}
	return quoteLocalPart(content), nil
}

// quotedString reads a Quoted-string and returns what it stands for.
func (p *pathParser) quotedString() (string, error) {
	p.i++ // the quote
	var content strings.Builder
	for {
		content.WriteString(p.run(isQtext))
		switch {
		case p.take('"'):
			return content.String(), nil
		case p.take('\\') && p.i < len(p.s) && p.s[p.i] >= ' ' && p.s[p.i] <= '~':
			content.WriteByte(p.s[p.i])
			p.i++
		default:
			return "", p.refuse(ErrPath)
		}
	}
}

// quoteLocalPart returns content as a local-part with as little quoting as
// possible: RFC 5321 §4.1.2.
func quoteLocalPart(content string) string {
	if isDotString(content) {
		return content
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(content) {
		if c := content[i]; c == '"' || c == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(content[i])
	}
	b.WriteByte('"')
	return b.String()
}

func isDotString(s string) bool {
	for atom := range strings.SplitSeq(s, ".") {
		if atom == "" {
			return false
		}
		for i := range len(atom) {
			if c := atom[i]; c < utf8.RuneSelf && !isAtext(c) {
				return false
			}
		}
	}
	return true
}

// domain reads Domain or address-literal: RFC 5321 §4.1.2, §4.1.3.
func (p *pathParser) domain() (string, error) {
	if p.at('[') {
		return p.literal()
	}
	name := p.run(isDomainOctet)
	if name == "" {
		return "", p.refuse(ErrDomain)
	}
	if p.i < len(p.s) && p.s[p.i] >= utf8.RuneSelf {
		return "", p.refuse(ErrDomain)
	}
	return name, checkDomain(name)
}

// checkDomain checks the sub-domains of a name. An underscore passes, as DNS
// has such names and users mail to them.
func checkDomain(name string) error {
	if len(name) > MaxDomain {
		return ErrLongDomain
	}
	ascii := true
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' || len(label) > maxLabel {
			return ErrDomain
		}
		for i := range len(label) {
			ascii = ascii && label[i] < utf8.RuneSelf
		}
	}
	if ascii {
		return nil
	}
	if _, err := mail.ParseDomain(name); err != nil { // RFC 6531 §3.3: U-labels of IDNA
		return ErrDomain
	}
	return nil
}

// literal reads an address literal. Of the tagged forms only IPv6 is
// registered (RFC 5321 §4.1.3), so no other has a meaning.
func (p *pathParser) literal() (string, error) {
	end := strings.IndexByte(p.s[p.i:], ']')
	if end < 0 {
		return "", ErrLiteral
	}
	text := p.s[p.i+1 : p.i+end]
	canonical, ok := canonicalLiteral(text)
	if !ok {
		return "", ErrLiteral
	}
	p.i += end + 1
	return canonical, nil
}

func canonicalLiteral(text string) (string, bool) {
	const tag = "IPv6:"
	if len(text) > len(tag) && strings.EqualFold(text[:len(tag)], tag) {
		address, err := netip.ParseAddr(text[len(tag):])
		if err != nil || !address.Is6() || address.Zone() != "" {
			return "", false
		}
		return "[" + tag + address.String() + "]", true
	}
	address, ok := parseIPv4(text)
	return "[" + address.String() + "]", ok
}

// parseIPv4 reads IPv4-address-literal of RFC 5321 §4.1.3, whose numbers are
// decimal also when they begin with a zero.
func parseIPv4(text string) (netip.Addr, bool) {
	var octets [4]byte
	rest := text
	for i := range octets {
		digits, more, dot := strings.Cut(rest, ".")
		n, err := strconv.ParseUint(digits, 10, 8)
		if err != nil || len(digits) > 3 || digits[0] == '+' || dot != (i < len(octets)-1) {
			return netip.Addr{}, false
		}
		octets[i], rest = byte(n), more
	}
	return netip.AddrFrom4(octets), true
}

// ParseHello checks the argument of EHLO or HELO: a domain or an address
// literal (RFC 5321 §4.1.1.1). It reports whether the text is one.
func ParseHello(s string) bool {
	p := pathParser{s: s}
	_, err := p.domain()
	return err == nil && p.i == len(s)
}

// CleanHello returns the name that a client gives in EHLO or HELO as it may
// stand in a trace field. Clients say what their computer is called, whether it
// is a domain or not, and are not refused for it (RFC 5321 §4.1.4): what has
// a meaning in a field, and what is not ASCII, becomes "?", as with Postfix. ok
// is false for no name, and for blanks and controls, with which it would be
// more than one word.
func CleanHello(s string) (name string, ok bool) {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f && r < 0xa0 }) {
		return "", false
	}
	name = strings.Map(func(r rune) rune {
		if r >= utf8.RuneSelf || strings.ContainsRune(`()<>\";,@`, r) {
			return '?'
		}
		return r
	}, s)
	return name[:min(len(name), MaxDomain)], true
}

// isAtext: RFC 5322 §3.2.3.
func isAtext(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}

// isQtext is qtextSMTP: RFC 5321 §4.1.2.
func isQtext(c byte) bool { return c >= ' ' && c <= '~' && c != '"' && c != '\\' }

func isDomainOctet(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_'
}
