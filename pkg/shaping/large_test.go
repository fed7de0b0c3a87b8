package shaping_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
)

// largeProviders and largeDomains are the size that a large sender's file has.
const (
	largeProviders = 30
	largeDomains   = 200
)

// large is the file that the tests below read: 30 providers and 200 domains,
// in KumoMTA's grammar, each with numbers that tell it from the others.
//
//	provider n   matches by MX suffix; every third by host name too, every fifth by domain suffix.
//	             connection_limit n+1, every second provider_connection_limit n+2,
//	             every third has a source "warm" with max_message_rate n+1 per hour,
//	             each has one rule
//	domain n     max_message_rate n+1 per minute, every fourth mx_rollup = false and
//	             connection_limit n+1, every tenth a source "warm" with connection_limit 1
func large() string {
	var b strings.Builder
	add := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	add("[\"default\"]\nconnection_limit = 9\nmax_connection_rate = \"90/min\"")
	for n := range largeProviders {
		add("\n[provider.\"p%d\"]\nmatch=[", n)
		add("  {MXSuffix=\".mx.p%d.test\"},", n)
		if n%3 == 0 {
			add("  {HostName=\"old.p%d.test\"},", n)
		}
		if n%5 == 0 {
			add("  {DomainSuffix=\".p%d.example\"},", n)
		}
		add("]\nconnection_limit = %d", n+1)
		if n%2 == 0 {
			add("provider_connection_limit = %d", n+2)
		}
		add("\n[[provider.\"p%d\".automation]]\nregex = '''\\[P%d\\]'''\naction = \"Suspend\"\ntrigger = {Threshold=\"%d/hr\"}\nduration = \"%dm\"", n, n, n+1, n+1)
		if n%3 == 0 {
			add("\n[provider.\"p%d\".sources.\"warm\"]\nmax_message_rate = \"%d/h\"", n, n+1)
		}
	}
	for n := range largeDomains {
		add("\n[\"d%d.example\"]\nmax_message_rate = \"%d/min\"", n, n+1)
		if n%4 == 0 {
			add("mx_rollup = false\nconnection_limit = %d", n+1)
		}
		if n%10 == 0 {
			add("\n[\"d%d.example\".sources.\"warm\"]\nconnection_limit = 1", n)
		}
	}
	return b.String()
}

// TestALargeFileShapesAsItsGrammarSays holds every block of the file against
// what its spec says, without the parser's help.
func TestALargeFileShapesAsItsGrammarSays(t *testing.T) {
	s, warnings := build(t, large())
	if len(warnings) > 0 {
		t.Error(warnings)
	}
	per := func(n int, period time.Duration) shaping.Rate { return shaping.Rate{Events: n, Period: period} }
	for n := range largeProviders {
		mx := hosts(fmt.Sprintf("a.mx.p%d.test", n), fmt.Sprintf("b.mx.p%d.test", n))
		if n%3 == 0 {
			mx = append(mx, mail.Host{Name: fmt.Sprintf("old.p%d.test", n)})
		}
		site := mail.Site(fmt.Sprintf("(a|b).mx.p%d.test", n))
		wide := n%2 == 0
		if got := s.Site("any.example", mx, site); wide && got != site.OfProvider(fmt.Sprintf("p%d", n)) || !wide && got != site {
			t.Fatalf("provider %d: site %q", n, got)
		} else if wide {
			site = got
		}
		for _, source := range []string{"", "warm", "cold"} {
			v := s.For(shaping.Query{Domain: "any.example", Site: site, Hosts: mx, Source: source})
			want := per(100, time.Second)
			if source == "warm" && n%3 == 0 {
				want = per(n+1, time.Hour)
			}
			if v.Connections != n+1 || v.MessageRate != want || v.Provider != fmt.Sprintf("p%d", n) || v.ConnectionRate != per(90, time.Minute) {
				t.Fatalf("provider %d from %q: %+v", n, source, v)
			}
			if wide && (len(v.Shared) != 1 || v.Shared[0].Connections != n+2) || !wide && len(v.Shared) != 0 {
				t.Fatalf("provider %d: shared %+v", n, v.Shared)
			}
			if len(v.Rules) != 1 || v.Rules[0].Match(fmt.Sprintf("421 4.7.0 [P%d] later", n), false) == "" || v.Rules[0].Threshold != per(n+1, time.Hour) ||
				v.Rules[0].Duration != time.Duration(n+1)*time.Minute {
				t.Fatalf("provider %d: rules %+v", n, v.Rules)
			}
		}
		elsewhere := append(hosts("mx.else.test"), mx...)
		if v := s.For(shaping.Query{Domain: "any.example", Hosts: elsewhere}); v.Connections != 9 {
			t.Fatalf("provider %d with a host elsewhere: %+v", n, v.Limits)
		}
		byDomain := s.For(shaping.Query{Domain: mail.Domain(fmt.Sprintf("x.p%d.example", n))})
		if n%5 == 0 && byDomain.Connections != n+1 || n%5 != 0 && byDomain.Connections != 9 {
			t.Fatalf("provider %d by domain: %+v", n, byDomain.Limits)
		}
	}
	for n := range largeDomains {
		domain := mail.Domain(fmt.Sprintf("d%d.example", n))
		mx := hosts(fmt.Sprintf("mx.d%d.test", n))
		site := s.Site(domain, mx, "set")
		if n%4 == 0 && site != "domain:"+mail.Site(domain) || n%4 != 0 && site != "set" {
			t.Fatalf("%s: site %q", domain, site)
		}
		for _, source := range []string{"", "warm"} {
			v := s.For(shaping.Query{Domain: domain, Site: site, Hosts: mx, Source: source})
			want := 9
			if n%4 == 0 {
				want = n + 1
			}
			if source == "warm" && n%10 == 0 {
				want = 1
			}
			if v.Connections != want || v.MessageRate != per(n+1, time.Minute) || !v.Named {
				t.Fatalf("%s from %q: %+v", domain, source, v)
			}
		}
		explained := false
		for _, o := range s.Explain(shaping.Query{Domain: domain, Site: site, Hosts: mx}) {
			if o.Key == "max_message_rate" {
				explained = o.Block == fmt.Sprintf("%q", domain) && o.Value == per(n+1, time.Minute).String() && o.From == "file 1"
			}
		}
		if !explained {
			t.Fatalf("%s: max_message_rate is not explained by its block", domain)
		}
	}
}

// FuzzFile: whatever the text, reading it ends, and what is accepted can be
// asked and explained.
func FuzzFile(f *testing.F) {
	f.Add(large()[:2000])
	f.Add(layered)
	f.Add(sample)
	f.Add("[[\"default\".automation]]\nregex='(a+)+$'\naction='Suspend'\nduration='1h'")
	f.Add("[\"default\"]\nadditional_connection_limits={a=1}\nunset=['max_ready']\n[provider.'p']\nmatch=[{HostName='h.test'}]")
	f.Fuzz(func(t *testing.T, text string) {
		s, _, err := shaping.Build(shaping.Config{}, shaping.Text{From: "f", TOML: text})
		if err != nil {
			return
		}
		for _, q := range []shaping.Query{{}, {Domain: "a.example", Site: "provider:p/h.test", Hosts: hosts("h.test"), Source: "s"}, {Domain: "example.com", Site: "h.test"}} {
			v := s.For(q)
			if v.Connections < 1 || v.Ready < 1 || v.MessagesPerConnection < 1 || v.RecipientsPerTransaction < 1 {
				t.Fatalf("%+v: %+v", q, v)
			}
			if len(s.Explain(q)) == 0 {
				t.Fatal("nothing explained")
			}
			for i := range v.Rules {
				v.Rules[i].Match("421 4.7.0 slow down aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false)
			}
		}
	})
}

// BenchmarkFor is what each delivery request pays, with a large file.
func BenchmarkFor(b *testing.B) {
	s, _, err := shaping.Build(shaping.Config{}, shaping.Text{From: "f", TOML: large()})
	if err != nil {
		b.Fatal(err)
	}
	five := hosts("a.mx.p29.test", "b.mx.p29.test", "c.mx.p29.test", "d.mx.p29.test", "e.mx.p29.test")
	for _, c := range []struct {
		name  string
		query shaping.Query
	}{
		{"provider site", shaping.Query{Domain: "any.example", Site: "provider:p28/(a|b).mx.p28.test", Hosts: five}},
		{"rollup of a provider", shaping.Query{Domain: "any.example", Site: "mx.p29.test", Hosts: five}},
		{"no block", shaping.Query{Domain: "any.example", Site: "mx.any.test", Hosts: hosts("mx.any.test")}},
		{"domain", shaping.Query{Domain: "d7.example", Site: "mx.d7.test", Hosts: hosts("mx.d7.test")}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.For(c.query)
			}
		})
	}
}
