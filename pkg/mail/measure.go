package mail

import (
	"slices"
	"time"
)

// MeasureKind is what a measure does to the mail that it covers.
type MeasureKind string

// The kinds of measures.
const (
	MeasureSuspend MeasureKind = "suspend" // it waits
	MeasureBounce  MeasureKind = "bounce"  // it fails
	MeasureSet     MeasureKind = "set"     // a value of shaping holds for it
)

// Measure is what a rule of automation, or an operator, has ordered for a
// while. It covers the mail that has every property which is set; at least
// one is.
type Measure struct {
	ID        int64
	Kind      MeasureKind
	Site      Site // "provider:NAME" is all sites of that provider
	Source    string
	Tenant    string
	Campaign  string
	Domain    Domain // of recipients, for MeasureSet
	Key       string // of shaping, for MeasureSet
	Value     string // JSON, for MeasureSet
	Until     time.Time
	Reason    string
	By        string // the block of the rule, or the operator
	CreatedAt time.Time
}

// Traffic is what a measure looks at.
type Traffic struct {
	Site     Site
	Source   string
	Tenant   string
	Campaign string
	Domain   Domain
}

// Covers reports whether the measure is about such mail.
func (m *Measure) Covers(t Traffic) bool {
	return (m.Site == "" || t.Site.Within(m.Site)) && (m.Source == "" || m.Source == t.Source) &&
		(m.Tenant == "" || m.Tenant == t.Tenant) && (m.Campaign == "" || m.Campaign == t.Campaign) &&
		(m.Domain == "" || m.Domain == t.Domain)
}

// OfMessages reports whether the measure tells messages of one lane apart.
func (m *Measure) OfMessages() bool { return m.Tenant != "" || m.Campaign != "" }

// Measures are all that hold at one moment.
type Measures []Measure

// For returns the measure that decides about such mail, or nil: one that
// bounces before one that suspends, then the one that holds longest.
func (all Measures) For(t Traffic) *Measure {
	var found *Measure
	for i := range all {
		m := &all[i]
		if m.Kind == MeasureSet || !m.Covers(t) {
			continue
		}
		if found == nil || m.Kind == MeasureBounce && found.Kind != MeasureBounce || m.Kind == found.Kind && m.Until.After(found.Until) {
			found = m
		}
	}
	return found
}

// Equal reports whether nothing has changed.
func (all Measures) Equal(other Measures) bool { return slices.Equal(all, other) }
