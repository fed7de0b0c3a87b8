package smtp

import (
	"bytes"
	"errors"
	"strings"
)

// MaxCommandLine is how long a command line may be with its CRLF, in octets.
// RFC 5321 §4.5.3.1.4 has 512; the parameters of the extensions need more
// (RFC 3461 §4.2 alone adds 500 and more to RCPT).
const MaxCommandLine = 2048

// MaxAuthLine is the same for AUTH and for each line of its exchange: RFC
// 4954 §3.
const MaxAuthLine = 12288

// Command is one command line.
type Command struct {
	Verb string // in upper case, such as "MAIL"
	Args string // what follows the verb and its spaces, without trailing spaces
}

// ErrCommand is returned for a line that has no verb or octets that no
// command has.
var ErrCommand = errors.New("malformed command")

// verbs saves an allocation for each command of a known verb.
var verbs = [...]string{
	"MAIL", "RCPT", "DATA", "EHLO", "QUIT", "RSET", "BDAT", "HELO", "NOOP", "VRFY",
	"EXPN", "HELP", "ETRN", "STARTTLS", "AUTH", "XCLIENT", "XFORWARD", "TURN", "SEND", "SOML", "SAML",
}

// ParseCommand reads a line without its CRLF. The verb is letters only, in
// any case (RFC 5321 §2.4); white space before the CRLF is dropped (§4.1.1).
// Control characters are refused anywhere.
func ParseCommand(line []byte) (Command, error) {
	line = bytes.TrimRight(line, " \t")
	n := 0
	for n < len(line) && isLetter(line[n]) {
		n++
	}
	if n == 0 || n < len(line) && line[n] != ' ' {
		return Command{}, ErrCommand
	}
	for _, c := range line[n:] {
		if c < ' ' || c == 0x7f {
			return Command{}, ErrCommand
		}
	}
	return Command{Verb: verb(line[:n]), Args: strings.Trim(string(line[n:]), " ")}, nil
}

func verb(word []byte) string {
	for _, v := range verbs {
		if len(v) == len(word) && strings.EqualFold(v, string(word)) {
			return v
		}
	}
	return strings.ToUpper(string(word))
}

func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
