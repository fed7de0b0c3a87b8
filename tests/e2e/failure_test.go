package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

// sender gives a test a sender's domain of its own and returns its mail
// exchanger, where the reports arrive.
func sender(t *testing.T, w *world.World, domain string) *smtptest.Server {
	t.Helper()
	host := w.Host(t, "mx."+domain, smtptest.Script{})
	w.MX(t, domain, "10 mx."+domain)
	return host
}

// TestTransientThenRelayed: 4xx at any phase delays the message; the next
// attempt relays it, once.
func TestTransientThenRelayed(t *testing.T) {
	w := shared.Get(t)
	for _, phase := range []smtptest.Phase{
		smtptest.Banner, smtptest.Hello, smtptest.Mail, smtptest.Rcpt, smtptest.Data, smtptest.Dot,
	} {
		t.Run(string(phase), func(t *testing.T) {
			t.Parallel()
			domain := "transient-" + string(phase) + ".test"
			refuse := smtptest.Reply(451, "4.3.0 not now")
			if phase == smtptest.Banner || phase == smtptest.Hello {
				refuse = smtptest.Then(smtptest.Reply(421, "4.3.2 not now"), smtptest.Drop())
			}
			host := w.Host(t, "mx."+domain, smtptest.Script{Rules: []smtptest.Rule{{At: phase, Times: 1, Do: refuse}}})
			w.MX(t, domain, "10 mx."+domain)
			sent := content("transient at " + string(phase))
			id := send(t, w, 0, submit.Message{From: "sender@sender.test", To: []string{"a@" + domain}, Content: sent})
			waitState(t, w, id, "relayed")
			wantIntact(t, only(t, host), sent)
			wantTries(t, w, id, 1)
		})
	}
}

func wantTries(t *testing.T, w *world.World, id string, want int) {
	t.Helper()
	all, err := states(t.Context(), w, id)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if r.Tries != want {
			t.Errorf("message %s: %s, want %d", id, r, want)
		}
	}
}

// TestPermanentFailure: 5xx at any phase that speaks of the message fails it
// at once, and the sender hears of it.
func TestPermanentFailure(t *testing.T) {
	w := shared.Get(t)
	for _, phase := range []smtptest.Phase{smtptest.Mail, smtptest.Rcpt, smtptest.Data, smtptest.Dot} {
		t.Run(string(phase), func(t *testing.T) {
			t.Parallel()
			domain, from := "permanent-"+string(phase)+".test", "sender-"+string(phase)+".test"
			reports := sender(t, w, from)
			host := w.Host(t, "mx."+domain, smtptest.Script{Rules: []smtptest.Rule{
				{At: phase, Do: smtptest.Reply(550, "5.7.9 no thank you")},
			}})
			w.MX(t, domain, "10 mx."+domain)
			sent := content("permanent at " + string(phase))
			id := send(t, w, 1, submit.Message{From: "me@" + from, To: []string{"a@" + domain, "b@" + domain}, Content: sent})
			waitState(t, w, id, "failed")
			reports.WaitMessages(t, 1, deadline)
			report := parseReport(t, only(t, reports), "me@"+from)
			report.wantRecipients(t, "failed", "a@"+domain, "b@"+domain)
			for _, r := range report.recipients {
				if r.Get("Status") != "5.7.9" {
					t.Errorf("Status is %q, want 5.7.9", r.Get("Status"))
				}
				if d := r.Get("Diagnostic-Code"); !strings.Contains(d, "smtp") || !strings.Contains(d, "550") || !strings.Contains(d, "no thank you") {
					t.Errorf("Diagnostic-Code is %q, want the reply", d)
				}
				if mta := r.Get("Remote-MTA"); !strings.Contains(mta, "mx."+domain) {
					t.Errorf("Remote-MTA is %q, want mx.%s", mta, domain)
				}
			}
			report.wantReturned(t, "permanent at "+string(phase))
			if n := host.Count(); n != 0 {
				t.Errorf("the host took %d messages, want none", n)
			}
			w.Eventually(t, deadline, "the report relayed, and no other made", func(ctx context.Context) error {
				return onlyReport(ctx, w, id)
			})
		})
	}
}

// onlyReport returns nil if exactly one report of the message was made, and
// it was relayed.
func onlyReport(ctx context.Context, w *world.World, id string) error {
	var made, relayed int
	err := w.DB.QueryRow(ctx, `SELECT count(*), count(*) FILTER (WHERE r.state = 'relayed')
		FROM postrider.messages m JOIN postrider.recipients r USING (queue_id) WHERE m.report_of = $1`, id).Scan(&made, &relayed)
	if err == nil && (made != 1 || relayed != 1) {
		err = fmt.Errorf("%d reports, %d of them relayed", made, relayed)
	}
	return err
}

// TestSomeRecipientsFail: the good recipients of a message get it, the
// sender hears of the bad ones only.
func TestSomeRecipientsFail(t *testing.T) {
	t.Parallel()
	w := shared.Get(t)
	reports := sender(t, w, "some-sender.test")
	host := w.Host(t, "mx.some.test", smtptest.Script{Rules: []smtptest.Rule{
		{At: smtptest.Rcpt, Match: "gone", Do: smtptest.Reply(550, "5.1.1 no such user")},
		{At: smtptest.Rcpt, Match: "later", Times: 1, Do: smtptest.Reply(450, "4.2.1 later")},
	}})
	w.MX(t, "some.test", "10 mx.some.test")
	sent := content("some fail")
	to := []string{"one@some.test", "gone1@some.test", "later@some.test", "gone2@some.test"}
	id := send(t, w, 0, submit.Message{From: "me@some-sender.test", To: to, Content: sent})
	reports.WaitMessages(t, 1, deadline)
	host.WaitMessages(t, 2, deadline)
	parseReport(t, only(t, reports), "me@some-sender.test").wantRecipients(t, "failed", "gone1@some.test", "gone2@some.test")
	got := map[string]int{}
	for _, m := range host.Messages() {
		wantIntact(t, m, sent)
		for _, path := range m.Accepted() {
			got[path]++
		}
	}
	if len(got) != 2 || got["one@some.test"] != 1 || got["later@some.test"] != 1 {
		t.Errorf("the host took the message for %v", got)
	}
	w.Eventually(t, deadline, "all recipients final", func(ctx context.Context) error {
		all, err := states(ctx, w, id)
		for i, want := range []string{"relayed", "failed", "relayed", "failed"} {
			if err == nil && (len(all) != 4 || all[i].State != want) {
				err = fmt.Errorf("recipients are %v", all)
			}
		}
		return err
	})
}

// TestNullReversePathNeverReported: a bounce never bounces, RFC 5321 §4.5.5.
func TestNullReversePathNeverReported(t *testing.T) {
	t.Parallel()
	w := shared.Get(t)
	w.Host(t, "mx.refuses-all.test", smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Rcpt, Do: smtptest.Reply(550, "5.1.1 no")}}})
	w.MX(t, "refuses-all.test", "10 mx.refuses-all.test")
	id := send(t, w, 0, submit.Message{From: "", To: []string{"a@refuses-all.test"}, Content: content("null reverse-path")})
	waitState(t, w, id, "failed")
	w.Eventually(t, deadline, "nothing left to report", func(ctx context.Context) error {
		var open, reports int
		err := w.DB.QueryRow(ctx, `SELECT (SELECT count(*) FROM postrider.recipients WHERE queue_id = $1 AND NOT final_reported),
			(SELECT count(*) FROM postrider.messages WHERE report_of = $1)`, id).Scan(&open, &reports)
		if err == nil && open > 0 {
			err = fmt.Errorf("%d recipients not marked", open)
		}
		if reports > 0 {
			t.Errorf("%d reports for a null reverse-path", reports)
		}
		return err
	})
}

// TestFirstMXDown: RFC 5321 §5.1, the second takes it when the first is away
// or does not want to talk.
func TestFirstMXDown(t *testing.T) {
	w := shared.Get(t)
	for name, first := range map[string]*smtptest.Script{
		"refuses connections": nil,
		"421 at connect":      {Rules: []smtptest.Rule{{At: smtptest.Banner, Do: smtptest.Then(smtptest.Reply(421, "4.3.2 closed"), smtptest.Drop())}}},
		"drops at EHLO":       {Rules: []smtptest.Rule{{At: smtptest.Hello, Do: smtptest.Drop()}, {At: smtptest.Helo, Do: smtptest.Drop()}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			domain := strings.ToLower(strings.ReplaceAll(name, " ", "-")) + ".down.test"
			if first != nil {
				w.Host(t, "mx1."+domain, *first)
			} else if _, err := w.Remote("mx1." + domain); err != nil {
				t.Fatal(err)
			}
			second := w.Host(t, "mx2."+domain, smtptest.Script{})
			w.MX(t, domain, "10 mx1."+domain, "20 mx2."+domain)
			sent := content("first down")
			id := send(t, w, 0, submit.Message{From: "sender@sender.test", To: []string{"a@" + domain}, Content: sent})
			waitState(t, w, id, "relayed")
			wantIntact(t, only(t, second), sent)
		})
	}
}

// TestImplicitMX: RFC 5321 §5.1, a domain without MX records is its own mail
// exchanger.
func TestImplicitMX(t *testing.T) {
	t.Parallel()
	w := shared.Get(t)
	host := w.Host(t, "implicit.test", smtptest.Script{})
	sent := content("implicit MX")
	send(t, w, 0, submit.Message{From: "sender@sender.test", To: []string{"a@implicit.test"}, Content: sent})
	host.WaitMessages(t, 1, deadline)
	wantIntact(t, only(t, host), sent)
}

// TestNoSuchDestination: what DNS says of a domain fails its mail at once.
func TestNoSuchDestination(t *testing.T) {
	w := shared.Get(t)
	for _, tc := range []struct {
		name, domain string
		mx           []string
		status       []string
	}{
		{"null MX", "nullmx.test", []string{"0 ."}, []string{"5.1.10"}}, // RFC 7505 §3
		{"NXDOMAIN", "nxdomain.test", nil, []string{"5.1.2", "5.4.4"}},  // RFC 3463 §3.2
		{"MX without address", "noaddress.test", []string{"10 gone.noaddress.test"}, []string{"5.1.2", "5.4.4"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			from := "sender-" + tc.domain
			reports := sender(t, w, from)
			if tc.mx != nil {
				w.MX(t, tc.domain, tc.mx...)
			}
			id := send(t, w, 0, submit.Message{From: "me@" + from, To: []string{"a@" + tc.domain}, Content: content(tc.name)})
			waitState(t, w, id, "failed")
			reports.WaitMessages(t, 1, deadline)
			report := parseReport(t, only(t, reports), "me@"+from)
			report.wantRecipients(t, "failed", "a@"+tc.domain)
			if s := report.recipients[0].Get("Status"); !slices.Contains(tc.status, s) {
				t.Errorf("Status is %q, want %v", s, tc.status)
			}
		})
	}
}

// TestServFailIsTransient: a name server in trouble says nothing about the
// domain.
func TestServFailIsTransient(t *testing.T) {
	t.Parallel()
	w := shared.Get(t)
	host := w.Host(t, "mx.servfail.test", smtptest.Script{})
	w.MX(t, "servfail.test", "10 mx.servfail.test")
	if err := w.FailDNS("servfail.test"); err != nil {
		t.Fatal(err)
	}
	sent := content("servfail")
	id := send(t, w, 0, submit.Message{From: "sender@sender.test", To: []string{"a@servfail.test"}, Content: sent})
	w.Eventually(t, deadline, "a delay", func(ctx context.Context) error {
		all, err := states(ctx, w, id)
		if err == nil && (len(all) != 1 || all[0].State != "queued" || all[0].Tries == 0) {
			err = fmt.Errorf("recipients are %v", all)
		}
		return err
	})
	if err := w.HealDNS("servfail.test"); err != nil {
		t.Fatal(err)
	}
	waitState(t, w, id, "relayed")
	wantIntact(t, only(t, host), sent)
}

// TestExpiry: a recipient that cannot be relayed within its lifetime expires,
// in every state, and the sender hears of it.
func TestExpiry(t *testing.T) {
	w := shared.Get(t)
	for _, domain := range []string{"expiry.test", "unresolved.test"} {
		t.Run(domain, func(t *testing.T) {
			t.Parallel()
			from := "sender-" + domain
			reports := sender(t, w, from)
			if domain == "expiry.test" {
				w.Host(t, "mx."+domain, smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Rcpt, Do: smtptest.Reply(450, "4.2.2 full")}}})
				w.MX(t, domain, "10 mx."+domain)
			} else {
				// The mail exchanger's name server never answers usefully.
				w.MX(t, domain, "10 mx.lame.test")
				if err := w.FailDNS("mx.lame.test"); err != nil {
					t.Fatal(err)
				}
			}
			id := send(t, w, 0, submit.Message{From: "me@" + from, To: []string{"a@" + domain}, Content: content("expiry")})
			waitState(t, w, id, "expired")
			reports.WaitMessages(t, 1, deadline)
			report := parseReport(t, only(t, reports), "me@"+from)
			report.wantRecipients(t, "failed", "a@"+domain)
			if s := report.recipients[0].Get("Status"); !strings.HasSuffix(s, ".4.7") { // RFC 3463 §3.5: delivery time expired
				t.Errorf("Status is %q, want 4.4.7 or 5.4.7", s)
			}
		})
	}
}

// TestDelayNotice: the sender is told once of a delay that lasts.
func TestDelayNotice(t *testing.T) {
	t.Parallel()
	w := shared.Get(t)
	reports := sender(t, w, "late-sender.test")
	host := w.Host(t, "mx.late.test", smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Rcpt, Do: smtptest.Reply(450, "4.3.2 not now")}}})
	w.MX(t, "late.test", "10 mx.late.test")
	sent := content("late")
	id := send(t, w, 0, submit.Message{From: "me@late-sender.test", To: []string{"a@late.test"}, Content: sent})
	reports.WaitMessages(t, 1, deadline)
	parseReport(t, only(t, reports), "me@late-sender.test").wantRecipients(t, "delayed", "a@late.test")
	host.SetRules()
	waitState(t, w, id, "relayed")
	wantIntact(t, only(t, host), sent)
	only(t, reports)
}

// TestManyRecipients: 1,000 recipients in 10 domains, each delivered once.
func TestManyRecipients(t *testing.T) {
	w := shared.Get(t)
	var to []string
	hosts := map[string]*smtptest.Server{}
	for d := range 10 {
		domain := fmt.Sprintf("many%d.test", d)
		hosts[domain] = w.Host(t, "mx."+domain, smtptest.Script{})
		w.MX(t, domain, "10 mx."+domain)
	}
	for i := range 1000 {
		to = append(to, fmt.Sprintf("user%d@many%d.test", i, i%10))
	}
	sent := content("many")
	id := send(t, w, 1, submit.Message{From: "sender@sender.test", To: to, Content: sent})
	waitState(t, w, id, "relayed")
	got := map[string]int{}
	for domain, host := range hosts {
		for _, m := range host.Messages() {
			wantIntact(t, m, sent)
			if len(m.Recipients) > 100 {
				t.Errorf("%d recipients in one transaction: RFC 5321 §4.5.3.1.8 allows no server to count on more than 100", len(m.Recipients))
			}
			for _, path := range m.Accepted() {
				got[path]++
				if !strings.HasSuffix(path, "@"+domain) {
					t.Errorf("%s arrived at the mail exchanger of %s", path, domain)
				}
			}
		}
	}
	var errs []error
	for _, path := range to {
		if got[path] != 1 {
			errs = append(errs, fmt.Errorf("%s got the message %d times", path, got[path]))
		}
	}
	if err := errors.Join(errs...); err != nil || len(got) != len(to) {
		t.Errorf("%d recipients got the message, want %d: %v", len(got), len(to), err)
	}
}
