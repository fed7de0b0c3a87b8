package compose

import (
	"fmt"
	netmail "net/mail"
	"slices"
	"strings"
)

// maxWord is the longest run without a space in a value: what cannot be folded
// and may not be encoded must fit into a line (RFC 5322 §2.1.1).
const maxWord = 900

// IsList reports whether a field has addresses with commas between: RFC 5322
// §3.4. Encoded-words stand in the names there, and nowhere else.
func IsList(name string) bool {
	return slices.Contains([]string{"from", "sender", "reply-to", "to", "cc", "resent-from", "resent-sender", "resent-to", "resent-cc",
		"disposition-notification-to", "return-receipt-to", "errors-to", "mail-followup-to", "mail-reply-to"}, strings.ToLower(name))
}

// isStructured reports whether a field is for programs to read, and has no
// place for encoded-words: RFC 2047 §5.
func isStructured(name string) bool {
	name = strings.ToLower(name)
	for _, family := range []string{"list-", "arc-", "content-", "dkim-"} {
		if strings.HasPrefix(name, family) {
			return true
		}
	}
	return slices.Contains([]string{"message-id", "in-reply-to", "references", "original-message-id", "date", "expires", "reply-by",
		"authentication-results", "auto-submitted", "autocrypt", "precedence", "priority", "importance", "sensitivity", "tls-required"}, name)
}

// Fault says why the field cannot be written, or "". Text can always be: what
// is not ASCII, or cannot be folded, is encoded.
func (f Field) Fault() string {
	plain, folds := ascii(f.Value), foldable(f.Value)
	switch {
	case plain && folds:
		return ""
	case IsList(f.Name):
		if _, err := f.mailboxes(); err != nil {
			return "want addresses, as in RFC 5322: " + err.Error()
		}
	case strings.EqualFold(f.Name, "List-ID"): // RFC 2919 §3
		if _, id, ok := f.listID(); !ok || !ascii(id) || !foldable(id) {
			return "want a name and <list.example.com>, which is ASCII"
		}
	case isStructured(f.Name) && !plain:
		return "want ASCII, for there are no encoded-words in this field"
	case isStructured(f.Name):
		return fmt.Sprintf("more than %d octets without a space cannot be folded", maxWord)
	}
	return ""
}

// append appends the field, which has no fault.
func (f Field) append(dst []byte) []byte {
	value := f.Value
	switch {
	case ascii(value) && foldable(value):
	case IsList(f.Name):
		if boxes, err := f.mailboxes(); err == nil {
			return appendMailboxes(dst, f.Name, boxes)
		}
	case strings.EqualFold(f.Name, "List-ID"):
		if name, id, ok := f.listID(); ok {
			value = phrase(name) + " " + id
		}
	case !isStructured(f.Name):
		value = EncodedWords(value)
	}
	return appendFolded(dst, f.Name, value)
}

func (f Field) mailboxes() ([]Mailbox, error) {
	all, err := netmail.ParseAddressList(f.Value)
	if err != nil {
		return nil, err
	}
	boxes := make([]Mailbox, len(all))
	for i, a := range all {
		if !ascii(a.Address) { // the whole message would need SMTPUTF8
			return nil, fmt.Errorf("%s is not ASCII", a.Address)
		}
		text := (&netmail.Address{Address: a.Address}).String()
		boxes[i] = Mailbox{Name: a.Name, Address: strings.TrimSuffix(strings.TrimPrefix(text, "<"), ">")}
	}
	return boxes, nil
}

func (f Field) listID() (name, id string, ok bool) {
	at := strings.LastIndexByte(f.Value, '<')
	if at < 0 || !strings.HasSuffix(f.Value, ">") {
		return "", "", false
	}
	name = strings.TrimSpace(f.Value[:at])
	return strings.Trim(name, `"`), f.Value[at:], name != ""
}

// foldable reports whether there is a place to fold often enough.
func foldable(text string) bool {
	for at := 0; at < len(text); {
		end := nextSpace(text, at)
		if end-at > maxWord {
			return false
		}
		at = end
	}
	return true
}
