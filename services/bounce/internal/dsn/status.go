package dsn

import (
	"strings"

	"github.com/postrider/postrider/pkg/mail"
)

// status writes the machine-readable part: RFC 3464 §2, RFC 6533 §3.
func (w writer) status(r *Report) part {
	var b strings.Builder
	b.WriteString("Reporting-MTA: dns; " + r.Hostname + "\r\n")
	if id := asciiLine(r.Original.Envelope.EnvID); id != "" {
		// RFC 3464 §2.2.1: in the form that it had before xtext.
		b.WriteString("Original-Envelope-Id: " + id + "\r\n")
	}
	if !r.Original.AcceptedAt.IsZero() {
		b.WriteString("Arrival-Date: " + date(r.Original.AcceptedAt) + "\r\n")
	}
	by := r.Original.Envelope.DeliverBy
	if !by.At.IsZero() {
		b.WriteString("Deliver-By-Date: " + date(by.At) + "\r\n") // RFC 2852 §5
	}
	for i := range r.Recipients {
		b.WriteString("\r\n")
		w.recipient(&b, &r.Recipients[i])
	}

	p := part{description: "Delivery report", contentType: "message/delivery-status"}
	if w.international {
		p.contentType = "message/global-delivery-status"
	}
	p.encoding, p.body = encode([]byte(b.String()), w.international)
	return p
}

// recipient writes the fields of one recipient in the order of RFC 3464 §2.3.
func (w writer) recipient(b *strings.Builder, rcpt *Recipient) {
	if typ, address, ok := strings.Cut(oneLine(rcpt.ORCPT, maxAddress), ";"); ok && isAtom(typ) {
		b.WriteString("Original-Recipient: " + typ + "; " + strings.TrimSpace(address) + "\r\n")
	}
	address, typ := oneLine(string(rcpt.ForwardPath), maxAddress), "rfc822"
	if !isASCII(address) {
		typ = "utf-8" // RFC 6533 §3
	}
	b.WriteString("Final-Recipient: " + typ + "; " + address + "\r\n")
	b.WriteString("Action: " + rcpt.action() + "\r\n")
	b.WriteString("Status: " + w.statusOf(rcpt).String() + "\r\n")
	// RFC 3464 §2.3.5: only when the remote host gave the status.
	if host := asciiLine(rcpt.Host); host != "" && rcpt.Reply.Code != 0 {
		b.WriteString("Remote-MTA: dns; " + host + "\r\n")
	}
	if diagnostic := w.diagnostic(rcpt.Reply); diagnostic != "" {
		b.WriteString(fold("Diagnostic-Code: ", " ", diagnostic))
		if to := rcpt.command(); to != "" {
			b.WriteString(" " + to + "\r\n") // whole, for those who read by line
		}
	}
	if !rcpt.LastAttemptAt.IsZero() {
		b.WriteString("Last-Attempt-Date: " + date(rcpt.LastAttemptAt) + "\r\n")
	}
	if rcpt.Action == mail.Delayed && !rcpt.ExpiresAt.IsZero() {
		b.WriteString("Will-Retry-Until: " + date(rcpt.ExpiresAt) + "\r\n")
	}
}

// inReplyTo are the commands that a remote host can answer: software that
// reads reports tells by them whether a refusal is about the recipient or
// about the message. Sisimai looks for the verb alone, so MAIL and RCPT stand
// without the FROM and TO that Postfix gives them.
var inReplyTo = map[mail.Phase]string{
	mail.PhaseHello: "EHLO", mail.PhaseStartTLS: "STARTTLS", mail.PhaseAuth: "AUTH", mail.PhaseMail: "MAIL",
	mail.PhaseRcpt: "RCPT", mail.PhaseData: "DATA", mail.PhaseBody: "end of DATA", mail.PhaseDot: "end of DATA",
}

// command says what the remote host answered; "" if it did not, or if it took
// the message.
func (rcpt *Recipient) command() string {
	to := inReplyTo[rcpt.Phase]
	if to == "" || rcpt.Reply.Code == 0 || rcpt.Reply.Positive() {
		return ""
	}
	return "(in reply to " + to + " command)"
}

// diagnostic returns what the remote host said, or what we say in its place.
func (w writer) diagnostic(reply mail.Reply) string {
	typ := "smtp; "
	if reply.Code == 0 {
		typ = "X-Postrider; " // RFC 3464 §2.3.6: "smtp" is for replies of SMTP only
	}
	text := replyText(reply)
	if text == "" {
		return ""
	}
	if w.international {
		return typ + text
	}
	return typ + fieldText(text)
}

// replyText is a reply on one line, bounded.
func replyText(reply mail.Reply) string {
	if reply.Code == 0 {
		return oneLine(reply.Text(), maxReply)
	}
	return oneLine(reply.String(), maxReply)
}

// action is the action-value of RFC 3464 §2.3.3. What expired has failed.
func (rcpt *Recipient) action() string {
	switch kindOf(rcpt.Action) {
	case success:
		return "relayed"
	case delay:
		return "delayed"
	default:
		return "failed"
	}
}

// statusOf is the status of a recipient, which RFC 2852 §4 sets once the time
// of BY has come: mode N tells of a delay, mode R has ended it.
func (w writer) statusOf(rcpt *Recipient) mail.EnhancedCode {
	s := rcpt.status()
	switch {
	case w.late && rcpt.Action == mail.Delayed:
		s = mail.EnhancedCode{Class: 4, Subject: 4, Detail: 7}
	case w.late && rcpt.Action == mail.Expired:
		s.Class = 5
	}
	return s
}

// status returns a code that agrees with the action: RFC 3464 §2.3.4.
func (rcpt *Recipient) status() mail.EnhancedCode {
	s := rcpt.Status
	switch {
	case rcpt.Action == mail.Expired:
		// RFC 3463 X.4.7, delivery time expired. The last reply stands in
		// Diagnostic-Code.
		s = mail.EnhancedCode{Class: 4, Subject: 4, Detail: 7}
		if rcpt.Reply.Permanent() {
			s.Class = 5
		}
	case rcpt.Action == mail.Relayed:
		s.Class = 2
	case rcpt.Action == mail.Delayed:
		s.Class = 4
	case s.Class != 4 && s.Class != 5:
		s.Class = 5
	}
	return s
}

// isAtom reports whether s can stand as the type before ";": RFC 3464 §2.1.2.
func isAtom(s string) bool {
	return s != "" && strings.IndexFunc(s, func(c rune) bool {
		return c <= ' ' || c > '~' || strings.ContainsRune(`()<>@,;:\".[]`, c)
	}) < 0
}
