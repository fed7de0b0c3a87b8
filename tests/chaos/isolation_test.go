package chaos

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/tests/internal/proc"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

// The destinations that must not hold up others.
var badDomains = []string{"dead.test", "hole.test", "crawl.test"}

// isolation is a world with good hosts that are measured, and bad ones.
type isolation struct {
	*world.World
	t     *testing.T
	good  []string
	hosts map[string]*smtptest.Server

	mu       sync.Mutex           // guards accepted
	accepted map[string]time.Time // by label
}

// TestIsolation: a destination that refuses connections, one that answers no
// SYN and one that gives its replies octet by octet, each with a backlog, do
// not hold up the others. The rate and latency of the others are logged:
// before there is a backlog, with the bad ones at work and suspended in turns,
// and after the backlog was cancelled. POSTRIDER_ISOLATION_MESSAGES=100000 is
// the full form.
func TestIsolation(t *testing.T) {
	backlog, rounds, each := 2000, 3, 400
	if text := os.Getenv("POSTRIDER_ISOLATION_MESSAGES"); text != "" {
		var err error
		if backlog, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
		rounds, each = 9, 2000
	}
	s := newIsolation(t)
	s.round(each) // warms up
	var before, working, suspended, after []figures
	t.Logf("rounds before the backlog")
	for range rounds {
		before = append(before, s.round(each))
	}
	t.Logf("the backlog comes")
	s.fill(backlog)
	s.waitSettled(backlog)
	t.Logf("rounds with the backlog")
	for range rounds {
		working = append(working, s.round(each))
		s.suspend(true)
		suspended = append(suspended, s.round(each))
		s.suspend(false)
	}
	t.Logf("the backlog goes")
	for _, d := range badDomains {
		if _, err := s.DB.Exec(t.Context(), `SELECT postrider.cancel('end of the test', domain => $1)`, d); err != nil {
			t.Fatal(err)
		}
	}
	wait(t, 3*time.Second)
	t.Logf("rounds after the backlog")
	for range rounds {
		after = append(after, s.round(each))
	}
	t.Logf("backlog of %d messages for each of %v, medians of %d rounds of %d messages", backlog, badDomains, rounds, each)
	for _, m := range []struct {
		name string
		all  []figures
	}{{"before", before}, {"with", working}, {"suspended", suspended}, {"after", after}} {
		t.Logf("%-10s %s", m.name+":", median(m.all))
	}
}

func newIsolation(t *testing.T) *isolation {
	t.Helper()
	w := world.Start(t, world.Options{Shaping: `["default"]
max_message_rate = "unlimited"
max_connection_rate = "unlimited"
["hole.test"]
mx_rollup = false
connect_timeout = "5s"
`})
	s := &isolation{World: w, t: t, hosts: map[string]*smtptest.Server{}, accepted: map[string]time.Time{}}
	for i := range 4 {
		d := fmt.Sprintf("good%d.test", i)
		s.good = append(s.good, d)
		s.hosts[d] = w.Host(t, "mx."+d, smtptest.Script{Discard: true, Label: label})
		w.MX(t, d, "10 mx."+d)
	}
	if _, err := w.Remote("mx.dead.test"); err != nil {
		t.Fatal(err)
	}
	hole, err := w.Remote("mx.hole.test")
	if err != nil {
		t.Fatal(err)
	}
	smtptest.Unanswered(t, hole)
	w.Host(t, "mx.crawl.test", smtptest.Script{Discard: true, Rules: []smtptest.Rule{
		{At: smtptest.Dot, Do: smtptest.Drip(time.Second, smtptest.Reply(250, "2.0.0 taken at last"))},
	}})
	for _, d := range badDomains {
		w.MX(t, d, "10 mx."+d)
	}
	return s
}

// label is the subject of a message.
func label(content []byte) string {
	_, rest, _ := strings.Cut(string(content), "Subject: ")
	line, _, _ := strings.Cut(rest, "\r\n")
	return line
}

// fill puts the backlog in as ingress does, without its sessions.
func (s *isolation) fill(n int) {
	s.t.Helper()
	db, err := store.Open(s.t.Context(), store.Config{URL: s.PG.URL(), MaxConns: 4})
	if err != nil {
		s.t.Fatal(err)
	}
	defer db.Close()
	content := []byte("Subject: waits\r\n\r\nHello\r\n")
	for _, d := range badDomains {
		for done := 0; done < n; {
			var group []*mail.Submission
			for range min(500, n-done) {
				m := &mail.Submission{Content: content}
				m.ID, m.AcceptedAt, m.SizeBytes = mail.NewQueueID(), time.Now(), int64(len(content))
				m.Recipients = []mail.Recipient{{
					No: 1, Domain: mail.Domain(d), ForwardPath: mail.ForwardPath(fmt.Sprintf("u%d@%s", done, d)), ExpiresAt: m.AcceptedAt.Add(24 * time.Hour),
				}}
				group = append(group, m)
				done++
			}
			if err := db.Accept(s.t.Context(), group); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// waitSettled waits until all of the backlog has been looked at once: it is
// parked, tried, or in the hands of the worker.
func (s *isolation) waitSettled(n int) {
	s.t.Helper()
	began := time.Now()
	s.Eventually(s.t, drained+time.Duration(n)*10*time.Millisecond, "the backlog at rest", func(ctx context.Context) error {
		var fresh int
		err := s.DB.QueryRow(ctx, `SELECT count(*) FROM postrider.recipients WHERE domain = ANY ($1)
			AND state = 'queued' AND slot IS NULL AND worker_id IS NULL AND tries = 0`, badDomains).Scan(&fresh)
		if err == nil && fresh > 0 {
			err = fmt.Errorf("%d recipients have not been looked at", fresh)
		}
		return err
	})
	s.t.Logf("the backlog of %d was at rest after %s", 3*n, time.Since(began).Round(time.Second))
}

// suspend stops or lets go the bad sites.
func (s *isolation) suspend(on bool) {
	s.t.Helper()
	call, seen := "resume_site(site)", 4*time.Second // and the first pulls are over
	if on {
		call, seen = "suspend_site(site, '1 hour', 'measured')", 2*time.Second
	}
	if _, err := s.DB.Exec(s.t.Context(), `SELECT postrider.`+call+`
		FROM (SELECT DISTINCT site FROM postrider.recipients WHERE domain = ANY ($1) AND site IS NOT NULL) x`, badDomains); err != nil {
		s.t.Fatal(err)
	}
	wait(s.t, seen)
}

// figures are those of one round.
type figures struct {
	rate     float64 // messages a second
	p50, p99 time.Duration
	cpu      map[string]time.Duration // for each message, by process
}

func (f figures) String() string {
	var sum time.Duration
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(f.cpu)) {
		sum += f.cpu[name]
		parts = append(parts, fmt.Sprintf("%s %s", name, f.cpu[name].Round(time.Microsecond)))
	}
	return fmt.Sprintf("%.0f messages/s, latency p50 %s, p99 %s, CPU %s a message (%s)", f.rate,
		f.p50.Round(100*time.Microsecond), f.p99.Round(100*time.Microsecond), sum.Round(time.Microsecond), strings.Join(parts, ", "))
}

// median returns the median of each figure.
func median(all []figures) figures {
	f := figures{cpu: map[string]time.Duration{}}
	f.rate = middle(all, func(f figures) float64 { return f.rate })
	f.p50 = middle(all, func(f figures) time.Duration { return f.p50 })
	f.p99 = middle(all, func(f figures) time.Duration { return f.p99 })
	for name := range all[0].cpu {
		f.cpu[name] = middle(all, func(f figures) time.Duration { return f.cpu[name] })
	}
	return f
}

func middle[T cmp.Ordered](all []figures, of func(figures) T) T {
	var values []T
	for _, f := range all {
		values = append(values, of(f))
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// round sends n messages to the good hosts as fast as ingress takes them, one
// session for each host, which shows the rate; and then a quarter as many at a
// pace that leaves the machine idle for most of the time, which shows the
// latency.
func (s *isolation) round(n int) figures {
	s.t.Helper()
	began, used := time.Now(), s.cpu()
	last := slices.MaxFunc(s.relay(n, 0), func(a, b arrival) int { return a.at.Compare(b.at) }).at
	f := figures{rate: float64(n) / last.Sub(began).Seconds(), cpu: s.cpu()}
	for name := range f.cpu {
		f.cpu[name] = (f.cpu[name] - used[name]) / time.Duration(n)
	}
	var waits []time.Duration
	for _, a := range s.relay(n/4, 20*time.Millisecond) {
		waits = append(waits, a.waited)
	}
	slices.Sort(waits)
	f.p50, f.p99 = waits[len(waits)/2], waits[len(waits)*99/100]
	return f
}

// arrival is a message that a good host took.
type arrival struct {
	at     time.Time
	waited time.Duration // from the 250 of ingress to the final dot at the host
}

// relay sends n messages to the good hosts, in each session one in so long,
// and waits until they have arrived.
func (s *isolation) relay(n int, pace time.Duration) (all []arrival) {
	s.t.Helper()
	began := time.Now()
	had := map[string]int{}
	var g errgroup.Group
	for _, d := range s.good {
		had[d] = s.hosts[d].Count()
		g.Go(func() error { return s.send(d, n/len(s.good), pace) })
	}
	if err := g.Wait(); err != nil {
		s.t.Fatal(err)
	}
	for _, d := range s.good {
		s.hosts[d].WaitMessages(s.t, had[d]+n/len(s.good), drained)
		for _, m := range s.hosts[d].Transactions() {
			if m.MailAt.Before(began) {
				continue
			}
			s.mu.Lock()
			all = append(all, arrival{m.DotAt, max(0, m.DotAt.Sub(s.accepted[m.Label]))})
			s.mu.Unlock()
		}
	}
	return all
}

// cpu is the processor time so far of those who have to do with the bad sites
// and the good ones: a measure that a busy machine does not change.
func (s *isolation) cpu() map[string]time.Duration {
	s.t.Helper()
	tree, err := proc.ReadTree()
	if err != nil {
		s.t.Fatal(err)
	}
	used := map[string]time.Duration{"postgres": tree.CPU(s.PG.PID())}
	for _, name := range []string{"delivery", "resolver", "scheduler"} {
		used[name] = tree.CPU(s.Service(name, 0).Process().PID())
	}
	return used
}

// send submits messages in one session, one in so long.
func (s *isolation) send(domain string, n int, pace time.Duration) error {
	c, err := submit.Dial(s.t.Context(), s.SMTP(0), "")
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Command("EHLO client.example"); err != nil {
		return err
	}
	tick := time.NewTicker(max(pace, 1))
	defer tick.Stop()
	for i := range n {
		if pace > 0 {
			<-tick.C
		}
		subject := fmt.Sprintf("%s %d %d", domain, time.Now().UnixNano(), i)
		if _, err := c.Submit(submit.Message{To: []string{"u@" + domain}, Content: []byte("Subject: " + subject + "\r\n\r\nHello\r\n")}); err != nil {
			return err
		}
		s.mu.Lock()
		s.accepted[subject] = time.Now()
		s.mu.Unlock()
	}
	return nil
}
