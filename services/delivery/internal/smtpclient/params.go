package smtpclient

import (
	"slices"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
)

// This file is for hosts that offer an extension and refuse its parameters.
// No mail must come back for a word that it can do without, so it is sent once
// more without, as if the extension had not been offered.

// ofParameters reports whether a refusal may speak of the parameters of a
// command: RFC 5321 §4.1.1.11, §4.2.2. What speaks of an address does not:
// RFC 3463 §3.2.
func ofParameters(r mail.Reply) bool {
	return slices.Contains([]int{501, 504, 555}, r.Code) && r.Enhanced.Subject != 1
}

// giveUp forgets extensions that a MAIL with these arguments had parameters
// of, and reports whether there were any: first those that only ask for
// something beside the delivery, then what decides what the content is, and last
// whether the message may go there at all.
func (o *offers) giveUp(args smtp.MailArgs) bool {
	switch {
	case args.Ret != "" || args.EnvID != "" || args.DeliverBy.Given || args.Priority.Given || args.SizeBytes > 0:
		o.dsn, o.deliverBy, o.priority, o.size = false, false, false, false
	case args.SMTPUTF8: // RFC 6531 §3.1: with 8BITMIME, so it goes first
		o.smtputf8 = false
	case args.Body != "":
		o.eightBit, o.binary = false, false
	case args.RequireTLS:
		o.requireTLS = false
	default:
		return false
	}
	return true
}

// withoutParameters carries a transaction out once more for those whose
// refusal may only have spoken of parameters. A host that does not take them
// without either meant something else, and has all that it offered.
func (x *sending) withoutParameters(t Transaction) {
	if x.mailRefused {
		x.plainMail(t)
	} else if x.offers.dsn {
		x.plainRecipients(t)
	}
}

// plainMail does it for a MAIL that was refused.
func (x *sending) plainMail(t Transaction) {
	reply, offered := x.Answers[0].Reply, x.offers
	if !ofParameters(reply) || !x.offers.giveUp(x.mailArgs()) {
		return
	}
	t.beforeAgain()
	x.Result = x.Send(x.ctx, t)
	x.MailSent = true
	if x.Answers[0].Phase != mail.PhaseMail {
		return
	}
	x.offers = offered
	for i := range x.Answers {
		if a := &x.Answers[i]; a.Err != nil && a.Reply.Code == 0 {
			a.Reply = reply // why it could not go without
		}
	}
}

// plainRecipients does it for recipients that were refused, while others may
// have been accepted.
func (x *sending) plainRecipients(t Transaction) {
	var refused []int
	var recipients []mail.Pending
	for i, p := range t.Recipients {
		if a := &x.Answers[i]; a.Phase == mail.PhaseRcpt && a.Err == nil && ofParameters(a.Reply) && (p.Notify != 0 || p.ORCPT != "") {
			refused, recipients = append(refused, i), append(recipients, p)
		}
	}
	if refused == nil {
		return
	}
	t.Recipients = recipients
	t.beforeAgain()
	x.offers.dsn = false
	rest := x.Send(x.ctx, t)
	x.offers.dsn = rest.Accepted == 0
	x.Accepted += rest.Accepted
	for k, i := range refused {
		x.Answers[i] = rest.Answers[k]
	}
}
