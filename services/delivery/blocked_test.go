package delivery

import (
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
)

func TestRepliesThatMeanOurAddress(t *testing.T) {
	for _, c := range []struct {
		name string
		code int
		text string
		want bool
	}{
		{"Spamhaus at RCPT", 554, "Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org; https://www.spamhaus.org/query/ip/192.0.2.1", true},
		{"an RBL at the greeting", 554, "Your IP 192.0.2.1 is listed in our RBL", true},
		{"Outlook", 550, "Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your Internet service provider since part of their network is on our block list (S3140).", true},
		{"Gmail, for now", 421, "[192.0.2.1] Our system has detected an unusual rate of unsolicited mail originating from your IP address. To protect our users from spam, mail sent from your IP address has been temporarily rate limited.", true},
		{"Yahoo", 553, "[BL21] Connections will not be accepted from 192.0.2.1, because the ip is in Spamhaus's list", true},
		{"Comcast", 554, "resimta-po-01v.sys.comcast.net comcast 192.0.2.1 BL000001 blocked", true},
		{"poor reputation", 550, "Rejected: your sending IP has a poor reputation", true},
		{"banned for now", 450, "your host is temporarily banned", true},
		{"no such user", 550, "no such user here", false},
		{"content", 550, "message content rejected", false},
		{"a link in the message", 554, "Message contains a URL listed on dbl.spamhaus.org", false},
		{"SURBL", 550, "blocked: URL in message is on SURBL", false},
		{"SPF", 550, "SPF check failed: your IP 192.0.2.1 is not allowed to send for example.com, rejected", false},
		{"the recipient's own list", 550, "you are blocked by the recipient", false},
		{"mailbox full", 452, "mailbox full", false},
		{"greylisting", 450, "greylisted, try again in 5 minutes", false},
		{"policy, no address", 550, "Message rejected due to local policy", false},
		{"a success that names a list", 250, "queued; checked against zen.spamhaus.org", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := mail.Reply{Code: c.code, Enhanced: mail.EnhancedCode{Class: uint16(c.code / 100), Subject: 7, Detail: 1}, Lines: []string{c.text}}
			if got := blocksUs(r); got != c.want {
				t.Errorf("blocksUs(%s) = %v, want %v", r, got, c.want)
			}
		})
	}
}

func TestWarmUp(t *testing.T) {
	now := time.Date(2026, 11, 27, 15, 0, 0, 0, time.UTC)
	all := &sources{warmUps: map[warmUpKey][]store.WarmUpDay{
		{"slow", ""}:    {{Day: 1, Messages: 50}, {Day: 2, Messages: 100}, {Day: 5, Messages: 1000}},
		{"slow", "big"}: {{Day: 1, Messages: 10}, {Day: 3, Messages: 20}},
	}}
	on := func(d int) time.Time { return time.Date(2026, 11, d, 0, 0, 0, 0, time.UTC) }
	for _, c := range []struct {
		name   string
		src    store.Source
		site   mail.Site
		want   int // messages a day; 0: no bound
		notYet bool
	}{
		{"no warm-up", store.Source{}, "mx", 0, false},
		{"not begun", store.Source{WarmUp: "slow"}, "mx", 0, true},
		{"begins tomorrow", store.Source{WarmUp: "slow", WarmUpFrom: on(28)}, "mx", 0, true},
		{"its first day", store.Source{WarmUp: "slow", WarmUpFrom: on(27)}, "mx", 50, false},
		{"its fourth day is like the second", store.Source{WarmUp: "slow", WarmUpFrom: on(24)}, "mx", 100, false},
		{"its last day", store.Source{WarmUp: "slow", WarmUpFrom: on(23)}, "mx", 1000, false},
		{"warm", store.Source{WarmUp: "slow", WarmUpFrom: on(22)}, "mx", 0, false},
		{"two days do not count", store.Source{WarmUp: "slow", WarmUpFrom: on(22), WarmUpPaused: 2}, "mx", 100, false},
		{"blocked from the first day on", store.Source{WarmUp: "slow", WarmUpFrom: on(27), WarmUpPaused: 1}, "mx", 50, false},
		{"a provider of its own", store.Source{WarmUp: "slow", WarmUpFrom: on(25)}, "provider:big", 20, false},
		{"that provider, warm", store.Source{WarmUp: "slow", WarmUpFrom: on(24)}, "provider:big", 0, false},
		{"another provider", store.Source{WarmUp: "slow", WarmUpFrom: on(27)}, "provider:other", 50, false},
		{"a schedule that is not there", store.Source{WarmUp: "gone", WarmUpFrom: on(27)}, "mx", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, notYet := all.warmUpRate(&source{Source: c.src}, c.site, now)
			if got.Events != c.want || notYet != c.notYet || c.want > 0 && got.Period != 24*time.Hour {
				t.Errorf("%+v, not yet %v, want %d in 24 hours, %v", got, notYet, c.want, c.notYet)
			}
			if c.want == 0 && got != (shaping.Rate{}) {
				t.Errorf("%+v, want no bound", got)
			}
		})
	}
}
