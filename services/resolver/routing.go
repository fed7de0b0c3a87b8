package resolver

import (
	"strings"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// routing is the operators' routing table, made ready for look-ups.
type routing map[string]*store.RoutingRule

func newRouting(rules []store.RoutingRule) routing {
	t := make(routing, len(rules))
	for i := range rules {
		t[strings.ToLower(rules[i].Domain)] = &rules[i]
	}
	return t
}

// find returns the rule for a domain, or nil: the rule of its own name, else
// of the nearest wildcard ("*.example.com" holds for names below
// example.com, not for itself), else "*".
func (t routing) find(domain mail.Domain) *store.RoutingRule {
	if len(t) == 0 {
		return nil
	}
	if rule := t[string(domain)]; rule != nil {
		return rule
	}
	if !domain.IsLiteral() {
		for _, parent, ok := strings.Cut(string(domain), "."); ok; _, parent, ok = strings.Cut(parent, ".") {
			if rule := t["*."+parent]; rule != nil {
				return rule
			}
		}
	}
	return t["*"]
}
