package mail

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// BodyType is the BODY parameter of MAIL: RFC 6152, RFC 3030.
type BodyType string

// The body types. The zero value means that the client said nothing.
const (
	Body7Bit       BodyType = "7BIT"
	Body8BitMIME   BodyType = "8BITMIME"
	BodyBinaryMIME BodyType = "BINARYMIME"
)

// Ret says how much of the content a failure report returns: RFC 3461 §4.3.
type Ret string

// The values of RET. The zero value leaves the choice to us.
const (
	RetFull Ret = "FULL"
	RetHdrs Ret = "HDRS"
)

// Notify is the set of conditions under which the sender wants a report
// about one recipient: RFC 3461 §4.1.
type Notify uint8

// The members of Notify. The zero value is "not given": failure and, if we
// choose, delay. NotifyNever stands alone.
const (
	NotifyNever Notify = 1 << iota
	NotifySuccess
	NotifyFailure
	NotifyDelay
)

// Wants reports whether a report of the given kind is wanted. Without NOTIFY
// failures and delays are reported: RFC 3461 §4.1.
func (n Notify) Wants(kind Notify) bool {
	if n == 0 {
		return kind&(NotifyFailure|NotifyDelay) != 0
	}
	return n&kind != 0
}

// String returns the esmtp-value of NOTIFY, or "" if it was not given.
func (n Notify) String() string {
	if n&NotifyNever != 0 {
		return "NEVER"
	}
	var words []string
	for _, k := range []struct {
		bit  Notify
		word string
	}{{NotifySuccess, "SUCCESS"}, {NotifyFailure, "FAILURE"}, {NotifyDelay, "DELAY"}} {
		if n&k.bit != 0 {
			words = append(words, k.word)
		}
	}
	return strings.Join(words, ",")
}

// Envelope is what the client said of the message outside its content:
// RFC 5321 §2.3.1. It never changes after acceptance.
type Envelope struct {
	ReversePath ReversePath
	Body        BodyType
	SMTPUTF8    bool   // the message needs RFC 6531 at the next hop
	Ret         Ret    // RFC 3461 §4.3
	EnvID       string // RFC 3461 §4.4, xtext decoded
	RequireTLS  bool   // RFC 8689 §2: relayed over verified TLS only, to hosts that promise the same
	DeliverBy   DeliverBy
}

// DeliverBy is what RFC 2852 §4 lets a client ask of time. The zero value
// asks nothing.
type DeliverBy struct {
	At     time.Time // zero: not given
	Return bool      // mode R: what has not left by then comes back; else mode N: its sender is told of the delay
	Trace  bool      // the sender is told of each relay to a host that knows the extension
}

// Notice reports whether the sender is told of the delay at At: mode N. It was
// told before when At is not after the acceptance.
func (by DeliverBy) Notice() bool { return !by.At.IsZero() && !by.Return }

// Message is an accepted message without its content and recipients: facts
// that never change, so they may travel on the bus.
type Message struct {
	ID          QueueID
	Envelope    Envelope
	Tenant      string
	Campaign    string // of the tenant; "" is none. Campaigns of a tenant take turns
	TLSOptional bool   // RFC 8689 §3: the field "TLS-Required: No" puts delivery above the TLS policy of the domain
	Priority    int16  // higher goes first; 0 is ordinary
	SizeBytes   int64  // of the content as stored, with our Received field
	AcceptedAt  time.Time
	Traceparent string // W3C trace context of span ingress.accept
}

// Recipient is one forward-path of a message and what its sender asked.
type Recipient struct {
	No          int32 // 1 to n, in the order of RCPT
	ForwardPath ForwardPath
	Domain      Domain // of ForwardPath, normalised
	Notify      Notify
	ORCPT       string    // RFC 3461 §4.2 "addr-type;address", xtext decoded; "" if not given
	ExpiresAt   time.Time // not tried at or after this time
}

// Pending is a recipient that waits for its next attempt.
type Pending struct {
	Recipient
	Attempt int32 // the fence: the number of claims so far; a claim adds one
	Tries   int16 // the number of attempts that ended in a delay; the place in the retry schedule
}

// Submission is a message that a client hands to us, ready to be accepted.
type Submission struct {
	Message
	Recipients []Recipient
	Content    []byte // header section and body, as it will be relayed, CRLF lines, not dot-stuffed
	Client     Client
	HeaderID   string  // the Message-ID field (RFC 5322 §3.6.4), for look-ups; "" if none
	ReportOf   QueueID // the message that this DSN reports on; zero for other mail

	ReleaseAt time.Time     // the first attempt is not made before; zero: at once
	With      []*Submission // accepted together with this one, or none of them

	// IdempotencyKey makes a submission of the tenant that has the same key,
	// within 24 hours of the first, a repeat: it is not accepted again.
	// With Fingerprint nil the reverse-path and the recipients are part of the
	// key, as a client may send one message in several transactions.
	IdempotencyKey string // "": the client gave none
	Fingerprint    []byte // of the client's whole request: a repeat must have the same
	Receipt        []byte // what the client is told, kept to tell it again; nil: the queue id is enough
}

// Held reports whether the first attempt lies in the future.
func (s *Submission) Held() bool { return s.ReleaseAt.After(s.AcceptedAt) }

// Client is who submitted a message, and how.
type Client struct {
	Address  netip.Addr // invalid for mail made by postrider itself
	Hello    string     // the argument of EHLO or HELO
	Protocol string     // the "with" of Received: SMTP, ESMTP, ESMTPS, ESMTPSA, UTF8SMTP, ... (RFC 3848, RFC 6531 §4.3)
	// Trust is what vouches for the sender: the method of its login, or
	// "network"; Stranger; "" for mail by SQL and our own.
	Trust string
}

// Stranger is the trust of mail that was taken for the sake of its recipients'
// domains alone. Nobody has verified its reverse-path.
const Stranger = "stranger"

// QueuedMessage is a message with those of its recipients that are due.
type QueuedMessage struct {
	Message
	Recipients []Pending
}

// EnhancedCode is an enhanced mail system status code: RFC 3463.
type EnhancedCode struct{ Class, Subject, Detail uint16 }

// String returns the dotted form, such as "5.1.1".
func (c EnhancedCode) String() string {
	return string(c.appendTo(make([]byte, 0, len("5.999.999"))))
}

func (c EnhancedCode) appendTo(b []byte) []byte {
	b = append(strconv.AppendInt(b, int64(c.Class), 10), '.')
	b = append(strconv.AppendInt(b, int64(c.Subject), 10), '.')
	return strconv.AppendInt(b, int64(c.Detail), 10)
}

// IsZero reports whether no code was given.
func (c EnhancedCode) IsZero() bool { return c == EnhancedCode{} }

// Reply is what an SMTP server says to a command: RFC 5321 §4.2.
type Reply struct {
	Code     int
	Enhanced EnhancedCode // zero if the reply has none
	Lines    []string     // text of each line, without code and enhanced code
}

// Text joins the lines of the reply with one space each.
func (r Reply) Text() string { return strings.Join(r.Lines, " ") }

// String returns the reply on one line: code, enhanced code, text.
func (r Reply) String() string {
	text := r.Text()
	b := strconv.AppendInt(make([]byte, 0, len("250 5.999.999 ")+len(text)), int64(r.Code), 10)
	if !r.Enhanced.IsZero() {
		b = r.Enhanced.appendTo(append(b, ' '))
	}
	return strings.TrimSpace(string(append(append(b, ' '), text...)))
}

// Within returns the reply with the first octets of its text alone.
func (r Reply) Within(octets int) Reply {
	for i, line := range r.Lines {
		if len(line) > octets {
			lines := slices.Clone(r.Lines[:i+1])
			lines[i] = Clip(line, octets)
			r.Lines = lines
			break
		}
		octets -= len(line)
	}
	return r
}

// Clip returns the first octets of text, without a part of a character.
func Clip(text string, octets int) string {
	if len(text) <= octets {
		return text
	}
	for octets > 0 && !utf8.RuneStart(text[octets]) {
		octets--
	}
	return text[:max(octets, 0)]
}

// Positive reports a 2yz or 3yz reply; Transient 4yz; Permanent 5yz:
// RFC 5321 §4.2.1.
func (r Reply) Positive() bool  { return r.Code >= 200 && r.Code < 400 }
func (r Reply) Transient() bool { return r.Code >= 400 && r.Code < 500 }
func (r Reply) Permanent() bool { return r.Code >= 500 && r.Code < 600 }
