package smtpd

import (
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
)

// transaction is a mail transaction: RFC 5321 §3.3.
type transaction struct {
	open       bool
	args       smtp.MailArgs
	recipients []mail.Recipient
	known      map[mailbox]struct{} // of recipients, once there are many
}

// mailbox tells recipients apart. Domains are equal in any case of letters,
// local-parts are not: RFC 5321 §2.4.
type mailbox struct {
	local  string
	domain mail.Domain
}

// fewRecipients is up to where comparing with each is cheaper than a map.
const fewRecipients = 8

func (t *transaction) clear() {
	*t = transaction{recipients: t.recipients[:0]}
}

// ascii reports whether all paths are.
func (t *transaction) ascii() bool {
	ascii := isASCII(t.args.ReversePath)
	for i := range t.recipients {
		ascii = ascii && isASCII(t.recipients[i].ForwardPath)
	}
	return ascii
}

// has reports whether the forward-path was given before, and remembers it.
func (t *transaction) has(path mail.ForwardPath, domain mail.Domain) bool {
	if len(t.recipients) < fewRecipients {
		for i := range t.recipients {
			r := &t.recipients[i]
			if r.Domain == domain && localPart(r.ForwardPath) == localPart(path) {
				return true
			}
		}
		return false
	}
	if t.known == nil {
		t.known = make(map[mailbox]struct{}, 4*fewRecipients)
		for i := range t.recipients {
			r := &t.recipients[i]
			t.known[mailbox{localPart(r.ForwardPath), r.Domain}] = struct{}{}
		}
	}
	key := mailbox{localPart(path), domain}
	_, has := t.known[key]
	t.known[key] = struct{}{}
	return has
}

func localPart(path mail.ForwardPath) string {
	return string(path[:len(path)-len(path.DomainText())])
}

// doHello is EHLO and HELO: RFC 5321 §4.1.1.1, §4.1.4.
func (s *session) doHello(command smtp.Command) {
	if !smtp.ParseHello(command.Args) {
		s.refuse(command.Verb, replyHello)
		return
	}
	s.reset()
	s.client.Hello = command.Args
	s.esmtp = command.Verb == "EHLO"
	if s.esmtp {
		s.wire.reply(s.server.hello)
		return
	}
	s.wire.reply(mail.Reply{Code: 250, Lines: []string{s.server.cfg.Hostname}})
}

// doMail begins a transaction: RFC 5321 §4.1.1.2.
func (s *session) doMail(arguments string) {
	switch {
	case s.client.Hello == "":
		s.refuse("MAIL", replyHelloFirst)
		return
	case s.mail.open:
		s.refuse("MAIL", replyNested)
		return
	case s.messages >= s.server.cfg.MaxMessages:
		s.end(replyMessages)
		return
	}
	args, err := smtp.ParseMail(arguments)
	if err == nil && args.Body == mail.BodyBinaryMIME { // RFC 3030 §3: not offered
		err = smtp.ErrParameter
	}
	switch {
	case err != nil:
		s.refuse("MAIL", replyMail(err))
	case args.SizeBytes > s.server.cfg.MaxMessageBytes: // RFC 1870 §6.1
		s.refuse("MAIL", replyTooLarge)
	default:
		s.mail.open, s.mail.args = true, args
		s.seat.Begin()
		s.wire.reply(replySender)
	}
}

// doRcpt adds a recipient: RFC 5321 §4.1.1.3.
func (s *session) doRcpt(arguments string) {
	if !s.mail.open {
		s.refuse("RCPT", replyMailFirst)
		return
	}
	args, err := smtp.ParseRcpt(arguments, s.mail.args.SMTPUTF8)
	if err != nil {
		s.refuse("RCPT", replyRcpt(err))
		return
	}
	path := args.ForwardPath
	if !s.mayRelay {
		s.refusePath("RCPT", path, replyRelay)
		return
	}
	if path == smtp.Postmaster { // RFC 5321 §4.5.1: ours
		path += mail.ForwardPath("@" + s.server.cfg.Hostname)
	}
	domain, err := mail.ParseDomain(path.DomainText())
	if err != nil {
		s.refusePath("RCPT", path, replyRcpt(smtp.ErrDomain))
		return
	}
	switch {
	case s.mail.has(path, domain): // kept once, as many clients send it twice
	case len(s.mail.recipients) >= s.server.cfg.MaxRecipients: // RFC 5321 §4.5.3.1.10
		s.refusePath("RCPT", path, replyRecipients)
		return
	default:
		s.mail.recipients = append(s.mail.recipients, mail.Recipient{
			No:          int32(len(s.mail.recipients)) + 1,
			ForwardPath: path,
			Domain:      domain,
			Notify:      args.Notify,
			ORCPT:       args.ORCPT,
		})
	}
	s.wire.reply(replyRecipient)
}

// doVerify: RFC 5321 §3.5.3. We know no mailboxes, so none is told.
func (s *session) doVerify(command smtp.Command) {
	if command.Args == "" {
		s.refuse(command.Verb, replyNeedArgument)
		return
	}
	s.wire.reply(replyVerify)
}

// lifetime is how long a recipient may stay in the queue.
func (s *session) lifetime(domain mail.Domain) time.Duration {
	cfg := &s.server.cfg
	lifetime := cfg.Lifetime(domain)
	if s.mail.args.ReversePath.IsNull() {
		lifetime = min(lifetime, time.Duration(cfg.ReportLifetime))
	}
	return lifetime
}
