package shaping

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
)

// Config is what the environment says of shaping, for every service alike.
type Config struct {
	File             string         `envconfig:"SHAPING_FILE" desc:"TOML file with limits, TLS and retries by provider, site and domain, over the presets and under the version in Postgres; empty: none"`
	Presets          string         `envconfig:"SHAPING_PRESETS" default:"2026-11" desc:"version of the limits for large providers that come with postrider; none: without"`
	RetrySchedule    retry.Schedule `envconfig:"RETRY_SCHEDULE" default:"5m,10m,20m,40m,80m,160m,4h" desc:"intervals between attempts; the last one repeats"`
	MessageLifetime  retry.Duration `envconfig:"MESSAGE_LIFETIME" default:"5d" desc:"a recipient that is still queued after this time expires"`
	DelayNoticeAfter retry.Duration `envconfig:"DELAY_NOTICE_AFTER" default:"4h" desc:"the sender is told once of a delay that lasts so long"`
}

// Shaping is the whole configuration, all layers, at one moment. It never
// changes, so it may be used from any goroutine.
type Shaping struct {
	base     Values // the layers below the files
	blocks   blocks
	sites    map[mail.Site][]*block // blocks of domains with mx_rollup, by the site that each shares with others
	named    map[string]bool        // sources with blocks
	measures []measure
	leftOut  []error // rules that cannot be read

	mu    sync.RWMutex
	cache map[origin]Values // guarded by mu
}

// Text is the text of one file.
type Text struct {
	From string // what errors and Explain call it
	TOML string
}

// Build makes a Shaping of files, each laid over those before. The error
// joins everything that is wrong with them, but for rules of automation: one
// that cannot be read is left out, and the others protect on.
func Build(cfg Config, texts ...Text) (s *Shaping, warnings []string, err error) {
	s = &Shaping{base: defaults(), named: map[string]bool{}, cache: map[origin]Values{}}
	s.base.RetrySchedule = cfg.RetrySchedule
	s.base.MessageLifetime = time.Duration(cfg.MessageLifetime)
	s.base.DelayNoticeAfter = time.Duration(cfg.DelayNoticeAfter)
	var errs []error
	for _, t := range texts {
		r := reader{from: t.From, file: file{names: map[string]*block{}, replaces: map[string]bool{}}}
		err := r.read(t.TOML)
		for _, note := range r.warnings {
			warnings = append(warnings, t.From+": "+note)
		}
		for _, wrong := range r.leftOut {
			s.leftOut = append(s.leftOut, fmt.Errorf("%s: rule left out: %w", t.From, wrong))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", t.From, err))
			continue
		}
		s.blocks.over(&r.file)
	}
	s.blocks.each(func(b *block) {
		for source := range b.sources {
			s.named[source] = true
		}
	})
	for _, p := range s.blocks.providers {
		if len(p.match) == 0 {
			warnings = append(warnings, providerBlock(p.id)+": without match it holds for nothing")
		}
	}
	if errs != nil {
		return nil, warnings, errors.Join(append(errs, s.leftOut...)...)
	}
	return s, warnings, nil
}

// LeftOut returns what is wrong with the rules that cannot be read; nil if
// there are none.
func (s *Shaping) LeftOut() []error { return s.leftOut }

// Load makes the Shaping of the presets and the file that the configuration
// names. The error joins everything that is wrong with the file.
func Load(cfg Config) (*Shaping, error) {
	texts, err := cfg.Texts()
	if err != nil {
		return nil, err
	}
	s, _, err := Build(cfg, texts...)
	return s, err
}

// Texts returns the files below the version in Postgres.
func (c Config) Texts() ([]Text, error) {
	var texts []Text
	if c.Presets != "" && c.Presets != "none" {
		preset, err := Preset(c.Presets)
		if err != nil {
			return nil, err
		}
		texts = append(texts, preset)
	}
	if c.File != "" {
		text, err := os.ReadFile(c.File)
		if err != nil {
			return nil, fmt.Errorf("shaping file: %w", err)
		}
		texts = append(texts, Text{"shaping file " + c.File, string(text)})
	}
	return texts, nil
}

const (
	domainSite   = "domain:"   // begins the sites of domains that are apart
	providerSite = "provider:" // begins the shared limits of providers, and the names of their sites
)

// Query is what values are asked for.
type Query struct {
	Domain mail.Domain // of the recipient; "": the values of the site
	Site   mail.Site   // "" before the route is known
	Hosts  []mail.Host // the mail exchangers; nil before the route is known: then a provider can match by DomainSuffix only
	Source string      // that the mail leaves from; "": what holds whatever the source
}

// origin is all of a query that its values depend on. There are as many as
// the files and measures distinguish, not as many as there are domains.
type origin struct {
	providers [2]*provider
	site      mail.Site // if a block or a measure has its name
	group     mail.Site // the provider that it is named after, if a measure is about all of its sites
	domain    mail.Domain
	source    string
	byDomain  bool // a provider holds by the name of the domain: its limits are not those of the site's other domains
}

// For returns the values for mail to a domain at a site from a source. They
// are shared: nobody may change what they refer to.
func (s *Shaping) For(q Query) Values {
	o, more := s.origin(q)
	if more != nil {
		return s.compute(o, more)
	}
	s.mu.RLock()
	v, ok := s.cache[o]
	s.mu.RUnlock()
	if ok {
		return v
	}
	v = s.compute(o, nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cache[o] = v
	return v
}

// origin reduces a query to what its values depend on. More than two
// providers that hold at once are in more.
func (s *Shaping) origin(q Query) (o origin, more []*provider) {
	if of, ok := strings.CutPrefix(string(q.Site), domainSite); ok && q.Domain == "" {
		q.Domain = mail.Domain(of)
	}
	n := 0
	named := q.Site.Provider()
	for _, p := range s.blocks.providers {
		if p.id != named {
			switch {
			case p.serves(q.Hosts):
			case p.matchesDomain(q.Domain):
				o.byDomain = true
			default:
				continue
			}
		}
		if n < len(o.providers) {
			o.providers[n] = p
		}
		more = append(more, p)
		n++
	}
	if n <= len(o.providers) {
		more = nil
	}
	if s.knowsSite(q.Site) {
		o.site = q.Site
	}
	if group := q.Site.Group(); group != q.Site && s.measuresSite(group) {
		o.group = group
	}
	if s.blocks.names[string(q.Domain)] != nil || s.measuresDomain(q.Domain) {
		o.domain = q.Domain
	}
	if q.Source != "" && (s.named[q.Source] || named != "" || n > 0 || s.measuresSource(q.Source)) {
		o.source = q.Source
	}
	return o, more
}

func (s *Shaping) knowsSite(site mail.Site) bool {
	return s.blocks.ofSite(site) != nil || s.sites[site] != nil || s.measuresSite(site)
}

// compute lays the layers over each other.
func (s *Shaping) compute(o origin, providers []*provider) Values {
	layers, blocks := s.layers(o, providers)
	d := draft{Values: s.base}
	for _, b := range blocks {
		if b.provider != "" {
			d.Provider = b.provider
		}
		d.Named = d.Named || (b.own || o.byDomain && b.provider != "") && b.limits()
		d.Rules = append(d.Rules, b.rules...)
	}
	for _, p := range effective(layers) {
		p.apply(&d)
	}
	return d.finish(o)
}

// holding is a block that holds for a query.
type holding struct {
	*block
	provider string // its id, for the block of one
	own      bool   // it has the name of the site or the domain
}

// layers returns the layers that hold, lowest first: those for all sources in
// the order of KumoMTA, those for the source of the default or of providers
// right behind them, those for the source of a site or domain, and measures
// last.
func (s *Shaping) layers(o origin, providers []*provider) ([]layer, []holding) {
	if providers == nil {
		providers = slices.DeleteFunc(slices.Clone(o.providers[:]), func(p *provider) bool { return p == nil })
	}
	base := []holding{{block: &s.blocks.base}}
	var of, own []holding
	for _, p := range providers {
		of = append(of, holding{block: &p.block, provider: p.id})
	}
	add := func(b *block) {
		if b != nil && !slices.ContainsFunc(own, func(h holding) bool { return h.block == b }) {
			own = append(own, holding{block: b, own: true})
		}
	}
	if string(o.site) != string(o.domain) {
		for _, b := range s.blocks.ofSite(o.site) {
			add(b)
		}
	}
	for _, b := range s.sites[o.site] {
		add(b)
	}
	add(s.blocks.names[string(o.domain)])
	var layers []layer
	for _, group := range [][]holding{base, of, own} {
		for _, h := range group {
			layers = append(layers, h.layers...)
		}
		for _, h := range group {
			layers = append(layers, h.sources[o.source]...)
		}
	}
	return append(layers, s.measured(o)...), slices.Concat(base, of, own)
}

// each calls f with every block.
func (all *blocks) each(f func(*block)) {
	f(&all.base)
	for _, p := range all.providers {
		f(&p.block)
	}
	for _, id := range slices.Sorted(maps.Keys(all.names)) {
		f(all.names[id])
	}
}

// Site returns the site of mail to a domain by the set of its hosts:
// "domain:example.com" when its block has mx_rollup = false; the set itself,
// under the name of its provider when a limit holds for all sites of that; else
// the set.
func (s *Shaping) Site(domain mail.Domain, hosts []mail.Host, set mail.Site) mail.Site {
	if b := s.blocks.names[string(domain)]; b != nil && b.apart {
		return mail.Site(domainSite + string(domain))
	}
	for _, p := range s.blocks.providers {
		if p.wide() && p.matches(domain, hosts) {
			return set.OfProvider(p.id)
		}
	}
	return set
}

// ProvidersOf returns the names of the providers that match a domain.
func (s *Shaping) ProvidersOf(domain mail.Domain, hosts []mail.Host) (names []string) {
	for _, p := range s.blocks.providers {
		if p.matches(domain, hosts) {
			names = append(names, p.id)
		}
	}
	return names
}

// Rollups returns the domains whose blocks hold for all that shares their
// mail exchangers.
func (s *Shaping) Rollups() []mail.Domain {
	var all []mail.Domain
	for id, b := range s.blocks.names {
		if domain, err := mail.ParseDomain(id); err == nil && !b.apart && strings.Contains(id, ".") {
			all = append(all, domain)
		}
	}
	slices.Sort(all)
	return all
}

// Origin says which block set a key, and to what.
type Origin struct{ Key, Value, Block, From string }

// Explain returns what counts for a query, sorted by key, each with the block
// that set it. What no block set is from the environment or built in.
func (s *Shaping) Explain(q Query) []Origin {
	o, more := s.origin(q)
	layers, _ := s.layers(o, more)
	v := s.compute(o, more)
	var all []Origin
	set := map[string]bool{}
	for _, p := range effective(layers) {
		set[p.key] = true
		value := p.text
		if k, ok := keys[p.key]; ok && k.show != nil {
			value = k.show(&v)
		}
		all = append(all, Origin{p.key, value, p.layer.name, p.layer.from})
	}
	for name, k := range keys {
		if k.show != nil && !set[name] && name != "provider_name" {
			all = append(all, Origin{Key: name, Value: k.show(&v), From: "default"})
		}
	}
	slices.SortStableFunc(all, func(a, b Origin) int { return strings.Compare(a.Key, b.Key) })
	return all
}
