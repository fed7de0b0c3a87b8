package smtpd

import (
	"errors"
	"time"
	"unicode/utf8"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/ingress/internal/access"
	"github.com/postrider/postrider/services/ingress/internal/spool"
)

// transaction is a mail transaction: RFC 5321 §3.3.
type transaction struct {
	open       bool
	args       smtp.MailArgs
	recipients []mail.Recipient
	known      map[mailbox]struct{} // of recipients, once there are many
	memory     spool.Share
	cost       int64 // of the recipients, in bytes of memory
	paid       int64 // of it
}

// mailbox tells recipients apart. Domains are equal in any case of letters,
// local-parts are not: RFC 5321 §2.4.
type mailbox struct {
	local  string
	domain mail.Domain
}

// fewRecipients is up to where comparing with each is cheaper than a map.
const fewRecipients = 8

// keptRecipients is how many recipients have room in a session that is idle.
const keptRecipients = 32

func (t *transaction) clear() {
	if t.open {
		t.memory.Close()
	}
	clear(t.recipients) // their texts are not needed any more
	recipients := t.recipients[:0]
	if cap(recipients) > keptRecipients {
		recipients = nil
	}
	*t = transaction{recipients: recipients}
}

// What recipients take of the memory: each its texts and so much more, in
// steps.
const (
	recipientMemory = 320
	memoryStep      = 4 << 10
)

// pay takes the memory of a recipient, or reports that there is none.
func (t *transaction) pay(r *mail.Recipient) bool {
	cost := t.cost + int64(len(r.ForwardPath)+len(r.Domain)+len(r.ORCPT)+recipientMemory)
	for t.paid < cost {
		if !t.memory.Take(memoryStep) {
			return false
		}
		t.paid += memoryStep
	}
	t.cost = cost
	return true
}

// ascii reports whether all paths are.
func (t *transaction) ascii() bool {
	ascii := isASCII(t.args.ReversePath)
	for i := range t.recipients {
		ascii = ascii && isASCII(t.recipients[i].ForwardPath)
	}
	return ascii
}

// has reports whether the forward-path was given before.
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
	_, has := t.known[mailbox{localPart(path), domain}]
	return has
}

// add adds a recipient that was not given before.
func (t *transaction) add(r mail.Recipient) {
	t.recipients = append(t.recipients, r)
	if t.known != nil {
		t.known[mailbox{localPart(r.ForwardPath), r.Domain}] = struct{}{}
	}
}

func localPart(path mail.ForwardPath) string {
	return string(path[:len(path)-len(path.DomainText())])
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
	case s.messages >= s.cfg.MaxMessages:
		s.end(replyMessages)
		return
	}
	args, err := smtp.ParseMail(arguments)
	if err == nil {
		err = s.offered(args)
	}
	var refusal mail.Reply
	switch {
	case err != nil:
		refusal = replyMail(err)
	case args.SizeBytes > s.cfg.MaxMessageBytes: // RFC 1870 §6.1
		refusal = replyTooLarge
	default:
		refusal = s.sender(args.ReversePath)
	}
	if refusal.Code != 0 {
		s.refuse("MAIL", refusal)
		return
	}
	s.mail.open, s.mail.args = true, args
	s.mail.memory = s.server.memory.Share(s.client.Address)
	s.seat.Begin()
	s.wire.reply(replySender)
}

// offered refuses parameters of extensions that the client was not offered:
// RFC 5321 §4.1.1.11.
func (s *session) offered(args smtp.MailArgs) error {
	held := args.HoldFor != 0 || !args.HoldUntil.IsZero()
	switch {
	case args.RequireTLS && s.tls == nil: // RFC 8689 §4.1
		return smtp.ErrUnknown
	case args.Auth != "" && s.server.access == nil:
		return smtp.ErrUnknown
	case !s.known() && (held || args.DeliverBy.Given || args.Priority.Given):
		return smtp.ErrUnknown
	case args.Body == mail.BodyBinaryMIME && !s.cfg.BinaryMIME:
		return smtp.ErrParameter
	case args.HoldFor > maxHold || args.HoldUntil.After(time.Now().Add(maxHold)): // RFC 4865 §4.2
		return smtp.ErrParameter
	}
	return nil
}

// sender says why the client may not send with the reverse-path now.
func (s *session) sender(path mail.ReversePath) mail.Reply {
	if !s.server.crowd.message(s.client.Address, s.cfg, time.Now()) {
		return replyMessageRate
	}
	if s.id.Tenant == "" {
		return mail.Reply{}
	}
	id, err := s.server.access.Renew(s.server.ctx, s.client.Address, s.id)
	switch {
	case errors.Is(err, access.ErrRefused):
		s.over = true
		return replyRevoked
	case err != nil:
		s.server.lookups.Failed("client not looked up", err, "client", s.client.Address)
		return replyStore
	}
	s.server.lookups.Worked("clients are looked up again")
	s.id = id
	if !id.MayReversePath(path) {
		return replyReversePath
	}
	return mail.Reply{}
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
	if path == smtp.Postmaster { // RFC 5321 §4.5.1: ours
		path += mail.ForwardPath("@" + s.cfg.Hostname)
	}
	domain, err := mail.ParseDomain(path.DomainText())
	if !s.known() && (err != nil || !s.cfg.relays(domain)) {
		s.refusePath("RCPT", args.ForwardPath, replyRelay)
		return
	}
	if err != nil {
		s.refusePath("RCPT", path, replyRcpt(smtp.ErrDomain))
		return
	}
	if s.rcpts >= s.cfg.MaxSessionRcpts {
		s.end(replySessionRcpts)
		return
	}
	switch {
	case s.mail.has(path, domain): // kept once, as many clients send it twice
	case len(s.mail.recipients) >= s.cfg.MaxRecipients: // RFC 5321 §4.5.3.1.10
		s.refusePath("RCPT", path, replyRecipients)
		return
	default:
		recipient := mail.Recipient{
			No:          int32(len(s.mail.recipients)) + 1,
			ForwardPath: path,
			Domain:      domain,
			Notify:      args.Notify,
			ORCPT:       args.ORCPT,
		}
		if !s.mail.pay(&recipient) {
			s.refusePath("RCPT", path, replyMemory)
			return
		}
		s.rcpts++
		s.mail.add(recipient)
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

// release is when a message that is accepted at a time may leave: RFC 4865
// §4.2. The zero time: at once.
func (s *session) release(accepted time.Time) time.Time {
	if hold := s.mail.args.HoldFor; hold > 0 {
		return accepted.Add(hold)
	}
	return s.mail.args.HoldUntil
}

// deliverBy is what the client asked of time, of a message that is accepted at
// a time.
func (s *session) deliverBy(accepted time.Time) mail.DeliverBy {
	by := s.mail.args.DeliverBy
	if !by.Given {
		return mail.DeliverBy{}
	}
	return mail.DeliverBy{At: accepted.Add(by.Within), Return: by.Return, Trace: by.Trace}
}

// expiry is when a recipient leaves the queue of a message that is accepted
// at a time.
func (s *session) expiry(accepted time.Time, domain mail.Domain) time.Time {
	cfg := s.cfg
	lifetime := cfg.Lifetime(domain)
	if s.mail.args.ReversePath.IsNull() {
		lifetime = min(lifetime, time.Duration(cfg.ReportLifetime))
	}
	from := accepted
	if release := s.release(accepted); release.After(accepted) {
		from = release
	}
	expires := from.Add(lifetime)
	if by := s.deliverBy(accepted); by.Return && by.At.Before(expires) { // RFC 2852 §4: whatever has not left by then comes back
		return by.At
	}
	return expires
}

func isASCII[T ~string | ~[]byte](s T) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
