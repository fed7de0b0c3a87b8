package smtpd

import (
	"fmt"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
)

// maxHold is how long a client may have a message held: RFC 4865 §4.1.
const maxHold = 7 * 24 * time.Hour

// doHello is EHLO and HELO: RFC 5321 §4.1.1.1, §4.1.4.
func (s *session) doHello(command smtp.Command) {
	name, ok := smtp.CleanHello(command.Args)
	if !ok {
		s.refuse(command.Verb, replyHello)
		return
	}
	s.reset()
	s.client.Hello = name
	s.esmtp = command.Verb == "EHLO"
	if s.esmtp {
		s.wire.reply(mail.Reply{Code: 250, Lines: s.keywords()})
		return
	}
	s.wire.reply(mail.Reply{Code: 250, Lines: []string{s.cfg.Hostname}})
}

// keywords lists what the client may use here and now: RFC 5321 §4.1.1.1.
// They have no enhanced codes: RFC 2034 §3.
func (s *session) keywords() []string {
	cfg := s.cfg
	lines := []string{
		cfg.Hostname,
		"PIPELINING",
		fmt.Sprintf("SIZE %d", cfg.MaxMessageBytes),
		"8BITMIME",
		"SMTPUTF8",
		"ENHANCEDSTATUSCODES",
		"DSN",
		"CHUNKING",
	}
	if cfg.BinaryMIME {
		lines = append(lines, "BINARYMIME")
	}
	if s.mayStartTLS() {
		lines = append(lines, "STARTTLS")
	}
	if s.tls != nil { // RFC 8689 §2: only there
		lines = append(lines, "REQUIRETLS")
	}
	if s.mayAuth() {
		lines = append(lines, "AUTH "+s.mechanisms())
	}
	if s.known() {
		lines = append(lines,
			"DELIVERBY",
			fmt.Sprintf("FUTURERELEASE %d %s", int(maxHold.Seconds()), time.Now().Add(maxHold).UTC().Format(time.RFC3339)),
			"MT-PRIORITY")
	}
	if s.trusted {
		lines = append(lines, "XCLIENT "+xclientAttributes, "XFORWARD "+xforwardAttributes)
	}
	return append(lines,
		fmt.Sprintf("LIMITS MAILMAX=%d RCPTMAX=%d", cfg.MaxMessages, cfg.MaxRecipients),
		"HELP")
}
