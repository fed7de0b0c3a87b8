package smtp

import (
	"errors"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/postrider/postrider/pkg/mail"
)

// Lengths of parameter values, in octets: RFC 3461 §4.2, §4.4, RFC 1870 §4.
const (
	maxORCPT = 500
	maxEnvID = 100
	maxSize  = 20
)

// The ways in which the arguments of a command break the grammar, other than
// those of a path.
var (
	ErrArguments = errors.New("malformed arguments")
	ErrParameter = errors.New("malformed parameter")    // a known keyword with a bad value, or given twice
	ErrUnknown   = errors.New("parameter is not known") // RFC 5321 §4.1.1.11
)

// MailArgs are the arguments of MAIL: RFC 5321 §4.1.1.2.
type MailArgs struct {
	ReversePath mail.ReversePath
	SizeBytes   int64         // SIZE: RFC 1870 §4; 0 if not given
	Body        mail.BodyType // BODY: RFC 6152, RFC 3030
	SMTPUTF8    bool          // RFC 6531 §3.4
	Ret         mail.Ret      // RFC 3461 §4.3
	EnvID       string        // RFC 3461 §4.4, xtext decoded
	Auth        string        // RFC 4954 §5: "<>" or a mailbox, xtext decoded; "" if not given
	DeliverBy   DeliverBy     // RFC 2852
	HoldFor     time.Duration // RFC 4865; 0 if not given
	HoldUntil   time.Time     // RFC 4865, UTC; zero if not given
	Priority    MTPriority    // RFC 6710
	RequireTLS  bool          // RFC 8689 §4.1
}

// RcptArgs are the arguments of RCPT: RFC 5321 §4.1.1.3.
type RcptArgs struct {
	ForwardPath mail.ForwardPath
	Notify      mail.Notify // RFC 3461 §4.1
	ORCPT       string      // RFC 3461 §4.2, "addr-type;address", xtext decoded
}

// ParseMail reads the arguments of MAIL. A space behind "FROM:" is accepted.
func ParseMail(args string) (MailArgs, error) {
	path, ok := cutKeyword(args, "FROM:")
	if !ok {
		return MailArgs{}, ErrArguments
	}
	var m MailArgs
	var err error
	var rest string
	m.ReversePath, rest, err = ParseReversePath(path, true)
	if err != nil {
		return MailArgs{}, err
	}
	if err := eachParameter(rest, m.set); err != nil {
		return MailArgs{}, err
	}
	if !m.SMTPUTF8 && !isASCII(string(m.ReversePath)) {
		return MailArgs{}, ErrNonASCII
	}
	return m, nil
}

func (m *MailArgs) set(keyword, value string) error {
	var given, ok bool
	switch keyword {
	case "SIZE":
		given = m.SizeBytes != 0
		m.SizeBytes, ok = parseSize(value)
	case "BODY":
		given = m.Body != ""
		m.Body = mail.BodyType(strings.ToUpper(value))
		ok = m.Body == mail.Body7Bit || m.Body == mail.Body8BitMIME || m.Body == mail.BodyBinaryMIME
	case "SMTPUTF8":
		given, m.SMTPUTF8 = m.SMTPUTF8, true
		ok = value == ""
	case "RET":
		given = m.Ret != ""
		m.Ret = mail.Ret(strings.ToUpper(value))
		ok = m.Ret == mail.RetFull || m.Ret == mail.RetHdrs
	case "ENVID":
		given = m.EnvID != ""
		m.EnvID, ok = parseEnvID(value)
	default:
		var known bool
		if given, ok, known = m.setExtension(keyword, value); !known {
			return ErrUnknown
		}
	}
	if given || !ok {
		return ErrParameter
	}
	return nil
}

// ParseRcpt reads the arguments of RCPT. A space behind "TO:" is accepted.
// Octets outside ASCII are allowed when MAIL had SMTPUTF8: nonASCII.
func ParseRcpt(args string, nonASCII bool) (RcptArgs, error) {
	path, ok := cutKeyword(args, "TO:")
	if !ok {
		return RcptArgs{}, ErrArguments
	}
	var r RcptArgs
	var err error
	var rest string
	r.ForwardPath, rest, err = ParseForwardPath(path, nonASCII)
	if err != nil {
		return RcptArgs{}, err
	}
	err = eachParameter(rest, func(keyword, value string) error { return r.set(keyword, value, nonASCII) })
	if err != nil {
		return RcptArgs{}, err
	}
	return r, nil
}

func (r *RcptArgs) set(keyword, value string, nonASCII bool) error {
	var given, ok bool
	switch keyword {
	case "NOTIFY":
		given = r.Notify != 0
		r.Notify, ok = parseNotify(value)
	case "ORCPT":
		given = r.ORCPT != ""
		r.ORCPT, ok = parseORCPT(value, nonASCII)
	default:
		return ErrUnknown
	}
	if given || !ok {
		return ErrParameter
	}
	return nil
}

// ParseBDAT reads the arguments of BDAT: the octets of the chunk, and
// whether it is the last: RFC 3030 §2.
func ParseBDAT(args string) (sizeBytes int64, last bool, err error) {
	text, end, more := strings.Cut(args, " ")
	last = more && strings.EqualFold(strings.Trim(end, " "), "LAST")
	sizeBytes, ok := parseSize(text)
	if !ok || more && !last {
		return 0, false, ErrArguments
	}
	return sizeBytes, last, nil
}

// AppendMail appends the MAIL command with its CRLF. Give only what the
// server offered in its reply to EHLO.
func AppendMail(dst []byte, m MailArgs) []byte {
	dst = append(dst, "MAIL FROM:<"...)
	dst = append(dst, m.ReversePath...)
	dst = append(dst, '>')
	if m.SizeBytes > 0 {
		dst = append(dst, " SIZE="...)
		dst = strconv.AppendInt(dst, m.SizeBytes, 10)
	}
	dst = appendParameter(dst, "BODY", string(m.Body))
	if m.SMTPUTF8 {
		dst = append(dst, " SMTPUTF8"...)
	}
	dst = appendParameter(dst, "RET", string(m.Ret))
	dst = appendParameter(dst, "ENVID", EncodeXtext(m.EnvID))
	dst = appendExtensions(dst, m)
	return append(dst, crlf...)
}

// AppendRcpt appends the RCPT command with its CRLF. Give Notify and ORCPT
// only to a server that offered DSN.
func AppendRcpt(dst []byte, r RcptArgs) []byte {
	dst = append(dst, "RCPT TO:<"...)
	dst = append(dst, r.ForwardPath...)
	dst = append(dst, '>')
	dst = appendParameter(dst, "NOTIFY", r.Notify.String())
	if kind, address, ok := strings.Cut(r.ORCPT, ";"); ok {
		if !strings.EqualFold(kind, "utf-8") { // RFC 6533 §3: not xtext of its own
			address = EncodeXtext(address)
		}
		dst = appendParameter(dst, "ORCPT", kind+";"+address)
	}
	return append(dst, crlf...)
}

func appendParameter(dst []byte, keyword, value string) []byte {
	if value == "" {
		return dst
	}
	dst = append(dst, ' ')
	dst = append(dst, keyword...)
	dst = append(dst, '=')
	return append(dst, value...)
}

// cutKeyword takes "FROM:" or "TO:" off, in any case, and spaces behind it,
// which many clients send although the grammar has none. A path without its
// brackets, as some devices send it, gets them, as it does from Postfix (its
// strict_rfc821_envelopes is off); one that has half of them does not.
func cutKeyword(s, keyword string) (string, bool) {
	if len(s) < len(keyword) || !strings.EqualFold(s[:len(keyword)], keyword) {
		return "", false
	}
	path := strings.TrimLeft(s[len(keyword):], " ")
	if word, _, _ := strings.Cut(path, " "); word != "" && !strings.ContainsAny(word, `<>"`) {
		path = "<" + word + ">" + path[len(word):]
	}
	return path, true
}

// eachParameter calls set for each esmtp-param of s, keywords in upper case:
// RFC 5321 §4.1.2. A value that is there is not empty.
func eachParameter(s string, set func(keyword, value string) error) error {
	for s != "" {
		rest := strings.TrimLeft(s, " ")
		if len(rest) == len(s) {
			return ErrArguments // no space behind the path
		}
		if rest == "" {
			return nil
		}
		var param string
		if n := strings.IndexByte(rest, ' '); n >= 0 {
			param, s = rest[:n], rest[n:]
		} else {
			param, s = rest, ""
		}
		keyword, value, has := strings.Cut(param, "=")
		if !isKeyword(keyword) || has && value == "" {
			return ErrArguments
		}
		if err := set(strings.ToUpper(keyword), value); err != nil {
			return err
		}
	}
	return nil
}

func isKeyword(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isLetter(c) && (c < '0' || c > '9') && (c != '-' || i == 0) {
			return false
		}
	}
	return s != ""
}

func parseSize(s string) (int64, bool) {
	if s == "" || len(s) > maxSize {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 1<<63 - 1, true // twenty digits: more than any limit
	}
	return n, true
}

func parseEnvID(s string) (string, bool) {
	id, err := DecodeXtext(s)
	return id, err == nil && id != "" && len(s) <= maxEnvID && isPrintable(id)
}

func parseNotify(s string) (mail.Notify, bool) {
	if strings.EqualFold(s, "NEVER") {
		return mail.NotifyNever, true
	}
	var n mail.Notify
	for word := range strings.SplitSeq(s, ",") {
		switch strings.ToUpper(word) {
		case "SUCCESS":
			n |= mail.NotifySuccess
		case "FAILURE":
			n |= mail.NotifyFailure
		case "DELAY":
			n |= mail.NotifyDelay
		default: // NEVER stands alone: RFC 3461 §4.1
			return 0, false
		}
	}
	return n, true
}

// parseORCPT reads addr-type ";" xtext. Addresses of type utf-8 have an
// encoding of their own, which passes as it stands: RFC 6533 §3.
func parseORCPT(s string, nonASCII bool) (string, bool) {
	kind, address, ok := strings.Cut(s, ";")
	if !ok || kind == "" || address == "" || len(s) > maxORCPT {
		return "", false
	}
	for i := range len(kind) {
		if !isAtext(kind[i]) {
			return "", false
		}
	}
	if strings.EqualFold(kind, "utf-8") {
		ok = utf8.ValidString(address) && (nonASCII || isASCII(address))
		return s, ok
	}
	decoded, err := DecodeXtext(address)
	return kind + ";" + decoded, err == nil && isPrintable(decoded)
}

func isPrintable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
