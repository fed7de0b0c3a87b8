package delivery_test

import (
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/pkg/store"
)

// savedOf returns what homes have saved of a site.
func (r *rig) savedOf(site mail.Site) string {
	r.t.Helper()
	states, err := r.db.LoadSites(r.t.Context(), []int16{site.Slot()})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range states {
		if s.Site == site {
			return string(s.State)
		}
	}
	return ""
}

// parkedFor counts the recipients that wait in Postgres for a host, by what
// their history says.
func (r *rig) parkedFor(words string) (n int) {
	r.t.Helper()
	rows, err := r.db.Queue(r.t.Context(), store.Filter{}, 1000)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, row := range rows {
		if row.Place == "parked" && strings.Contains(row.LastReply, words) {
			n++
		}
	}
	return n
}

// TestANewHomeLeavesADeadHostAlone: the home of a dead site loses Postgres and
// gives way. The next one knows that the site is dead: one connection finds out
// whether it is back, when it was due, however much waits; and then all goes
// out.
func TestANewHomeLeavesADeadHostAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true, Rules: []smtptest.Rule{{At: smtptest.Banner, Do: smtptest.Drop()}}})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.accept(50, message{domain: "example.test"})
	first := r.start(r.config(""))
	r.settled(1)
	r.ring()
	r.until("the backlog is parked", 20*time.Second, func() bool { return r.parkedFor("closed by the remote host") >= 40 })
	r.until("it is saved why", 20*time.Second, func() bool { return strings.Contains(r.savedOf("mx.example.test"), `"outage":`) })
	first.cut()
	r.until("nobody is its home", 20*time.Second, func() bool { return len(r.homes()) == 0 })

	release := make(chan struct{})
	probe := smtptest.Await(release, smtptest.Reply(220, "mx.example.test ESMTP"))
	mx.SetRules(smtptest.Rule{At: smtptest.Banner, Do: probe})
	before := len(mx.Connections())
	r.start(r.config(""))
	r.settled(1)
	r.conduct()
	r.until("the probe of the new home", 20*time.Second, func() bool { return mx.Open() == 1 })
	r.accept(20, message{domain: "example.test"})
	r.until("mail that comes now is told what the last home knew", 20*time.Second, func() bool { return r.parkedFor("no host answers; last tried") >= 60 })
	if n := len(mx.Connections()) - before; n != 1 {
		t.Errorf("the new home has opened %d connections to a host that does not answer, want 1", n)
	}
	close(release)
	if a := r.drained(30 * time.Second); a.Relayed != 70 {
		t.Errorf("accounts %+v, want 70 relayed", a)
	}
	if n := mx.Count(); n != 70 {
		t.Errorf("%d messages arrived, want 70", n)
	}
	r.until("the outage is forgotten", 20*time.Second, func() bool { return !strings.Contains(r.savedOf("mx.example.test"), `"outage":`) })
}

// TestANewHomeTriesADeadAddressLast: of two hosts the first is dead, which the
// next home need not find out anew.
func TestANewHomeTriesADeadAddressLast(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	dead := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Banner, Do: smtptest.Drop()}}})
	good := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", dead.Addr(), good.Addr())
	r.accept(20, message{domain: "example.test"})
	first := r.start(r.config(""))
	r.settled(1)
	r.conduct()
	good.WaitMessages(t, 20, 20*time.Second)
	r.until("it is saved which address failed", 20*time.Second, func() bool {
		return strings.Contains(r.savedOf("mx.example.test"), `"failed":[{"address":"`+dead.Addr().String())
	})
	first.cut()
	r.until("nobody is its home", 20*time.Second, func() bool { return len(r.homes()) == 0 })
	before := len(dead.Connections())
	r.start(r.config(""))
	r.settled(1)
	r.accept(20, message{domain: "example.test"})
	good.WaitMessages(t, 40, 20*time.Second)
	// One may have found out whether it is back, if all this took long.
	if n := len(dead.Connections()) - before; n > 1 {
		t.Errorf("the new home has tried the dead address %d times first", n)
	}
}
