package delivery

import (
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

func TestSaidTime(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"Greylisted, please try again in 300 seconds":              300 * time.Second,
		"try again in 5 minutes":                                   5 * time.Minute,
		"Please retry after 30 min.":                               30 * time.Minute,
		"Recipient address rejected: Greylisted for 4 minutes":     4 * time.Minute,
		"greylisting in action, please come back in 00:04:30":      4*time.Minute + 30*time.Second,
		"come back in 04:59":                                       4*time.Minute + 59*time.Second,
		"Too many messages; wait 1 hour before you try again":      time.Hour,
		"Requested action aborted, retry in 60s":                   time.Minute,
		"try again later":                                          0,
		"rate limited: 100 messages per 1 hour":                    0,
		"try again later. Limit is 20 messages in 10 minutes":      0,
		"4.7.0 [203.0.113.7] our system has detected unusual mail": 0,
		"again 7":                     0,
		"":                            0,
		"please retry in 99999 hours": 99999 * time.Hour,
		"try again in 10 minutes, not in 5 hours": 10 * time.Minute,
	} {
		if got, said := saidTime(text); got != want || said != (want > 0) {
			t.Errorf("%q: %v, %v, want %v", text, got, said, want)
		}
	}
}

func TestPatience(t *testing.T) {
	const schedule = 20 * time.Minute
	grey := mail.EnhancedCode{Class: 4, Subject: 7, Detail: 1}
	full := mail.EnhancedCode{Class: 4, Subject: 2, Detail: 2}
	over := time.Now()
	for name, c := range map[string]struct {
		code  int
		enh   mail.EnhancedCode
		phase mail.Phase
		text  string
		tries int16
		want  time.Duration
	}{
		"nothing said":              {450, mail.EnhancedCode{}, mail.PhaseRcpt, "later", 0, schedule},
		"a time, with a margin":     {450, grey, mail.PhaseRcpt, "try again in 5 minutes", 9, 5*time.Minute + saidMargin},
		"a time that is no wait":    {450, grey, mail.PhaseRcpt, "try again in 0 seconds", 0, saidLeast + saidMargin},
		"a time without bounds":     {451, grey, mail.PhaseDot, "retry in 99999 hours", 0, saidMost + saidMargin},
		"greylisted, first":         {450, grey, mail.PhaseRcpt, "policy", 0, 2 * time.Minute},
		"greylisted, third":         {451, grey, mail.PhaseRcpt, "policy", 2, 5 * time.Minute},
		"greylisted for ever":       {451, grey, mail.PhaseRcpt, "policy", 4, schedule},
		"greylisted, by its word":   {452, mail.EnhancedCode{}, mail.PhaseDot, "Graylisting enabled", 1, 4 * time.Minute},
		"policy is not always that": {421, grey, mail.PhaseMail, "complaints", 0, schedule},
		"full, by its code":         {452, full, mail.PhaseRcpt, "no", 0, fullLeast},
		"full, by its words":        {452, mail.EnhancedCode{}, mail.PhaseRcpt, "Mailbox full", 0, fullLeast},
		"over quota":                {450, mail.EnhancedCode{}, mail.PhaseRcpt, "user is over quota", 0, fullLeast},
		"a permanent failure":       {550, full, mail.PhaseRcpt, "try again in 5 minutes", 0, schedule},
		"no reply":                  {0, mail.EnhancedCode{}, mail.PhaseConnect, "try again in 5 minutes", 0, schedule},
	} {
		o := &mail.Outcome{Phase: c.phase, Reply: mail.Reply{Code: c.code, Enhanced: c.enh, Lines: []string{c.text}}}
		got := patienceOf(o, c.tries).next(over, over.Add(schedule)).Sub(over)
		if got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	o := &mail.Outcome{Phase: mail.PhaseRcpt, Reply: mail.Reply{Code: 450, Enhanced: grey}}
	if got := patienceOf(o, 0).next(over, over.Add(time.Second)); !got.Equal(over.Add(time.Second)) {
		t.Errorf("a schedule that is shorter stays: %v", got.Sub(over))
	}
	o.Reply.Enhanced = full
	if got := patienceOf(o, 0).next(over, over.Add(4*time.Hour)); !got.Equal(over.Add(4 * time.Hour)) {
		t.Errorf("a schedule that is longer stays: %v", got.Sub(over))
	}
}
