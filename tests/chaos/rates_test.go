package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

// limited is a site with limits, and the host that judges them.
type limited struct {
	domain      string
	connections int           // at once
	rate        int           // messages in a period
	connects    int           // connections in a period; 0 is no bound
	perConn     int           // messages of each connection
	period      time.Duration // of both rates
	delay       time.Duration // of the host, so that every connection is wanted
	host        *smtptest.Server
}

// limitedSites are 50 sites: one third bound by their message rate, one by
// their connection rate, one by their connections.
func limitedSites() []*limited {
	var all []*limited
	for i := range 50 {
		s := &limited{domain: fmt.Sprintf("rate%d.test", i), connections: 1 + i%4, rate: 1000, perConn: 100, period: time.Second}
		if i%2 == 1 {
			s.period = 5 * time.Second
		}
		switch i % 3 {
		case 0:
			s.rate = 2 + i%7
		case 1:
			s.connects, s.perConn = 2+i%3, 2
		case 2:
			s.delay = 500 * time.Millisecond
		}
		all = append(all, s)
	}
	return all
}

func (s *limited) shaping() string {
	text := fmt.Sprintf("[%q]\nmx_rollup = false\nconnection_limit = %d\nmax_message_rate = \"%d/%ds\"\nmax_deliveries_per_connection = %d\nmax_recipients_per_batch = 1\nmax_ready = 50\n",
		s.domain, s.connections, s.rate, int(s.period.Seconds()), s.perConn)
	if s.connects == 0 {
		return text + "max_connection_rate = \"unlimited\"\n"
	}
	return text + fmt.Sprintf("max_connection_rate = \"%d/%ds\"\n", s.connects, int(s.period.Seconds()))
}

// allowed is how many messages a second the rates of the site allow; 0 if its
// connections are the bound.
func (s *limited) allowed() float64 {
	switch {
	case s.delay > 0:
		return 0
	case s.connects > 0:
		return float64(s.connects*s.perConn) / s.period.Seconds()
	}
	return float64(s.rate) / s.period.Seconds()
}

// spacing is how far apart the limits put the messages of the site, when they
// are the bound.
func (s *limited) spacing() time.Duration {
	switch {
	case s.delay > 0:
		return s.delay
	case s.connects > 0:
		return s.period / time.Duration(s.connects)
	}
	return s.period / time.Duration(s.rate)
}

// TestRatesOfManySites: 50 sites with different limits and mail enough for
// all, relayed by 1, 2 and 4 workers, and by workers that are killed and added
// at random. No host ever sees more than its limits, and none waits for longer
// than the take-over time and a period of its limits. How near the sum of the
// rates comes to the limits is logged, and in a run of five minutes or longer
// judged. POSTRIDER_RATES_DURATION=10m is the full form.
func TestRatesOfManySites(t *testing.T) {
	whole := 40 * time.Second
	if text := os.Getenv("POSTRIDER_RATES_DURATION"); text != "" {
		var err error
		if whole, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	sites := limitedSites()
	var shaping strings.Builder
	for _, s := range sites {
		shaping.WriteString(s.shaping())
	}
	w := world.Start(t, world.Options{Shaping: shaping.String(), Env: map[string]string{"POSTRIDER_RETRY_SCHEDULE": "1s,1s,2s"}})
	for _, s := range sites {
		script := smtptest.Script{Discard: true}
		if s.delay > 0 {
			script.Rules = []smtptest.Rule{{At: smtptest.Dot, Do: smtptest.Later(s.delay, smtptest.Reply(250, "2.0.0 taken"))}}
		}
		s.host = w.Host(t, "mx."+s.domain, script)
		w.MX(t, s.domain, "10 mx."+s.domain)
	}
	fillSites(t, w, sites, whole+20*time.Second)
	r := &rates{World: w, t: t, sites: sites, long: whole >= 5*time.Minute}
	r.workers = []*world.Service{w.Service("delivery", 0), w.Add("delivery"), w.Add("delivery"), w.Add("delivery")}
	r.waitServed(time.Now(), drained) // what was accepted first is resolved first
	running := 1
	for _, n := range []int{1, 2, 4} {
		for ; running < n; running++ {
			r.start(r.workers[running])
		}
		// Slots on their way to a new home are not served for a moment.
		r.measure(fmt.Sprintf("%d workers", n), whole/6, func() {})
	}
	r.measure("workers killed and added", whole/2, r.change)
	r.judgeChanges(time.Now())
	for _, s := range sites {
		s.judge(t)
	}
	for _, s := range sites {
		if _, err := w.DB.Exec(t.Context(), `SELECT postrider.cancel('end of the test', domain => $1)`, s.domain); err != nil {
			t.Fatal(err)
		}
	}
}

// rates is the run of TestRatesOfManySites.
type rates struct {
	*world.World
	t       *testing.T
	sites   []*limited
	workers []*world.Service
	changes []change
	long    bool // long enough for the sums to be judged
}

// change is a worker that was killed or added.
type change struct {
	at   time.Time
	what string
}

func (r *rates) start(s *world.Service) {
	r.t.Helper()
	r.changes = append(r.changes, change{time.Now(), s.String() + " added"})
	if err := s.Start(); err != nil {
		r.t.Fatal(err)
	}
	if err := s.WaitReady(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

// fillSites gives every site mail for so long. Each recipient is a
// transaction of its own.
func fillSites(t *testing.T, w *world.World, sites []*limited, long time.Duration) {
	t.Helper()
	const perMessage = 20
	var g errgroup.Group
	g.SetLimit(8)
	for _, s := range sites {
		rate := s.allowed()
		if rate == 0 {
			rate = float64(s.connections) / s.delay.Seconds()
		}
		for n := range int(rate*long.Seconds())/perMessage + 2 {
			m := submit.Message{Content: []byte("Subject: rates\r\n\r\nHello\r\n")}
			for i := range perMessage {
				m.To = append(m.To, fmt.Sprintf("r%d-%d@%s", n, i, s.domain))
			}
			g.Go(func() error {
				_, err := submit.Send(t.Context(), w.SMTP(0), m)
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// change kills a worker or starts one that is dead, and waits until every site
// is served again.
func (r *rates) change() {
	r.t.Helper()
	var dead, alive []*world.Service
	for _, s := range r.workers {
		if s.Process().Running() {
			alive = append(alive, s)
		} else {
			dead = append(dead, s)
		}
	}
	if len(dead) > 0 && (len(alive) < 2 || rand.IntN(2) == 0) {
		r.start(dead[rand.IntN(len(dead))])
	} else {
		victim := alive[rand.IntN(len(alive))]
		r.changes = append(r.changes, change{time.Now(), fmt.Sprintf("kill -9 of %s, %d left", victim, len(alive)-1)})
		victim.Kill()
	}
	r.waitServed(time.Now(), takeOver+5*time.Second)
}

// waitServed waits until every site has had mail since a time.
func (r *rates) waitServed(since time.Time, within time.Duration) {
	r.t.Helper()
	r.Eventually(r.t, within, "every site served again", func(ctx context.Context) error {
		var waits []string
		for _, s := range r.sites {
			if all := s.arrivals(); len(all) == 0 || all[len(all)-1].Before(since) {
				waits = append(waits, s.domain)
			}
		}
		if len(waits) == 0 {
			return nil
		}
		return fmt.Errorf("%v wait; their mail: %s", waits, r.queueOf(ctx, waits))
	})
}

// queueOf says in which places the mail of domains is, for a failure.
func (r *rates) queueOf(ctx context.Context, domains []string) (text string) {
	err := r.DB.QueryRow(ctx, `SELECT coalesce(string_agg(format('%s of %s (worker %s, slot %s, rung %s, begun %s, due in %s to %s)',
			n, domain, worker_id, slot, rung, dispatched, first, last), '; '), 'none')
		FROM (SELECT domain, worker_id, slot, rung, dispatched, count(*) AS n,
				date_trunc('second', min(next_attempt_at) - now()) AS first, date_trunc('second', max(next_attempt_at) - now()) AS last
			FROM postrider.recipients WHERE domain = ANY ($1) AND state = 'queued' GROUP BY 1, 2, 3, 4, 5 LIMIT 30) x`, domains).Scan(&text)
	if err != nil {
		return err.Error()
	}
	return text
}

// arrivals are the times at which mail came to the host, in order.
func (s *limited) arrivals() (at []time.Time) {
	for _, m := range s.host.Transactions() {
		at = append(at, m.MailAt)
	}
	slices.SortFunc(at, time.Time.Compare)
	return at
}

// stoodStill returns how much longer than its limits ask for the site waited
// for mail that was to come in a time.
func stoodStill(at []time.Time, spacing time.Duration, from, to time.Time) (longest time.Duration) {
	last := from
	for _, next := range append(at, to) {
		if next.After(from) {
			longest = max(longest, earlier(next, to).Sub(last)-spacing)
		}
		if last = next; !next.Before(to) {
			break
		}
	}
	return longest
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// judgeChanges says for each change how long sites stood still between it and
// the next one.
func (r *rates) judgeChanges(end time.Time) {
	r.t.Helper()
	arrivals := map[*limited][]time.Time{}
	for _, s := range r.sites {
		arrivals[s] = s.arrivals()
	}
	for i, c := range r.changes {
		to := end
		if i+1 < len(r.changes) {
			to = r.changes[i+1].at
		}
		var stood []time.Duration
		var which []string
		for _, s := range r.sites {
			d := stoodStill(arrivals[s], s.spacing(), c.at, to)
			if d < time.Second {
				continue
			}
			stood = append(stood, d)
			if d > 5*time.Second {
				which = append(which, fmt.Sprintf("%s %.1fs", s.domain, d.Seconds()))
			}
			if limit := takeOver + s.period; d > limit {
				r.t.Errorf("%s: %s stood still for %s, want at most %s", c.what, s.domain, d, limit)
			}
		}
		slices.Sort(stood)
		text := "none stood still for a second"
		if n := len(stood); n > 0 {
			text = fmt.Sprintf("%d of %d sites stood still for over a second: median %.1fs, longest %.1fs %v", n, len(r.sites), stood[n/2].Seconds(), stood[n-1].Seconds(), which)
		}
		r.t.Logf("%s %s: %s", c.at.UTC().Format("15:04:05.000"), c.what, text)
	}
}

func wait(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

// measure says how near the sites come to their limits for so long, while
// something happens again and again.
func (r *rates) measure(what string, long time.Duration, during func()) {
	r.t.Helper()
	began := time.Now()
	for time.Since(began) < long {
		during()
		// About 40 s in the full form, so that the dead are mostly replaced.
		wait(r.t, min(long-time.Since(began), max(2*time.Second, time.Duration(3+rand.IntN(4))*long/40)))
	}
	ended := time.Now()
	seen, allowed := 0.0, 0.0
	for _, s := range r.sites {
		if s.allowed() == 0 {
			continue
		}
		allowed += s.allowed() * ended.Sub(began).Seconds()
		for _, at := range s.arrivals() {
			if at.After(began) && at.Before(ended) {
				seen++
			}
		}
	}
	r.t.Logf("%s, %s: %.0f messages of the %.0f that the limits allow, %.1f %%", what, ended.Sub(began).Round(time.Second), seen, allowed, 100*seen/allowed)
	if r.long && seen < 0.95*allowed {
		r.t.Errorf("%s: the sum of the rates is below 95 %% of what the limits allow", what)
	}
}

// judge holds the log of the host against the limits of its site.
func (s *limited) judge(t *testing.T) {
	t.Helper()
	if high := s.host.HighWater(); high > s.connections {
		t.Errorf("%s had %d connections at once, the limit is %d", s.domain, high, s.connections)
	}
	mails := s.arrivals()
	var opened []time.Time
	for _, c := range s.host.Connections() {
		opened = append(opened, c.OpenedAt)
	}
	s.within(t, "messages", mails, s.rate)
	if s.connects > 0 {
		s.within(t, "connections", opened, s.connects)
	}
	if len(mails) == 0 {
		t.Errorf("%s got no mail", s.domain)
	}
}

// within checks every window of the length of the period.
func (s *limited) within(t *testing.T, what string, at []time.Time, limit int) {
	t.Helper()
	slices.SortFunc(at, time.Time.Compare)
	for i := range max(0, len(at)-limit) {
		if window := at[i+limit].Sub(at[i]); window < s.period-late {
			t.Errorf("%s: %d %s within %s, the limit is %d in %s", s.domain, limit+1, what, window, limit, s.period)
			return
		}
	}
}
