package delivery_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/pkg/store"
)

// unlimited lets a test see what sources do, not what limits do.
const unlimited = "[\"default\"]\nmax_message_rate = \"unlimited\"\nmax_connection_rate = \"unlimited\"\n"

// source registers an address that mail leaves from.
func (r *rig) source(name, addr string, change ...func(*store.Source)) {
	r.t.Helper()
	s := store.Source{Name: name, Hello: name + ".origin.test"}
	if a := netip.MustParseAddr(addr); a.Is4() {
		s.IPv4 = a
	} else {
		s.IPv6 = a
	}
	for _, c := range change {
		c(&s)
	}
	if err := r.db.SetSource(r.t.Context(), s); err != nil {
		r.t.Fatal(err)
	}
}

// pool shares mail between sources, "name" or "name=weight".
func (r *rig) pool(name string, sources ...string) {
	r.t.Helper()
	var members []store.Member
	for _, s := range sources {
		m := store.Member{Pool: name, Weight: 1}
		m.Source, _, _ = strings.Cut(s, "=")
		if _, err := fmt.Sscanf(s, m.Source+"=%d", &m.Weight); err != nil && strings.Contains(s, "=") {
			r.t.Fatal(err)
		}
		members = append(members, m)
	}
	if err := r.db.SetPool(r.t.Context(), name, members); err != nil {
		r.t.Fatal(err)
	}
}

// bySource counts the messages that arrived by the address that they came
// from.
func bySource(mx *smtptest.Server) map[string]int {
	from := map[int]string{}
	for _, c := range mx.Connections() {
		from[c.ID] = c.Remote.Addr().Unmap().String()
	}
	n := map[string]int{}
	for _, m := range mx.Messages() {
		n[from[m.Connection]]++
	}
	return n
}

func TestMailLeavesFromTheSourcesOfItsPool(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.source("one", "127.0.0.11")
	r.source("two", "127.0.0.12")
	r.source("three", "127.0.0.13")
	r.pool("default", "one=3", "two")
	r.pool("bulk", "three")
	if err := r.db.CreateTenant(t.Context(), store.Tenant{Name: "acme"}); err != nil {
		t.Fatal(err)
	}
	if err := r.db.SetTenantPool(t.Context(), "acme", "bulk"); err != nil {
		t.Fatal(err)
	}
	ids := r.accept(400, message{domain: "example.test"})
	bulk := r.accept(20, message{domain: "example.test", tenant: "acme"})
	r.start(r.config(unlimited + "max_deliveries_per_connection = 4\nconnection_limit = 4"))
	r.settled(1)
	r.ring()
	r.drained(30 * time.Second)
	n := bySource(mx)
	if n["127.0.0.13"] != 20 || n["127.0.0.11"]+n["127.0.0.12"] != 400 {
		t.Errorf("arrived by source: %v, want 400 of the default pool and 20 of the pool of acme", n)
	}
	if n["127.0.0.11"] < 280 || n["127.0.0.11"] > 320 {
		t.Errorf("arrived by source: %v, want shares of 3 to 1, though the connections of both are busy", n)
	}
	for _, c := range mx.Connections() {
		want := map[string]string{"127.0.0.11": "one", "127.0.0.12": "two", "127.0.0.13": "three"}[c.Remote.Addr().Unmap().String()]
		if c.Hello != want+".origin.test" {
			t.Errorf("connection from %v says EHLO %s", c.Remote, c.Hello)
		}
	}
	if a := r.show(ids[0]).Attempts[0]; a.Source != "one" && a.Source != "two" || !strings.HasPrefix(a.Local.String(), "127.0.0.1") {
		t.Errorf("the history says source %q, local %v", a.Source, a.Local)
	}
	if a := r.show(bulk[0]).Attempts[0]; a.Source != "three" || a.Local.Addr().String() != "127.0.0.13" {
		t.Errorf("the history says source %q, local %v, want three", a.Source, a.Local)
	}
}

// Postal: a pool is stuck if its IP is not on the host, and an address is
// pinned when the message is enqueued.
func TestSourceThatNobodyHasDoesNotStopItsPool(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.source("lost", "192.0.2.1")
	r.source("two", "127.0.0.12")
	r.pool("default", "lost=1000", "two")
	r.accept(20, message{domain: "example.test"})
	r.start(r.config(unlimited))
	r.conduct()
	r.settled(1)
	r.drained(20 * time.Second)
	if n := bySource(mx); n["127.0.0.12"] != 20 {
		t.Errorf("arrived by source: %v, want all by the one that works", n)
	}
	r.pool("default", "lost")
	r.until("the change is known", 30*time.Second, func() bool {
		id := r.accept(1, message{domain: "example.test"})[0]
		r.until("the message is tried", 30*time.Second, func() bool { return len(r.show(id).Attempts) > 0 })
		return r.show(id).Attempts[0].Action == mail.Delayed
	})
	waiting := r.accept(5, message{domain: "example.test"})
	for _, id := range waiting {
		r.until("it is said why it waits", 30*time.Second, func() bool {
			s := r.show(id)
			return len(s.Attempts) == 1 && strings.Contains(s.Attempts[0].Reply,
				"no source of pool default can be used: lost: no worker that can be reached has 192.0.2.1") && s.Attempts[0].Untried
		})
	}
	r.source("lost", "127.0.0.14")
	r.drained(20 * time.Second)
	if n := bySource(mx); n["127.0.0.14"] < 5 {
		t.Errorf("arrived by source: %v, want what waited by the source when its address was changed", n)
	}
}

func TestPoolThatIsNotThere(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.routes["example.test"].Pool = "later"
	id := r.accept(1, message{domain: "example.test"})[0]
	r.start(r.config(""))
	r.conduct()
	r.settled(1)
	r.until("it is said why it waits", 30*time.Second, func() bool {
		s := r.show(id)
		return len(s.Attempts) == 1 && s.Attempts[0].Reply == "pool later has no source"
	})
	r.source("one", "127.0.0.11")
	r.pool("later", "one")
	r.drained(20 * time.Second)
	if n := bySource(mx); n["127.0.0.11"] != 1 {
		t.Errorf("arrived by source: %v, want one from the pool of the route", n)
	}
}

// Postal tries IPv6 from a source that has none.
func TestSourceUsesOnlyTheFamiliesThatItHas(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	six := smtptest.Start(t, smtptest.Script{Discard: true, Address: "[::1]:0"})
	r.source("four", "127.0.0.11")
	r.source("six", "::1")
	r.pool("default", "four")
	r.pool("both", "four", "six")
	r.route("both.test", "mx.both.test", six.Addr(), mx.Addr())
	r.route("six.test", "mx.six.test", six.Addr())
	r.route("pool.test", "mx.pool.test", six.Addr())
	r.routes["pool.test"].Pool = "both"
	both := r.accept(5, message{domain: "both.test"})
	no := r.accept(1, message{domain: "six.test"})[0]
	pool := r.accept(5, message{domain: "pool.test"})
	r.start(r.config(unlimited))
	r.conduct()
	r.settled(1)
	for _, id := range both {
		r.until("relayed", 30*time.Second, func() bool { return r.show(id).Recipients[0].State == "relayed" })
		if a := r.show(id).Attempts; len(a) != 1 || !a[0].Remote.Addr().Is4() {
			t.Errorf("%s: %s, want one attempt, over IPv4", id, describe(a))
		}
	}
	for _, id := range pool {
		r.until("relayed", 30*time.Second, func() bool { return r.show(id).Recipients[0].State == "relayed" })
		if a := r.show(id).Attempts; len(a) != 1 || a[0].Source != "six" {
			t.Errorf("%s: %s, want one attempt, from the source with IPv6", id, describe(a))
		}
	}
	r.until("it is said why", 30*time.Second, func() bool {
		a := r.show(no).Attempts
		return len(a) > 0 && a[0].Action == mail.Delayed &&
			a[0].Reply == "the hosts have IPv6 addresses only, and no source of pool default has one"
	})
	if n := six.Count(); n != 5 {
		t.Errorf("%d messages over IPv6, want 5", n)
	}
}

// An address that one worker has serves the sites of all.
func TestSourceOnAnotherWorkerIsReachedThroughIt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	for i := range 8 {
		r.route(mail.Domain(fmt.Sprintf("d%d.test", i)), mail.Site(fmt.Sprintf("mx%d.test", i)), mx.Addr())
	}
	r.source("one", "127.0.0.11")
	r.source("two", "127.0.0.12")
	r.pool("default", "one")
	r.pool("other", "two")
	for i := range 8 {
		if i%2 == 1 {
			r.routes[mail.Domain(fmt.Sprintf("d%d.test", i))].Pool = "other"
		}
	}
	for _, has := range []string{"127.0.0.11", "127.0.0.12"} {
		c := r.config(unlimited)
		c.HasAddress = func(a netip.Addr) bool { return a.String() == has }
		c.EgressListen = "127.0.0.1:0"
		c.EgressPorts = []uint16{mx.Addr().Port()}
		r.start(c)
	}
	r.settled(2)
	for i := range 8 {
		r.accept(10, message{domain: mail.Domain(fmt.Sprintf("d%d.test", i))})
	}
	r.conduct()
	r.drained(30 * time.Second)
	if n := bySource(mx); n["127.0.0.11"] != 40 || n["127.0.0.12"] != 40 || mx.Count() != 80 {
		t.Errorf("arrived by source: %v, want 40 by each", n)
	}
}

// A proxy that dies is left for the other sources of the pool, and costs no
// attempt.
func TestProxyThatDiesIsLeft(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.source("one", "127.0.0.11", func(s *store.Source) { s.Egress = "socks5://" + closedPort(t).String() })
	r.source("two", "127.0.0.12")
	r.pool("default", "one", "two")
	r.pool("alone", "one")
	r.route("alone.test", "mx.alone.test", mx.Addr())
	r.routes["alone.test"].Pool = "alone"
	ids := r.accept(20, message{domain: "example.test"})
	alone := r.accept(1, message{domain: "alone.test"})[0]
	r.start(r.config(unlimited))
	r.conduct()
	r.settled(1)
	for _, id := range ids {
		r.until("relayed", 30*time.Second, func() bool { return r.show(id).Recipients[0].State == "relayed" })
		if a := r.show(id).Attempts; len(a) != 1 || a[0].Source != "two" {
			t.Errorf("%s: %s, want one attempt, from the source that works", id, describe(a))
		}
	}
	r.until("it is said why the other waits", 30*time.Second, func() bool {
		a := r.show(alone).Attempts
		return len(a) == 1 && a[0].Untried && strings.Contains(a[0].Reply, "no source of pool alone can be used: one: the source cannot be used: proxy")
	})
}

func TestSuspendedSourceIsNotUsed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.source("one", "127.0.0.11", func(s *store.Source) {
		s.SuspendedUntil, s.SuspendReason = time.Now().Add(time.Hour), "maintenance"
	})
	r.source("two", "127.0.0.12")
	r.pool("default", "one", "two")
	r.accept(10, message{domain: "example.test"})
	r.start(r.config(unlimited))
	r.conduct()
	r.settled(1)
	r.drained(20 * time.Second)
	if n := bySource(mx); n["127.0.0.12"] != 10 {
		t.Errorf("arrived by source: %v, want none from the suspended one", n)
	}
	r.source("one", "127.0.0.11")
	r.until("the source is used again", 30*time.Second, func() bool {
		r.accept(2, message{domain: "example.test"})
		r.drained(10 * time.Second)
		return bySource(mx)["127.0.0.11"] > 0
	})
}

// A source that warms up sends what it may, across a change of its home too;
// the rest goes by the others of the pool.
func TestWarmUpOverflowsToTheOthers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.source("cold", "127.0.0.11", func(s *store.Source) { s.WarmUp, s.WarmUpFrom = "default", time.Now() })
	r.source("warm", "127.0.0.12")
	r.pool("default", "cold=100", "warm")
	for round := range 2 {
		r.accept(60, message{domain: "example.test"})
		p := r.start(r.config(unlimited))
		if round == 0 {
			r.conduct()
		}
		r.settled(1)
		r.drained(30 * time.Second)
		p.stop()
	}
	// Day 1: 50 messages in 24 hours, of which one may go at once, one each half hour.
	if n := bySource(mx); n["127.0.0.11"] < 1 || n["127.0.0.11"] > 3 || mx.Count() != 120 {
		t.Errorf("arrived by source: %v, want 1 by the cold one, all others by the warm one", n)
	}
}

// ZoneMTA and Postal: a retry that stays on the address that is blocked.
// A source is chosen as often as shaping says, across a change of its home
// too; the rest leaves from the others of its pool.
func TestSelectionRateOverflowsToTheOthers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.source("new", "127.0.0.11")
	r.source("old", "127.0.0.12")
	r.pool("default", "new=100", "old")
	shape := unlimited + "\n[\"default\".sources.\"new\"]\nsource_selection_rate = \"3/d,max_burst=3\"\n"
	first := r.start(r.config(shape))
	r.conduct()
	r.settled(1)
	r.accept(30, message{domain: "example.test"})
	r.drained(20 * time.Second)
	first.stop()
	r.accept(30, message{domain: "example.test"})
	r.start(r.config(shape))
	r.drained(20 * time.Second)
	if n := bySource(mx); n["127.0.0.11"] != 3 || n["127.0.0.12"] != 57 {
		t.Errorf("arrived by source: %v, want 3 by the new one, all others by the old one", n)
	}
}

func TestBlockedSourceIsTakenOutForItsSite(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	blocks := smtptest.Start(t, smtptest.Script{Discard: true, Rules: []smtptest.Rule{
		{At: smtptest.Mail, Times: 1, Do: smtptest.Reply(550, "5.7.1 Client host [127.0.0.11] blocked using zen.spamhaus.org")},
	}})
	other := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", blocks.Addr())
	r.route("other.test", "mx.other.test", other.Addr())
	r.source("one", "127.0.0.11")
	r.source("two", "127.0.0.12")
	r.pool("default", "one")
	id := r.accept(1, message{domain: "example.test"})[0]
	r.start(r.config(unlimited))
	r.conduct()
	r.settled(1)
	r.until("the source is blocked", 30*time.Second, func() bool {
		all, err := r.db.Sources(t.Context())
		return err == nil && len(all.Blocks) == 1 && all.Blocks[0].Source == "one" && all.Blocks[0].Site == "mx.example.test"
	})
	waits := r.accept(1, message{domain: "example.test"})[0]
	elsewhere := r.accept(1, message{domain: "other.test"})[0]
	r.until("another site gets mail from it", 30*time.Second, func() bool { return r.show(elsewhere).Recipients[0].State == "relayed" })
	r.until("mail for the site waits, and it is said why", 30*time.Second, func() bool {
		a := r.show(waits).Attempts
		return len(a) > 0 && strings.Contains(a[0].Reply, "one: blocked by the site: 550 5.7.1 Client host") && a[0].Untried
	})
	r.pool("default", "one", "two")
	r.until("the other source takes over, and nothing has bounced", 20*time.Second, func() bool {
		return r.show(id).Recipients[0].State == "relayed" && r.show(waits).Recipients[0].State == "relayed"
	})
	if n := bySource(blocks); n["127.0.0.12"] != 2 {
		t.Errorf("arrived by source: %v, want both from the other one", n)
	}
	if err := r.db.UnblockSource(t.Context(), "one", "mx.example.test"); err != nil {
		t.Fatal(err)
	}
	r.pool("default", "one")
	last := r.accept(1, message{domain: "example.test"})[0]
	r.until("an operator has it tried again", 20*time.Second, func() bool { return r.show(last).Recipients[0].State == "relayed" })
}

// A refusal that speaks of the address is one for another source, whatever its
// code; one that speaks of the sender, the content or the recipient is one for
// the sender, and costs no source.
func TestWhoIsBlamedDecidesBetweenSourceAndSender(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.source("one", "127.0.0.11")
	r.source("two", "127.0.0.12")
	r.pool("default", "one=1000", "two")
	refusing := func(domain mail.Domain, code int, text string) (*smtptest.Server, mail.QueueID) {
		mx := smtptest.Start(t, smtptest.Script{Discard: true, Rules: []smtptest.Rule{{At: smtptest.Rcpt, Times: 1, Do: smtptest.Reply(code, text)}}})
		r.route(domain, mail.Site("mx."+string(domain)), mx.Addr())
		return mx, r.accept(1, message{domain: domain})[0]
	}
	banned, ofAddress := refusing("banned.test", 550, "5.7.606 Access denied, banned sending IP [127.0.0.11]")
	_, ofDomain := refusing("domain.test", 550, "5.7.1 Service unavailable, MailFrom domain is listed in Spamhaus")
	_, ofUser := refusing("user.test", 550, "5.1.1 no such user; further attempts and your host will be blocked")
	r.start(r.config(unlimited))
	r.conduct()
	r.settled(1)
	r.drained(30 * time.Second)
	for id, want := range map[mail.QueueID]string{ofAddress: "relayed", ofDomain: "failed", ofUser: "failed"} {
		if s := r.show(id); s.Recipients[0].State != want {
			t.Errorf("%s, want %s: %s", s.Recipients[0].State, want, describe(s.Attempts))
		}
	}
	if n := bySource(banned); n["127.0.0.12"] != 1 {
		t.Errorf("arrived by source: %v, want one from the other source", n)
	}
	all, err := r.db.Sources(t.Context())
	if err != nil || len(all.Blocks) != 1 || all.Blocks[0].Site != "mx.banned.test" {
		t.Errorf("blocks %+v, %v, want one, for mx.banned.test", all.Blocks, err)
	}
}
