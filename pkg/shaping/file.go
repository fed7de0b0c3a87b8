package shaping

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/postrider/postrider/pkg/mail"
)

// layer is the settings of one table of the file.
type layer struct {
	name     string // as errors call it, such as provider."google"
	settings []setting
	limits   bool // a setting belongs to the site
}

// block is a table with those below it.
type block struct {
	layer
	sources map[string]layer
	apart   bool // mx_rollup = false: the domain is a site of its own
}

// appendSource appends what the block says of a source.
func (b *block) appendSource(layers []layer, source string) []layer {
	if l, ok := b.sources[source]; ok {
		return append(layers, l)
	}
	return layers
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

// file is the content of a shaping file.
type file struct {
	base      block
	providers []provider // sorted by id
	names     map[string]block
}

// parse reads the text of a file. The error joins everything that is wrong
// with it, each with the block and key that it is about.
func parse(text string) (file, error) {
	var tables map[string]any
	if _, err := toml.Decode(text, &tables); err != nil {
		return file{}, err
	}
	f := file{names: map[string]block{}}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		table, ok := tables[name].(map[string]any)
		if !ok {
			errs = append(errs, fmt.Errorf("%s: want a block such as [\"default\"], not a value", name))
			continue
		}
		var err error
		switch name {
		case "default":
			f.base, err = parseBlock(`"default"`, table, nil)
			if f.base.apart {
				err = errors.Join(err, errors.New(`"default".mx_rollup: only the block of a domain may have it`))
			}
		case "provider":
			f.providers, err = parseProviders(table)
		default:
			err = f.addName(name, table)
		}
		errs = append(errs, err)
	}
	return f, errors.Join(errs...)
}

// addName reads the block of a site or domain.
func (f *file) addName(name string, table map[string]any) error {
	id := strings.ToLower(name)
	// A site name such as host:port is no domain, and stays as it is.
	if domain, err := mail.ParseDomain(name); err == nil {
		id = string(domain)
	}
	b, err := parseBlock(fmt.Sprintf("%q", name), table, nil)
	if _, taken := f.names[id]; taken {
		err = errors.Join(err, fmt.Errorf("%q: there is another block for this domain", name))
	}
	f.names[id] = b
	return err
}

func parseProviders(tables map[string]any) ([]provider, error) {
	var all []provider
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(tables)) {
		name := fmt.Sprintf("provider.%q", id)
		table, ok := tables[id].(map[string]any)
		if !ok {
			errs = append(errs, fmt.Errorf("%s: want a block", name))
			continue
		}
		match, err := parseMatch(table["match"])
		if err != nil {
			errs = append(errs, fmt.Errorf("%s.match: %w", name, err))
		}
		rest := maps.Clone(table)
		delete(rest, "match")
		b, err := parseBlock(name, rest, providerKeys(id))
		if b.apart {
			err = errors.Join(err, fmt.Errorf("%s.mx_rollup: only the block of a domain may have it", name))
		}
		errs = append(errs, err)
		all = append(all, provider{block: b, id: id, match: match})
	}
	return all, errors.Join(errs...)
}

func parseMatch(value any) ([]matcher, error) {
	list, _ := value.([]any)
	if tables, ok := value.([]map[string]any); ok {
		for _, t := range tables {
			list = append(list, t)
		}
	}
	if len(list) == 0 {
		return nil, errors.New("want a list such as [{MXSuffix=\".example.com\"}]")
	}
	var all []matcher
	for _, item := range list {
		table, _ := item.(map[string]any)
		mx, _ := table["MXSuffix"].(string)
		host, _ := table["HostName"].(string)
		domain, _ := table["DomainSuffix"].(string)
		if len(table) != 1 || mx+host+domain == "" {
			return nil, fmt.Errorf("%v: want exactly one of MXSuffix, HostName and DomainSuffix with a text", item)
		}
		all = append(all, matcher{strings.ToLower(mx), strings.ToLower(host), strings.ToLower(domain)})
	}
	return all, nil
}

// parseBlock reads a table of the file, which may have the additional keys.
func parseBlock(name string, table map[string]any, more map[string]key) (block, error) {
	b := block{sources: map[string]layer{}}
	var errs []error
	rest := maps.Clone(table)
	if value, has := rest["mx_rollup"]; has {
		rollup, ok := value.(bool)
		if !ok {
			errs = append(errs, fmt.Errorf("%s.mx_rollup: want true or false", name))
		}
		b.apart = ok && !rollup
	}
	if value, has := rest["sources"]; has {
		sources, ok := value.(map[string]any)
		if !ok {
			errs = append(errs, fmt.Errorf("%s.sources: want blocks such as [%s.sources.\"name\"]", name, name))
		}
		for _, source := range slices.Sorted(maps.Keys(sources)) {
			of := fmt.Sprintf("%s.sources.%q", name, source)
			table, ok := sources[source].(map[string]any)
			if !ok {
				errs = append(errs, fmt.Errorf("%s: want a block", of))
				continue
			}
			l, err := parseLayer(of, table, more)
			errs = append(errs, err)
			b.sources[source] = l
		}
	}
	delete(rest, "mx_rollup")
	delete(rest, "sources")
	var err error
	b.layer, err = parseLayer(name, rest, more)
	return b, errors.Join(append(errs, err)...)
}

// parseLayer reads the settings of a table.
func parseLayer(name string, table map[string]any, more map[string]key) (layer, error) {
	l := layer{name: name}
	var errs []error
	for _, word := range slices.Sorted(maps.Keys(table)) {
		k, ok := keys[word]
		if !ok {
			k, ok = more[word]
		}
		if !ok {
			errs = append(errs, fmt.Errorf("%s.%s: unknown key%s", name, word, hint(table[word])))
			continue
		}
		apply, err := k.read(table[word])
		if err != nil {
			errs = append(errs, fmt.Errorf("%s.%s: %w", name, word, err))
			continue
		}
		l.settings = append(l.settings, setting{word, apply})
		l.limits = l.limits || k.limit
	}
	return l, errors.Join(errs...)
}

// hint explains the usual slip: without quotes, [example.com] is the block
// com inside the block example.
func hint(value any) string {
	if _, isTable := value.(map[string]any); isTable {
		return ` (a domain in the name of a block stands in quotes: ["example.com"])`
	}
	return ""
}

// matches reports whether the provider serves the domain: by its name, or
// because every one of its hosts is the provider's. A domain that also has a
// host elsewhere is not the provider's, as with KumoMTA.
func (p provider) matches(domain mail.Domain, hosts []mail.Host) bool {
	for _, m := range p.match {
		if m.domainSuffix != "" && strings.HasSuffix(string(domain), m.domainSuffix) {
			return true
		}
	}
	for _, h := range hosts {
		if !slices.ContainsFunc(p.match, func(m matcher) bool {
			return m.mxSuffix != "" && strings.HasSuffix(h.Name, m.mxSuffix) || m.hostName != "" && h.Name == m.hostName
		}) {
			return false
		}
	}
	return len(hosts) > 0
}

// find returns the provider of the domain. Of several the first by name
// counts, so that every process decides alike.
func (f *file) find(domain mail.Domain, hosts []mail.Host) *provider {
	for i := range f.providers {
		if f.providers[i].matches(domain, hosts) {
			return &f.providers[i]
		}
	}
	return nil
}
