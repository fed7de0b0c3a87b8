package delivery_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/pkg/store"
)

// places are sites spread over the slots, so that each worker is the home of
// some.
func (r *rig) places(n int) (hosts []*smtptest.Server, domains []mail.Domain) {
	for i := range n {
		mx := smtptest.Start(r.t, smtptest.Script{})
		domain := mail.Domain(fmt.Sprintf("d%d.test", i))
		r.route(domain, mail.Site("mx."+string(domain)), mx.Addr())
		hosts, domains = append(hosts, mx), append(domains, domain)
	}
	return hosts, domains
}

func arrived(hosts []*smtptest.Server) (n int) {
	for _, mx := range hosts {
		n += mx.Count()
	}
	return n
}

// TestANewVersionHoldsOnAllWorkers: the limits of eight sites at two workers
// are lifted by a version in Postgres, without a restart; a version that
// cannot be read changes nothing.
func TestANewVersionHoldsOnAllWorkers(t *testing.T) {
	r := newRig(t)
	hosts, domains := r.places(8)
	c := r.config("[\"default\"]\nmax_message_rate = \"1/h\"\n")
	r.start(c)
	r.start(c)
	r.settled(2)
	for _, d := range domains {
		r.accept(4, message{domain: d})
	}
	r.conduct()
	r.until("all mail waits for its turn", 20*time.Second, func() bool {
		rows, err := r.db.Queue(t.Context(), store.Filter{}, 100)
		if err != nil {
			t.Fatal(err)
		}
		claimed := 0
		for _, row := range rows {
			if row.Place == "claimed" {
				claimed++
			}
		}
		return claimed+arrived(hosts) == 4*len(hosts)
	})
	if _, err := r.db.ApplyShaping(t.Context(), "[\"default\"]\nconnection_limt = 1", "", "test"); err != nil {
		t.Fatal(err)
	}
	began, waiting := time.Now(), 4*len(hosts)-arrived(hosts)
	if _, err := r.db.ApplyShaping(t.Context(), "[\"default\"]\nmax_message_rate = \"unlimited\"\n", "", "test"); err != nil {
		t.Fatal(err)
	}
	r.until("the new version holds everywhere", 20*time.Second, func() bool { return arrived(hosts) == 4*len(hosts) })
	t.Logf("%d messages had arrived %v after the version was applied", waiting, time.Since(began))
	for _, d := range domains {
		r.accept(2, message{domain: d})
	}
	if _, err := r.db.ApplyShaping(t.Context(), "[\"default\"", "", "test"); err != nil {
		t.Fatal(err)
	}
	r.until("the last good version still holds", 20*time.Second, func() bool { return arrived(hosts) == 6*len(hosts) })
}

const automated = `
[["default".automation]]
regex = '^421 4\.7\.0 .*rate limited'
action = ["Suspend", {SetConfig={name="max_deliveries_per_connection", value=1}}]
duration = "3s"

[["default".automation]]
regex = "spam complaints"
trigger = {Threshold="2/h"}
action = "SuspendTenant"
duration = "1h"

[["default".automation]]
regex = "never again"
action = "BounceCampaign"
duration = "1h"
`

// TestAutomationSuspendsASiteForAWhile: the site that answers 421 rests, the
// other one does not notice, and its mail moves again when the time is over.
func TestAutomationSuspendsASiteForAWhile(t *testing.T) {
	r := newRig(t)
	hosts, domains := r.places(2)
	hosts[0].SetRules(smtptest.Rule{At: smtptest.Mail, Times: 1, Do: smtptest.Reply(421, "4.7.0 you are rate limited")})
	r.start(r.config(automated))
	r.settled(1)
	limited := r.accept(5, message{domain: domains[0]})
	r.conduct()
	var found mail.Measures
	r.until("the rule has gone off", 20*time.Second, func() bool {
		var err error
		if found, err = r.db.Measures(t.Context()); err != nil {
			t.Fatal(err)
		}
		return len(found) == 2
	})
	for _, m := range found {
		if m.Site != "mx.d0.test" || m.Reason != "421 4.7.0 you are rate limited" || m.By != `"default": ^421 4\.7\.0 .*rate limited` {
			t.Errorf("measure %+v", m)
		}
	}
	r.accept(5, message{domain: domains[1]})
	hosts[1].WaitMessages(t, 5, 20*time.Second)
	hosts[0].WaitMessages(t, 5, 30*time.Second)
	if a := r.drained(20 * time.Second); a.Relayed != 10 {
		t.Errorf("accounts %+v", a)
	}
	for _, v := range hosts[0].Violations() {
		t.Error(v)
	}
	for _, id := range limited {
		if s := r.show(id); s.Recipients[0].State != "relayed" {
			t.Errorf("%s: %s", id, describe(s.Attempts))
		}
	}
}

// TestAutomationSuspendsATenantEverywhere: two complaints at one site keep the
// tenant's mail waiting at all homes; other tenants' goes on; an operator ends
// it.
func TestAutomationSuspendsATenantEverywhere(t *testing.T) {
	r := newRig(t)
	hosts, domains := r.places(6)
	hosts[0].SetRules(smtptest.Rule{At: smtptest.Dot, Times: 2, Do: smtptest.Reply(550, "5.7.1 too many spam complaints")})
	c := r.config(automated)
	r.start(c)
	r.start(c)
	r.settled(2)
	r.conduct()
	r.accept(1, message{domain: domains[0], tenant: "acme"})
	r.until("the first complaint", 20*time.Second, func() bool { return len(hosts[0].Transactions()) == 1 })
	if found, err := r.db.Measures(t.Context()); err != nil || len(found) > 0 {
		t.Errorf("measures %+v (%v) before the threshold", found, err)
	}
	r.accept(1, message{domain: domains[0], tenant: "acme"})
	var found mail.Measures
	r.until("the rule has gone off", 20*time.Second, func() bool {
		var err error
		if found, err = r.db.Measures(t.Context()); err != nil {
			t.Fatal(err)
		}
		return len(found) == 1
	})
	if found[0].Tenant != "acme" || found[0].Site != "" {
		t.Fatalf("measure %+v", found[0])
	}
	// What both workers know by now; their own mail shows when.
	var waiting []mail.QueueID
	r.until("mail of the tenant waits", 20*time.Second, func() bool {
		id := r.accept(1, message{domain: domains[1], tenant: "acme"})[0]
		r.until("decided", 20*time.Second, func() bool { return len(r.show(id).Attempts) > 0 })
		held := strings.Contains(r.show(id).Attempts[0].Reply, "suspended until")
		if held {
			waiting = append(waiting, id)
		}
		return held
	})
	before := arrived(hosts)
	for _, d := range domains[1:] {
		r.accept(1, message{domain: d, tenant: "other"})
	}
	r.until("mail of another tenant arrives", 20*time.Second, func() bool { return arrived(hosts) >= before+len(domains)-1 })
	for _, id := range waiting {
		if s := r.show(id); s.Recipients[0].State != "queued" || s.Recipients[0].NextAttemptAt.Before(time.Now().Add(50*time.Minute)) {
			t.Errorf("%s is %s, next attempt at %v: %s", id, s.Recipients[0].State, s.Recipients[0].NextAttemptAt, describe(s.Attempts))
		}
	}
	if ended, err := r.db.CancelMeasure(t.Context(), found[0].ID, "test"); err != nil || !ended {
		t.Fatal(ended, err)
	}
	if a := r.drained(30 * time.Second); a.Failed != 2 {
		t.Errorf("accounts %+v, want only the two complaints to fail", a)
	}
}

// TestABounceFailsWhatItCovers: an operator's bounce of a source, tenant or
// campaign fails the mail with its reason.
func TestABounceFailsWhatItCovers(t *testing.T) {
	r := newRig(t)
	hosts, domains := r.places(1)
	until := time.Now().Add(time.Hour)
	err := r.db.Order(t.Context(), []mail.Measure{{Kind: mail.MeasureBounce, Tenant: "acme", Until: until, Reason: "account closed", By: "test"}})
	if err != nil {
		t.Fatal(err)
	}
	r.start(r.config(""))
	r.settled(1)
	gone := r.accept(2, message{domain: domains[0], tenant: "acme"})
	r.accept(2, message{domain: domains[0]})
	r.conduct()
	if a := r.drained(20 * time.Second); a.Failed != 2 || a.Relayed != 2 {
		t.Errorf("accounts %+v, want 2 failed and 2 relayed", a)
	}
	for _, id := range gone {
		if text := describe(r.show(id).Attempts); !strings.Contains(text, "bounced by test: account closed") {
			t.Errorf("%s: %s", id, text)
		}
	}
	if hosts[0].Count() != 2 {
		t.Errorf("%d arrived", hosts[0].Count())
	}
}

// TestAHostThatAsksForPatienceGetsIt: without a rule the pace is halved, and
// the next home goes on as slowly.
func TestAHostThatAsksForPatienceGetsIt(t *testing.T) {
	r := newRig(t)
	hosts, domains := r.places(2)
	hosts[0].SetRules(smtptest.Rule{At: smtptest.Mail, Times: 1, Do: smtptest.Reply(451, "4.7.0 too many messages, slow down")})
	first := r.start(r.config(""))
	r.settled(1)
	r.accept(20, message{domain: domains[0]})
	r.accept(20, message{domain: domains[1]})
	r.conduct()
	if a := r.drained(60 * time.Second); a.Relayed != 40 {
		t.Errorf("accounts %+v", a)
	}
	// Half of it, or more on a machine so busy that a quiet minute passes.
	const slow = `"slow":{"share":0.`
	r.until("the state is saved", 20*time.Second, func() bool { return strings.Contains(r.savedOf("mx.d0.test"), slow) })
	if strings.Contains(r.savedOf("mx.d1.test"), "slow") {
		t.Errorf("the other site is slowed down too: %s", r.savedOf("mx.d1.test"))
	}
	first.stop()
	second := r.start(r.config(""))
	r.settled(1)
	r.accept(1, message{domain: domains[0]})
	r.drained(20 * time.Second)
	before := r.savedOf("mx.d0.test")
	second.stop() // which saves
	if after := r.savedOf("mx.d0.test"); after == before || !strings.Contains(after, slow) {
		t.Errorf("the next home does not have the state: %s", after)
	}
}

// TestProvidersLimitTheirSites: the limits of a provider hold at a site that
// is named after its hosts, and limits by name hold whatever the source.
func TestProvidersLimitTheirSites(t *testing.T) {
	r := newRig(t)
	hosts, domains := r.places(3)
	r.start(r.config(`
["default"]
max_message_rate = "unlimited"
[provider."zero"]
match = [{MXSuffix=".d0.test"}]
connection_limit = 2
[provider."one"]
match = [{MXSuffix=".d1.test"}]
additional_connection_limits = {"all of it" = 1}
`))
	r.settled(1)
	for _, d := range domains {
		r.accept(40, message{domain: d})
	}
	r.conduct()
	r.drained(40 * time.Second)
	for i, most := range []int{2, 1, 10} {
		if got := hosts[i].HighWater(); got > most {
			t.Errorf("%s saw %d connections at once, at most %d", domains[i], got, most)
		}
	}
	if hosts[2].HighWater() < 3 {
		t.Errorf("%s, which has no limit of its own, saw only %d", domains[2], hosts[2].HighWater())
	}
}
