package shaping

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

const (
	// maxPattern bounds the text of one regular expression.
	maxPattern = 1000
	// maxRules bounds the rules of one block: each reply that is not positive
	// is held against all of them.
	maxRules = 500
	// MaxMatched is how many octets of a reply are looked at.
	MaxMatched = 4096
)

// Rule is one entry of automation: what is done when a remote host answers
// with a certain text.
type Rule struct {
	ID        string // equal in all processes, and as long as the rule is unchanged
	Block     string // that it stands in
	Patterns  []*Pattern
	Actions   []Action
	Threshold Rate // so many matches set it off; the zero value: the first does
	Duration  time.Duration
	Internal  bool // it holds for texts of our own too, where there was no reply
}

// ActionKind is what an action does.
type ActionKind string

// The actions, by KumoMTA's words.
const (
	Suspend         ActionKind = "Suspend"         // the source rests at the site
	SuspendTenant   ActionKind = "SuspendTenant"   // the tenant's mail waits, for all sites
	SuspendCampaign ActionKind = "SuspendCampaign" // the campaign's mail waits, for all sites
	Bounce          ActionKind = "Bounce"          // what waits at the site for the source fails
	BounceTenant    ActionKind = "BounceTenant"
	BounceCampaign  ActionKind = "BounceCampaign"
	SetConfig       ActionKind = "SetConfig"       // a value for the source at the site
	SetDomainConfig ActionKind = "SetDomainConfig" // a value for the domain, whatever the source
)

// Action is one thing that a rule does.
type Action struct {
	Kind ActionKind
	// Key and Value are what a SetConfig or SetDomainConfig sets; Value is JSON.
	Key, Value string
}

// Match returns the pattern that the reply matches, or "". The text is
// KumoMTA's: code, enhanced code and lines on one line.
func (r *Rule) Match(text string, internal bool) string {
	if internal && !r.Internal {
		return ""
	}
	for _, p := range r.Patterns {
		if p.matches(text) {
			return p.String()
		}
	}
	return ""
}

// MatchedText is the text of a reply that rules look at, and whether it is of
// our own making.
func MatchedText(reply mail.Reply) (text string, internal bool) {
	text = reply.String()
	if len(text) > MaxMatched {
		text = strings.ToValidUTF8(text[:MaxMatched], "")
	}
	return text, reply.Code == 0
}

// rules reads the entries of automation.
func (r *reader) rules(block string, value any) []Rule {
	tables, ok := value.([]map[string]any)
	if !ok {
		r.fail("%s.automation: want blocks such as [[%s.automation]]", block, block)
		return nil
	}
	if len(tables) > maxRules {
		r.fail("%s.automation: %d rules, at most %d", block, len(tables), maxRules)
		return nil
	}
	var all []Rule
	for i, table := range tables {
		// What is wrong with one rule leaves that one out: those of others
		// that are well go on protecting.
		one := reader{from: r.from}
		rule := one.rule(block, fmt.Sprintf("%s.automation[%d]", block, i+1), table)
		r.warnings = append(r.warnings, one.warnings...)
		if one.errs != nil {
			r.leftOut = append(r.leftOut, errors.Join(one.errs...))
			continue
		}
		all = append(all, rule)
	}
	return all
}

func (r *reader) rule(block, name string, table map[string]any) Rule {
	rule := Rule{Block: block}
	for _, word := range slices.Sorted(maps.Keys(table)) {
		value := table[word]
		at := name + "." + word
		switch word {
		case "regex":
			rule.Patterns = r.patterns(at, value)
		case "action":
			rule.Actions = r.actions(at, value)
		case "trigger":
			rule.Threshold = r.trigger(at, value)
		case "duration":
			d, _, err := duration(value)
			if err != nil {
				r.fail("%s: %w", at, err)
			}
			rule.Duration = time.Duration(d)
		case "match_internal":
			yes, ok := value.(bool)
			if !ok {
				r.fail("%s: want true or false", at)
			}
			rule.Internal = yes
		default:
			r.fail("%s: unknown key", at)
		}
	}
	for _, word := range []string{"regex", "action", "duration"} {
		if _, has := table[word]; !has {
			r.fail("%s.%s: missing", name, word)
		}
	}
	rule.ID = rule.id()
	return rule
}

// id names the rule by what it says.
func (r *Rule) id() string {
	h := sha256.New()
	fmt.Fprintln(h, r.Block, r.Threshold, r.Duration, r.Internal, r.Actions)
	for _, p := range r.Patterns {
		fmt.Fprintln(h, p)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// oneOrMany returns the items of a list, or the one value as such.
func oneOrMany(value any) []any {
	switch list := value.(type) {
	case []any:
		return list
	case []map[string]any:
		var all []any
		for _, t := range list {
			all = append(all, t)
		}
		return all
	}
	return []any{value}
}

func (r *reader) patterns(at string, value any) []*Pattern {
	var all []*Pattern
	for _, item := range oneOrMany(value) {
		text, ok := item.(string)
		if !ok || text == "" || len(text) > maxPattern {
			r.fail("%s: want a regular expression of 1 to %d octets, or a list of them", at, maxPattern)
			continue
		}
		pattern, err := compile(text)
		if err != nil {
			r.fail("%s: %q: %w", at, text, err)
			continue
		}
		all = append(all, pattern)
	}
	return all
}

func (r *reader) trigger(at string, value any) Rate {
	if value == "Immediate" {
		return Rate{}
	}
	table, _ := value.(map[string]any)
	threshold, ok := table["Threshold"]
	if !ok || len(table) != 1 {
		r.fail("%s: %v: want \"Immediate\" or {Threshold=\"10/hr\"}", at, value)
		return Rate{}
	}
	t, note, err := rate(threshold)
	if err != nil {
		r.fail("%s.Threshold: %w", at, err)
	} else if t.IsUnlimited() {
		r.fail("%s.Threshold: unlimited matches never come: want a rate, such as \"10/hr\"", at)
	}
	if note != "" {
		r.warn("%s.Threshold: %s", at, note)
	}
	return t
}

// plain is the actions that are one word.
var plain = []ActionKind{Suspend, SuspendTenant, SuspendCampaign, Bounce, BounceTenant, BounceCampaign}

func (r *reader) actions(at string, value any) []Action {
	var all []Action
	for _, item := range oneOrMany(value) {
		if word, ok := item.(string); ok && slices.Contains(plain, ActionKind(word)) {
			all = append(all, Action{Kind: ActionKind(word)})
			continue
		}
		table, _ := item.(map[string]any)
		var kind ActionKind
		for _, k := range []ActionKind{SetConfig, SetDomainConfig} {
			if _, has := table[string(k)]; has && len(table) == 1 {
				kind = k
			}
		}
		if kind == "" {
			r.fail("%s: %v: want one of %v, or {SetConfig={name=\"...\", value=...}} or SetDomainConfig", at, item, plain)
			continue
		}
		if a, ok := r.set(at, kind, table[string(kind)]); ok {
			all = append(all, a)
		}
	}
	return all
}

// set reads what a SetConfig sets.
func (r *reader) set(at string, kind ActionKind, value any) (Action, bool) {
	table, _ := value.(map[string]any)
	name, ok := table["name"].(string)
	to, has := table["value"]
	if !ok || !has || len(table) != 2 {
		r.fail("%s: %s: want {name=\"...\", value=...}", at, kind)
		return Action{}, false
	}
	if why, known := unused[name]; known {
		r.warn("%s: %s: %s is known, and without effect here: %s", at, kind, name, why)
		return Action{}, false
	}
	if name == "mx_rollup" && kind == SetDomainConfig {
		r.warn("%s: %s: mx_rollup is changed in the file, not by a rule", at, kind)
		return Action{}, false
	}
	k, ok := keys[name]
	if !ok {
		r.fail("%s: %s: unknown key %s", at, kind, name)
		return Action{}, false
	}
	if _, _, err := k.setting(name, to); err != nil {
		r.fail("%s: %s: %s: %w", at, kind, name, err)
		return Action{}, false
	}
	text, err := json.Marshal(to)
	if err != nil {
		r.fail("%s: %s: %s: %w", at, kind, name, err)
		return Action{}, false
	}
	return Action{kind, name, string(text)}, true
}
