package shaping_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
	"github.com/postrider/postrider/pkg/shaping"
)

const sample = `
["default"]
connection_limit = 8
max_connection_rate = "100/min"
max_age = "3 days"

[provider."google"]
match = [{MXSuffix=".google.com"}, {MXSuffix=".googlemail.com"}, {DomainSuffix="gmail.com"}]
connection_limit = 5
max_deliveries_per_connection = 50
enable_tls = "Required"

[provider."wide"]
match = [{DomainSuffix=".wide.example"}]
provider_max_message_rate = "100/min"

[provider."small"]
match = [{HostName="mx.small.test"}]
max_message_rate = "20/s,max_burst=1"

["bücher.example"]
retry_schedule = "1m,2m"
idle_timeout = "60s"

["apart.example"]
mx_rollup = false
connection_limit = 2

["relay.example:2525"]
max_ready = 7
enable_tls = "OpportunisticInsecure"
`

func load(t *testing.T, text string) (*shaping.Shaping, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "shaping.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return shaping.Load(config(t, path))
}

func config(t *testing.T, path string) shaping.Config {
	t.Helper()
	schedule, err := retry.Parse("5m,10m,4h")
	if err != nil {
		t.Fatal(err)
	}
	return shaping.Config{
		File:             path,
		RetrySchedule:    schedule,
		MessageLifetime:  retry.Duration(5 * 24 * time.Hour),
		DelayNoticeAfter: retry.Duration(4 * time.Hour),
	}
}

func mustLoad(t *testing.T, text string) *shaping.Shaping {
	t.Helper()
	s, err := load(t, text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const layered = `
["default"]
connection_limit = 10
max_ready = 10
additional_message_rate_throttles = {"all" = "1000/h"}

["default".sources."warm"]
max_ready = 11

[provider."big"]
match = [{MXSuffix=".big.test"}]
connection_limit = 20
max_connection_rate = "20/s"
max_message_rate = "20/s"
provider_connection_limit = 15
provider_max_message_rate = "200/min"
additional_message_rate_throttles = {"evening" = "10/h", "all" = "900/h"}

[provider."big".sources."warm"]
connection_limit = 30
max_connection_rate = "30/s"
max_message_rate = "30/s"
provider_connection_limit = 3

["mx.big.test"]
max_connection_rate = "40/s"
max_message_rate = "40/s"

["mx.big.test".sources."warm"]
max_deliveries_per_connection = 60
max_connection_rate = "60/s"

["one.example"]
max_message_rate = "50/s"
max_deliveries_per_connection = 50

["one.example".sources."warm"]
max_deliveries_per_connection = 70
source_selection_rate = "100/d,max_burst=1"
`

func TestLayersOfSources(t *testing.T) {
	s := mustLoad(t, layered)
	rate := func(n int, period time.Duration) shaping.Rate { return shaping.Rate{Events: n, Period: period} }
	for _, c := range []struct {
		name  string
		query shaping.Query
		want  shaping.Limits
	}{
		{"no source: provider, site and domain", shaping.Query{Domain: "one.example", Site: "mx.big.test", Hosts: hosts("mx.big.test")},
			shaping.Limits{Connections: 20, ConnectionRate: rate(40, time.Second), MessageRate: rate(50, time.Second), MessagesPerConnection: 50, Ready: 10, Homes: 1}},
		{"a source without blocks", shaping.Query{Domain: "one.example", Site: "mx.big.test", Hosts: hosts("mx.big.test"), Source: "cold"},
			shaping.Limits{Connections: 20, ConnectionRate: rate(40, time.Second), MessageRate: rate(50, time.Second), MessagesPerConnection: 50, Ready: 10, Homes: 1}},
		{"the source of a provider is below its site and domain, theirs are above all",
			shaping.Query{Domain: "one.example", Site: "mx.big.test", Hosts: hosts("mx.big.test"), Source: "warm"},
			shaping.Limits{Connections: 30, ConnectionRate: rate(60, time.Second), MessageRate: rate(50, time.Second), MessagesPerConnection: 70, Ready: 11, Homes: 1}},
		{"a site that is named after its provider has the values of that", shaping.Query{Site: "provider:big/mx.big.test", Source: "warm"},
			shaping.Limits{Connections: 30, ConnectionRate: rate(30, time.Second), MessageRate: rate(30, time.Second), MessagesPerConnection: 100, Ready: 11, Homes: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, s.For(c.query).Limits); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLimitsThatAreShared(t *testing.T) {
	s := mustLoad(t, layered)
	got := s.For(shaping.Query{Domain: "one.example", Site: "provider:big/mx.big.test", Source: "warm"})
	want := []shaping.Shared{
		{Name: "all", MessageRate: shaping.Rate{Events: 900, Period: time.Hour}},
		{Name: "evening", MessageRate: shaping.Rate{Events: 10, Period: time.Hour}},
		{Name: "provider:big/warm", Connections: 3, MessageRate: shaping.Rate{Events: 200, Period: time.Minute}},
	}
	if diff := cmp.Diff(want, got.Shared); diff != "" {
		t.Error(diff)
	}
	if got.Provider != "big" || got.SelectionRate != (shaping.Rate{Events: 100, Period: 24 * time.Hour, Burst: 1}) {
		t.Errorf("provider %q, selection rate %v", got.Provider, got.SelectionRate)
	}
	if other := s.For(shaping.Query{Domain: "two.example"}); len(other.Shared) != 1 || other.Provider != "" || !other.SelectionRate.IsUnlimited() {
		t.Errorf("a domain without blocks got %+v", other)
	}
}

func hosts(names ...string) []mail.Host {
	var all []mail.Host
	for _, n := range names {
		all = append(all, mail.Host{Name: n})
	}
	return all
}

func TestWithoutFileTheEnvironmentCounts(t *testing.T) {
	s, err := shaping.Load(config(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	v := s.For(shaping.Query{Domain: "example.com"})
	want := shaping.Limits{
		Connections:           10,
		ConnectionRate:        shaping.Rate{Events: 100, Period: time.Minute},
		MessageRate:           shaping.Rate{Events: 100, Period: time.Second},
		MessagesPerConnection: 100,
		Ready:                 1000,
		Homes:                 1,
	}
	if diff := cmp.Diff(want, v.Limits); diff != "" {
		t.Error(diff)
	}
	if v.MessageLifetime != 120*time.Hour || v.DelayNoticeAfter != 4*time.Hour || v.RetrySchedule.String() != "5m,10m,4h" {
		t.Errorf("lifetime %v, delay notice %v, schedule %v are not the environment's", v.MessageLifetime, v.DelayNoticeAfter, v.RetrySchedule)
	}
	if v.RecipientsPerTransaction != 100 || v.IdleTimeout != 15*time.Second || v.TLS != mail.TLSMay || v.Named {
		t.Errorf("unexpected values %+v", v)
	}
}

func TestLayers(t *testing.T) {
	s := mustLoad(t, sample)
	for _, c := range []struct {
		name   string
		domain mail.Domain
		site   mail.Site
		hosts  []mail.Host
		check  func(shaping.Values) bool
	}{
		{"default over environment", "a.example", "", hosts("mx.a.example"), func(v shaping.Values) bool {
			return v.Connections == 8 && v.MessageLifetime == 72*time.Hour && v.MessagesPerConnection == 100
		}},
		{"provider by MX suffix", "corp.example", "", hosts("aspmx.l.google.com", "alt1.aspmx.l.google.com"), func(v shaping.Values) bool {
			return v.Connections == 5 && v.MessagesPerConnection == 50 && v.TLS == mail.TLSVerify && v.MessageLifetime == 72*time.Hour && !v.Named
		}},
		{"one MX elsewhere is not the provider's", "corp.example", "", hosts("aspmx.l.google.com", "mx.corp.example"), func(v shaping.Values) bool {
			return v.Connections == 8
		}},
		{"provider by domain suffix, before the route is known", "gmail.com", "", nil, func(v shaping.Values) bool {
			return v.Connections == 5
		}},
		{"provider by host name", "s.example", "", hosts("mx.small.test"), func(v shaping.Values) bool {
			return v.MessageRate == shaping.Rate{Events: 20, Period: time.Second, Burst: 1} && v.Connections == 8
		}},
		{"domain in U-label form", "xn--bcher-kva.example", "", nil, func(v shaping.Values) bool {
			return v.RetrySchedule.String() == "1m,2m" && v.IdleTimeout == time.Minute && !v.Named
		}},
		{"domain sets a limit", "apart.example", "", nil, func(v shaping.Values) bool {
			return v.Connections == 2 && v.Named
		}},
		{"smart host by site", "any.example", "relay.example:2525", hosts("relay.example"), func(v shaping.Values) bool {
			return v.Ready == 7 && v.TLS == mail.TLSMay && v.Named
		}},
		{"a site of a provider, without a domain", "", "provider:google/aspmx.l.google.com", nil, func(v shaping.Values) bool {
			return v.Connections == 5 && !v.Named
		}},
		{"the site of a domain, without a domain", "", "domain:apart.example", nil, func(v shaping.Values) bool {
			return v.Connections == 2 && v.Named
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if v := s.For(shaping.Query{Domain: c.domain, Site: c.site, Hosts: c.hosts}); !c.check(v) {
				t.Errorf("got %+v", v)
			}
		})
	}
}

func TestSite(t *testing.T) {
	s := mustLoad(t, sample)
	for _, c := range []struct {
		domain mail.Domain
		hosts  []mail.Host
		want   mail.Site
	}{
		{"apart.example", hosts("aspmx.l.google.com"), "domain:apart.example"},
		{"corp.example", hosts("aspmx.l.google.com"), "set"},
		{"corp.wide.example", nil, "provider:wide/set"},
		{"else.example", hosts("mx.else.example"), "set"},
		{"else.example", nil, "set"},
	} {
		if got := s.Site(c.domain, c.hosts, "set"); got != c.want {
			t.Errorf("%s: got site %q, want %q", c.domain, got, c.want)
		}
	}
}

func TestExplainNamesTheBlockThatCounts(t *testing.T) {
	s := mustLoad(t, sample)
	got := s.Explain(shaping.Query{Domain: "apart.example", Hosts: hosts("aspmx.l.google.com"), Source: "warm"})
	at := func(o shaping.Origin) shaping.Origin {
		o.From = strings.Split(o.From, " ")[0]
		return o
	}
	for i := range got {
		got[i] = at(got[i])
	}
	got = slices.DeleteFunc(got, func(o shaping.Origin) bool { return o.From == "default" })
	want := []shaping.Origin{
		{Key: "connection_limit", Value: "2", Block: `"apart.example"`, From: "shaping"},
		{Key: "enable_tls", Value: "verify", Block: `provider."google"`, From: "shaping"},
		{Key: "max_age", Value: "3d", Block: `"default"`, From: "shaping"},
		{Key: "max_connection_rate", Value: "100/1m", Block: `"default"`, From: "shaping"},
		{Key: "max_deliveries_per_connection", Value: "50", Block: `provider."google"`, From: "shaping"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestEveryErrorIsNamedAtOnce(t *testing.T) {
	_, err := load(t, `
stray = 1
["default"]
connection_limt = 3
connection_limit = 0
mx_rollup = false
[provider."p"]
max_message_rate = "fast"
mx_rollup = false
[provider."q"]
match = [{MXSuffix="a", HostName="b"}]
max_age = 5
["d.example"]
enable_tls = "Maybe"
retry_schedule = "5m,tea"
mx_rollup = "no"
["D.example"]
max_ready = 3
[example.com]
connection_limit = 1
`)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"shaping.toml", "stray: want a block",
		`"default".connection_limt: unknown key`, `"default".connection_limit: 0: want a whole number`,
		`provider."p".max_message_rate: rate "fast"`, `provider."p".mx_rollup: only`,
		`provider."q".match: `, `provider."q".max_age: 5: want a duration`,
		`"d.example".enable_tls: Maybe`, `"d.example".retry_schedule: `, `"tea"`, `"d.example".mx_rollup: want true or false`,
		`another block for this domain`, `"example".com: unknown key (a domain`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
}

func TestMissingFileAndBrokenSyntax(t *testing.T) {
	if _, err := shaping.Load(config(t, filepath.Join(t.TempDir(), "none.toml"))); err == nil {
		t.Error("a file that is not there gives no error")
	}
	if _, err := load(t, `["default"`); err == nil {
		t.Error("broken TOML gives no error")
	}
}

func TestRateText(t *testing.T) {
	for _, c := range []struct {
		text string
		want shaping.Rate
	}{
		{"100/s", shaping.Rate{Events: 100, Period: time.Second}},
		{"100/min", shaping.Rate{Events: 100, Period: time.Minute}},
		{" 5 / hour ", shaping.Rate{Events: 5, Period: time.Hour}},
		{"10/30min", shaping.Rate{Events: 10, Period: 30 * time.Minute}},
		{"500/d,max_burst=1", shaping.Rate{Events: 500, Period: 24 * time.Hour, Burst: 1}},
		{"unlimited", shaping.Rate{}},
	} {
		got, err := shaping.ParseRate(c.text)
		if err != nil || got != c.want {
			t.Errorf("%q: got %v, %v, want %v", c.text, got, err, c.want)
		}
		if back, err := shaping.ParseRate(got.String()); err != nil || back != got {
			t.Errorf("%v reads back as %v, %v", got, back, err)
		}
	}
	for _, text := range []string{"", "100", "0/s", "-1/s", "1.5/s", "100/", "100/fortnight", "1/s,burst=2", "1/s,max_burst=0", "2000000/s"} {
		if r, err := shaping.ParseRate(text); err == nil {
			t.Errorf("%q: got %v, want an error", text, r)
		}
	}
}

func TestStricterNeverAllowsMore(t *testing.T) {
	drawRate := func(t *rapid.T) shaping.Rate {
		if rapid.Bool().Draw(t, "unlimited") {
			return shaping.Rate{}
		}
		periods := []time.Duration{time.Second, time.Minute, time.Hour}
		return shaping.Rate{Events: rapid.IntRange(1, 1000).Draw(t, "events"), Period: rapid.SampledFrom(periods).Draw(t, "period")}
	}
	perHour := func(r shaping.Rate) float64 {
		if r.IsUnlimited() {
			return 1e18
		}
		return float64(r.Events) * float64(time.Hour) / float64(r.Period)
	}
	rapid.Check(t, func(t *rapid.T) {
		draw := func() shaping.Limits {
			n := rapid.IntRange(1, 100)
			return shaping.Limits{
				Connections: n.Draw(t, "connections"), Ready: n.Draw(t, "ready"), MessagesPerConnection: n.Draw(t, "messages"),
				MessageRate: drawRate(t), ConnectionRate: drawRate(t),
			}
		}
		a, b := draw(), draw()
		s := a.Stricter(b)
		for _, l := range []shaping.Limits{a, b} {
			if s.Connections > l.Connections || s.Ready > l.Ready || s.MessagesPerConnection > l.MessagesPerConnection ||
				perHour(s.MessageRate) > perHour(l.MessageRate) || perHour(s.ConnectionRate) > perHour(l.ConnectionRate) {
				t.Fatalf("%+v is not as strict as %+v", s, l)
			}
		}
	})
}

func TestProvidersAreFoundAlikeByEveryProcess(t *testing.T) {
	s := mustLoad(t, `
[provider."b"]
match = [{DomainSuffix=".both.example"}]
provider_connection_limit = 3
[provider."a"]
match = [{DomainSuffix=".both.example"}]
provider_connection_limit = 2
connection_limit = 4
`)
	for range 20 {
		site := s.Site("x.both.example", nil, "set")
		if id := site.Provider(); id != "b" {
			t.Fatalf("got provider %q of site %q, want the first of the file each time", id, site)
		}
	}
}

// Of two rates the slower one is kept with a burst that the other allows too:
// as a window that begins with its burst and goes on evenly shows.
func TestTheSlowerRateKeepsToBoth(t *testing.T) {
	for _, c := range []struct{ a, b, want string }{
		{"100/s", "3000/h", "3000/1h,max_burst=100"},
		{"3000/h", "100/s", "3000/1h,max_burst=100"},
		{"100/s", "10/s", "10/1s"},
		{"10/s", "36000/d", "36000/1d,max_burst=10"},
		{"60/min", "1/s", "60/1m,max_burst=1"},
		{"100/s", "unlimited", "100/1s"},
		{"100/s", "100/s", "100/1s"},
	} {
		a, errA := shaping.ParseRate(c.a)
		b, errB := shaping.ParseRate(c.b)
		if got := a.Slower(b); errA != nil || errB != nil || got.String() != c.want {
			t.Errorf("%s and %s: %s, want %s", c.a, c.b, got, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) shaping.Rate {
			periods := []time.Duration{time.Second, 10 * time.Second, time.Minute, time.Hour}
			return shaping.Rate{Events: rapid.IntRange(1, 300).Draw(t, name), Period: rapid.SampledFrom(periods).Draw(t, name+" period"),
				Burst: rapid.IntRange(0, 50).Draw(t, name+" burst")}
		}
		a, b := draw("a"), draw("b")
		s := a.Slower(b)
		for _, r := range []shaping.Rate{a, b} {
			// The most that any window of the length of r can have: no more than
			// the burst and the even rate, and no more than whole periods allow.
			even := s.AtOnce() + int(r.Period/(s.Period/time.Duration(s.Events)))
			whole := int((r.Period+s.Period-1)/s.Period) * s.Events
			if most := min(even, whole); most > r.Events && s.AtOnce() > 1 {
				t.Fatalf("%v of %v and %v lets %d begin within %v", s, a, b, most, r.Period)
			}
		}
	})
}
