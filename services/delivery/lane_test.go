package delivery_test

import (
	"slices"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/smtptest"
)

// TestSlowStart: a site that nothing is known of is not met with all the
// connections that its limit allows. More come as transactions go well.
func TestSlowStart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true, Rules: []smtptest.Rule{
		{At: smtptest.Dot, Do: smtptest.Later(300*time.Millisecond, smtptest.Reply(250, "2.0.0 taken"))},
	}})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.accept(100, message{domain: "example.test"})
	r.start(r.config(unlimited + "connection_limit = 20\n"))
	r.settled(1)
	r.ring()
	mx.WaitMessages(t, 100, 30*time.Second)
	r.drained(10 * time.Second)
	// The 250 leaves 300 ms after the dot was read.
	var taken []time.Time
	for _, m := range mx.Messages() {
		taken = append(taken, m.DotAt.Add(300*time.Millisecond))
	}
	slices.SortFunc(taken, time.Time.Compare)
	for i, c := range mx.Connections() {
		if i >= 5 && c.OpenedAt.Before(taken[i-5]) {
			t.Errorf("connection %d was opened before %d messages were taken", i+1, i-4)
		}
	}
	if n := mx.HighWater(); n <= 5 || n > 20 {
		t.Errorf("%d connections at once, want more than the 5 of the beginning and no more than 20", n)
	}
}

// TestWaitingForARateIsNoAttempt: mail that waits for the rate of its site goes
// out at its first attempt, however often the retry schedule comes round
// meanwhile.
func TestWaitingForARateIsNoAttempt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	ids := r.accept(15, message{domain: "example.test"})
	r.start(r.config("[\"default\"]\nmax_message_rate = \"5/s,max_burst=1\"\nconnection_limit = 1\nretry_schedule = \"1s\"\n"))
	r.settled(1)
	r.conduct()
	r.drained(30 * time.Second)
	for _, id := range ids {
		if s := r.show(id); len(s.Attempts) != 1 || s.Attempts[0].Action != "relayed" {
			t.Errorf("%s: %s; want one attempt", id, describe(s.Attempts))
		}
	}
}

// TestWhatAHostRefusesOfItsOffersIsCounted: a host that refuses SIZE sees each
// message twice, and never more transactions than its rate allows all the same.
func TestWhatAHostRefusesOfItsOffersIsCounted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true, Extensions: []string{"SIZE"}, Rules: []smtptest.Rule{
		{At: smtptest.Mail, Match: "SIZE=", Do: smtptest.Reply(555, "5.5.4 what?")},
	}})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.accept(12, message{domain: "example.test"})
	r.start(r.config("[\"default\"]\nmax_message_rate = \"5/s,max_burst=1\"\nconnection_limit = 4\nmax_deliveries_per_connection = 2\nmax_connection_rate = \"unlimited\"\n"))
	r.settled(1)
	r.ring()
	r.drained(30 * time.Second)
	if a, b := len(mx.Transactions()), mx.Count(); a != 24 || b != 12 {
		t.Errorf("%d transactions for %d messages, want 24 for 12", a, b)
	}
	mustHold(t, mx, 4, 5)
}
