package resolver

import (
	"testing"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

func TestRoutingTable(t *testing.T) {
	table := newRouting([]store.RoutingRule{
		{Domain: "example.com"}, {Domain: "*.example.com"}, {Domain: "*.deep.example.com"}, {Domain: "*.org"},
	})
	withAll := newRouting([]store.RoutingRule{{Domain: "*"}, {Domain: "example.com"}})
	for _, c := range []struct {
		table  routing
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
		if rule := c.table.find(c.domain); rule != nil {
			got = rule.Domain
		}
		if got != c.want {
			t.Errorf("%s: rule %q, want %q", c.domain, got, c.want)
		}
	}
}
