package delivery_test

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/services/delivery"
)

// split is the shape of a site in so many parts, with limits of each kind.
func split(homes int) string {
	return fmt.Sprintf("[\"example.test\"]\nhomes = %d\nconnection_limit = 5\nmax_message_rate = \"30/s\"\nmax_connection_rate = \"9/2s\"\nmax_deliveries_per_connection = 10\nmax_ready = 50\n", homes)
}

// mustHoldSplit has the log of the remote host judge the limits of split.
func mustHoldSplit(t *testing.T, mx *smtptest.Server) {
	t.Helper()
	mustHold(t, mx, 5, 30)
	var opened []time.Time
	for _, c := range mx.Connections() {
		opened = append(opened, c.OpenedAt)
	}
	slices.SortFunc(opened, time.Time.Compare)
	for i := 9; i < len(opened); i++ {
		if gap := opened[i].Sub(opened[i-9]); gap <= 2*time.Second {
			t.Errorf("10 connections within %v, limit 9/2s", gap)
			return
		}
	}
}

// named is the configuration of a worker that the remote host can tell from
// others.
func (r *rig) named(name, shape string) delivery.Config {
	c := r.config(shape)
	c.Hostname = name + ".origin.test"
	return c
}

// from counts the messages that came from a worker after a time.
func from(mx *smtptest.Server, name string, after time.Time) (n int) {
	for _, m := range mx.Messages() {
		if m.Hello == name+".origin.test" && m.MailAt.After(after) {
			n++
		}
	}
	return n
}

// divided waits until a site has so many parts.
func (r *rig) divided(site mail.Site, parts int) {
	r.t.Helper()
	r.until(fmt.Sprintf("%s has %d parts", site, parts), 30*time.Second, func() bool {
		all, err := r.db.Divisions(r.t.Context())
		if err != nil {
			r.t.Fatal(err)
		}
		d := all.Of(site)
		return len(d.Slots) == parts && d.Next == nil
	})
}

// TestASiteIsSharedByTwoHomes: both homes of a divided site relay, and the
// remote host never sees more than the limits of the whole: not while the site
// is being divided, and not while one home is cut off and replaced.
func TestASiteIsSharedByTwoHomes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const site = "mx.example.test"
	mx := smtptest.Start(t, smtptest.Script{Discard: true, Rules: []smtptest.Rule{
		{At: smtptest.Dot, Do: smtptest.Later(100*time.Millisecond, smtptest.Reply(250, "2.0.0 taken"))},
	}})
	r.route("example.test", site, mx.Addr())
	ids := r.accept(600, message{domain: "example.test"})
	first := r.start(r.named("first", split(2)))
	r.settled(1)
	r.start(r.named("second", split(2)))
	r.settled(2)
	r.conduct()
	r.ring()
	r.divided(site, 2)
	at := time.Now()
	r.until("both homes relay", 30*time.Second, func() bool { return from(mx, "first", at) > 10 && from(mx, "second", at) > 10 })

	first.cut()
	r.until("the other worker holds all slots", 15*time.Second, func() bool {
		homes := r.homes()
		return len(homes) == 1 && homes[1] == 0 // ids begin at 1 in a fresh database
	})
	r.start(r.named("third", split(2)))
	r.settled(2)
	at = time.Now()
	r.until("both homes relay again", 30*time.Second, func() bool { return from(mx, "second", at) > 10 && from(mx, "third", at) > 10 })
	r.drained(60 * time.Second)
	mustHoldSplit(t, mx)
	r.mustArrive(mx, ids)
}

// TestTheNumberOfPartsChangesLive: workers hear of a new number one after the
// other, while all limits are used.
func TestTheNumberOfPartsChangesLive(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const site = "mx.example.test"
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", site, mx.Addr())
	ids := r.accept(900, message{domain: "example.test"})
	configs := []delivery.Config{r.named("first", split(1)), r.named("second", split(1))}
	for i, c := range configs {
		r.start(c)
		r.settled(i + 1)
	}
	r.conduct()
	r.ring()
	mx.WaitMessages(t, 20, 20*time.Second)
	for i, parts := range []int{2, 4, 1, 3} {
		for k := range configs {
			// By turns either one hears first. The worker that decides acts on its own.
			c := configs[(i+k)%2]
			if err := os.WriteFile(c.Shaping.File, []byte(split(parts)), 0o600); err != nil {
				t.Fatal(err)
			}
			n := mx.Count()
			mx.WaitMessages(t, n+15, 20*time.Second)
		}
		r.divided(site, parts)
		n := mx.Count()
		mx.WaitMessages(t, min(n+40, 900), 20*time.Second)
	}
	r.drained(60 * time.Second)
	mustHoldSplit(t, mx)
	r.mustArrive(mx, ids)
}

// TestNoPartIsLeftWithoutALimit: a site has no more parts than each of its
// limits has something for.
func TestNoPartIsLeftWithoutALimit(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const site = "mx.example.test"
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", site, mx.Addr())
	r.accept(60, message{domain: "example.test"})
	r.start(r.config("[\"example.test\"]\nhomes = 8\nconnection_limit = 3\n"))
	r.settled(1)
	r.conduct()
	r.ring()
	r.divided(site, 3)
	r.drained(30 * time.Second)
	mustHold(t, mx, 3, 100)
}
