package shaping

import (
	"fmt"
	"maps"
	"slices"

	"github.com/postrider/postrider/pkg/mail"
)

// Doubts says what can be read and is probably not what was meant: providers
// that match the same hosts, and rules that make nothing slower.
func (s *Shaping) Doubts() (all []string) {
	for i, p := range s.blocks.providers {
		for _, other := range s.blocks.providers[i+1:] {
			if m, ok := p.overlaps(other); ok {
				all = append(all, fmt.Sprintf("%s and %s overlap: both match %s", providerBlock(p.id), providerBlock(other.id), m))
			}
		}
		all = append(all, idleRules(&p.block, s.compute(origin{providers: [2]*provider{p}}, nil))...)
	}
	all = append(all, idleRules(&s.blocks.base, s.compute(origin{}, nil))...)
	for _, id := range slices.Sorted(maps.Keys(s.blocks.names)) {
		all = append(all, idleRules(s.blocks.names[id], s.compute(origin{domain: mail.Domain(id)}, nil))...)
	}
	return all
}

// idleRules says which rules of a block set limits that hold anyway where the
// values are these.
func idleRules(b *block, v Values) (all []string) {
	for i := range b.rules {
		for _, a := range b.rules[i].Actions {
			k, ok := keys[a.Key]
			if !ok || !k.limit || k.show == nil {
				continue
			}
			set, err := settingOf(mail.Measure{Key: a.Key, Value: a.Value})
			if err != nil {
				continue
			}
			d := draft{Values: v}
			set.apply(&d)
			if v.Limits.Stricter(d.Limits) == v.Limits {
				all = append(all, fmt.Sprintf("%s.automation: the rule for %q sets %s to %s, and it is %s without", b.rules[i].Block, b.rules[i].Patterns, a.Key, k.show(&d.Values), k.show(&v)))
			}
		}
	}
	return all
}
