package adapt

import (
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
)

const (
	// quiet is how long a rule that has gone off says nothing more about the
	// same mail: the transactions under way get the same reply.
	quiet = 10 * time.Second
	// maxKept bounds the matches that are remembered for one threshold.
	maxKept = 10_000
)

// Watch counts the matches of rules for one site. The zero value is ready.
// Not safe for concurrent use.
type Watch struct {
	counts map[string]*matches // by rule
	fired  map[mail.Measure]time.Time
}

// matches is those that still count for a threshold.
type matches struct {
	at     []time.Time
	period time.Duration
}

// Fired is a rule that has gone off.
type Fired struct {
	Rule     *shaping.Rule
	Pattern  string // that the reply matched
	Measures []mail.Measure
}

// Heard takes in one reply to mail of a kind and returns the rules that go
// off: those whose threshold it reaches, each with what is to be ordered.
// Handled says that a rule sees to such replies, even if it went off just
// before.
func (w *Watch) Heard(now time.Time, reply mail.Reply, of mail.Traffic, rules []shaping.Rule) (all []Fired, handled bool) {
	if len(rules) == 0 || reply.Positive() {
		return nil, false
	}
	text, internal := shaping.MatchedText(reply)
	for i := range rules {
		r := &rules[i]
		pattern := r.Match(text, internal)
		if pattern == "" || !w.reaches(now, r) {
			continue
		}
		handled = true
		f := Fired{Rule: r, Pattern: pattern}
		for _, a := range r.Actions {
			if m, ok := measure(a, of); ok && w.news(now, m) {
				m.Until = now.Add(r.Duration)
				m.Reason, m.By = text, r.Block+": "+pattern
				f.Measures = append(f.Measures, m)
			}
		}
		if len(f.Measures) > 0 {
			all = append(all, f)
		}
	}
	return all, handled
}

// reaches counts a match and reports whether there are as many within the
// period as the rule wants.
func (w *Watch) reaches(now time.Time, r *shaping.Rule) bool {
	if r.Threshold.IsUnlimited() {
		return true
	}
	if w.counts == nil {
		w.counts = map[string]*matches{}
	}
	m := w.counts[r.ID]
	if m == nil {
		m = &matches{period: r.Threshold.Period}
		w.counts[r.ID] = m
	}
	wanted := min(r.Threshold.Events, maxKept)
	for len(m.at) > 0 && now.Sub(m.at[0]) > m.period {
		m.at = m.at[1:]
	}
	m.at = append(m.at, now)
	if len(m.at) > wanted {
		m.at = m.at[len(m.at)-wanted:]
	}
	return len(m.at) == wanted
}

// news reports whether the measure was not ordered a moment ago.
func (w *Watch) news(now time.Time, m mail.Measure) bool {
	if at, known := w.fired[m]; known && now.Sub(at) < quiet {
		return false
	}
	if w.fired == nil {
		w.fired = map[mail.Measure]time.Time{}
	}
	for old, at := range w.fired {
		if now.Sub(at) >= quiet {
			delete(w.fired, old)
		}
	}
	w.fired[m] = now
	return true
}

// measure is what an action means for such mail; false if it means nothing,
// as SuspendTenant does for mail without a tenant.
func measure(a shaping.Action, of mail.Traffic) (mail.Measure, bool) {
	m := mail.Measure{Kind: mail.MeasureSuspend}
	switch a.Kind {
	case shaping.Bounce, shaping.BounceTenant, shaping.BounceCampaign:
		m.Kind = mail.MeasureBounce
	case shaping.SetConfig, shaping.SetDomainConfig:
		m.Kind, m.Key, m.Value = mail.MeasureSet, a.Key, a.Value
	}
	switch a.Kind {
	case shaping.Suspend, shaping.Bounce, shaping.SetConfig:
		m.Site, m.Source = of.Site, of.Source
		return m, of.Site != ""
	case shaping.SuspendTenant, shaping.BounceTenant:
		m.Tenant = of.Tenant
		return m, of.Tenant != ""
	case shaping.SuspendCampaign, shaping.BounceCampaign:
		m.Tenant, m.Campaign = of.Tenant, of.Campaign
		return m, of.Campaign != ""
	case shaping.SetDomainConfig:
		m.Domain = of.Domain
		return m, of.Domain != ""
	}
	return m, false
}

// Idle reports whether nothing is remembered that may still count.
func (w *Watch) Idle(now time.Time) bool {
	for id, m := range w.counts {
		if now.Sub(m.at[len(m.at)-1]) <= m.period {
			return false
		}
		delete(w.counts, id)
	}
	return true
}
