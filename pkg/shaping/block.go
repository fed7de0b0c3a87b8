package shaping

import (
	"maps"
	"slices"
	"strings"

	"github.com/postrider/postrider/pkg/mail"
)

// setting is one value of one table, ready to be laid over the layers below.
type setting struct {
	key   string
	text  string // the value as the file has it
	adds  bool   // to what the layers below set: a table of limits by name
	apply func(*draft)
}

// layer is the settings of one table.
type layer struct {
	from     string // the file that the table is in
	name     string // of the table, such as provider."google"
	settings []setting
	unset    []string // keys that are as if no layer below had set them
	limits   bool     // a setting belongs to the site
}

// block is the tables of one name in all files, lowest first.
type block struct {
	layers  []layer
	sources map[string][]layer
	rules   []Rule
	apart   bool // mx_rollup = false: the domain is a site of its own
	rollup  bool // mx_rollup was said
}

// over lays the block of a later file over this one.
func (b *block) over(later *block, replace bool) {
	if replace {
		*b = block{}
	}
	b.layers = append(b.layers, later.layers...)
	if b.sources == nil {
		b.sources = map[string][]layer{}
	}
	for name, layers := range later.sources {
		b.sources[name] = append(b.sources[name], layers...)
	}
	b.rules = append(b.rules, later.rules...)
	if later.rollup {
		b.apart, b.rollup = later.apart, true
	}
}

func (b *block) limits() bool {
	return b != nil && slices.ContainsFunc(b.layers, func(l layer) bool { return l.limits })
}

// provider is a block that holds for all domains and hosts of one mailbox
// provider.
type provider struct {
	block
	id    string
	match []matcher
}

// matcher is one entry of match, with exactly one member set, in lower case.
type matcher struct{ mxSuffix, hostName, domainSuffix string }

// matches reports whether the provider serves the domain: by its name, or
// by its hosts.
func (p *provider) matches(domain mail.Domain, hosts []mail.Host) bool {
	return p.matchesDomain(domain) || p.serves(hosts)
}

func (p *provider) matchesDomain(domain mail.Domain) bool {
	for i := range p.match {
		if suffix := p.match[i].domainSuffix; suffix != "" && strings.HasSuffix(string(domain), suffix) {
			return true
		}
	}
	return false
}

// serves reports whether every one of the hosts is the provider's. A domain
// that also has a host elsewhere is not, as with KumoMTA.
func (p *provider) serves(hosts []mail.Host) bool {
	for i := range hosts {
		if !p.has(hosts[i].Name) {
			return false
		}
	}
	return len(hosts) > 0
}

func (p *provider) has(host string) bool {
	for i := range p.match {
		m := &p.match[i]
		if m.mxSuffix != "" && strings.HasSuffix(host, m.mxSuffix) || m.hostName != "" && host == m.hostName {
			return true
		}
	}
	return false
}

// overlaps returns a matcher of one provider that matches whatever one of the
// other does.
func (p *provider) overlaps(other *provider) (string, bool) {
	for _, a := range p.match {
		for _, b := range other.match {
			for _, pair := range [][2]string{{a.domainSuffix, b.domainSuffix}, {a.mxSuffix, b.mxSuffix}, {a.mxSuffix, b.hostName}, {a.hostName, b.mxSuffix}} {
				switch short, long := pair[0], pair[1]; {
				case short == "" || long == "":
				case strings.HasSuffix(long, short):
					return long, true
				case strings.HasSuffix(short, long):
					return short, true
				}
			}
			if a.hostName != "" && a.hostName == b.hostName {
				return a.hostName, true
			}
		}
	}
	return "", false
}

// wide reports whether the provider has a limit for all of its sites: then
// they share a slot.
func (p *provider) wide() bool {
	return slices.ContainsFunc(p.layers, func(l layer) bool {
		return slices.ContainsFunc(l.settings, func(s setting) bool {
			return s.key == "provider_connection_limit" || s.key == "provider_max_message_rate"
		})
	})
}

// blocks is the content of all files, each laid over those before.
type blocks struct {
	base      block
	providers []*provider // in the order of the files, which is the order in which they are laid over each other
	names     map[string]*block
}

// over lays a later file over what is there.
func (all *blocks) over(later *file) {
	if later.base != nil {
		all.base.over(later.base, later.replaces[`"default"`])
	}
	for _, p := range later.providers {
		i := slices.IndexFunc(all.providers, func(known *provider) bool { return known.id == p.id })
		if i < 0 {
			i = len(all.providers)
			all.providers = append(all.providers, &provider{id: p.id})
		}
		known := all.providers[i]
		if replace := later.replaces[providerBlock(p.id)]; replace {
			known.match = nil
		}
		known.match = append(known.match, p.match...)
		known.over(&p.block, later.replaces[providerBlock(p.id)])
	}
	if all.names == nil {
		all.names = map[string]*block{}
	}
	for _, id := range slices.Sorted(maps.Keys(later.names)) {
		if all.names[id] == nil {
			all.names[id] = &block{}
		}
		all.names[id].over(later.names[id], later.replaces[id])
	}
}

// effective returns the settings that count, each with its layer, sorted by
// key: a later layer replaces what those before say of a key, or adds to it.
func effective(layers []layer) []placed {
	var all []placed
	for i := range layers {
		l := &layers[i]
		all = slices.DeleteFunc(all, func(p placed) bool { return slices.Contains(l.unset, p.key) })
		for _, s := range l.settings {
			if !s.adds {
				all = slices.DeleteFunc(all, func(p placed) bool { return p.key == s.key })
			}
			all = append(all, placed{s, l})
		}
	}
	slices.SortStableFunc(all, func(a, b placed) int { return strings.Compare(a.key, b.key) })
	return all
}

// placed is a setting and the layer that it is from.
type placed struct {
	setting
	layer *layer
}
