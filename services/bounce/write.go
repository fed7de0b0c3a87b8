package bounce

import (
	"strconv"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/telemetry"
	"github.com/postrider/postrider/services/bounce/internal/dsn"
)

// write makes the DSN for the recipients of one message that share a fate. It
// returns nil when nobody is to hear of them.
func (b *bounce) write(in store.ReportInput) *mail.Submission {
	reversePath := in.Message.Envelope.ReversePath
	if reversePath.IsNull() {
		// RFC 5321 §6.1: a report about a report would never end.
		telemetry.Unreported(&in.Message, "double bounce: the reverse-path is null")
		return nil
	}
	if in.Trust == mail.Stranger && !b.cfg.Strangers {
		// Whoever sends a spammer's mail back to the address that it names
		// spams for him.
		telemetry.Unreported(&in.Message, "the sender is a stranger, and nobody has verified the reverse-path")
		return nil
	}
	recipients := wanted(in)
	if len(recipients) == 0 {
		telemetry.Unreported(&in.Message, "the sender asked for no report")
		return nil
	}
	domain, err := mail.ParseDomain(reversePath.DomainText())
	if err != nil {
		telemetry.Unreported(&in.Message, "the reverse-path has no domain to report to")
		return nil
	}

	now := time.Now()
	report := dsn.Report{
		ID:         mail.NewQueueID(),
		Hostname:   b.cfg.Hostname,
		Date:       now,
		Original:   in.Message,
		HeaderID:   in.HeaderID,
		Content:    in.Header,
		Recipients: recipients,
	}
	if in.Content != nil {
		report.Content = in.Content
	}
	composed := report.Compose()
	return &mail.Submission{
		Message: mail.Message{
			ID:         report.ID,
			Envelope:   mail.Envelope{Body: composed.Body, SMTPUTF8: composed.SMTPUTF8},
			Tenant:     in.Message.Tenant,
			Priority:   in.Message.Priority,
			SizeBytes:  int64(len(composed.Content)),
			AcceptedAt: now,
		},
		Recipients: []mail.Recipient{{
			No:          1,
			ForwardPath: mail.ForwardPath(reversePath),
			Domain:      domain,
			Notify:      mail.NotifyNever, // RFC 3461 §6.1: nobody is to report on a report
			ExpiresAt:   now.Add(time.Duration(b.cfg.Lifetime)),
		}},
		Content:  composed.Content,
		Client:   mail.Client{Hello: b.cfg.Hostname},
		HeaderID: composed.HeaderID,
		ReportOf: in.Message.ID,
	}
}

// condition is the NOTIFY word of each kind of report.
var condition = map[store.ReportKind]mail.Notify{
	store.ReportFailure: mail.NotifyFailure,
	store.ReportDelay:   mail.NotifyDelay,
	store.ReportSuccess: mail.NotifySuccess,
}

// wanted returns the recipients whose sender wants to hear of them: RFC 3461
// §4.1.
func wanted(in store.ReportInput) []dsn.Recipient {
	var recipients []dsn.Recipient
	for _, r := range in.Recipients {
		// RFC 2852 §4.1.4: BY may have it told whatever NOTIFY says but NEVER. Who
		// planned the report knew what the next hop promised.
		traced := in.Kind == store.ReportSuccess && !in.Message.Envelope.DeliverBy.At.IsZero() && r.Notify != mail.NotifyNever
		if !traced && !r.Notify.Wants(condition[in.Kind]) {
			continue
		}
		d := dsn.Recipient{
			Recipient: r.Recipient,
			Action:    action(r.State),
			Status:    parseStatus(r.Status),
			Reply:     r.Reply,
			Phase:     r.Phase,
			Host:      r.Host,
		}
		// An operator's word or our own shutdown is no attempt.
		if r.Phase != "" && r.Phase != mail.PhaseQueue {
			d.LastAttemptAt = r.LastAttemptAt
		}
		recipients = append(recipients, d)
	}
	return recipients
}

// action is what a recipient's state says in a report.
func action(state string) mail.Action {
	switch state {
	case "queued", "held":
		return mail.Delayed
	default:
		return mail.Action(state)
	}
}

// parseStatus reads "5.1.1"; anything else is no status.
func parseStatus(text string) mail.EnhancedCode {
	var c mail.EnhancedCode
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return c
	}
	for i, to := range []*uint16{&c.Class, &c.Subject, &c.Detail} {
		n, err := strconv.ParseUint(parts[i], 10, 10)
		if err != nil {
			return mail.EnhancedCode{}
		}
		*to = uint16(n)
	}
	return c
}
