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

// For returns the values for mail to domain at site, whose mail exchangers
// are hosts. Before the route is known site is "" and hosts are nil: then a
// provider can match by DomainSuffix only. Without a domain the values are
// those of the site.
func (s *Shaping) For(domain mail.Domain, site mail.Site, hosts []mail.Host) Values {
	domain = domainOf(domain, site)
	v := s.base
	for _, b := range s.layers(domain, site, hosts) {
		for _, set := range b.settings {
			set.apply(&v)
		}
	}
	v.Named = s.file.names[string(site)].limits || s.file.names[string(domain)].limits
	return v
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

// Explain returns the keys that the file sets for domain at site, sorted,
// each with the block whose value counts.
func (s *Shaping) Explain(domain mail.Domain, site mail.Site, hosts []mail.Host) []Origin {
	var all []Origin
	for _, b := range s.layers(domain, site, hosts) {
		for _, set := range b.settings {
			all = slices.DeleteFunc(all, func(o Origin) bool { return o.Key == set.key })
			all = append(all, Origin{set.key, b.name})
		}
	}
	slices.SortFunc(all, func(a, b Origin) int { return strings.Compare(a.Key, b.Key) })
	return all
}

// layers returns the blocks that hold, lowest first.
func (s *Shaping) layers(domain mail.Domain, site mail.Site, hosts []mail.Host) []block {
	blocks := append(make([]block, 0, 4), s.file.base)
	if p := s.provider(domain, site, hosts); p != nil {
		blocks = append(blocks, p.block)
	}
	if b, ok := s.file.names[string(site)]; ok && site != mail.Site(domain) {
		blocks = append(blocks, b)
	}
	if b, ok := s.file.names[string(domain)]; ok {
		blocks = append(blocks, b)
	}
	return blocks
}

// provider returns the provider that site is named after, or that serves
// domain.
func (s *Shaping) provider(domain mail.Domain, site mail.Site, hosts []mail.Host) *provider {
	if id := ProviderOf(site); id != "" {
		for i := range s.file.providers {
			if s.file.providers[i].id == id {
				return &s.file.providers[i]
			}
		}
	}
	return s.file.find(domain, hosts)
}
