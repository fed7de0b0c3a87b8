package smtp

import (
	"strconv"
	"strings"
	"time"
)

// DeliverBy is the BY parameter of MAIL: RFC 2852 §4.
type DeliverBy struct {
	Within time.Duration // from now; not positive only with Return false
	Return bool          // mode R: return the message then; otherwise mode N: tell the sender
	Trace  bool          // tell of relaying too
	Given  bool
}

// MTPriority is the MT-PRIORITY parameter of MAIL: RFC 6710 §4.1.
type MTPriority struct {
	Value int8 // -9 to 9; 0 is ordinary
	Given bool
}

const (
	maxSeconds  = 9   // digits of a time in seconds: RFC 2852 §4, RFC 4865 §7
	maxPriority = 9   // RFC 6710 §4.1
	maxAuth     = 500 // octets of AUTH: RFC 4954 §3
)

// setExtension is MailArgs.set for the extensions that say how the message is
// to be handled. known is false for a keyword that is none of them.
func (m *MailArgs) setExtension(keyword, value string) (given, ok, known bool) {
	known = true
	switch keyword {
	case "AUTH":
		given = m.Auth != ""
		m.Auth, ok = parseAuth(value)
	case "BY":
		given = m.DeliverBy.Given
		m.DeliverBy, ok = parseDeliverBy(value)
	case "HOLDFOR": // RFC 4865 §4.2: never both of them
		var seconds int64
		given = m.HoldFor != 0 || !m.HoldUntil.IsZero()
		seconds, ok = parseSeconds(value)
		ok = ok && seconds > 0
		m.HoldFor = time.Duration(seconds) * time.Second
	case "HOLDUNTIL":
		given = m.HoldFor != 0 || !m.HoldUntil.IsZero()
		m.HoldUntil, ok = parseDateTime(value)
	case "MT-PRIORITY":
		given = m.Priority.Given
		m.Priority, ok = parsePriority(value)
	case "REQUIRETLS":
		given, m.RequireTLS = m.RequireTLS, true
		ok = value == ""
	default:
		known = false
	}
	return given, ok, known
}

// appendExtensions appends what setExtension reads, as far as a client of ours
// sends it.
func appendExtensions(dst []byte, m MailArgs) []byte {
	if by := m.DeliverBy; by.Given {
		dst = append(dst, " BY="...)
		dst = strconv.AppendInt(dst, int64(by.Within/time.Second), 10)
		mode := ";N"
		if by.Return {
			mode = ";R"
		}
		dst = append(dst, mode...)
		if by.Trace {
			dst = append(dst, 'T')
		}
	}
	if m.Priority.Given {
		dst = append(dst, " MT-PRIORITY="...)
		dst = strconv.AppendInt(dst, int64(m.Priority.Value), 10)
	}
	if m.RequireTLS {
		dst = append(dst, " REQUIRETLS"...)
	}
	return dst
}

// parseAuth reads "<>" or a mailbox in xtext: RFC 4954 §5.
func parseAuth(s string) (string, bool) {
	if s == "<>" {
		return s, true
	}
	who, err := DecodeXtext(s)
	return who, err == nil && who != "" && len(s) <= maxAuth && isPrintable(who)
}

func parseDeliverBy(s string) (DeliverBy, bool) {
	text, mode, _ := strings.Cut(s, ";")
	negative := strings.HasPrefix(text, "-")
	seconds, ok := parseSeconds(strings.TrimPrefix(strings.TrimPrefix(text, "-"), "+"))
	if strings.HasPrefix(text, "-+") {
		return DeliverBy{}, false
	}
	if negative {
		seconds = -seconds
	}
	by := DeliverBy{Within: time.Duration(seconds) * time.Second, Given: true}
	mode, by.Trace = strings.CutSuffix(strings.ToUpper(mode), "T")
	by.Return = mode == "R"
	return by, ok && (by.Return && seconds > 0 || mode == "N")
}

// parseDateTime reads a date-time of RFC 3339 as RFC 4865 §7 has it.
func parseDateTime(s string) (time.Time, bool) {
	t, err := time.Parse(time.RFC3339, strings.ToUpper(s))
	return t.UTC(), err == nil && !t.IsZero()
}

func parsePriority(s string) (MTPriority, bool) {
	n, err := strconv.ParseInt(s, 10, 8)
	return MTPriority{int8(n), true}, err == nil && -maxPriority <= n && n <= maxPriority && strconv.FormatInt(n, 10) == s
}

func parseSeconds(s string) (int64, bool) {
	if len(s) > maxSeconds {
		return 0, false
	}
	return parseSize(s)
}
