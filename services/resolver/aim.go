package resolver

import (
	"context"
	"fmt"
	"slices"

	"go.opentelemetry.io/otel/attribute"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/telemetry"
)

// aim opens the recipients of a batch by what their way is looked up by. Those
// that a rule discards or holds leave it here.
func (r *resolver) aim(ctx context.Context, b *batch) error {
	look := lookedUp{r.routing.Load(), map[Query]*store.RoutingRule{}}
	var held, discarded wave
	holding := map[store.RecipientRef]place{}
	for i := range b.messages {
		m := &b.messages[i]
		for j := range m.Recipients {
			p := place{i, j}
			switch rule := look.rule(m, &m.Recipients[j]); {
			case rule != nil && rule.Discard != "":
				discarded.settle(b, m, discardedBy(rule, &m.Recipients[j]))
				b.stop(p, "discarded", rule.Discard)
			case rule != nil && rule.Hold != "":
				held.settle(b, m, heldBy(rule, &m.Recipients[j]))
				holding[store.RecipientRef{ID: m.ID, No: m.Recipients[j].No}] = p
			default:
				b.openAt(p, rule)
			}
		}
	}
	if len(held.settlements) > 0 {
		if err := r.hold(ctx, b, held.settlements, holding); err != nil {
			return err
		}
		// Those that were released go on; a rule below may discard them.
		for _, p := range holding {
			m := &b.messages[p.message]
			rule := look.table.find(look.table.query(m, &m.Recipients[p.recipient]), true)
			if rule != nil && rule.Discard != "" {
				discarded.settle(b, m, discardedBy(rule, &m.Recipients[p.recipient]))
				b.stop(p, "discarded", rule.Discard)
				continue
			}
			b.openAt(p, rule)
		}
	}
	return r.settle(ctx, discarded.settlements)
}

// hold holds recipients, and leaves in holding those that an operator has
// released before.
func (r *resolver) hold(ctx context.Context, b *batch, settlements []mail.Settlement, holding map[store.RecipientRef]place) error {
	released, err := r.db.HoldUnclaimed(ctx, settlements)
	if err != nil {
		return err
	}
	free := map[store.RecipientRef]bool{}
	for _, ref := range released {
		free[ref] = true
	}
	for ref, p := range holding {
		if !free[ref] {
			b.stop(p, "held", "")
			delete(holding, ref)
		}
	}
	for _, st := range settlements {
		st.Outcomes = slices.DeleteFunc(st.Outcomes, func(o mail.Outcome) bool {
			return free[store.RecipientRef{ID: st.Message.ID, No: o.RecipientNo}]
		})
		r.metrics.add(ctx, "held", len(st.Outcomes))
		telemetry.Settled(&st)
	}
	return nil
}

// lookedUp remembers what the routing table said to one batch.
type lookedUp struct {
	table *Table
	rules map[Query]*store.RoutingRule
}

// rule returns the rule that counts for a recipient, or nil.
func (l *lookedUp) rule(m *mail.QueuedMessage, p *mail.Pending) *store.RoutingRule {
	if l.table.empty() {
		return nil
	}
	q := l.table.query(m, p)
	rule, known := l.rules[q]
	if !known {
		rule = l.table.find(q, false)
		l.rules[q] = rule
	}
	return rule
}

// openAt opens a recipient for which a rule counts, or none.
func (b *batch) openAt(p place, rule *store.RoutingRule) {
	m := &b.messages[p.message]
	a := aimOf(&m.Message, &m.Recipients[p.recipient], rule)
	b.open[a] = append(b.open[a], p)
}

// stop takes a recipient out of the batch: it has no way to be found.
func (b *batch) stop(p place, event, why string) {
	b.left[p.message]--
	b.note(p.message, event, attribute.String("why", why))
}

// heldBy is the outcome of a recipient that a rule holds.
func heldBy(rule *store.RoutingRule, p *mail.Pending) mail.Outcome {
	return mail.Outcome{
		RecipientNo: p.No, Attempt: p.Attempt, Action: mail.Delayed, Phase: mail.PhaseRoute, Untried: true,
		Reply: mail.Reply{Lines: []string{fmt.Sprintf("held by the rule for %s: %s", rule.Match, rule.Hold)}},
	}
}

// discardedBy is the outcome of a recipient that a rule discards. Nobody has
// taken the message, so it is not relayed; it ends as if an operator had
// cancelled it, which is what the rule says. Its sender hears nothing, a
// report of success least of all.
func discardedBy(rule *store.RoutingRule, p *mail.Pending) mail.Outcome {
	return mail.Outcome{
		RecipientNo: p.No, Attempt: p.Attempt, Action: mail.Cancelled, Phase: mail.PhaseRoute,
		Reply: mail.Reply{Lines: []string{fmt.Sprintf("discarded by the rule for %s: %s", rule.Match, rule.Discard)}},
	}
}
