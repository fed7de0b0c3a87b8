package adapt

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
)

var start = time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC)

func rules(t interface{ Fatal(...any) }, text string) []shaping.Rule {
	s, _, err := shaping.Build(shaping.Config{}, shaping.Text{From: "test", TOML: text})
	if err != nil {
		t.Fatal(err)
	}
	return s.For(shaping.Query{Domain: "d.example"}).Rules
}

const busy = `
[["default".automation]]
regex = "busy"
action = %s
trigger = %s
duration = "1h"
`

var traffic = mail.Traffic{Site: "mx.test", Source: "one", Tenant: "acme", Campaign: "sale", Domain: "d.example"}

func TestActionsBecomeMeasures(t *testing.T) {
	until := start.Add(time.Hour)
	for _, c := range []struct {
		action string
		of     mail.Traffic
		want   []mail.Measure
	}{
		{`"Suspend"`, traffic, []mail.Measure{{Kind: "suspend", Site: "mx.test", Source: "one"}}},
		{`"SuspendTenant"`, traffic, []mail.Measure{{Kind: "suspend", Tenant: "acme"}}},
		{`"SuspendTenant"`, mail.Traffic{Site: "mx.test"}, nil},
		{`"SuspendCampaign"`, traffic, []mail.Measure{{Kind: "suspend", Tenant: "acme", Campaign: "sale"}}},
		{`"SuspendCampaign"`, mail.Traffic{Site: "mx.test", Tenant: "acme"}, nil},
		{`"Bounce"`, traffic, []mail.Measure{{Kind: "bounce", Site: "mx.test", Source: "one"}}},
		{`["BounceTenant", "BounceCampaign"]`, traffic, []mail.Measure{{Kind: "bounce", Tenant: "acme"}, {Kind: "bounce", Tenant: "acme", Campaign: "sale"}}},
		{`{SetConfig={name="connection_limit", value=1}}`, traffic, []mail.Measure{{Kind: "set", Site: "mx.test", Source: "one", Key: "connection_limit", Value: "1"}}},
		{`{SetDomainConfig={name="max_message_rate", value="1/min"}}`, traffic, []mail.Measure{{Kind: "set", Domain: "d.example", Key: "max_message_rate", Value: `"1/min"`}}},
	} {
		t.Run(c.action+c.of.Tenant, func(t *testing.T) {
			var w Watch
			reply := mail.Reply{Code: 421, Enhanced: mail.EnhancedCode{Class: 4, Subject: 7}, Lines: []string{"busy"}}
			var got []mail.Measure
			fired, _ := w.Heard(start, reply, c.of, rules(t, fmt.Sprintf(busy, c.action, `"Immediate"`)))
			for _, f := range fired {
				got = append(got, f.Measures...)
			}
			for i := range c.want {
				c.want[i].Until, c.want[i].Reason, c.want[i].By = until, "421 4.7.0 busy", `"default": busy`
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A rule goes off with the match that is the nth within its period, whatever
// the times, and never twice within the quiet time.
func TestThresholdsCountOverTheWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 6).Draw(t, "threshold")
		rule := rules(t, fmt.Sprintf(busy, `"Suspend"`, fmt.Sprintf(`{Threshold="%d/min"}`, n)))
		var w Watch
		var at []time.Time
		var last time.Time
		now := start
		for range rapid.IntRange(1, 60).Draw(t, "replies") {
			now = now.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "seconds")) * time.Second)
			matches := rapid.Bool().Draw(t, "matches")
			reply := mail.Reply{Code: 451, Lines: []string{"else"}}
			if matches {
				reply.Lines[0] = "busy"
				at = append(at, now)
			}
			within := 0
			for _, m := range at {
				if now.Sub(m) <= time.Minute {
					within++
				}
			}
			want := matches && within >= n && (last.IsZero() || now.Sub(last) >= quiet)
			fired, handled := w.Heard(now, reply, traffic, rule)
			if got := len(fired) > 0; got != want || handled != (matches && within >= n) {
				t.Fatalf("at %v with %d matches in the last minute, threshold %d: went off %v, handled %v", now.Sub(start), within, n, got, handled)
			}
			if want {
				last = now
			}
		}
		if w.Idle(now) != (len(at) == 0 || now.Sub(at[len(at)-1]) > time.Minute) {
			t.Fatal("idle while a match may still count, or not idle without one")
		}
	})
}

func TestPaceStaysWithinItsBounds(t *testing.T) {
	limits := shaping.Limits{Connections: 20, ConnectionRate: shaping.Rate{Events: 100, Period: time.Minute},
		MessageRate: shaping.Rate{Events: 10, Period: time.Second, Burst: 5}, MessagesPerConnection: 7, Ready: 9}
	per := func(r shaping.Rate) float64 { return float64(r.Events) / r.Period.Seconds() }
	rapid.Check(t, func(t *rapid.T) {
		var s Slowdown
		now := start
		for range rapid.IntRange(1, 50).Draw(t, "events") {
			now = now.Add(time.Duration(rapid.IntRange(0, 200).Draw(t, "seconds")) * time.Second)
			before := s.Share()
			if rapid.Bool().Draw(t, "asked") {
				if s.Asked(now) && s.Share() > before {
					t.Fatal("faster after a request for patience")
				}
			} else if s.Recover(now) && s.Share() < before {
				t.Fatal("slower by recovery")
			}
			if s.Share() < floor || s.Share() > 1 {
				t.Fatalf("share %v", s.Share())
			}
			got := s.Apply(limits)
			if got.Connections < 1 || got.Connections > limits.Connections || got.MessageRate.Events < 1 || per(got.MessageRate) > per(limits.MessageRate)*s.Share()+1e-9 ||
				per(got.ConnectionRate) > per(limits.ConnectionRate)*s.Share()+1e-9 || got.Ready != 9 || got.MessagesPerConnection != 7 {
				t.Fatalf("%v of the limits is %+v", s.Share(), got)
			}
			var next Slowdown
			next.Restore(now, s.Save(now))
			if next.Share() != s.Share() {
				t.Fatalf("a successor goes at %v, not at %v", next.Share(), s.Share())
			}
		}
		if s.Recover(now.Add(20 * interval)); s.Share() != 1 || s.Save(now) != nil {
			t.Fatalf("share %v long after the last request", s.Share())
		}
	})
}

func TestPaceHalvesAndComesBackInSteps(t *testing.T) {
	var s Slowdown
	for i, c := range []struct {
		after time.Duration
		asked bool
		want  float64
	}{
		{0, true, 0.5}, {time.Second, true, 0.5}, {10 * time.Second, true, 0.25}, {69 * time.Second, false, 0.25},
		{70 * time.Second, false, 0.35}, {190 * time.Second, false, 0.55}, {200 * time.Second, true, 0.275},
	} {
		if now := start.Add(c.after); c.asked {
			s.Asked(now)
		} else {
			s.Recover(now)
		}
		if diff := s.Share() - c.want; diff > 1e-9 || diff < -1e-9 {
			t.Fatalf("step %d: share %v, want %v", i+1, s.Share(), c.want)
		}
	}
	if got := slower(shaping.Rate{Events: 1, Period: time.Second}, 0.25); got.Events != 1 || got.Period != 4*time.Second {
		t.Errorf("a quarter of 1/s is %v", got)
	}
}

func TestWhoAsksForPatience(t *testing.T) {
	for _, c := range []struct {
		code  int
		class string
		text  string
		want  bool
	}{
		{421, "4.7.0", "[TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume", true},
		{421, "4.7.28", "Our system has detected an unusual rate of unsolicited mail", true},
		{451, "4.7.500", "Server busy. Please try again later from 192.0.2.1", true},
		{421, "", "Too many concurrent SMTP connections", true},
		{421, "4.2.0", "192.0.2.1 Throttled - try again later. RL000001", true},
		{421, "4.1.0", "mx.test too many sessions from 192.0.2.1", true},
		{452, "4.2.2", "The mailbox of this user is throttled", false},
		{450, "4.2.1", "The user is receiving mail too quickly", false},
		{452, "4.5.3", "Too many recipients", false},
		{452, "4.2.2", "mailbox exceeds its limit", false},
		{450, "4.7.1", "Greylisted, too many new senders", false},
		{451, "4.3.0", "local error", false},
		{432, "4.4.5", "later", true},
		{550, "5.7.1", "rate limited for ever", false},
		{421, "4.7.0", "we throttle you", true},
		{421, "4.3.2", "Concurrency limit reached", true},
		{250, "2.0.0", "rate limit not reached", false},
	} {
		reply := mail.Reply{Code: c.code, Lines: []string{c.text}}
		if c.class != "" {
			if _, err := fmt.Sscanf(c.class, "%d.%d.%d", &reply.Enhanced.Class, &reply.Enhanced.Subject, &reply.Enhanced.Detail); err != nil {
				t.Fatal(err)
			}
		}
		if got := AsksForPatience(reply); got != c.want {
			t.Errorf("%s: %v, want %v", reply, got, c.want)
		}
	}
}

// FuzzHeard: whatever a host says, the rules end, remember a bounded amount,
// and order only what covers something.
func FuzzHeard(f *testing.F) {
	f.Add(421, "4.7.0 busy, rate limited", 3)
	f.Add(0, "no answer in time", 1)
	f.Add(550, "\xff\xfe busy", 100)
	all := rules(f, fmt.Sprintf(busy, `["Suspend", "SuspendTenant"]`, `{Threshold="2/h"}`)+fmt.Sprintf(busy, `"BounceCampaign"`, `"Immediate"`))
	f.Fuzz(func(t *testing.T, code int, text string, times int) {
		var w Watch
		reply := mail.Reply{Code: code, Lines: []string{text}}
		AsksForPatience(reply)
		for range min(max(times, 1), 50) {
			went, _ := w.Heard(start, reply, traffic, all)
			for _, fired := range went {
				for _, m := range fired.Measures {
					if string(m.Site)+m.Source+m.Tenant+m.Campaign+string(m.Domain) == "" || !m.Until.After(start) || len(m.Reason) > shaping.MaxMatched {
						t.Fatalf("%+v", m)
					}
				}
			}
		}
		if m := w.counts[all[0].ID]; m != nil && len(m.at) > 2 || len(w.fired) > 3 {
			t.Fatalf("%d matches and %d measures remembered", len(m.at), len(w.fired))
		}
	})
}

// One reply of a large provider slows a source down by half, and is no cliff:
// only where many follow at the pace that is left does the preset set a limit.
func TestOneRequestForPatienceIsNoCliff(t *testing.T) {
	preset, err := shaping.Preset("2026-11")
	if err != nil {
		t.Fatal(err)
	}
	s, _, err := shaping.Build(shaping.Config{}, preset)
	if err != nil {
		t.Fatal(err)
	}
	for host, lines := range map[string]string{
		"x.olc.protection.outlook.com":  "The mail server [192.0.2.9] has been temporarily rate limited due to IP reputation. (S775)",
		"x.mail.protection.outlook.com": "Server busy. Please try again later from [192.0.2.9]. (S77719)",
		"mx.any.test":                   "Messages from 192.0.2.9 temporarily deferred due to unexpected volume",
	} {
		all := s.For(shaping.Query{Domain: "d.example", Hosts: []mail.Host{{Name: host}}}).Rules
		reply := mail.Reply{Code: 451, Enhanced: mail.EnhancedCode{Class: 4, Subject: 7, Detail: 650}, Lines: []string{lines}}
		var w Watch
		var pace Slowdown
		now, fired := start, 0
		for i := range 40 {
			went, handled := w.Heard(now, reply, traffic, all)
			if !handled && AsksForPatience(reply) {
				pace.Asked(now)
			}
			if fired += len(went); i == 0 && (fired > 0 || pace.Share() != 0.5) {
				t.Errorf("%s: after one reply %d rules went off, the pace is %v", host, fired, pace.Share())
			}
			now = now.Add(3 * time.Second)
		}
		if fired == 0 || pace.Share() > 0.25 {
			t.Errorf("%s: after 40 replies in 2 minutes %d rules went off, the pace is %v", host, fired, pace.Share())
		}
	}
}
