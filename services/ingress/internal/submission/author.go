package submission

import (
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	netmail "net/mail"
	"regexp"
	"strconv"
	"strings"
)

// Authorize reports whether the client may name whoever the header section
// names as author or sender: may says of an address whether it may. There is
// one From field (RFC 5322 §3.6.2) and at most one Sender. Every address that
// some reader could find in these fields and in Resent-From, Resent-Sender
// must be one of the client's. Errors: *Refusal.
func (h *Header) Authorize(may func(addresses ...string) bool) error {
	switch from, sender := h.count("From"), h.count("Sender"); {
	case from == 0:
		return refuse(NoAuthor, "need one From field, and there is none")
	case from > 1:
		return refuse(NoAuthor, "need one From field, and there are %d", from)
	case sender > 1:
		return refuse(NoAuthor, "need at most one Sender field, and there are %d", sender)
	}
	for _, a := range h.authors {
		found, why := addresses(a.value)
		if why == "" && len(found) == 0 {
			why = "no address"
		}
		if why != "" {
			return refuse(NoAuthor, "%s: %s", a.name, why)
		}
		for _, address := range found {
			if !may(address) {
				return refuse(Forbidden, "%s names %+.100q, and you may not send from this address", a.name, address)
			}
		}
	}
	return nil
}

// count returns how many fields of the name there are.
func (h *Header) count(name string) (n int) {
	for _, a := range h.authors {
		if strings.EqualFold(a.name, name) {
			n++
		}
	}
	return n
}

// Author returns the address that reports go to when the client names none:
// that of Sender, else the first of From. "" if there is none.
func (h *Header) Author() string {
	for _, name := range []string{"Sender", "From"} {
		for _, a := range h.authors {
			if !strings.EqualFold(a.name, name) {
				continue
			}
			if boxes, err := strict.ParseList(a.value); err == nil && len(boxes) > 0 {
				return requote(boxes[0].Address)
			}
			if found, _ := addresses(a.value); len(found) > 0 {
				return found[len(found)-1] // the one in angle brackets stands behind the name
			}
		}
	}
	return ""
}

// Stranger returns the address in angle brackets, if there is one in a display
// name, that is not one of the client's; or the name, if it cannot be told.
func Stranger(name string, may func(addresses ...string) bool) string {
	s := &scan{}
	s.read(name, quoted)
	for _, address := range s.found {
		if !may(address) {
			return address
		}
	}
	if s.why != "" {
		return name
	}
	return ""
}

// strict reads addresses by the grammar; what a display name says in which
// charset is nothing to us.
var strict = netmail.AddressParser{WordDecoder: &mime.WordDecoder{
	CharsetReader: func(_ string, text io.Reader) (io.Reader, error) { return text, nil },
}}

// requote gives a local-part the quotes back that net/mail takes away.
func requote(address string) string {
	text := (&netmail.Address{Address: address}).String()
	return strings.TrimSuffix(strings.TrimPrefix(text, "<"), ">")
}

// addresses returns every address that a reader could find in the value of a
// field that should be a list of mailboxes (RFC 5322 §3.4), or why it cannot
// be told. Many a program writes names that should be in quotes: "Acme, Inc.
// <a@example.com>", "a@example.com <a@example.com>". Readers make different
// things of it, so all of them are found: those that the grammar finds, those
// on both sides of every other "@", in comments too, and those in angle
// brackets or lists that come to light when quotes are passed over or
// encoded-words (RFC 2047) decoded before the rest is read. What stands in a
// quoted name without any of that is a name.
func addresses(value string) (found []string, why string) {
	if len(value) > maxAuthor {
		return nil, fmt.Sprintf("longer than %d octets", maxAuthor)
	}
	if !isASCII(value) {
		value = widened.Replace(value)
	}
	s := &scan{}
	s.read(value, text)
	s.decode(value)
	if len(s.found) == 1 && strings.Count(value, "@") == 1 {
		return s.found, s.why // the grammar can find no other
	}
	if boxes, err := strict.ParseList(value); err == nil {
		for _, box := range boxes {
			found = append(found, requote(box.Address))
		}
	}
	return append(found, s.found...), s.why
}

// widened are the characters that some readers take for an "@".
var widened = strings.NewReplacer("\uff20", "@", "\ufe6b", "@")

// What is looked at: more is no field that anybody wrote.
const (
	maxAuthor = 16 << 10 // octets
	maxNested = 10       // comments and quotes in each other
	maxJoined = 10       // pieces of a local-part or domain
	maxOpen   = 3        // quotes and parentheses that do not end
	maxFound  = 500      // addresses
)

// place is where a text stands.
type place int

const (
	text    place = iota // of the field itself
	comment              // in parentheses
	quoted               // in quotes
)

// token is a piece of a field: a run of other characters, what stands in
// quotes, or a special character by itself.
type token struct {
	kind  byte // 'a', 'q', or the character
	text  string
	angle bool // behind "<"
}

// scan finds addresses the way that no reader in particular does.
type scan struct {
	found  []string
	nested int
	open   int
	why    string // not everything could be read
}

func (s *scan) read(value string, in place) {
	if s.nested++; s.nested > maxNested {
		s.why = "comments or quotes too deep in each other"
		return
	}
	defer func() { s.nested-- }()
	tokens := s.tokens(value, in)
	for i, t := range tokens {
		if t.kind == '@' && (in != quoted || t.angle) {
			s.at(tokens, i)
		}
	}
}

// tokens cuts a value into pieces. Comments are read by themselves and left
// out; so is, once more, what stands in quotes.
func (s *scan) tokens(value string, in place) []token {
	var all []token
	angle := false
	run := 0 // where the run began
	flush := func(end int) {
		if run < end {
			all = append(all, token{'a', value[run:end], angle})
		}
	}
	for i := 0; i < len(value); i++ {
		c := value[i]
		if !special(c) && c != ' ' && c != '\t' {
			continue
		}
		flush(i)
		switch c {
		case '"', '(':
			inside, end, closed := enclosed(value, i)
			if !closed { // an inch mark, or half a smiley
				if s.open++; s.open > maxOpen {
					s.why = "quotes or parentheses that do not end"
					return nil
				}
				break
			}
			if c == '"' {
				all = append(all, token{'q', inside, angle})
				s.read(inside, max(quoted, in))
			} else {
				s.read(inside, max(comment, in))
			}
			i = end
		case '<', '>':
			angle = c == '<'
			all = append(all, token{c, "", angle})
		case '@', ',', ';', ':', '[', ']':
			all = append(all, token{c, "", angle})
		}
		run = i + 1
	}
	flush(len(value))
	return all
}

func special(c byte) bool { return strings.IndexByte("\"()<>@,;:[]", c) >= 0 }

// enclosed returns what stands between the quotes or parentheses that begin
// at value[i], and where they end: RFC 5322 §3.2.2, §3.2.4.
func enclosed(value string, i int) (inside string, end int, closed bool) {
	var b strings.Builder
	depth := 1
	for at := i + 1; at < len(value); at++ {
		c := value[at]
		switch {
		case c == '\\' && at+1 < len(value):
			at++
			c = value[at]
		case value[i] == '"' && c == '"', value[i] == '(' && c == ')':
			if depth--; depth == 0 {
				return b.String(), at, true
			}
		case value[i] == '(' && c == '(':
			depth++
		}
		b.WriteByte(c)
	}
	return "", 0, false
}

// at takes the addresses around the "@" that is tokens[i].
func (s *scan) at(tokens []token, i int) {
	domains := domainsBehind(tokens[i+1:])
	if len(domains) == 0 {
		if tokens[i].angle {
			s.why = "malformed address in angle brackets"
		}
		return
	}
	locals := localsBefore(tokens[:i])
	for _, domain := range domains {
		// "Acme @ Home" is a name, for the domain of a mailbox has a dot.
		if !tokens[i].angle && !strings.ContainsAny(domain, ".[\u3002\uff0e\uff61") {
			continue
		}
		for _, local := range locals {
			if strings.HasPrefix(local, "'") && strings.HasSuffix(domain, "'") {
				local, domain = local[1:], strings.TrimRight(domain, "'")
			}
			if len(s.found) == maxFound {
				s.why = fmt.Sprintf("more than %d addresses", maxFound)
				return
			}
			s.found = append(s.found, local+"@"+domain)
		}
	}
}

// domainsBehind returns the domain that follows, and what it is to readers
// that allow blanks around dots: RFC 5322 §4.4.
func domainsBehind(tokens []token) (domains []string) {
	if len(tokens) > 0 && tokens[0].kind == '[' {
		literal := "["
		for _, t := range tokens[1:] {
			switch t.kind {
			case 'a':
				literal += t.text
			case ':':
				literal += ":"
			case ']':
				return []string{literal + "]"}
			default:
				return []string{literal}
			}
		}
		return []string{literal}
	}
	domain := ""
	for _, t := range tokens[:min(len(tokens), maxJoined)] {
		if t.kind != 'a' || domain != "" && !strings.HasSuffix(domain, ".") && !strings.HasPrefix(t.text, ".") {
			break
		}
		if domain += t.text; !strings.HasSuffix(domain, ".") {
			domains = append(domains, domain)
		}
	}
	if strings.HasSuffix(domain, ".") {
		domains = append(domains, domain)
	}
	return domains
}

// localsBefore returns the local-part that goes before, as domainsBehind does.
func localsBefore(tokens []token) (locals []string) {
	local, end := "", ""
	for i := len(tokens) - 1; i >= max(0, len(tokens)-maxJoined); i-- {
		t := tokens[i]
		if t.kind != 'a' && t.kind != 'q' || local != "" && !strings.HasPrefix(end, ".") && !strings.HasSuffix(t.text, ".") {
			break
		}
		if t.kind == 'q' {
			local, end = quote(t.text)+local, ""
		} else {
			local, end = t.text+local, t.text
		}
		locals = append(locals, local)
	}
	if locals == nil {
		return []string{""}
	}
	return locals
}

func quote(content string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(content) + `"`
}

var (
	encodedWord  = regexp.MustCompile(`=\?([^?\s]*)\?([bBqQ])\?([^?]*)\?=`)
	encodedWords = regexp.MustCompile(`(=\?[^?\s]*\?[bBqQ]\?[^?]*\?=[ \t]*)+`)
	opaque       = regexp.MustCompile(`(?i)^utf-?(7|16|32)`)
)

// decode looks at what encoded-words say, as readers do who begin with that.
// It is a name, unless it makes a list or angle brackets.
func (s *scan) decode(value string) {
	if !strings.Contains(value, "=?") {
		return
	}
	for _, run := range encodedWords.FindAllStringIndex(value, -1) {
		before, behind := strings.TrimRight(value[:run[0]], " \t"), value[run[1]:]
		if strings.HasSuffix(before, "@") || strings.HasPrefix(behind, "@") {
			s.why = "an encoded-word in an address"
			return
		}
		var b strings.Builder
		for _, word := range encodedWord.FindAllStringSubmatch(value[run[0]:run[1]], -1) {
			if opaque.MatchString(word[1]) { // it does not leave ASCII as it is
				s.why = "an encoded-word in " + strconv.QuoteToASCII(word[1])
				return
			}
			if strings.EqualFold(word[2], "b") {
				b.WriteString(decodeBase64(word[3]))
			} else {
				b.WriteString(decodeQ(word[3]))
			}
		}
		said := widened.Replace(strings.NewReplacer("\r", " ", "\n", " ", "\x00", "").Replace(b.String()))
		alone := behind == "" || strings.ContainsAny(behind[:1], ",;:>") || before != "" && strings.ContainsAny(before[len(before)-1:], "<,;:")
		if alone || strings.ContainsAny(said, "<>,;:") {
			s.read(said, text)
		}
	}
}

// decodeBase64 passes over what is none.
func decodeBase64(text string) string {
	text = strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || r == '+' || r == '/' {
			return r
		}
		return -1
	}, text)
	if len(text)%4 == 1 {
		text = text[:len(text)-1]
	}
	decoded, _ := base64.RawStdEncoding.DecodeString(text) // what is there before an error
	return string(decoded)
}

// decodeQ: RFC 2047 §4.2.
func decodeQ(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '_':
			b.WriteByte(' ')
		case c == '=' && i+2 < len(text):
			n, err := strconv.ParseUint(text[i+1:i+3], 16, 8)
			if err != nil {
				b.WriteByte(c)
				continue
			}
			b.WriteByte(byte(n))
			i += 2
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
