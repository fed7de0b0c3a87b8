package resolver

import (
	"iter"
	"slices"
	"strings"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// Table is the operators' routing table, made ready for look-ups. The nil
// table has no rule.
type Table struct {
	rules              map[store.RouteMatch]*store.RoutingRule
	domains            map[string]bool // the patterns of domains that rules have
	bySender, byTenant bool            // whether any rule looks at it
}

// NewTable returns the table of the rules.
func NewTable(rules []store.RoutingRule) *Table {
	t := &Table{rules: make(map[store.RouteMatch]*store.RoutingRule, len(rules)), domains: map[string]bool{}}
	for i := range rules {
		m := rules[i].Match
		m.Domain, m.Sender = strings.ToLower(m.Domain), strings.ToLower(m.Sender)
		t.rules[m] = &rules[i]
		t.domains[m.Domain] = true
		t.bySender = t.bySender || m.Sender != ""
		t.byTenant = t.byTenant || m.Tenant != ""
	}
	return t
}

// Query is what rules are looked up by.
type Query struct {
	Domain mail.Domain // of the recipient
	Sender mail.ReversePath
	Tenant string
}

// query returns what the rules for a recipient are looked up by, without what
// no rule looks at.
func (t *Table) query(m *mail.QueuedMessage, p *mail.Pending) Query {
	q := Query{Domain: p.Domain}
	if t.bySender {
		q.Sender = m.Envelope.ReversePath
	}
	if t.byTenant {
		q.Tenant = m.Tenant
	}
	return q
}

func (t *Table) empty() bool { return t == nil || len(t.rules) == 0 }

// concerns reports whether a rule may count for mail to a domain, from
// whatever sender.
func (t *Table) concerns(domain mail.Domain) bool {
	return !t.empty() && slices.ContainsFunc(domainPatterns(domain), func(p string) bool { return t.domains[p] })
}

// Matches yields the rules for a query, the most specific first: that one
// counts. The recipient's domain weighs most (its name, then the nearest
// wildcard, "*.example.com" for names below example.com but not itself, then
// "*"), then the sender (its address, its domain, the nearest wildcard, any),
// then the tenant.
func (t *Table) Matches(q Query) iter.Seq[*store.RoutingRule] {
	return func(yield func(*store.RoutingRule) bool) {
		if t.empty() {
			return
		}
		senders := []string{""}
		if t.bySender {
			senders = append(senderPatterns(q.Sender), "")
		}
		tenants := []string{""}
		if t.byTenant && q.Tenant != "" {
			tenants = []string{q.Tenant, ""}
		}
		for _, domain := range domainPatterns(q.Domain) {
			for _, sender := range senders {
				for _, tenant := range tenants {
					rule := t.rules[store.RouteMatch{Domain: domain, Sender: sender, Tenant: tenant}]
					if rule != nil && !yield(rule) {
						return
					}
				}
			}
		}
	}
}

// find returns the rule that counts, or nil. A recipient that was released by
// an operator passes over rules that only hold.
func (t *Table) find(q Query, released bool) *store.RoutingRule {
	for rule := range t.Matches(q) {
		if !released || rule.Hold == "" || leads(rule) {
			return rule
		}
	}
	return nil
}

// leads reports whether a rule says where mail goes, or how.
func leads(rule *store.RoutingRule) bool {
	return len(rule.Hosts) > 0 || len(rule.Fallback.Hosts) > 0 || rule.TLS != "" || rule.Pool != ""
}

func domainPatterns(domain mail.Domain) []string {
	patterns := []string{string(domain)}
	if !domain.IsLiteral() {
		patterns = append(patterns, wildcards(string(domain))...)
	}
	return append(patterns, "*")
}

func senderPatterns(sender mail.ReversePath) []string {
	if sender.IsNull() {
		return []string{"<>"}
	}
	patterns := []string{strings.ToLower(string(sender))}
	domain, err := mail.ParseDomain(sender.DomainText())
	if err != nil {
		return patterns
	}
	patterns = append(patterns, string(domain))
	if domain.IsLiteral() {
		return patterns
	}
	return append(patterns, wildcards(string(domain))...)
}

// wildcards returns the wildcards that a name is below, the nearest first.
func wildcards(name string) (patterns []string) {
	for _, parent, ok := strings.Cut(name, "."); ok; _, parent, ok = strings.Cut(parent, ".") {
		patterns = append(patterns, "*."+parent)
	}
	return patterns
}
