package chaos

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

// providerConnections is what the provider allows for all of its tenants.
const providerConnections = 5

// provider is a world with one provider. Each of its tenants has exchangers of
// its own.
type provider struct {
	*world.World
	t       *testing.T
	host    *smtptest.Server // of the tenants that live
	living  []string
	refuses []string
	silent  []string

	accepted map[string]time.Time // by label
}

// TestOneDeadTenantStopsNobody: tenants of a provider that allows five
// connections for all. The hosts of many refuse connections or answer no SYN,
// and a backlog waits for them; the mail of the others leaves as without them,
// the provider never sees more than five connections, and the dead are tried on.
// Rate and latency of the living are logged: before there are dead ones,
// and with them at work and suspended in turns. POSTRIDER_TENANTS_MESSAGES=10000
// is the full form, which wants the 99th percentile of the living within a fifth
// of what it is without the dead.
func TestOneDeadTenantStopsNobody(t *testing.T) {
	backlog, each, rounds, tenants, full := 200, 100, 1, 8, false
	if text := os.Getenv("POSTRIDER_TENANTS_MESSAGES"); text != "" {
		var err error
		if backlog, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
		each, rounds, tenants, full = backlog/10, 5, 100, true
	}
	p := newProvider(t, tenants)
	p.round(each) // warms up
	var before, working, suspended []figures
	for range rounds {
		before = append(before, p.round(each))
	}
	p.fill(backlog)
	p.waitTried()
	for range rounds {
		working = append(working, p.round(each))
		if full {
			p.suspend(true)
			suspended = append(suspended, p.round(each))
			p.suspend(false)
		}
	}
	if n := p.host.HighWater(); n > providerConnections {
		t.Errorf("the provider saw %d connections at once, the limit is %d", n, providerConnections)
	}
	p.wantWaiting(backlog)
	if full {
		p.wantTriedOn()
	}
	t.Logf("%d messages for %d dead tenants; medians of %d rounds of %d messages for %d living ones", backlog, 2*tenants, rounds, each, tenants)
	t.Logf("before:    %s", short(median(before)))
	t.Logf("with:      %s", short(median(working)))
	if full {
		without := median(suspended)
		t.Logf("suspended: %s", short(without))
		if with := median(working).p99; with > without.p99*6/5 {
			t.Errorf("p99 %s beside the dead, %s without", with, without.p99)
		}
	}
}

// short is what of the figures is measured here.
func short(f figures) string {
	return fmt.Sprintf("%.0f messages/s, latency p50 %s, p99 %s", f.rate, f.p50.Round(100*time.Microsecond), f.p99.Round(100*time.Microsecond))
}

func newProvider(t *testing.T, tenants int) *provider {
	t.Helper()
	w := world.Start(t, world.Options{Shaping: fmt.Sprintf(`["default"]
max_message_rate = "unlimited"
max_connection_rate = "unlimited"
[provider."big"]
match = [{MXSuffix=".big.test"}]
provider_connection_limit = %d
`, providerConnections), Env: map[string]string{"POSTRIDER_RETRY_SCHEDULE": "5m"}})
	p := &provider{World: w, t: t, accepted: map[string]time.Time{}}
	p.host = w.Host(t, "hosts.big.test", smtptest.Script{Discard: true, Label: label})
	refuses, err := w.Remote("refuses.big.test")
	if err != nil {
		t.Fatal(err)
	}
	silent, err := w.Remote("silent.big.test")
	if err != nil {
		t.Fatal(err)
	}
	smtptest.Unanswered(t, silent)
	for of, address := range map[*[]string]string{&p.living: p.host.Addr().String(), &p.refuses: refuses, &p.silent: silent} {
		ip, _, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		name := map[*[]string]string{&p.living: "living", &p.refuses: "refuses", &p.silent: "silent"}[of]
		for i := range tenants {
			domain := fmt.Sprintf("%s%d.test", name, i)
			mx := fmt.Sprintf("%s%d.big.test", name, i)
			if err := w.SetA(mx, ip); err != nil {
				t.Fatal(err)
			}
			w.MX(t, domain, "10 "+mx)
			*of = append(*of, domain)
		}
	}
	return p
}

// fill puts the backlog in as ingress does, without its sessions.
func (p *provider) fill(n int) {
	p.t.Helper()
	db, err := store.Open(p.t.Context(), store.Config{URL: p.PG.URL(), MaxConns: 4})
	if err != nil {
		p.t.Fatal(err)
	}
	defer db.Close()
	content := []byte("Subject: waits\r\n\r\nHello\r\n")
	dead := slices.Concat(p.refuses, p.silent)
	for done := 0; done < n; {
		var all []*mail.Submission
		for range min(500, n-done) {
			d := dead[done%len(dead)]
			done++
			m := &mail.Submission{Content: content}
			m.ID, m.AcceptedAt, m.SizeBytes = mail.NewQueueID(), time.Now(), int64(len(content))
			m.Recipients = []mail.Recipient{{No: 1, Domain: mail.Domain(d), ForwardPath: mail.ForwardPath(fmt.Sprintf("u%d@%s", done, d)), ExpiresAt: m.AcceptedAt.Add(24 * time.Hour)}}
			all = append(all, m)
		}
		if err := db.Accept(p.t.Context(), all); err != nil {
			p.t.Fatal(err)
		}
	}
}

// waitTried waits until every dead tenant has been tried once.
func (p *provider) waitTried() {
	p.t.Helper()
	began := time.Now()
	p.Eventually(p.t, 2*drained, "all dead tenants are known", func(ctx context.Context) error {
		return p.tried(ctx, time.Time{}, len(p.refuses)+len(p.silent))
	})
	p.t.Logf("each of the %d dead tenants had been tried after %s", len(p.refuses)+len(p.silent), time.Since(began).Round(time.Second))
}

// tried returns an error unless so many dead tenants have been tried since.
func (p *provider) tried(ctx context.Context, since time.Time, want int) error {
	var n int
	err := p.DB.QueryRow(ctx, `SELECT count(DISTINCT r.domain) FROM postrider.attempts a JOIN postrider.recipients r USING (queue_id)
		WHERE a.phase = 'connect' AND NOT a.untried AND a.started_at > $1 AND r.domain = ANY ($2)`, since, slices.Concat(p.refuses, p.silent)).Scan(&n)
	if err == nil && n < want {
		err = fmt.Errorf("%d of %d dead tenants have been tried", n, want)
	}
	return err
}

// wantTriedOn checks that connections go on to find out whether dead tenants
// are back: it waits for some.
func (p *provider) wantTriedOn() {
	p.t.Helper()
	since := time.Now()
	p.Eventually(p.t, drained, "the dead are tried on", func(ctx context.Context) error { return p.tried(ctx, since, 3) })
}

// wantWaiting checks that all mail for the dead waits, and that nothing is
// lost.
func (p *provider) wantWaiting(n int) {
	p.t.Helper()
	p.Eventually(p.t, drained, "all mail for the living is relayed, and all for the dead waits", func(ctx context.Context) error {
		a, err := p.Accounting(ctx)
		if err == nil && (a.Queued != int64(n) || a.Unaccounted != 0 || a.Relayed != a.Accepted-int64(n)) {
			err = fmt.Errorf("accounts %+v, want %d recipients that wait for the dead", a, n)
		}
		return err
	})
}

// suspend stops or lets go the dead sites.
func (p *provider) suspend(on bool) {
	p.t.Helper()
	call, seen := "resume_site(site)", 4*time.Second // and the first pulls are over
	if on {
		call, seen = "suspend_site(site, '1 hour', 'measured')", 2*time.Second
	}
	if _, err := p.DB.Exec(p.t.Context(), `SELECT postrider.`+call+` FROM (SELECT DISTINCT site FROM postrider.recipients
		WHERE state = 'queued' AND domain = ANY ($1) AND site IS NOT NULL) x`, slices.Concat(p.refuses, p.silent)); err != nil {
		p.t.Fatal(err)
	}
	wait(p.t, seen)
}

// round sends n messages to the living tenants as fast as ingress takes them,
// which shows the rate; and then as many at a pace that leaves the machine idle
// for most of the time, which shows the latency.
func (p *provider) round(n int) (f figures) {
	p.t.Helper()
	began := time.Now()
	all := p.relay(n, 0)
	f.rate = float64(n) / slices.MaxFunc(all, func(a, b arrival) int { return a.at.Compare(b.at) }).at.Sub(began).Seconds()
	var waits []time.Duration
	for _, a := range p.relay(n, 20*time.Millisecond) {
		waits = append(waits, a.waited)
	}
	slices.Sort(waits)
	f.p50, f.p99 = waits[len(waits)/2], waits[len(waits)*99/100]
	p.t.Log(short(f))
	return f
}

// relay sends n messages to the living tenants by turns, one in so long, and
// waits until they have arrived.
func (p *provider) relay(n int, pace time.Duration) (all []arrival) {
	p.t.Helper()
	began, had := time.Now(), p.host.Count()
	if err := p.send(n, pace); err != nil {
		p.t.Fatal(err)
	}
	p.host.WaitMessages(p.t, had+n, drained)
	for _, m := range p.host.Transactions() {
		if !m.MailAt.Before(began) {
			all = append(all, arrival{m.DotAt, max(0, m.DotAt.Sub(p.accepted[m.Label]))})
		}
	}
	return all
}

// send submits messages in one session, one in so long.
func (p *provider) send(n int, pace time.Duration) error {
	c, err := submit.Dial(p.t.Context(), p.SMTP(0), "")
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
		domain := p.living[i%len(p.living)]
		subject := fmt.Sprintf("%s %d %d", domain, time.Now().UnixNano(), i)
		if _, err := c.Submit(submit.Message{To: []string{"u@" + domain}, Content: []byte("Subject: " + subject + "\r\n\r\nHello\r\n")}); err != nil {
			return err
		}
		p.accepted[subject] = time.Now()
	}
	return nil
}
