package compose

import (
	"encoding/base64"
	"strings"
	"time"
	"unicode/utf8"
)

// foldAt is the length from which a line is folded: RFC 5322 §2.1.1.
const foldAt = 78

// wordBytes is what fits into an encoded-word of 75 octets: RFC 2047 §2.
const wordBytes = 45

func appendHeader(dst []byte, m *Message) []byte {
	if !m.has("Date") {
		dst = appendFolded(dst, "Date", m.Date.Format(time.RFC1123Z))
	}
	dst = appendMailboxes(dst, "From", []Mailbox{m.From})
	if m.Sender != nil {
		dst = appendMailboxes(dst, "Sender", []Mailbox{*m.Sender})
	}
	dst = appendMailboxes(dst, "Reply-To", m.ReplyTo)
	dst = appendMailboxes(dst, "To", m.To)
	dst = appendMailboxes(dst, "Cc", m.Cc)
	if m.MessageID != "" {
		dst = appendFolded(dst, "Message-ID", m.MessageID)
	}
	if m.Subject != "" {
		subject := Field{"Subject", m.Subject}
		if strings.Contains(m.Subject, "=?") { // it would be taken for an encoded-word
			subject.Value = EncodedWords(m.Subject)
		}
		dst = subject.append(dst)
	}
	for _, f := range m.Fields {
		dst = f.append(dst)
	}
	return append(dst, "MIME-Version: 1.0\r\n"...)
}

// fieldSize is at least what a field takes: each 45 octets of its value become
// an encoded-word, or there is a line end for each.
func fieldSize(name, value string) int { return len(name) + 2*len(value) + 32 }

// headerSize is at least what appendHeader appends.
func headerSize(m *Message) int {
	n := fieldSize("Date", m.Date.Format(time.RFC1123Z)) + fieldSize("Message-ID", m.MessageID) + fieldSize("Subject", m.Subject) + fieldSize("MIME-Version", "1.0")
	for _, boxes := range [][]Mailbox{{m.From}, m.ReplyTo, m.To, m.Cc} {
		for _, b := range boxes {
			n += fieldSize(b.Name, b.Name+b.Address)
		}
	}
	if m.Sender != nil {
		n += fieldSize(m.Sender.Name, m.Sender.Name+m.Sender.Address)
	}
	for _, f := range m.Fields {
		n += fieldSize(f.Name, f.Value)
	}
	return n
}

func (m *Message) has(name string) bool {
	for _, f := range m.Fields {
		if strings.EqualFold(f.Name, name) {
			return true
		}
	}
	return false
}

func appendMailboxes(dst []byte, name string, boxes []Mailbox) []byte {
	if len(boxes) == 0 {
		return dst
	}
	texts := make([]string, len(boxes))
	for i, b := range boxes {
		texts[i] = b.Address
		if b.Name != "" {
			texts[i] = phrase(b.Name) + " <" + b.Address + ">"
		}
	}
	return appendFolded(dst, name, strings.Join(texts, ", "))
}

// phrase returns a display name: RFC 5322 §3.2.5, RFC 2047 §5.
func phrase(name string) string {
	if !ascii(name) || !foldable(name) || strings.Contains(name, "=?") {
		return EncodedWords(name)
	}
	for word := range strings.SplitSeq(name, " ") {
		if word == "" || strings.ContainsFunc(word, func(r rune) bool { return !isAtext(r) }) {
			return `"` + quote.Replace(name) + `"`
		}
	}
	return name
}

var quote = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// isAtext: RFC 5322 §3.2.3.
func isAtext(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("!#$%&'*+-/=?^_`{|}~", r)
}

// EncodedWords returns text as encoded-words with a space between each two,
// which a reader drops: RFC 2047 §2, §6.2. No character is split.
func EncodedWords(text string) string {
	var b strings.Builder
	for text != "" {
		n := min(len(text), wordBytes)
		for n < len(text) && !utf8.RuneStart(text[n]) {
			n--
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString("=?utf-8?B?" + base64.StdEncoding.EncodeToString([]byte(text[:n])) + "?=")
		text = text[n:]
	}
	return b.String()
}

// appendFolded appends a field. It is folded before a space that has text on
// both sides, so that unfolding gives the value back: RFC 5322 §2.2.3.
func appendFolded(dst []byte, name, value string) []byte {
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	column := len(name) + len(": ")
	for at := 0; at < len(value); {
		end := nextSpace(value, at)
		if at > 0 && column+end-at > foldAt {
			dst = append(dst, "\r\n"...)
			column = 0
		}
		dst = append(dst, value[at:end]...)
		column += end - at
		at = end
	}
	return append(dst, "\r\n"...)
}

// nextSpace returns where the next piece of value after at begins: at a space
// behind and before something that is no space.
func nextSpace(value string, at int) int {
	for i := at + 1; i < len(value)-1; i++ {
		if value[i] == ' ' && value[i-1] != ' ' && value[i+1] != ' ' {
			return i
		}
	}
	return len(value)
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
