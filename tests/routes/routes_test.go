package routes

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

// TestDiscard: recipients end as cancelled, with the reason, and nobody hears
// of it.
func TestDiscard(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx, reports := r.exchanger("discard.test", smtptest.Script{}), r.exchanger("discard-sender.test", smtptest.Script{})
	r.route("discard.test --discard load-test")
	l := r.until(r.send("me@discard-sender.test", "a@discard.test"), "cancelled", func(l last) bool { return l.State == "cancelled" })
	if l.Phase != "route" || !strings.Contains(l.Reply, "load-test") {
		t.Errorf("%+v, want phase route and the reason", l)
	}
	if n, m := len(mx.Connections()), reports.Count(); n+m > 0 {
		t.Errorf("%d connections to the domain, %d reports", n, m)
	}
}

// TestHold: recipients are held with the reason; one that is released goes.
func TestHold(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := r.exchanger("hold.test", smtptest.Script{})
	r.route("hold.test --hold ticket-4711")
	id := r.send("me@sender.test", "a@hold.test")
	l := r.until(id, "held", func(l last) bool { return l.State == "held" })
	if !strings.Contains(l.Reply, "ticket-4711") || len(mx.Connections()) > 0 {
		t.Errorf("%+v, want the reason; %d connections, want none", l, len(mx.Connections()))
	}
	r.command("release", id)
	r.relayed(id)
	mx.WaitMessages(t, 1, deadline)
}

// TestFallback: after two tries the mail goes elsewhere.
func TestFallback(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := r.exchanger("fallback.test", smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Mail, Do: smtptest.Reply(451, "4.3.0 not now")}}})
	other, at := r.host("other.fallback.test", smtptest.Script{})
	r.route("fallback.test --fallback " + at + " --fallback-tries 2")
	l := r.relayed(r.send("me@sender.test", "a@fallback.test"))
	if l.Host != "other.fallback.test" || l.Attempts != 3 || len(mx.Transactions()) != 2 || other.Count() != 1 {
		t.Errorf("%+v after %d transactions at the MX, %d at the fallback; want the third attempt there", l, len(mx.Transactions()), other.Count())
	}
}

// TestFailover: of smart hosts the next is tried in the same attempt; each has
// its port.
func TestFailover(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := r.exchanger("failover.test", smtptest.Script{})
	address, err := r.Remote("first.failover.test")
	if err != nil {
		t.Fatal(err)
	}
	ip, _, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	// The first does not listen at all; the second is another port of it.
	second := smtptest.Start(t, smtptest.Script{Address: net.JoinHostPort(ip, "12626"), Hostname: "first.failover.test"})
	third, at := r.host("third.failover.test", smtptest.Script{})
	r.route(fmt.Sprintf("failover.test first.failover.test:%d first.failover.test:12626 %s", world.RemotePort, at))
	if l := r.relayed(r.send("me@sender.test", "a@failover.test")); l.Attempts != 1 || second.Count() != 1 {
		t.Errorf("%+v, %d messages at the second host, want one in one attempt", l, second.Count())
	}
	second.Close()
	if l := r.relayed(r.send("me@sender.test", "a@failover.test")); l.Attempts != 1 || l.Host != "third.failover.test" || third.Count() != 1 {
		t.Errorf("%+v, %d messages at the third host, want one in one attempt", l, third.Count())
	}
	if n := len(mx.Connections()); n > 0 {
		t.Errorf("%d connections to the MX, whose records do not count", n)
	}
}

// TestBalanced: hosts share the load by their weights. The chance that the
// lighter one of 3 to 1 sees more of 80 messages is below 1 in 10^7.
func TestBalanced(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	heavy, one := r.host("a.balanced.test", smtptest.Script{})
	light, two := r.host("b.balanced.test", smtptest.Script{})
	r.route("balanced.test " + one + "*3+" + two)
	for range 80 {
		r.send("me@sender.test", "a@balanced.test")
	}
	r.Eventually(t, deadline, "80 messages relayed", func(context.Context) error {
		if n := heavy.Count() + light.Count(); n != 80 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	if h, l := heavy.Count(), light.Count(); h <= l || l == 0 {
		t.Errorf("%d and %d messages, want 3 to 1", h, l)
	}
}

// TestTLSLevels: at a host with a certificate that nobody vouches for.
func TestTLSLevels(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	unknown, err := smtptest.SelfSigned("mx.levels.test")
	if err != nil {
		t.Fatal(err)
	}
	host, at := r.host("mx.levels.test", smtptest.Script{TLS: unknown})
	plain, plainAt := r.host("plain.levels.test", smtptest.Script{})
	r.route("none.levels.test "+at+" --tls none", "may.levels.test "+plainAt+" --tls may", "encrypt.levels.test "+at+" --tls encrypt",
		"verify.levels.test "+at+" --tls verify", "plain.levels.test "+plainAt+" --tls encrypt")
	if l := r.relayed(r.send("", "a@none.levels.test")); l.TLS != "" {
		t.Errorf("none: %+v", l)
	}
	if l := r.relayed(r.send("", "a@may.levels.test")); l.TLS != "" {
		t.Errorf("may, at a host without: %+v", l)
	}
	if l := r.relayed(r.send("", "a@encrypt.levels.test")); l.TLS == "" {
		t.Errorf("encrypt: %+v", l)
	}
	r.delayed(r.send("", "a@verify.levels.test"), "4.7.5")
	r.delayed(r.send("", "a@plain.levels.test"), "4.7.4")
	if n, m := host.Count(), plain.Count(); n != 2 || m != 1 {
		t.Errorf("%d messages, and %d at the host without TLS; want 2 and 1", n, m)
	}
}

// TestMostSpecificRule: by recipient, wildcard, sender and tenant. What
// postrider route explain says is what happens.
func TestMostSpecificRule(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	hosts := map[string]*smtptest.Server{}
	rules := []string{}
	for name, match := range map[string]string{
		"wild": "*.pick.test", "exact": "exact.pick.test", "sender": "*.pick.test --from news.example.com",
		"author": "*.pick.test --from boss@news.example.com", "null": "*.pick.test --from <>", "tenant": "*.pick.test --tenant acme",
	} {
		host, at := r.host(name+".pick-host.test", smtptest.Script{})
		hosts[name] = host
		domain, flags, _ := strings.Cut(match, " ")
		rules = append(rules, domain+" "+at+" "+flags)
	}
	key := r.tenant("acme", "acme.example")
	r.route(rules...)
	for _, tt := range []struct{ from, to, tenant, want string }{
		{"me@sender.test", "a@x.pick.test", "", "wild"},
		{"me@sender.test", "a@y.x.pick.test", "", "wild"},
		{"me@sender.test", "a@exact.pick.test", "", "exact"},
		{"me@news.example.com", "a@x.pick.test", "", "sender"},
		{"boss@news.example.com", "a@x.pick.test", "", "author"},
		{"boss@news.example.com", "a@exact.pick.test", "", "exact"}, // the domain weighs more
		{"", "a@x.pick.test", "", "null"},
		{"app@acme.example", "a@x.pick.test", "acme", "tenant"},
	} {
		var id string
		if tt.tenant == "" {
			id = r.send(tt.from, tt.to)
		} else {
			id = r.post(key, tt.from, tt.to)
		}
		if l := r.relayed(id); l.Host != tt.want+".pick-host.test" {
			t.Errorf("%+v went to %s", tt, l.Host)
		}
		args := []string{"route", "explain", tt.to, "--from", tt.from, "--tenant", tt.tenant, "-o", "json"}
		var e struct {
			Rules []struct{ Hosts []string }
		}
		if err := json.Unmarshal([]byte(r.command(args...)), &e); err != nil || len(e.Rules) == 0 || !strings.HasPrefix(e.Rules[0].Hosts[0], tt.want+".") {
			t.Errorf("%q: %+v, %v; want %s", args, e, err, tt.want)
		}
	}
	for name, host := range hosts {
		if host.Count() == 0 {
			t.Errorf("no message at %s", name)
		}
	}
}

// tenant makes a tenant with a domain and returns an API key of it that works.
func (r *rig) tenant(name, domain string) string {
	r.t.Helper()
	r.command("tenant", "add", name)
	r.command("domain", "add", domain, "--tenant", name)
	var line struct {
		APIKey string `json:"api_key"`
	}
	if err := json.Unmarshal([]byte(r.command("credential", "add", name+"-http", "--tenant", name, "--api-key", "-o", "json")), &line); err != nil {
		r.t.Fatal(err)
	}
	r.Eventually(r.t, deadline, "the API key known", func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.HTTP(0)+"/v1/messages/01900000-0000-7000-8000-000000000000", nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+line.APIKey)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusUnauthorized {
			return fmt.Errorf("%s", resp.Status)
		}
		return nil
	})
	return line.APIKey
}

// post submits a message by HTTP.
func (r *rig) post(key, from, to string) string {
	r.t.Helper()
	body := bytes.Replace(content("routes"), []byte("me@sender.test"), []byte(from), 1)
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodPost, r.HTTP(0)+"/v1/messages?to="+to, bytes.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "message/rfc822")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		r.t.Fatal(err)
	}
	id := submit.QueueID(b.String())
	if resp.StatusCode/100 != 2 || id == "" {
		r.t.Fatalf("%s: %s", resp.Status, &b)
	}
	return id
}

// TestLive: a rule moves what waits at once, though its next attempt is an
// hour away, and so does taking it away.
func TestLive(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := r.exchanger("live.test", smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Mail, Times: 1, Do: smtptest.Reply(451, "4.3.0 not now")}}})
	other, at := r.host("other.live.test", smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Mail, Skip: 1, Do: smtptest.Reply(451, "4.3.0 not now")}}})
	first := r.send("", "a@live.test")
	r.until(first, "delayed", func(l last) bool { return l.State == "queued" && l.Attempts == 1 })
	if out := r.command("route", "set", "live.test", at); !strings.Contains(out, "1 waiting recipients") {
		t.Errorf("route set says %q", out)
	}
	if l := r.relayed(first); l.Host != "other.live.test" || other.Count() != 1 {
		t.Errorf("%+v, %d messages there", l, other.Count())
	}
	second := r.send("", "b@live.test")
	r.until(second, "delayed", func(l last) bool { return l.State == "queued" && l.Attempts == 1 && l.Host == "other.live.test" })
	if out := r.command("route", "remove", "live.test"); !strings.Contains(out, "1 waiting recipients") {
		t.Errorf("route remove says %q", out)
	}
	if l := r.relayed(second); l.Host != "mx.live.test" || mx.Count() != 1 {
		t.Errorf("%+v, %d messages at the MX", l, mx.Count())
	}
}
