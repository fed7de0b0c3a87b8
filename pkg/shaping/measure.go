package shaping

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/postrider/postrider/pkg/mail"
)

// measure is a value that a rule, or an operator, has set for a while. It
// counts before every block.
type measure struct {
	mail.Measure
	layer layer
}

// With returns this Shaping with measures and with the sites of the domains of
// Rollups, as far as they are known. Measures that cannot be understood, as
// after a change of version, are left out and named by the error.
func (s *Shaping) With(measures []mail.Measure, sites map[mail.Domain]mail.Site) (*Shaping, error) {
	next := &Shaping{base: s.base, blocks: s.blocks, named: s.named, sites: map[mail.Site][]*block{}, cache: map[origin]Values{}}
	for _, domain := range s.Rollups() {
		if site := sites[domain]; site != "" {
			next.sites[site] = append(next.sites[site], s.blocks.names[string(domain)])
		}
	}
	var bad error
	for _, m := range measures {
		if m.Kind != mail.MeasureSet {
			continue
		}
		set, err := settingOf(m)
		if err != nil {
			bad = fmt.Errorf("measure by %s: %w", m.By, err)
			continue
		}
		l := layer{from: "measure", name: m.By, settings: []setting{set}}
		next.measures = append(next.measures, measure{m, l})
	}
	return next, bad
}

func settingOf(m mail.Measure) (setting, error) {
	k, ok := keys[m.Key]
	if !ok {
		return setting{}, fmt.Errorf("unknown key %q", m.Key)
	}
	var value any
	d := json.NewDecoder(bytes.NewReader([]byte(m.Value)))
	d.UseNumber()
	if err := d.Decode(&value); err != nil {
		return setting{}, fmt.Errorf("%s: %w", m.Key, err)
	}
	s, _, err := k.setting(m.Key, asTOML(value))
	if err != nil {
		return setting{}, fmt.Errorf("%s: %w", m.Key, err)
	}
	return s, nil
}

// asTOML gives numbers the type that TOML has for them.
func asTOML(value any) any {
	switch v := value.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
	case map[string]any:
		for name, below := range v {
			v[name] = asTOML(below)
		}
	}
	return value
}

// measured returns the layers of the measures that hold.
func (s *Shaping) measured(o origin) []layer {
	var layers []layer
	for _, m := range s.measures {
		ofDomain := m.Domain != "" && m.Domain == o.domain
		ofSite := m.Site != "" && (m.Site == o.site || m.Site == o.group) && (m.Source == "" || m.Source == o.source)
		if ofDomain || ofSite {
			layers = append(layers, m.layer)
		}
	}
	return layers
}

func (s *Shaping) measuresSite(site mail.Site) bool {
	return site != "" && slices.ContainsFunc(s.measures, func(m measure) bool { return m.Site == site })
}

func (s *Shaping) measuresDomain(domain mail.Domain) bool {
	return domain != "" && slices.ContainsFunc(s.measures, func(m measure) bool { return m.Domain == domain })
}

func (s *Shaping) measuresSource(source string) bool {
	return slices.ContainsFunc(s.measures, func(m measure) bool { return m.Source == source })
}
