package dsn

import (
	"fmt"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

// maxTold bounds the recipients that the text tells of. All of them stand in
// the machine-readable part.
const maxTold = 50

// text writes the part for people: what happened, to whom, in the remote
// host's own words, and what happens next.
func (w writer) text(r *Report) part {
	var b strings.Builder
	paragraph := func(format string, args ...any) {
		b.WriteString(fold("", "", fmt.Sprintf(format, args...)) + "\r\n")
	}
	paragraph("This is the mail system at %s. It writes to you because you sent a message on %s.",
		r.Hostname, spoken(r.Original.AcceptedAt))

	if failed := r.of(failure); len(failed) > 0 {
		paragraph("Your message COULD NOT BE DELIVERED to:")
		tell(&b, failed)
		paragraph("It will not be tried again. If the reason above does not say what to do, check the address, or ask the recipient in another way.")
	}
	if delayed := r.of(delay); len(delayed) > 0 {
		paragraph("Your message HAS NOT BEEN DELIVERED YET to:")
		tell(&b, delayed)
		paragraph("You do not need to send it again. It will be tried until %s. If it cannot be delivered by then, you will be told.",
			spoken(lastExpiry(delayed)))
	}
	if relayed := r.of(success); len(relayed) > 0 {
		paragraph("Your message WAS RELAYED to the mail system of:")
		tell(&b, relayed)
		paragraph("That system may not report whether it reaches the recipient.")
	}
	switch returned, ok := w.original(r); {
	case r.Original.Envelope.RequireTLS:
		paragraph("The message was sent with REQUIRETLS. This report may travel without TLS, so nothing of the message is attached.")
	case !ok:
		paragraph("Nothing of the message itself is left here to be returned.")
	case strings.HasSuffix(returned.contentType, "headers"):
		paragraph("The header section of the message is attached.")
	default:
		paragraph("The message is attached.")
	}
	paragraph("Its queue id here is %s.", r.Original.ID)

	body := []byte(b.String())
	p := part{description: "Notification", contentType: "text/plain; charset=us-ascii"}
	if !isASCII(b.String()) {
		p.contentType = "text/plain; charset=utf-8"
	}
	p.encoding, p.body = encode(body, w.international)
	return p
}

// of returns the recipients of one kind.
func (r *Report) of(k kind) []*Recipient {
	var of []*Recipient
	for i := range r.Recipients {
		if kindOf(r.Recipients[i].Action) == k {
			of = append(of, &r.Recipients[i])
		}
	}
	return of
}

// tell lists recipients with what is known of each.
func tell(b *strings.Builder, rcpts []*Recipient) {
	for i, rcpt := range rcpts {
		if i == maxTold {
			b.WriteString(fold("  ", "  ", fmt.Sprintf("and %d more, who are listed in the attached delivery report.", len(rcpts)-i)) + "\r\n")
			return
		}
		b.WriteString("  <" + oneLine(string(rcpt.ForwardPath), maxAddress) + ">\r\n")
		b.WriteString(fold("    ", "    ", rcpt.story()))
		for _, line := range replyLines(rcpt.Reply) {
			b.WriteString(fold("      ", "      ", line))
		}
		if to := rcpt.command(); to != "" {
			b.WriteString("    " + to + "\r\n")
		}
		b.WriteString("\r\n")
	}
}

// replyLines is a reply in the lines in which it was given, bounded.
func replyLines(reply mail.Reply) []string {
	left := maxReply
	var lines []string
	for i := range reply.Lines {
		one := mail.Reply{Lines: reply.Lines[i : i+1]}
		if i == 0 {
			one.Code, one.Enhanced = reply.Code, reply.Enhanced
		}
		line := truncate(replyText(one), left)
		if line != "" {
			lines = append(lines, line)
			left -= len(line)
		}
	}
	if len(lines) == 0 && reply.Code != 0 {
		lines = []string{replyText(reply)} // a code and no text
	}
	return lines
}

// story introduces the reply of a recipient, or stands in its place.
func (rcpt *Recipient) story() string {
	host := asciiLine(rcpt.Host)
	if host == "" {
		host = "the next host"
	} else {
		host = "host " + host
	}
	answered := rcpt.Reply.Code != 0
	silent := len(replyLines(rcpt.Reply)) == 0
	switch {
	case rcpt.Action == mail.Relayed && answered:
		return "Taken by " + host + ", which said:"
	case rcpt.Action == mail.Relayed:
		return "Taken by " + host + "."
	case rcpt.Action == mail.Expired && answered:
		return "The time to deliver it is over. At the last attempt, " + host + " said:"
	case rcpt.Action == mail.Expired && silent:
		return "The time to deliver it is over."
	case rcpt.Action == mail.Expired:
		return "The time to deliver it is over. At the last attempt:"
	case rcpt.Action == mail.Delayed && answered:
		return "At the last attempt, " + host + " said:"
	case rcpt.Action == mail.Delayed && silent:
		return "It waits for its turn."
	case rcpt.Action == mail.Delayed:
		return "At the last attempt:"
	case answered:
		return "Refused by " + host + ", which said:"
	case silent:
		return "It was given up."
	default:
		return "The reason:"
	}
}

func lastExpiry(rcpts []*Recipient) time.Time {
	var last time.Time
	for _, rcpt := range rcpts {
		if rcpt.ExpiresAt.After(last) {
			last = rcpt.ExpiresAt
		}
	}
	return last
}

// spoken is a moment in a text.
func spoken(t time.Time) string {
	if t.IsZero() {
		return "a day unknown"
	}
	return t.UTC().Format("Monday, 2 January 2006, 15:04 UTC")
}
