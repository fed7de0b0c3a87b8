package smtpd

import "github.com/postrider/postrider/pkg/mail"

// What a client may do without a message between, before each time more counts
// as an error. Postfix has the same: smtpd_junk_command_limit and
// smtpd_recipient_overshoot_limit.
const (
	junkLimit      = 100  // commands that bring no message nearer
	overshootLimit = 1000 // recipients that were refused for now
)

// efforts counts what a client did in vain since its last message that was
// accepted: a connection that brings messages may last, whatever bad addresses
// are among them.
type efforts struct {
	errors    int // commands that were refused for good, and what is over the limits
	junk      int
	overshoot int
}

// command counts a command that is about to be done.
func (e *efforts) command(verb string) {
	switch verb {
	case "EHLO", "HELO", "RSET", "NOOP", "HELP", "VRFY":
		if e.junk++; e.junk > junkLimit {
			e.errors++
		}
	}
}

// refused counts a negative reply.
func (e *efforts) refused(verb string, reply mail.Reply) {
	if reply.Permanent() {
		e.errors++
		return
	}
	if verb == "RCPT" {
		if e.overshoot++; e.overshoot > overshootLimit {
			e.errors++
		}
	}
}
