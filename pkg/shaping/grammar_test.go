package shaping_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
)

func build(t *testing.T, texts ...string) (*shaping.Shaping, []string) {
	t.Helper()
	var all []shaping.Text
	for i, text := range texts {
		all = append(all, shaping.Text{From: fmt.Sprintf("file %d", i+1), TOML: text})
	}
	s, warnings, err := shaping.Build(config(t, ""), all...)
	if err != nil {
		t.Fatal(err)
	}
	return s, warnings
}

func TestAFileOfKumoMTAReadsAsItStands(t *testing.T) {
	text, err := os.ReadFile("testdata/moved.toml")
	if err != nil {
		t.Fatal(err)
	}
	s, warnings := build(t, string(text))
	for _, want := range []string{
		`"default".data_dot_timeout: shorter than 10 minutes: a host that takes longer gets the message twice`,
		`"default".consecutive_connection_failures_before_delay: known, and without effect here`,
		`"default".enable_tls: certificates are not checked`,
		`provider."bigbox".provider_connection_limit: "local:" has no effect`,
		`"slow.example".max_message_rate: "local:" has no effect`,
	} {
		if !strings.Contains(strings.Join(warnings, "\n"), want) {
			t.Errorf("no warning %q in\n%s", want, strings.Join(warnings, "\n"))
		}
	}
	minute := func(n int) shaping.Rate { return shaping.Rate{Events: n, Period: time.Minute} }
	for _, c := range []struct {
		name  string
		query shaping.Query
		site  mail.Site
		want  shaping.Limits
	}{
		{"default", shaping.Query{Domain: "any.example", Hosts: hosts("mx.any.example")}, "set",
			shaping.Limits{Connections: 12, ConnectionRate: minute(120), MessageRate: minute(1000), MessagesPerConnection: 80, Ready: 1000, Homes: 1}},
		{"the limits of a provider for all its sites are not those of one", shaping.Query{Domain: "corp.example", Site: "provider:bigbox/mx1.bigbox.test", Hosts: hosts("mx1.bigbox.test")}, "provider:bigbox/set",
			shaping.Limits{Connections: 12, ConnectionRate: minute(120), MessageRate: minute(1000), MessagesPerConnection: 50, Ready: 1000, Homes: 1}},
		{"each site of another provider counts for itself", shaping.Query{Domain: "corp.example", Site: "mx.eu.regions.test", Hosts: hosts("mx.eu.regions.test")}, "set",
			shaping.Limits{Connections: 10, ConnectionRate: minute(120), MessageRate: minute(1000), MessagesPerConnection: 80, Ready: 1000, Homes: 1}},
		{"a source of a domain apart", shaping.Query{Domain: "apart.example", Site: "domain:apart.example", Source: "my source name"}, "domain:apart.example",
			shaping.Limits{Connections: 6, ConnectionRate: minute(120), MessageRate: minute(1000), MessagesPerConnection: 7, Ready: 1000, Homes: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, s.For(c.query).Limits); diff != "" {
				t.Error(diff)
			}
			if site := s.Site(c.query.Domain, c.query.Hosts, "set"); site != c.site {
				t.Errorf("site %q, want %q", site, c.site)
			}
		})
	}
	v := s.For(shaping.Query{Domain: "slow.example", Site: "provider:bigbox/mx1.bigbox.test"})
	var said []string
	for _, r := range v.Rules {
		said = append(said, fmt.Sprint(r.Block, r.Patterns, r.Actions, r.Threshold, r.Duration, r.Internal))
	}
	want := []string{
		`"default"[Mail from \d+\.\d+\.\d+\.\d+ is deferred for now try again later, server busy] [{SetConfig max_message_rate "1/minute"} {SetConfig connection_limit 1}] unlimited 1h30m0s false`,
		`"default"[KumoMTA internal: no candidate host] [{SetConfig enable_tls "Disabled"}] unlimited 720h0m0s true`,
		`provider."bigbox"[\[BB0[24]\]] [{Suspend  }] 2/1h 2h0m0s false`,
		`"slow.example"[SLOW01] [{SuspendTenant  } {BounceCampaign  } {SetDomainConfig max_connection_rate "10/h"}] unlimited 1h0m0s false`,
	}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Error(diff)
	}
}

// A block with mx_rollup holds for the site of its domain, and so for all
// domains that share it: KumoMTA resolves them when it loads the file.
func TestABlockHoldsForTheSiteOfItsDomain(t *testing.T) {
	s, _ := build(t, `
["orange.example"]
connection_limit = 3
["wanadoo.example"]
max_ready = 5
["apart.example"]
mx_rollup = false
connection_limit = 9
`)
	if diff := cmp.Diff([]mail.Domain{"orange.example", "wanadoo.example"}, s.Rollups()); diff != "" {
		t.Fatal(diff)
	}
	s, err := s.With(nil, map[mail.Domain]mail.Site{"orange.example": "smtp.orange.test", "wanadoo.example": "smtp.orange.test", "gone.example": "mx.gone.test"})
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []shaping.Query{
		{Site: "smtp.orange.test"},
		{Domain: "third.example", Site: "smtp.orange.test"},
		{Domain: "orange.example", Site: "smtp.orange.test"},
	} {
		if v := s.For(q); v.Connections != 3 || v.Ready != 5 || !v.Named {
			t.Errorf("%+v: %+v", q, v.Limits)
		}
	}
	if v := s.For(shaping.Query{Domain: "third.example", Site: "mx.else.test"}); v.Connections != 10 {
		t.Errorf("another site has %d connections", v.Connections)
	}
}

func TestALaterFileLiesOverThoseBefore(t *testing.T) {
	s, _ := build(t, `
[provider."p"]
match = [{MXSuffix=".p.test"}]
connection_limit = 1
max_ready = 1
additional_connection_limits = {"all" = 4, "p" = 3}
[[provider."p".automation]]
regex = "one"
action = "Suspend"
duration = "1h"
["a.example"]
connection_limit = 2
max_ready = 2
["b.example"]
connection_limit = 3
mx_rollup = false
["c.example"]
mx_rollup = false
[provider."p".sources."s"]
max_ready = 7
`, `
[provider."p"]
match = [{MXSuffix=".p-too.test"}]
connection_limit = 11
additional_connection_limits = {"all" = 14}
[[provider."p".automation]]
regex = "two"
action = "Suspend"
duration = "1h"
["a.example"]
replace_base = true
connection_limit = 12
["b.example"]
unset = ["connection_limit"]
mx_rollup = true
["c.example"]
connection_limit = 1
`)
	v := s.For(shaping.Query{Domain: "x.example", Hosts: hosts("mx.p.test")})
	if v.Connections != 11 || v.Ready != 1 || len(v.Rules) != 2 {
		t.Errorf("provider: %+v with %d rules", v.Limits, len(v.Rules))
	}
	if diff := cmp.Diff([]shaping.Shared{{Name: "all", Connections: 14}, {Name: "p", Connections: 3}}, v.Shared); diff != "" {
		t.Error(diff)
	}
	if v := s.For(shaping.Query{Domain: "x.example", Hosts: hosts("mx.p-too.test"), Source: "s"}); v.Connections != 11 || v.Ready != 7 {
		t.Errorf("by the matcher of the later file, from s: %+v", v.Limits)
	}
	if v := s.For(shaping.Query{Domain: "a.example"}); v.Connections != 12 || v.Ready != 1000 {
		t.Errorf("replaced: %+v", v.Limits)
	}
	if v := s.For(shaping.Query{Domain: "b.example", Hosts: hosts("mx.b.test")}); v.Connections != 10 {
		t.Errorf("unset: %+v", v.Limits)
	}
	if b, c := s.Site("b.example", nil, "set"), s.Site("c.example", nil, "set"); b != "set" || c != "domain:c.example" {
		t.Errorf("mx_rollup: sites %q and %q", b, c)
	}
}

func TestWhatIsWrongWithRulesIsNamed(t *testing.T) {
	_, _, err := shaping.Build(config(t, ""), shaping.Text{From: "f", TOML: `
[["a.example".automation]]
regex = ["(x", "ok"]
action = ["Explode", {SetConfig={name="connection_limit", value="many"}}, {SetConfig={name="connections_max", value=1}}]
trigger = {Threshold="often"}
duration = "soon"
colour = "red"
[["b.example".automation]]
regex = ""
trigger = "Later"
[["b.example".automation]]
trigger = {Threshold="unlimited"}
["c.example"]
automation = "none"
["d.example".sources]
x = 1
["e.example"]
unset = ["nothing"]
replace_base = 1
`})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		`"a.example".automation[1].regex: "(x": error parsing regexp`,
		`"a.example".automation[1].action: Explode: want one of`, `SetConfig: connection_limit: many: want a whole number`,
		`SetConfig: unknown key connections_max`, `trigger.Threshold: rate "often"`, `trigger.Threshold: unlimited`, `duration: duration "soon"`, `automation[1].colour: unknown key`,
		`"b.example".automation[1].regex: want a regular expression`, `"b.example".automation[1].trigger: Later`, `"b.example".automation[1].action: missing`,
		`"c.example".automation: want blocks such as`, `"d.example".sources."x": want a block`, `"e.example".unset: unknown key nothing`, `"e.example".replace_base: want true or false`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
}

// One rule that cannot be read does not take away what the others do, nor the
// rest of the file.
func TestARuleThatCannotBeReadIsLeftOut(t *testing.T) {
	s, _, err := shaping.Build(config(t, ""), shaping.Text{From: "f", TOML: `
["default"]
connection_limit = 7
[["default".automation]]
regex = "(unclosed"
action = "Suspend"
duration = "1h"
[["default".automation]]
regex = '^(?!.*internal).*RL000010'
action = "Suspend"
duration = "1h"
`})
	if err != nil {
		t.Fatal(err)
	}
	if wrong := s.LeftOut(); len(wrong) != 1 || !strings.Contains(wrong[0].Error(), `f: rule left out: "default".automation[1].regex: "(unclosed": error parsing regexp`) {
		t.Errorf("left out: %v", wrong)
	}
	v := s.For(shaping.Query{Domain: "a.example"})
	if v.Connections != 7 || len(v.Rules) != 1 {
		t.Fatalf("%+v with %d rules", v.Limits, len(v.Rules))
	}
	for text, want := range map[string]bool{"421 4.2.0 RL000010": true, "421 internal RL000010": false, "421 4.2.0 RL": false} {
		if got := v.Rules[0].Match(text, false) != ""; got != want {
			t.Errorf("%q: matches %v, want %v", text, got, want)
		}
	}
}

// What a hostile host says costs an expression that backtracks a moment, once
// a minute.
func TestExpressionsThatTakeTooLongAreGivenUp(t *testing.T) {
	s, _ := build(t, "[[\"default\".automation]]\nregex = '^(?!z)(([a-z])+.)+[A-Z]([a-z])+$'\naction = \"Suspend\"\nduration = \"1h\"\n")
	rule := &s.For(shaping.Query{Domain: "a.example"}).Rules[0]
	if rule.Match("aaaaaaaaAaaa", false) == "" {
		t.Fatal("no match of what matches")
	}
	for range 1000 { // each of which would take for ever
		if rule.Match(strings.Repeat("a", 2000), false) != "" {
			t.Fatal("a match of what does not match")
		}
	}
}

func TestMatchersThatMatchNothingAreSaid(t *testing.T) {
	s, warnings, err := shaping.Build(config(t, ""), shaping.Text{From: "f", TOML: `
[provider."dot"]
match = [{MXSuffix=".Dot.test."}]
[provider."star"]
match = [{MXSuffix="*.star.test"}, {HostName="mx.star.test"}]
[provider."space"]
match = [{DomainSuffix=" space.test"}]
`})
	if err != nil || len(warnings) != 2 || !strings.Contains(warnings[0], `"*.star.test" matches nothing`) || !strings.Contains(warnings[1], `" space.test" matches nothing`) {
		t.Errorf("warnings %q, %v", warnings, err)
	}
	if v := s.For(shaping.Query{Domain: "a.example", Hosts: hosts("mx.dot.test")}); v.Provider != "dot" {
		t.Errorf("provider %q, want the one whose matcher ends in a dot", v.Provider)
	}
}

func TestRulesWithoutEffectAreSaid(t *testing.T) {
	s, _ := build(t, `
[provider."p"]
match = [{MXSuffix=".p.test"}]
max_connection_rate = "10/min"
[[provider."p".automation]]
regex = "same"
action = {SetConfig={name="max_connection_rate", value="10/min"}}
duration = "1h"
[[provider."p".automation]]
regex = "faster"
action = {SetConfig={name="max_connection_rate", value="10000/h"}}
duration = "1h"
[[provider."p".automation]]
regex = "slower"
action = {SetConfig={name="max_connection_rate", value="5/min"}}
duration = "1h"
[[provider."p".automation]]
regex = "other"
action = {SetConfig={name="enable_tls", value="none"}}
duration = "1h"
["d.example"]
connection_limit = 1
[["d.example".automation]]
regex = "one"
action = {SetConfig={name="connection_limit", value=1}}
duration = "1h"
`)
	doubts := strings.Join(s.Doubts(), "\n")
	for _, want := range []string{`provider."p".automation: the rule for ["same"] sets max_connection_rate to 10/1m, and it is 10/1m without`, `the rule for ["faster"]`, `"d.example".automation: the rule for ["one"] sets connection_limit to 1`} {
		if !strings.Contains(doubts, want) {
			t.Errorf("%q is not among\n%s", want, doubts)
		}
	}
	if strings.Count(doubts, "the rule for") != 3 {
		t.Error(doubts)
	}
}

func TestMeasuresCountBeforeEveryBlock(t *testing.T) {
	s, _ := build(t, "[\"d.example\"]\nconnection_limit = 5\n[\"d.example\".sources.\"one\"]\nconnection_limit = 4\n")
	s, err := s.With([]mail.Measure{
		{Kind: mail.MeasureSet, Site: "mx.test", Source: "one", Key: "connection_limit", Value: "1", By: "rule"},
		{Kind: mail.MeasureSet, Site: "mx.test", Key: "max_message_rate", Value: `"6/min"`, By: "rule"},
		{Kind: mail.MeasureSet, Domain: "d.example", Key: "max_ready", Value: "3", By: "rule"},
		{Kind: mail.MeasureSet, Site: "mx.test", Key: "gone", Value: "3", By: "an older version"},
	}, nil)
	if err == nil || !strings.Contains(err.Error(), `an older version: unknown key "gone"`) {
		t.Errorf("error %v", err)
	}
	for _, c := range []struct {
		query              shaping.Query
		connections, ready int
		rate               string
	}{
		{shaping.Query{Domain: "d.example", Site: "mx.test", Source: "one"}, 1, 3, "6/1m"},
		{shaping.Query{Domain: "d.example", Site: "mx.test", Source: "two"}, 5, 3, "6/1m"},
		{shaping.Query{Domain: "else.example", Site: "mx.test"}, 10, 1000, "6/1m"},
		{shaping.Query{Domain: "d.example", Site: "other.test", Source: "one"}, 4, 3, "100/1s"},
	} {
		v := s.For(c.query)
		if v.Connections != c.connections || v.Ready != c.ready || v.MessageRate.String() != c.rate {
			t.Errorf("%+v: %+v", c.query, v.Limits)
		}
	}
}

func TestRulesMatchTheWholeReply(t *testing.T) {
	if text, _ := shaping.MatchedText(mail.Reply{Code: 421, Lines: []string{strings.Repeat("x", 64<<10)}}); len(text) > shaping.MaxMatched {
		t.Errorf("rules look at %d octets of a reply, at most %d", len(text), shaping.MaxMatched)
	}
	s, _ := build(t, `
[["default".automation]]
regex = ['^421 4\.7\.0 .*rate', 'never']
action = "Suspend"
duration = "1h"
[["default".automation]]
regex = 'no answer'
action = "Suspend"
duration = "1h"
match_internal = true
`)
	rules := s.For(shaping.Query{Domain: "a.example"}).Rules
	for _, c := range []struct {
		reply mail.Reply
		want  []string
	}{
		{mail.Reply{Code: 421, Enhanced: mail.EnhancedCode{Class: 4, Subject: 7}, Lines: []string{"slow down,", "rate is limited"}}, []string{`^421 4\.7\.0 .*rate`, ""}},
		{mail.Reply{Code: 421, Lines: []string{"4 rate"}}, []string{"", ""}},
		{mail.Reply{Lines: []string{"no answer in time"}}, []string{"", "no answer"}},
		{mail.Reply{Code: 450, Lines: []string{"no answer for you"}}, []string{"", "no answer"}},
	} {
		text, internal := shaping.MatchedText(c.reply)
		for i := range rules {
			if got := rules[i].Match(text, internal); got != c.want[i] {
				t.Errorf("%q: rule %d matches by %q, want %q", text, i+1, got, c.want[i])
			}
		}
	}
}

func TestEveryPresetLoadsWithoutAWord(t *testing.T) {
	for _, version := range shaping.Presets() {
		text, err := shaping.Preset(version)
		if err != nil {
			t.Fatal(err)
		}
		s, warnings, err := shaping.Build(config(t, ""), text)
		if err != nil || len(warnings) > 0 {
			t.Fatalf("%s: %v %v", version, err, warnings)
		}
		if doubts := s.Doubts(); len(doubts) > 0 || len(s.LeftOut()) > 0 {
			t.Errorf("%s: %v %v", version, doubts, s.LeftOut())
		}
		for _, c := range []struct {
			host        string
			site        mail.Site
			provider    string
			connections int
			messages    int
			tls         mail.TLSLevel
		}{
			{"gmail-smtp-in.l.google.com", "provider:google/set", "google", 10, 50, mail.TLSVerify},
			{"mta5.am0.yahoodns.net", "set", "yahoo", 10, 20, mail.TLSMay},
			{"outlook-com.olc.protection.outlook.com", "provider:outlook/set", "outlook", 10, 50, mail.TLSMay},
			{"example-com.mail.protection.outlook.com", "provider:office365/set", "office365", 10, 50, mail.TLSMay},
			{"example-com.p-v1.mx.microsoft", "provider:office365-dane/set", "office365-dane", 10, 50, mail.TLSMay},
			{"mx01.mail.icloud.com", "provider:apple/set", "apple", 10, 5, mail.TLSMay},
			{"mx1a1.comcast.net", "set", "comcast", 25, 1000, mail.TLSVerify},
			{"smtp-in.orange.fr", "provider:orange/set", "orange", 10, 100, mail.TLSVerify},
			{"eu-smtp-inbound-1.mimecast.com", "set", "mimecast", 10, 100, mail.TLSMay},
			{"mx00.gmx.net", "set", "gmx", 4, 20, mail.TLSVerify},
		} {
			site := s.Site("a.example", hosts(c.host), "set")
			v := s.For(shaping.Query{Domain: "a.example", Site: site, Hosts: hosts(c.host)})
			if site != c.site || v.Provider != c.provider || v.Connections != c.connections || v.MessagesPerConnection != c.messages || v.TLS != c.tls {
				t.Errorf("%s: site %q, provider %q, TLS %s, %+v", c.host, site, v.Provider, v.TLS, v.Limits)
			}
		}
	}
	if _, err := shaping.Preset("1999-01"); err == nil {
		t.Error("an unknown version gives no error")
	}
}
