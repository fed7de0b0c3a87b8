package chaos

import (
	"cmp"
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

// TestRatesOfManySites: 50 sites with different limits and mail enough for
// all, relayed by 1, 2 and 4 workers, and by workers that are killed and added
// at random. No host ever sees more than its limits; how near the sum of the
// rates comes to them is logged. POSTRIDER_RATES_DURATION=10m is the full
// form; POSTRIDER_RATES_LEASE is the lease of the workers.
func TestRatesOfManySites(t *testing.T) {
	whole := 30 * time.Second
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
	w := world.Start(t, world.Options{Shaping: shaping.String(), Env: map[string]string{
		"POSTRIDER_RETRY_SCHEDULE": "1s,1s,2s", "POSTRIDER_WORKER_LEASE": cmp.Or(os.Getenv("POSTRIDER_RATES_LEASE"), "5s"),
	}})
	for _, s := range sites {
		script := smtptest.Script{Discard: true}
		if s.delay > 0 {
			script.Rules = []smtptest.Rule{{At: smtptest.Dot, Do: smtptest.Later(s.delay, smtptest.Reply(250, "2.0.0 taken"))}}
		}
		s.host = w.Host(t, "mx."+s.domain, script)
		w.MX(t, s.domain, "10 mx."+s.domain)
	}
	fillSites(t, w, sites, whole+20*time.Second)
	workers := []*world.Service{w.Service("delivery", 0), w.Add("delivery"), w.Add("delivery"), w.Add("delivery")}
	running := 1
	for _, n := range []int{1, 2, 4} {
		for ; running < n; running++ {
			startWorker(t, workers[running])
		}
		// Slots on their way to a new home are not served for a moment.
		measureRates(t, fmt.Sprintf("%d workers", n), sites, whole/6, func() {})
	}
	var kills []time.Time
	measureRates(t, "workers killed and added", sites, whole/2, func() {
		if killAtRandom(t, workers) {
			kills = append(kills, time.Now())
		}
	})
	logOutages(t, sites, kills)
	for _, s := range sites {
		s.judge(t)
	}
	for _, s := range sites {
		if _, err := w.DB.Exec(t.Context(), `SELECT postrider.cancel('end of the test', domain => $1)`, s.domain); err != nil {
			t.Fatal(err)
		}
	}
}

func startWorker(t *testing.T, s *world.Service) {
	t.Helper()
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
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

// killAtRandom kills a worker or starts one that is dead.
func killAtRandom(t *testing.T, workers []*world.Service) (killed bool) {
	t.Helper()
	var dead, alive []*world.Service
	for _, s := range workers {
		if s.Process().Running() {
			alive = append(alive, s)
		} else {
			dead = append(dead, s)
		}
	}
	if len(dead) > 0 && (len(alive) < 2 || rand.IntN(2) == 0) {
		startWorker(t, dead[rand.IntN(len(dead))])
	} else {
		alive[rand.IntN(len(alive))].Kill()
		killed = true
	}
	return killed
}

// logOutages says how long the sites of a dead worker were not served: the
// pauses that are more than two periods longer than the limits ask for.
func logOutages(t *testing.T, sites []*limited, kills []time.Time) {
	t.Helper()
	for _, period := range []time.Duration{time.Second, 5 * time.Second} {
		var pauses []time.Duration
		for _, s := range sites {
			if s.period != period {
				continue
			}
			all := s.host.Transactions()
			slices.SortFunc(all, func(a, b smtptest.Transaction) int { return a.MailAt.Compare(b.MailAt) })
			for i := range len(all) - 1 {
				pause := all[i+1].MailAt.Sub(all[i].MailAt)
				if slices.ContainsFunc(kills, func(k time.Time) bool { return k.After(all[i].MailAt) && k.Before(all[i+1].MailAt) }) && pause > 2*period {
					pauses = append(pauses, pause)
				}
			}
		}
		slices.Sort(pauses)
		if n := len(pauses); n > 0 {
			t.Logf("%d kills, sites with periods of %s: %d pauses, median %s, longest %s", len(kills), period, n,
				pauses[n/2].Round(100*time.Millisecond), pauses[n-1].Round(100*time.Millisecond))
		}
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

// measureRates logs how near the sites come to their limits for so long, while
// something happens again and again.
func measureRates(t *testing.T, what string, sites []*limited, long time.Duration, during func()) {
	t.Helper()
	began := time.Now()
	for time.Since(began) < long {
		during()
		// About 40 s in the full form, so that the dead are mostly replaced.
		wait(t, min(long-time.Since(began), time.Duration(3+rand.IntN(4))*long/40))
	}
	ended := time.Now()
	seen, allowed := 0.0, 0.0
	for _, s := range sites {
		if s.allowed() == 0 {
			continue
		}
		allowed += s.allowed() * ended.Sub(began).Seconds()
		for _, m := range s.host.Transactions() {
			if m.MailAt.After(began) && m.MailAt.Before(ended) {
				seen++
			}
		}
	}
	t.Logf("%s, %s: %.0f messages of the %.0f that the limits allow, %.1f %%", what, ended.Sub(began).Round(time.Second), seen, allowed, 100*seen/allowed)
}

// judge holds the log of the host against the limits of its site.
func (s *limited) judge(t *testing.T) {
	t.Helper()
	if high := s.host.HighWater(); high > s.connections {
		t.Errorf("%s had %d connections at once, the limit is %d", s.domain, high, s.connections)
	}
	var mails, opened []time.Time
	for _, m := range s.host.Transactions() {
		mails = append(mails, m.MailAt)
	}
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
