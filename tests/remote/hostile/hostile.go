// Package hostile is the remote hosts that no one wants and everyone gets: a
// table of how each misbehaves, and what has to come of a message for it. The
// test of package remote runs every line against the real services,
// docs/failures.md is made of the same lines, and each host can be started
// alone, with go run ./tests/remote.
package hostile

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/postrider/postrider/pkg/smtptest"
)

// Scenario is one host and the message that is sent to it.
type Scenario struct {
	Name string // such as "stall-at-rcpt"; the label of its domain
	At   string // the phase, such as "RCPT"
	Host string // what the host does, in words

	// Script is how it behaves; nil is a host that does not listen.
	Script func(*Kit) (smtptest.Script, error)
	// Unanswered is a host that is not there at all: no SYN is answered.
	Unanswered bool

	// Shaping is what the file says of the domain, such as the one timeout
	// that is waited for.
	Shaping string

	To       []string // local parts; nil is one recipient
	Params   string   // of MAIL at submission
	Each     string   // of RCPT at submission
	EightBit bool     // the content has octets over 127
	Bytes    int      // of content; 0 is a few lines

	// Used has a message relayed on the same connection before. Owed has one
	// refused there, so that RSET is owed.
	Used, Owed bool

	Want Want
}

// Want is what has to come of it.
type Want struct {
	Outcomes []Outcome // of each recipient, after one attempt
	// Or is another status that each may have: a RST can be there before our
	// system has said that the connection stands.
	Or string
	// Connections and Transactions (MAIL commands) are what the host sees of
	// that attempt.
	Connections, Transactions int
	// Next says that a second mail exchanger gets the message at once.
	Next bool
	// Uncertain says that the host may have taken the message: RFC 1047.
	Uncertain bool
	// Twice says that it has: the one duplicate that SMTP makes unavoidable.
	Twice bool
	// Plaintext and Encrypted say how the message left, where that is the
	// point.
	Plaintext, Encrypted bool
}

// Outcome is the state of a recipient, and the enhanced status of its last
// attempt.
type Outcome struct {
	State  string // relayed, failed, or queued: it waits for its next attempt
	Status string // of RFC 3463
}

func (o Outcome) String() string {
	word := o.State
	if word == "queued" {
		word = "waits"
	}
	return word + " " + o.Status
}

// Kit is what the scripts of hosts need.
type Kit struct {
	Authority *smtptest.Authority // that the services trust
	Healed    atomic.Bool         // the host has its certificates in order now
}

// Domain is where the message of the scenario goes.
func (s *Scenario) Domain() string { return s.Name + ".hostile.test" }

// Next is a domain that has a second mail exchanger behind the hostile one.
func (s *Scenario) Next() string { return s.Name + ".next.test" }

// MX is the name of the host.
func (s *Scenario) MX() string { return "mx." + s.Domain() }

// Recipients are the local parts of the message.
func (s *Scenario) Recipients() []string {
	if s.To == nil {
		return []string{"someone"}
	}
	return s.To
}

// All returns the whole table, in the order of the dialogue.
func All() []*Scenario {
	all := slices.Concat(connecting(), crossed(), replies(), recipients(), missing(), lies(), required(), chunks(), handshakes(), content(), sessions())
	slices.SortStableFunc(all, func(a, b *Scenario) int { return order(a.At) - order(b.At) })
	return all
}

// Find returns the scenario of a name.
func Find(name string) (*Scenario, error) {
	for _, s := range All() {
		if s.Name == name {
			return s, nil
		}
	}
	return nil, fmt.Errorf("no scenario %q", name)
}

// phases are the headings of the table.
var phases = []string{"connect", "greeting", "EHLO", "STARTTLS", "MAIL", "RCPT", "DATA", "content", "final dot", "RSET", "QUIT"}

func order(at string) int {
	i := slices.Index(phases, at)
	if i < 0 {
		panic("no such phase: " + at)
	}
	return i
}

// Shaping returns the shaping file for all scenarios.
func Shaping() string {
	var b strings.Builder
	b.WriteString("[\"default\"]\nmax_connection_rate = \"unlimited\"\nretry_schedule = \"1h\"\nidle_timeout = \"1s\"\n")
	for _, s := range All() {
		if s.Shaping != "" {
			fmt.Fprintf(&b, "[%q]\nmx_rollup = false\n%s\n[%q]\nmx_rollup = false\n%s\n", s.Domain(), s.Shaping, s.Next(), s.Shaping)
		}
	}
	return b.String()
}

// The usual wants, for one recipient.

// waits is a try that ended with the host.
func waits(status string) Want {
	return Want{Outcomes: []Outcome{{"queued", status}}, Connections: 1, Transactions: 1}
}

// next is trouble with this host, so that another is tried at once.
func next(status string) Want {
	w := waits(status)
	w.Next = true
	return w
}

// before is next before any transaction.
func before(status string) Want {
	w := next(status)
	w.Transactions = 0
	return w
}

// unsure is no reply to the final dot.
func unsure(status string) Want {
	w := waits(status)
	w.Uncertain = true
	return w
}

// reset is RST in place of a greeting.
func reset() Want {
	w := before("4.4.2")
	w.Or = "4.4.1"
	return w
}

func fails(status string) Want {
	w := waits(status)
	w.Outcomes[0].State = "failed"
	return w
}

func relayed() Want {
	w := waits("2.0.0")
	w.Outcomes[0].State = "relayed"
	return w
}

// after is relayed on one connection, with so many transactions.
func after(transactions int) Want {
	w := relayed()
	w.Connections, w.Transactions = 1, transactions
	return w
}

// rules is a script that takes all mail but for these.
func rules(rules ...smtptest.Rule) func(*Kit) (smtptest.Script, error) {
	return func(*Kit) (smtptest.Script, error) { return smtptest.Script{Rules: rules}, nil }
}

// at is one rule.
func at(phase smtptest.Phase, do smtptest.Act) func(*Kit) (smtptest.Script, error) {
	return rules(smtptest.Rule{At: phase, Do: do})
}

// offering is a script with these extensions.
func offering(extensions []string, more ...smtptest.Rule) func(*Kit) (smtptest.Script, error) {
	return func(*Kit) (smtptest.Script, error) {
		return smtptest.Script{Extensions: extensions, Rules: more}, nil
	}
}

// certified makes a script with a configuration for TLS, which is bad until
// the host is healed.
func certified(bad func(k *Kit, name string) (*tls.Config, error), name string, more ...smtptest.Rule) func(*Kit) (smtptest.Script, error) {
	return func(k *Kit) (smtptest.Script, error) {
		good, err := k.Authority.Server(name)
		if err != nil {
			return smtptest.Script{}, err
		}
		config, err := bad(k, name)
		if err != nil {
			return smtptest.Script{}, err
		}
		// A session that began when the host was well would be resumed, and is
		// as good as its certificate was then.
		good.SessionTicketsDisabled, config.SessionTicketsDisabled = true, true
		config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
			if k.Healed.Load() {
				return good, nil
			}
			return nil, nil // as it stands
		}
		return smtptest.Script{TLS: config, Rules: more}, nil
	}
}
