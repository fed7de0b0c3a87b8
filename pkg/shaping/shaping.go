package shaping

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
)

// Config is what the environment says of shaping, for every service alike.
type Config struct {
	File             string         `envconfig:"SHAPING_FILE" desc:"TOML file with limits, TLS and retries by provider, site and domain; empty: none"`
	RetrySchedule    retry.Schedule `envconfig:"RETRY_SCHEDULE" default:"5m,10m,20m,40m,80m,160m,4h" desc:"intervals between attempts; the last one repeats"`
	MessageLifetime  retry.Duration `envconfig:"MESSAGE_LIFETIME" default:"5d" desc:"a recipient that is still queued after this time expires"`
	DelayNoticeAfter retry.Duration `envconfig:"DELAY_NOTICE_AFTER" default:"4h" desc:"the sender is told once of a delay that lasts so long"`
}

// Shaping is the whole configuration, all layers.
type Shaping struct {
	base Values // the layers below the file
	file file
}

// Load reads the file that the configuration names, if any. The error joins
// everything that is wrong with the file.
func Load(cfg Config) (*Shaping, error) {
	s := &Shaping{base: defaults()}
	s.base.RetrySchedule = cfg.RetrySchedule
	s.base.MessageLifetime = time.Duration(cfg.MessageLifetime)
	s.base.DelayNoticeAfter = time.Duration(cfg.DelayNoticeAfter)
	if cfg.File == "" {
		return s, nil
	}
	text, err := os.ReadFile(cfg.File)
	if err != nil {
		return nil, fmt.Errorf("shaping file: %w", err)
	}
	if s.file, err = parse(string(text)); err != nil {
		return nil, fmt.Errorf("shaping file %s: %w", cfg.File, err)
	}
	return s, nil
}

// The sites that the file gives names to.
const (
	domainSite   = "domain:"
	providerSite = "provider:"
)

// Query is what values are asked for.
type Query struct {
	Domain mail.Domain // of the recipient; "": the values of the site
	Site   mail.Site   // "" before the route is known
	Hosts  []mail.Host // the mail exchangers; nil before the route is known: then a provider can match by DomainSuffix only
	Source string      // that the mail leaves from; "": what holds whatever the source
}

// For returns the values for mail to a domain at a site from a source. They
// are shared: nobody may change what they refer to.
func (s *Shaping) For(q Query) Values {
	q.Domain = domainOf(q.Domain, q.Site)
	d := draft{Values: s.base}
	d.Named = s.file.names[string(q.Site)].limits || s.file.names[string(q.Domain)].limits
	if p := s.provider(q); p != nil {
		d.Provider = p.id
	}
	for _, l := range s.layers(q) {
		for _, set := range l.settings {
			set.apply(&d)
		}
	}
	return d.finish(q)
}

// domainOf returns the domain that the values are asked for.
func domainOf(domain mail.Domain, site mail.Site) mail.Domain {
	if of, ok := strings.CutPrefix(string(site), domainSite); ok && domain == "" {
		return mail.Domain(of)
	}
	return domain
}

// Site returns the site that the file gives to domain: "domain:example.com"
// when its block has mx_rollup = false, or "provider:name" of the provider
// that serves it; "" if the file says nothing and the site is the rollup of
// the hosts.
func (s *Shaping) Site(domain mail.Domain, hosts []mail.Host) mail.Site {
	if s.file.names[string(domain)].apart {
		return mail.Site(domainSite + string(domain))
	}
	if p := s.file.find(domain, hosts); p != nil {
		return mail.Site(providerSite + p.id)
	}
	return ""
}

// ProviderOf returns the name of the provider block that site is named after,
// or "". There are few enough to be a label of a metric.
func ProviderOf(site mail.Site) string {
	id, ok := strings.CutPrefix(string(site), providerSite)
	if !ok {
		return ""
	}
	return id
}

// Origin says which block set a key.
type Origin struct{ Key, Block string }

// Explain returns the keys that the file sets for a query, sorted, each with
// the block whose value counts.
func (s *Shaping) Explain(q Query) []Origin {
	q.Domain = domainOf(q.Domain, q.Site)
	var all []Origin
	for _, l := range s.layers(q) {
		for _, set := range l.settings {
			all = slices.DeleteFunc(all, func(o Origin) bool { return o.Key == set.key })
			all = append(all, Origin{set.key, l.name})
		}
	}
	slices.SortFunc(all, func(a, b Origin) int { return strings.Compare(a.Key, b.Key) })
	return all
}

// layers returns the layers that hold, lowest first: those for all sources in
// the order of KumoMTA, those for the source of the default or of a provider
// right behind it, those for the source of a site or domain last.
func (s *Shaping) layers(q Query) []layer {
	layers := append(make([]layer, 0, 8), s.file.base.layer)
	layers = s.file.base.appendSource(layers, q.Source)
	if p := s.provider(q); p != nil {
		layers = append(layers, p.layer)
		layers = p.appendSource(layers, q.Source)
	}
	site, domain := s.file.names[string(q.Site)], s.file.names[string(q.Domain)]
	if string(q.Site) == string(q.Domain) {
		site = block{}
	}
	layers = append(layers, site.layer, domain.layer)
	layers = site.appendSource(layers, q.Source)
	return domain.appendSource(layers, q.Source)
}

// provider returns the provider that the site is named after, or that serves
// the domain.
func (s *Shaping) provider(q Query) *provider {
	if id := ProviderOf(q.Site); id != "" {
		for i := range s.file.providers {
			if s.file.providers[i].id == id {
				return &s.file.providers[i]
			}
		}
	}
	return s.file.find(q.Domain, q.Hosts)
}
