package delivery_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/pkg/store"
)

func TestRelaysContentUnchanged(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{})
	r.route("example.test", "mx.example.test", mx.Addr())
	contents := [][]byte{
		[]byte("Subject: dots\r\n\r\n.\r\n..\r\n.x\r\n"),
		[]byte("Subject: 8 bit\r\n\r\n\xc3\xa9\xff\r\n"),
		append([]byte("Subject: large\r\n\r\n"), bytes.Repeat([]byte("0123456789abcdef.\r\n"), 60000)...),
	}
	for _, c := range contents {
		r.accept(1, message{domain: "example.test", content: c})
	}
	r.accept(1, message{domain: "example.test", recipients: 250})
	r.start(r.config(""))
	r.conduct()
	r.settled(1)
	r.ring()
	a := r.drained(20 * time.Second)
	if a.Relayed != 253 {
		t.Errorf("accounts %+v, want 253 relayed", a)
	}
	hashes := map[[sha256.Size]byte]int{}
	most := 0
	for _, m := range mx.Messages() {
		hashes[m.SHA256]++
		most = max(most, len(m.Accepted()))
	}
	for i, c := range contents {
		if n := hashes[sha256.Sum256(c)]; n != 1 {
			t.Errorf("content %d arrived %d times unchanged, want once", i, n)
		}
	}
	if most != 100 {
		t.Errorf("a transaction had up to %d recipients, want 100 of 250", most)
	}
}

func TestConnectionsAreReused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.accept(200, message{domain: "example.test"})
	r.start(r.config("[\"default\"]\nconnection_limit = 4\nmax_deliveries_per_connection = 20\nmax_message_rate = \"unlimited\""))
	r.settled(1)
	r.ring()
	r.drained(20 * time.Second)
	used := map[int]int{}
	for _, m := range mx.Messages() {
		used[m.Connection]++
	}
	for c, n := range used {
		if n > 20 {
			t.Errorf("connection %d served %d messages, want at most 20", c, n)
		}
	}
	if len(used) > 14 {
		t.Errorf("200 messages took %d connections, want about 10", len(used))
	}
	if mx.HighWater() > 4 {
		t.Errorf("%d connections at once, want at most 4", mx.HighWater())
	}
}

// TestIdleConnections: a connection without work is kept for the next message,
// and closed when it has been idle for its time.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	kept, brief := smtptest.Start(t, smtptest.Script{Discard: true}), smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("kept.test", "mx.kept.test", kept.Addr())
	r.route("brief.test", "mx.brief.test", brief.Addr())
	r.start(r.config("[\"kept.test\"]\nidle_timeout = \"10m\"\n[\"brief.test\"]\nidle_timeout = \"300ms\"\n"))
	r.settled(1)
	r.conduct()
	for n := range 3 {
		r.accept(1, message{domain: "kept.test"})
		r.accept(1, message{domain: "brief.test"})
		r.drained(20 * time.Second)
		r.until("the connection of the other site is closed", 20*time.Second, func() bool { return brief.Open() == 0 })
		if got := len(brief.Connections()); got != n+1 {
			t.Errorf("%d connections after %d messages, each of which came too late for the one before", got, n+1)
		}
	}
	for _, c := range brief.Connections() {
		if got := strings.Join(c.Commands, " "); got != "EHLO MAIL RCPT DATA QUIT" {
			t.Errorf("a connection heard %q", got)
		}
	}
	for _, m := range brief.Messages() {
		if idle := brief.Connections()[m.Connection-1].ClosedAt.Sub(m.DotAt); idle < 300*time.Millisecond {
			t.Errorf("closed after %v, want 300 ms", idle)
		}
	}
	if n := len(kept.Connections()); n != 1 || kept.Open() != 1 {
		t.Errorf("%d connections for three messages, %d are open; want the same one for all", n, kept.Open())
	}
}

// TestIdleConnectionsMakeWay: this process may have two connections, and both
// are idle for as long as anybody would wait. Who needs one gets it.
func TestIdleConnectionsMakeWay(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	config := r.config("[\"default\"]\nidle_timeout = \"10m\"\n")
	config.Connections = 2
	r.start(config)
	r.settled(1)
	r.conduct()
	hosts := make([]*smtptest.Server, 5)
	for i := range hosts {
		domain := mail.Domain(fmt.Sprintf("idle%d.test", i))
		hosts[i] = smtptest.Start(t, smtptest.Script{Discard: true})
		r.route(domain, mail.Site("mx."+domain), hosts[i].Addr())
		r.accept(1, message{domain: domain})
		hosts[i].WaitMessages(t, 1, 20*time.Second)
		r.drained(20 * time.Second)
	}
	r.until("two are open", 20*time.Second, func() bool { return opened(hosts) == 2 })
	for i, host := range hosts[:3] {
		if c := host.Connections(); len(c) != 1 || strings.Join(c[0].Commands, " ") != "EHLO MAIL RCPT DATA QUIT" {
			t.Errorf("host %d, idle the longest, saw %+v; want one connection, ended by QUIT", i, c)
		}
	}
	for i, host := range hosts[3:] {
		if host.Open() != 1 {
			t.Errorf("host %d, of those used last, has %d connections", i+3, host.Open())
		}
	}
	// Three wait at once: the last has the place of the first.
	release := make(chan struct{})
	for i, host := range hosts {
		host.SetRules(smtptest.Rule{At: smtptest.Dot, Do: smtptest.Await(release, smtptest.Reply(250, "2.0.0 taken"))})
		r.accept(1, message{domain: mail.Domain(fmt.Sprintf("idle%d.test", i))})
	}
	r.until("two are busy and three wait", 20*time.Second, func() bool {
		rows, err := r.db.Queue(t.Context(), store.Filter{}, 10)
		return err == nil && len(rows) == 5 && !slices.ContainsFunc(rows, func(row store.QueueRow) bool { return row.Place != "claimed" && row.Place != "in transaction" }) && opened(hosts) == 2
	})
	close(release)
	r.drained(20 * time.Second)
	r.until("two are open again", 20*time.Second, func() bool { return opened(hosts) == 2 })
}

func opened(hosts []*smtptest.Server) (n int) {
	for _, host := range hosts {
		n += host.Open()
	}
	return n
}

func TestTransientReplyIsTriedAgainBySchedule(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{
		{At: smtptest.Rcpt, Times: 1, Each: smtptest.PerPath, Do: smtptest.Reply(450, "4.2.0 greylisted")},
	}})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.start(r.config(""))
	r.settled(1)
	ids := r.accept(3, message{domain: "example.test", recipients: 2})
	r.ring()
	r.conduct() // not before: what rings together stays together, and nothing is rung between its attempts
	if a := r.drained(20 * time.Second); a.Relayed != 6 {
		t.Errorf("accounts %+v, want 6 relayed", a)
	}
	for _, id := range ids {
		s := r.show(id)
		if len(s.Attempts) != 2 || s.Attempts[0].Action != "delayed" || s.Attempts[1].Action != "relayed" {
			t.Errorf("%s: attempts %+v, want one delayed, one relayed", id, s.Attempts)
			continue
		}
		if wait := s.Attempts[1].StartedAt.Sub(s.Attempts[0].StartedAt); wait < 800*time.Millisecond {
			t.Errorf("%s: tried again after %v, the schedule says 1s", id, wait)
		}
	}
}

func TestPermanentReplyFailsItsRecipientOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{
		{At: smtptest.Rcpt, Match: "-2@", Do: smtptest.Reply(550, "5.1.1 no such user")},
	}})
	r.route("example.test", "mx.example.test", mx.Addr())
	id := r.accept(1, message{domain: "example.test", recipients: 3})[0]
	r.start(r.config(""))
	r.settled(1)
	r.ring()
	if a := r.drained(10 * time.Second); a.Relayed != 2 || a.Failed != 1 {
		t.Errorf("accounts %+v, want 2 relayed and 1 failed", a)
	}
	s := r.show(id)
	if s.Recipients[1].State != "failed" {
		t.Errorf("recipients %+v, want the second failed", s.Recipients)
	}
	due, err := r.db.DueReports(t.Context(), 10)
	if err != nil || len(due) != 1 || due[0] != id {
		t.Errorf("reports due: %v, %v, want one for %s", due, err, id)
	}
}

// RFC 5321 §4.5.3.1.10: the recipients beyond the host's bound go at once.
func TestTooManyRecipientsGoInTheNextTransaction(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{
		{At: smtptest.Rcpt, Skip: 10, Each: smtptest.PerTransaction, Do: smtptest.Reply(452, "4.5.3 too many recipients")},
	}})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.accept(1, message{domain: "example.test", recipients: 35})
	r.start(r.config(""))
	r.settled(1)
	r.ring()
	if a := r.drained(10 * time.Second); a.Relayed != 35 {
		t.Errorf("accounts %+v, want 35 relayed", a)
	}
	if n := len(mx.Messages()); n != 4 {
		t.Errorf("%d transactions, want 4", n)
	}
	if n := len(mx.Connections()); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// A host that serves many domains may take one of them in a transaction. By
// default it is asked for no more; if it is, the others go at once.
func TestDomainsOfOneHost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	one := smtptest.Rule{At: smtptest.Rcpt, Skip: 1, Each: smtptest.PerTransaction,
		Do: smtptest.Reply(451, "4.3.0 Multiple destination domains per transaction is unsupported. Please try again.")}
	hosting := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{one}})
	smart := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{one}})
	r.route("shop.test", "mx.hosting.test", hosting.Addr())
	r.sameRoute("shop.test", "blog.test", "club.test", "firm.test")
	r.route("a.test", "smart.test", smart.Addr())
	r.routes["a.test"].SmartHost = true
	r.sameRoute("a.test", "b.test", "c.test")
	ids := append(r.accept(1, message{domain: "shop.test", others: []mail.Domain{"blog.test", "club.test", "firm.test"}}),
		r.accept(1, message{domain: "a.test", others: []mail.Domain{"b.test", "c.test"}})...)
	r.start(r.config(""))
	r.settled(1)
	r.ring()
	r.drained(10 * time.Second)
	for _, id := range ids {
		if s := r.show(id); slices.ContainsFunc(s.Attempts, func(a store.StoryAttempt) bool { return a.Action != mail.Relayed }) {
			t.Errorf("%s, want each recipient relayed at once", describe(s.Attempts))
		}
	}
	for _, m := range hosting.Transactions() {
		if len(m.Recipients) != 1 {
			t.Errorf("%d recipients in a transaction, want those of one domain", len(m.Recipients))
		}
	}
	if n := len(smart.Messages()); n != 3 {
		t.Errorf("%d messages at the smart host, want 3", n)
	}
}

// A host, or a firewall before it, may offer PIPELINING and refuse what is sent
// ahead: the next connection sends one command at a time, and no mail returns.
func TestHostThatRefusesPipelining(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	refuse := smtptest.Reply(554, "5.5.0 SMTP synchronization error")
	closes := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Mail, Times: 1, Do: smtptest.Then(refuse, smtptest.Drop())}}})
	stays := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Data, Times: 1, Do: smtptest.Reply(503, "5.5.0 <DATA>: Data command rejected: Improper use of SMTP command pipelining")}}})
	r.route("closes.test", "mx.closes.test", closes.Addr())
	r.route("stays.test", "mx.stays.test", stays.Addr())
	ids := append(r.accept(1, message{domain: "closes.test", recipients: 2}), r.accept(1, message{domain: "stays.test", recipients: 2})...)
	r.start(r.config(""))
	r.settled(1)
	r.ring()
	r.drained(10 * time.Second)
	for _, id := range ids {
		if s := r.show(id); len(s.Attempts) != 1 || s.Attempts[0].Action != mail.Relayed {
			t.Errorf("%s, want one attempt, relayed", describe(s.Attempts))
		}
	}
	for _, mx := range []*smtptest.Server{closes, stays} {
		if n := len(mx.Connections()); n != 2 {
			t.Errorf("%d connections, want 2", n)
		}
	}
}

func TestSecondHostTakesOverAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	second := smtptest.Start(t, smtptest.Script{})
	r.route("example.test", "mx.example.test", closedPort(t), second.Addr())
	ids := r.accept(20, message{domain: "example.test"})
	r.start(r.config(""))
	r.settled(1)
	r.ring()
	r.drained(10 * time.Second)
	for _, id := range ids {
		s := r.show(id)
		if len(s.Attempts) != 1 || s.Attempts[0].Host != "mx2.example.test" {
			t.Errorf("%s: attempts %+v, want one, by the second host", id, s.Attempts)
		}
	}
}

func TestConnectionThatBreaksIsFollowedByTheNextHost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Data, Do: smtptest.Drop()}}})
	second := smtptest.Start(t, smtptest.Script{})
	r.route("example.test", "mx.example.test", first.Addr(), second.Addr())
	id := r.accept(1, message{domain: "example.test"})[0]
	r.start(r.config(""))
	r.settled(1)
	r.ring()
	r.drained(10 * time.Second)
	if s := r.show(id); len(s.Attempts) != 1 || s.Attempts[0].Host != "mx2.example.test" {
		t.Errorf("attempts %+v, want one, by the second host", s.Attempts)
	}
}

// A host that is full is left for the next one, though its connection holds;
// the last host's word stands.
func TestFullHostIsLeftForTheNext(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	full := smtptest.Rule{At: smtptest.Mail, Do: smtptest.Reply(452, "4.3.1 disk full")}
	first := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{full}})
	second := smtptest.Start(t, smtptest.Script{})
	third := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{full}})
	r.route("example.test", "mx.example.test", first.Addr(), second.Addr())
	r.route("full.test", "mx.full.test", first.Addr(), third.Addr())
	ids := r.accept(10, message{domain: "example.test"})
	lost := r.accept(1, message{domain: "full.test"})[0]
	r.start(r.config(""))
	r.settled(1)
	r.ring()
	second.WaitMessages(t, 10, 10*time.Second)
	for _, id := range ids {
		r.until("relayed", 5*time.Second, func() bool { return r.show(id).Recipients[0].State == "relayed" })
		if s := r.show(id); len(s.Attempts) != 1 {
			t.Errorf("%s: %s, want one attempt, by the second host", id, describe(s.Attempts))
		}
	}
	r.until("delayed", 5*time.Second, func() bool { return len(r.show(lost).Attempts) == 1 })
	if s := r.show(lost); s.Attempts[0].Action != mail.Delayed || s.Attempts[0].Host != "mx2.full.test" {
		t.Errorf("%s by %s, want one delay, by the last host", describe(s.Attempts), s.Attempts[0].Host)
	}
}

// A connection that the remote host has closed while idle costs nothing.
func TestStaleConnectionIsReplaced(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{
		{At: smtptest.Mail, Skip: 1, Each: smtptest.PerConnection, Do: smtptest.Drop()},
	}})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.start(r.config("[\"default\"]\nconnection_limit = 1"))
	r.settled(1)
	for n := range 3 {
		id := r.accept(1, message{domain: "example.test"})[0]
		r.ring()
		mx.WaitMessages(t, n+1, 10*time.Second)
		r.until("relayed", 5*time.Second, func() bool { return r.show(id).Recipients[0].State == "relayed" })
		if s := r.show(id); len(s.Attempts) != 1 {
			t.Errorf("%s, want one attempt", describe(s.Attempts))
		}
	}
}

func TestDeadSiteIsProbedAndItsBacklogWakes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	addr := closedPort(t)
	r.route("example.test", "mx.example.test", addr)
	r.accept(50, message{domain: "example.test"})
	r.start(r.config(""))
	r.settled(1)
	r.ring()
	r.until("the backlog is parked", 10*time.Second, func() bool {
		sites, err := r.db.QueueBySite(t.Context())
		return err == nil && len(sites) == 1 && sites[0].Parked >= 40
	})
	r.accept(10, message{domain: "example.test"})
	r.ring()
	r.until("mail that comes later is parked too, and it is said why", 10*time.Second, func() bool {
		rows, err := r.db.Queue(t.Context(), store.Filter{}, 100)
		said := 0
		for _, row := range rows {
			if row.Place == "parked" && strings.Contains(row.LastReply, "connection refused") {
				said++
			}
		}
		return err == nil && said >= 50
	})
	mx := smtptest.Start(t, smtptest.Script{Address: addr.String()})
	r.conduct()
	if a := r.drained(20 * time.Second); a.Relayed != 60 {
		t.Errorf("accounts %+v, want 60 relayed", a)
	}
	if n := mx.Count(); n != 60 {
		t.Errorf("%d messages arrived, want 60", n)
	}
}

func TestWhatDoesNotFitIsParkedAndPulled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.accept(300, message{domain: "example.test"})
	r.start(r.config("[\"default\"]\nmax_ready = 10\nmax_message_rate = \"unlimited\""))
	r.settled(1)
	r.ring()
	if a := r.drained(20 * time.Second); a.Relayed != 300 {
		t.Errorf("accounts %+v, want 300 relayed", a)
	}
	if n := mx.Count(); n != 300 {
		t.Errorf("%d messages arrived, want 300", n)
	}
}

func TestParkedMailFlowsWithoutTheBus(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.accept(100, message{domain: "example.test"})
	if _, err := r.db.Operate(t.Context(), store.Retry, store.Filter{Domain: "example.test"}, ""); err != nil {
		t.Fatal(err)
	}
	requests, err := r.requests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.db.Park(t.Context(), 0, requests); err != nil {
		t.Fatal(err)
	}
	r.start(r.config(""))
	r.drained(20 * time.Second)
	if n := mx.Count(); n != 100 {
		t.Errorf("%d messages arrived, want 100", n)
	}
}

func TestSuspendedSiteWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{})
	r.route("example.test", "mx.example.test", mx.Addr())
	if _, err := r.db.SuspendSite(t.Context(), "mx.example.test", time.Hour, "test"); err != nil {
		t.Fatal(err)
	}
	r.start(r.config(""))
	r.settled(1)
	r.accept(5, message{domain: "example.test"})
	r.ring()
	r.until("the mail is parked", 10*time.Second, func() bool {
		sites, err := r.db.QueueBySite(t.Context())
		return err == nil && len(sites) == 1 && sites[0].Parked == 5
	})
	if n := mx.Count(); n != 0 {
		t.Fatalf("%d messages arrived at a suspended site", n)
	}
	if ok, err := r.db.ResumeSite(t.Context(), "mx.example.test"); err != nil || !ok {
		t.Fatal(ok, err)
	}
	mx.WaitMessages(t, 5, 5*time.Second)
}

func TestRunningSiteIsSuspended(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.start(r.config("[\"default\"]\nmax_message_rate = \"20/s\""))
	r.settled(1)
	r.accept(400, message{domain: "example.test"})
	r.ring()
	mx.WaitMessages(t, 5, 10*time.Second)
	if _, err := r.db.SuspendSite(t.Context(), "mx.example.test", time.Hour, "test"); err != nil {
		t.Fatal(err)
	}
	r.until("what has not gone is parked", 10*time.Second, func() bool {
		sites, err := r.db.QueueBySite(t.Context())
		return err == nil && len(sites) == 1 && sites[0].Parked == sites[0].Recipients
	})
	if n := mx.Count(); n > 100 {
		t.Errorf("%d messages went at 20/s before the suspension took effect", n)
	}
}

// An operator's hold takes claimed mail from its worker: the worker looks at
// the row again right before each transaction.
func TestHeldMailIsNotSentThoughClaimed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{})
	r.route("example.test", "mx.example.test", mx.Addr())
	r.route("last.test", "mx.example.test", mx.Addr())
	ids := r.accept(4, message{domain: "example.test"})
	r.start(r.config("[\"default\"]\nmax_message_rate = \"2/s\"\nconnection_limit = 1"))
	r.settled(1)
	r.ring()
	mx.WaitMessages(t, 1, 10*time.Second)
	held, err := r.db.Operate(t.Context(), store.Hold, store.Filter{Domain: "example.test"}, "")
	if err != nil || held < 1 {
		t.Fatalf("%d held, %v", held, err)
	}
	// What comes last to a site with one connection goes last.
	last := r.accept(1, message{domain: "last.test"})[0]
	r.ring()
	r.until("the last message has arrived", 10*time.Second, func() bool {
		return r.show(last).Recipients[0].State == "relayed"
	})
	if n := int64(mx.Count()) - 1; n+held != int64(len(ids)) {
		t.Errorf("%d messages arrived and %d are held, want %d together", n, held, len(ids))
	}
}

// The strictest limit of a name counts for the whole site, from when its
// domain is first seen.
func TestLimitsOfASiteHoldOverDomains(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true, Rules: []smtptest.Rule{
		{At: smtptest.Dot, Do: smtptest.Later(20*time.Millisecond, smtptest.Reply(250, "2.0.0 taken"))},
	}})
	for i := range 5 {
		d := mail.Domain(fmt.Sprintf("d%d.test", i))
		r.route(d, "mx.shared.test", mx.Addr())
	}
	r.accept(40, message{domain: "d0.test"})
	r.start(r.config("[\"default\"]\nmax_message_rate = \"unlimited\"\nmax_connection_rate = \"unlimited\"\n" +
		"[\"d3.test\"]\nconnection_limit = 2\nmax_message_rate = \"20/s\"\n[\"d4.test\"]\nconnection_limit = 4"))
	r.settled(1)
	r.ring()
	mx.WaitMessages(t, 40, 10*time.Second)
	if mx.HighWater() < 5 {
		t.Errorf("%d connections at once before the limit was known, want 5 or more", mx.HighWater())
	}
	r.accept(1, message{domain: "d3.test"})
	r.accept(1, message{domain: "d4.test"})
	r.ring()
	mx.WaitMessages(t, 42, 10*time.Second)
	r.until("only two connections are left", 5*time.Second, func() bool { return mx.Open() <= 2 })
	known := time.Now()
	r.accept(50, message{domain: "d1.test"})
	r.ring()
	r.drained(20 * time.Second)
	if n := mx.Open(); n > 2 {
		t.Errorf("%d connections are open, limit 2", n)
	}
	mustKeepRate(t, mx, known, 20)
}

// mustHold checks the judge's log: connections at once, and messages in any
// second.
func mustHold(t *testing.T, mx *smtptest.Server, connections, perSecond int) {
	t.Helper()
	if n := mx.HighWater(); n > connections {
		t.Errorf("%d connections at once, limit %d", n, connections)
	}
	mustKeepRate(t, mx, time.Time{}, perSecond)
}

// mustKeepRate checks every window of a second that begins after a time.
func mustKeepRate(t *testing.T, mx *smtptest.Server, after time.Time, perSecond int) {
	t.Helper()
	var times []time.Time
	for _, m := range mx.Transactions() {
		if m.MailAt.After(after) {
			times = append(times, m.MailAt)
		}
	}
	slices.SortFunc(times, time.Time.Compare)
	for i := perSecond; i < len(times); i++ {
		if gap := times[i].Sub(times[i-perSecond]); gap <= time.Second {
			t.Errorf("%d messages within %v, limit %d/s", perSecond+1, gap, perSecond)
			return
		}
	}
}
