package delivery

import (
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

// This file is the part of the failure policy that says when a delayed
// recipient is tried again: by the retry schedule, unless the reply says
// more. It is pure.

const (
	// saidMargin is added to a time that a host names, whose clock may be
	// late; saidLeast and saidMost bound it.
	saidMargin = 10 * time.Second
	saidLeast  = 10 * time.Second
	saidMost   = 4 * time.Hour
	// fullLeast is the least wait for a mailbox that is full: nobody empties
	// it within minutes.
	fullLeast = time.Hour
)

// greyWaits are the waits for a host that greylists, by tries: the usual
// delays are 1 to 5 minutes, and the schedule goes on behind them.
var greyWaits = []time.Duration{2 * time.Minute, 4 * time.Minute, 5 * time.Minute, 10 * time.Minute}

// patience is what a reply says of the next attempt. The zero value says
// nothing.
type patience struct {
	exactly time.Duration // the host has named a time
	atMost  time.Duration
	atLeast time.Duration
}

// patienceOf reads the reply to a transient failure.
func patienceOf(o *mail.Outcome, tries int16) patience {
	if !o.Reply.Transient() {
		return patience{}
	}
	text := o.Reply.Text()
	if d, said := saidTime(text); said {
		return patience{exactly: min(max(d, saidLeast), saidMost) + saidMargin}
	}
	switch {
	case greylisted(o, text):
		if int(tries) < len(greyWaits) {
			return patience{atMost: greyWaits[tries]}
		}
	case mailboxFull(o, text):
		return patience{atLeast: fullLeast}
	}
	return patience{}
}

// next returns when to try again, given what the schedule says.
func (p patience) next(over, scheduled time.Time) time.Time {
	switch {
	case p.exactly > 0:
		return over.Add(p.exactly)
	case p.atMost > 0 && scheduled.After(over.Add(p.atMost)):
		return over.Add(p.atMost)
	case p.atLeast > 0 && scheduled.Before(over.Add(p.atLeast)):
		return over.Add(p.atLeast)
	}
	return scheduled
}

// saying finds "try again in 5 minutes", "retry after 300 seconds", "come back
// in 1 hour", "greylisted for 4 minutes", "retry in 00:04:30". The words in
// front keep out what is a count or a limit, such as "100 messages per hour".
var saying = regexp.MustCompile(`(?i)\b(?:again|retry|retried|re-?send|come back|wait|gr[ae]y-?list(?:ed|ing)?|resubmit)\b[^0-9.;!]{0,40}` +
	`(?:(\d{1,2}):(\d{2})(?::(\d{2}))?|(\d{1,5})\s*(s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?))\b`)

// saidTime returns the time that a reply names.
func saidTime(text string) (time.Duration, bool) {
	m := saying.FindStringSubmatch(text)
	if m == nil {
		return 0, false
	}
	number := func(s string) time.Duration {
		n, err := strconv.Atoi(s)
		if err != nil {
			return 0 // not given
		}
		return time.Duration(n)
	}
	switch {
	case m[4] != "":
		unit := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour}[strings.ToLower(m[5])[0]]
		return number(m[4]) * unit, true
	case m[3] != "":
		return number(m[1])*time.Hour + number(m[2])*time.Minute + number(m[3])*time.Second, true
	}
	return number(m[1])*time.Minute + number(m[2])*time.Second, true
}

var greyWord = regexp.MustCompile(`(?i)\bgr[ae]y-?list`)

// greylisted reports whether a host only wants to see whether we come back:
// RFC 6647 §2. It has no code of its own; 450 and 451 with 4.7.1 at RCPT are
// what the usual ones say.
func greylisted(o *mail.Outcome, text string) bool {
	if greyWord.MatchString(text) {
		return true
	}
	policy := o.Reply.Enhanced.Subject == 7 && o.Reply.Enhanced.Detail == 1
	return o.Phase == mail.PhaseRcpt && policy && (o.Reply.Code == 450 || o.Reply.Code == 451)
}

var fullWords = regexp.MustCompile(`(?i)over ?quota|quota (?:is )?exceeded|exceeded (?:its |his |her |the |your )?(?:storage|quota|mailbox)|mailbox (?:is )?full|out of storage`)

// mailboxFull reports whether the mailbox has no room: RFC 3463 §3.3.
func mailboxFull(o *mail.Outcome, text string) bool {
	return o.Reply.Enhanced.Subject == 2 && o.Reply.Enhanced.Detail == 2 || fullWords.MatchString(text)
}
