package smtp

import (
	"errors"
	"strings"
)

// ErrXtext is returned for text that is no xtext: RFC 3461 §4.
var ErrXtext = errors.New("malformed xtext")

const upperHex = "0123456789ABCDEF"

// EncodeXtext returns s as xtext: octets outside "!" to "~", and "+" and
// "=", become "+XX" (RFC 3461 §4).
func EncodeXtext(s string) string {
	plain := 0
	for plain < len(s) && isXchar(s[plain]) {
		plain++
	}
	if plain == len(s) {
		return s
	}
	var b strings.Builder
	b.WriteString(s[:plain])
	for _, c := range []byte(s[plain:]) {
		if isXchar(c) {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('+')
		b.WriteByte(upperHex[c>>4])
		b.WriteByte(upperHex[c&15])
	}
	return b.String()
}

// DecodeXtext is the reverse of EncodeXtext. Lower-case hexadecimal digits
// are no xtext (RFC 3461 §4).
func DecodeXtext(s string) (string, error) {
	if !strings.ContainsRune(s, '+') {
		for i := range len(s) {
			if !isXchar(s[i]) {
				return "", ErrXtext
			}
		}
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '+' && i+2 < len(s):
			hi := strings.IndexByte(upperHex, s[i+1])
			lo := strings.IndexByte(upperHex, s[i+2])
			if hi < 0 || lo < 0 {
				return "", ErrXtext
			}
			b = append(b, byte(hi<<4|lo))
			i += 2
		case isXchar(c):
			b = append(b, c)
		default:
			return "", ErrXtext
		}
	}
	return string(b), nil
}

func isXchar(c byte) bool { return c >= '!' && c <= '~' && c != '+' && c != '=' }
