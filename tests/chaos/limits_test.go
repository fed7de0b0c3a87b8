package chaos

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/world"
)

const (
	siteConnections = 3
	siteRate        = 20 // messages per second
	// late is how much later than it came a busy machine may note a message
	// at the remote host.
	late = 50 * time.Millisecond
)

// TestLimits: with two delivery workers, the remote host never sees more
// connections and messages per second than the site allows, also while each
// worker is killed and replaced, and where both are homes of the site. The judge is the remote host's own log.
func TestLimits(t *testing.T) {
	limits := fmt.Sprintf("mx_rollup = false\nconnection_limit = %d\nmax_message_rate = \"%d/s\"\nmax_connection_rate = \"unlimited\"\n", siteConnections, siteRate)
	w := world.Start(t, world.Options{
		Copies:  2,
		Env:     map[string]string{"POSTRIDER_RETRY_SCHEDULE": "1s,1s,2s"},
		Shaping: "[\"fast.test\"]\n" + limits + "[\"slow.test\"]\n" + limits + "[\"split.test\"]\nhomes = 2\nmax_ready = 20\n" + limits,
	})
	s := &scene{World: w, t: t, domains: []string{"fast.test", "slow.test", "split.test"}, hosts: map[string]*smtptest.Server{}}
	// The fast host shows the rate, that of a divided site too; the slow one
	// makes every connection wanted, so it shows their number.
	const delay = 300 * time.Millisecond
	s.hosts["fast.test"] = s.Host(t, "mx.fast.test", smtptest.Script{Discard: true})
	s.hosts["slow.test"] = s.Host(t, "mx.slow.test", smtptest.Script{Discard: true, Rules: []smtptest.Rule{
		{At: smtptest.Dot, Do: smtptest.Later(delay, smtptest.Reply(250, "2.0.0 taken"))},
	}})
	s.hosts["split.test"] = s.Host(t, "mx.split.test", smtptest.Script{Discard: true})
	for d := range s.hosts {
		s.MX(t, d, "10 mx."+d)
	}
	s.reports = s.Host(t, "mx.sender.test", smtptest.Script{})
	n := min(messages(t)/3, 1200)
	l := startLoad(t, w, "limits-", n, s.domains)
	for c := range 2 {
		// In full flow at both hosts, the homes of which are not known.
		s.waitTaken((c + 1) * n / 8)
		victim := w.Service("delivery", c)
		s.strike(victim.Kill)
		s.restart(victim)
	}
	l.finish(t)
	s.ledger = l.all()
	s.judge()
	for d, host := range s.hosts {
		if high := host.HighWater(); high > siteConnections {
			t.Errorf("%s had %d connections at once, the limit is %d", d, high, siteConnections)
		} else if d == "slow.test" && high < siteConnections {
			t.Errorf("%s had at most %d connections, so the limit of %d was not tried", d, high, siteConnections)
		}
		wantRate(t, d, host)
	}
	s.wantTogether("domain:split.test")
}

// wantTogether checks that two workers have relayed to a site at the same time.
func (s *scene) wantTogether(site string) {
	s.t.Helper()
	var pairs int
	err := s.DB.QueryRow(s.t.Context(), `WITH busy AS (
			SELECT worker_id, min(started_at) AS began, max(started_at) AS ended FROM postrider.attempts WHERE site = $1 AND action = 'relayed' GROUP BY worker_id)
		SELECT count(*) FROM busy a JOIN busy b ON a.worker_id < b.worker_id AND a.began < b.ended AND b.began < a.ended`, site).Scan(&pairs)
	if err != nil {
		s.t.Fatal(err)
	}
	if pairs == 0 {
		s.t.Errorf("no two workers have relayed to %s at the same time", site)
	}
}

// waitTaken waits until each host has taken n messages.
func (s *scene) waitTaken(n int) {
	s.t.Helper()
	for _, host := range s.hosts {
		host.WaitMessages(s.t, n, drained)
	}
}

// wantRate checks every window of a second. Attempts count, also those that
// were broken off.
func wantRate(t *testing.T, domain string, host *smtptest.Server) {
	t.Helper()
	var at []time.Time
	for _, m := range host.Transactions() {
		at = append(at, m.MailAt)
	}
	slices.SortFunc(at, time.Time.Compare)
	fastest := time.Duration(-1)
	for i := range len(at) - siteRate {
		window := at[i+siteRate].Sub(at[i])
		if fastest < 0 || window < fastest {
			fastest = window
		}
	}
	if fastest < 0 {
		t.Fatalf("%s had %d messages, too few to judge a rate", domain, len(at))
	}
	t.Logf("%s: %d transactions in %s, %d in at least %s", domain, len(at), at[len(at)-1].Sub(at[0]).Round(time.Millisecond), siteRate+1, fastest)
	if fastest < time.Second-late {
		t.Errorf("%s: %d messages within %s, the limit is %d a second", domain, siteRate+1, fastest, siteRate)
	}
}
