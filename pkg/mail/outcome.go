package mail

import (
	"net/netip"
	"time"
)

// Action is what became of a recipient in one attempt: RFC 3464 §2.3.3, and
// our own actions that end a recipient without a remote reply.
type Action string

// The actions. Relayed, Failed, Expired and Cancelled are final states of a
// recipient too. Delayed leaves it queued.
const (
	Relayed   Action = "relayed"
	Delayed   Action = "delayed"
	Failed    Action = "failed"
	Expired   Action = "expired"
	Cancelled Action = "cancelled"
)

// Final reports whether the action ends the recipient.
func (a Action) Final() bool { return a != Delayed }

// Phase is the point of the walk at which an outcome was decided.
type Phase string

// The phases, in the order of an attempt.
const (
	PhaseRoute    Phase = "route"    // the routing table: held or discarded by a rule
	PhaseResolve  Phase = "resolve"  // look-up of the route
	PhaseConnect  Phase = "connect"  // TCP connection
	PhaseBanner   Phase = "banner"   // the 220 greeting
	PhaseHello    Phase = "ehlo"     // EHLO or HELO
	PhaseStartTLS Phase = "starttls" // STARTTLS and its handshake
	PhaseAuth     Phase = "auth"     // AUTH at a smart host
	PhaseMail     Phase = "mail"     // MAIL FROM
	PhaseRcpt     Phase = "rcpt"     // RCPT TO
	PhaseData     Phase = "data"     // DATA and its 354
	PhaseBody     Phase = "body"     // the content, before the final dot
	PhaseDot      Phase = "dot"      // the reply to the final dot
	PhaseQueue    Phase = "queue"    // our own queue: expiry, operators, suspension
)

// Outcome is what one attempt said about one recipient. Every recipient of a
// request gets exactly one.
type Outcome struct {
	RecipientNo   int32
	Attempt       int32 // the fence under which the recipient was claimed
	Action        Action
	Status        EnhancedCode // RFC 3463; of the remote reply, or our own
	Reply         Reply        // of the remote host; zero Code if there was none: then Lines says what happened
	Phase         Phase
	NextAttemptAt time.Time // for Delayed
	Untried       bool      // for Delayed: no attempt was made (shutdown, lost lease, suspended site); the retry schedule does not advance
	ReportAt      time.Time // when the sender is to hear of it; zero: not at all. PlanReport sets it
	Uncertain     bool      // the final dot was sent and no reply came: the next attempt may make a duplicate (RFC 1047)
}

// Transaction is what is known of the connection that gave a set of outcomes.
type Transaction struct {
	StartedAt time.Time
	Duration  time.Duration
	Host      string         // name of the remote host; "" before one was chosen
	Remote    netip.AddrPort // zero if no connection was made
	Local     netip.AddrPort
	TLS       string // such as "TLS1.3 TLS_AES_128_GCM_SHA256"; "" in plaintext
	Site      Site
	Source    string // that it left from; "": this machine as it is
}

// Settlement carries the outcomes of one delivery request into one
// transaction.
type Settlement struct {
	Message     Message
	Transaction Transaction
	Outcomes    []Outcome
}

// Promise is what the next hop will report of a message that it took.
type Promise struct {
	DSN       bool // what NOTIFY asks for: RFC 3461 §5.2.2
	DeliverBy bool // that it is late by BY: RFC 2852 §4
}

// PlanReport sets when the sender is to hear of the outcome. A delay is
// noticed delayNotice after acceptance (0: never) and only by the first delay
// of a recipient, so that there is one notice; it is not planned where BY has
// set its time.
func (o *Outcome) PlanReport(m Message, r Pending, delayNotice time.Duration, next Promise) {
	now := m.AcceptedAt // due at once: any moment that has passed
	switch {
	case m.Envelope.ReversePath.IsNull():
		// RFC 5321 §4.5.5: never a report about a report.
	case o.Action == Failed || o.Action == Expired:
		if r.Notify.Wants(NotifyFailure) {
			o.ReportAt = now
		}
	case o.Action == Relayed:
		// RFC 2852 §4.1.4: with a trace, of every relay that NOTIFY does not
		// forbid; in mode N, of one to a host that will tell of no delay.
		by := m.Envelope.DeliverBy
		traced := (by.Trace || by.Notice() && !next.DeliverBy) && r.Notify != NotifyNever
		if traced || r.Notify.Wants(NotifySuccess) && !next.DSN {
			o.ReportAt = now
		}
	case o.Action == Delayed:
		if r.Tries == 0 && delayNotice > 0 && !m.Envelope.DeliverBy.Notice() && r.Notify.Wants(NotifyDelay) && !o.Untried {
			o.ReportAt = m.AcceptedAt.Add(delayNotice)
		}
	}
}
