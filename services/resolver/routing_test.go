package resolver

import (
	"slices"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// tableOf makes a table of matches written as in store.RouteMatch.String.
func tableOf(matches ...store.RouteMatch) *Table {
	rules := make([]store.RoutingRule, len(matches))
	for i, m := range matches {
		rules[i] = store.RoutingRule{Match: m, Hosts: []string{"smart.test:25"}}
	}
	return NewTable(rules)
}

func TestRoutingByDomain(t *testing.T) {
	table := tableOf(store.RouteMatch{Domain: "example.com"}, store.RouteMatch{Domain: "*.example.com"},
		store.RouteMatch{Domain: "*.deep.example.com"}, store.RouteMatch{Domain: "*.org"})
	withAll := tableOf(store.RouteMatch{Domain: "*"}, store.RouteMatch{Domain: "example.com"})
	for _, c := range []struct {
		table  *Table
		domain mail.Domain
		want   string // the rule; "" is none
	}{
		{table, "example.com", "example.com"},
		{table, "a.example.com", "*.example.com"},
		{table, "a.b.example.com", "*.example.com"},
		{table, "deep.example.com", "*.example.com"},
		{table, "a.deep.example.com", "*.deep.example.com"},
		{table, "anexample.com", ""},
		{table, "com", ""},
		{table, "x.org", "*.org"},
		{table, "org", ""},
		{table, "[192.0.2.1]", ""},
		{withAll, "example.com", "example.com"},
		{withAll, "a.example.com", "*"},
		{withAll, "[192.0.2.1]", "*"},
		{nil, "example.com", ""},
	} {
		got := ""
		if rule := c.table.find(Query{Domain: c.domain}, false); rule != nil {
			got = rule.Match.Domain
		}
		if got != c.want {
			t.Errorf("%s: rule %q, want %q", c.domain, got, c.want)
		}
		if got := c.table.concerns(c.domain); got != (c.want != "") {
			t.Errorf("%s: concerned by a rule: %v", c.domain, got)
		}
	}
	if bySender := tableOf(store.RouteMatch{Domain: "*.example.com", Sender: "shop.test"}); !bySender.concerns("a.example.com") || bySender.concerns("example.com") {
		t.Error("a rule for one sender concerns all mail to its domains, and no other")
	}
}

// The order of docs/routes.md: recipient domain, sender, tenant.
func TestMostSpecificRuleCounts(t *testing.T) {
	all := []store.RouteMatch{ // in the order in which they count for the query below
		{Domain: "a.example.com", Sender: "bob@shop.test", Tenant: "acme"},
		{Domain: "a.example.com", Sender: "bob@shop.test"},
		{Domain: "a.example.com", Sender: "shop.test", Tenant: "acme"},
		{Domain: "a.example.com", Sender: "shop.test"},
		{Domain: "a.example.com", Sender: "*.test", Tenant: "acme"},
		{Domain: "a.example.com", Sender: "*.test"},
		{Domain: "a.example.com", Tenant: "acme"},
		{Domain: "a.example.com"},
		{Domain: "*.example.com", Sender: "bob@shop.test"},
		{Domain: "*.example.com"},
		{Domain: "*.com", Tenant: "acme"},
		{Domain: "*", Sender: "bob@shop.test", Tenant: "acme"},
		{Domain: "*", Sender: "shop.test"},
		{Domain: "*", Tenant: "acme"},
		{Domain: "*"},
	}
	others := []store.RouteMatch{
		{Domain: "example.com"}, {Domain: "a.example.com", Sender: "<>"}, {Domain: "a.example.com", Sender: "carol@shop.test"},
		{Domain: "*", Tenant: "other"}, {Domain: "*", Sender: "*.shop.test"}, {Domain: "*.a.example.com"},
	}
	mixed := append(slices.Clone(others), all...)
	slices.Reverse(mixed)
	q := Query{Domain: "a.example.com", Sender: "Bob@Shop.test", Tenant: "acme"}
	var got []store.RouteMatch
	for rule := range tableOf(mixed...).Matches(q) {
		got = append(got, rule.Match)
	}
	if !slices.Equal(got, all) {
		t.Errorf("got  %v\nwant %v", got, all)
	}
	for i := range all {
		if rule := tableOf(append(slices.Clone(others), all[i:]...)...).find(q, false); rule.Match != all[i] {
			t.Errorf("without the first %d: %v, want %v", i, rule.Match, all[i])
		}
	}
}

func TestNullReversePath(t *testing.T) {
	table := tableOf(store.RouteMatch{Domain: "*", Sender: "<>"}, store.RouteMatch{Domain: "*"})
	if rule := table.find(Query{Domain: "a.test"}, false); rule.Match.Sender != "<>" {
		t.Errorf("a report goes by %v", rule.Match)
	}
	if rule := table.find(Query{Domain: "a.test", Sender: "a@b.test"}, false); rule.Match.Sender != "" {
		t.Errorf("other mail goes by %v", rule.Match)
	}
}

// An operator's release counts for more than a rule.
func TestReleasedPassesRulesThatOnlyHold(t *testing.T) {
	rules := []store.RoutingRule{
		{Match: store.RouteMatch{Domain: "a.test"}, Hold: "being moved"},
		{Match: store.RouteMatch{Domain: "b.test"}, Hold: "being moved", Hosts: []string{"new.test:25"}},
		{Match: store.RouteMatch{Domain: "*"}, Hosts: []string{"smart.test:25"}},
	}
	table := NewTable(rules)
	for domain, want := range map[mail.Domain][2]string{"a.test": {"a.test", "*"}, "b.test": {"b.test", "b.test"}, "c.test": {"*", "*"}} {
		for i, released := range []bool{false, true} {
			if rule := table.find(Query{Domain: domain}, released); rule.Match.Domain != want[i] {
				t.Errorf("%s, released %v: %v, want %s", domain, released, rule.Match, want[i])
			}
		}
	}
}

func TestFallbackIsDue(t *testing.T) {
	byTries := store.Fallback{Hosts: []string{"f.test:25"}, Tries: 3}
	byTime := store.Fallback{Hosts: []string{"f.test:25"}, After: time.Hour}
	both := store.Fallback{Hosts: []string{"f.test:25"}, Tries: 3, After: time.Hour}
	for name, c := range map[string]struct {
		fallback store.Fallback
		tries    int16
		age      time.Duration
		want     bool
	}{
		"no fallback":           {store.Fallback{}, 50, 100 * time.Hour, false},
		"before so many tries":  {byTries, 2, 100 * time.Hour, false},
		"after so many tries":   {byTries, 3, 0, true},
		"before so long":        {byTime, 50, 59 * time.Minute, false},
		"after so long":         {byTime, 0, 61 * time.Minute, true},
		"neither of both":       {both, 2, 59 * time.Minute, false},
		"the first of both":     {both, 3, 59 * time.Minute, true},
		"the other of the both": {both, 0, 61 * time.Minute, true},
	} {
		rule := &store.RoutingRule{Fallback: c.fallback, Hosts: []string{"smart.test:25"}}
		m := &mail.Message{AcceptedAt: time.Now().Add(-c.age)}
		a := aimOf(m, &mail.Pending{Tries: c.tries}, rule)
		if a.fallback != c.want {
			t.Errorf("%s: fallback %v", name, a.fallback)
		}
		if hosts := a.demands().hosts; (hosts[0] == "f.test:25") != c.want {
			t.Errorf("%s: hosts %v", name, hosts)
		}
	}
}
