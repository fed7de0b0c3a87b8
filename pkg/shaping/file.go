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

// maxFile bounds the text of a file.
const maxFile = 4 << 20

// file is the content of one shaping file.
type file struct {
	base      *block // nil without ["default"]
	providers []*provider
	names     map[string]*block // of sites and domains
	replaces  map[string]bool   // names of blocks with replace_base
}

func providerBlock(id string) string { return fmt.Sprintf("provider.%q", id) }

// reader reads one file and collects all that is wrong with it.
type reader struct {
	from     string
	file     file
	errs     []error
	leftOut  []error // of rules, each with all that is wrong with it
	warnings []string
}

func (r *reader) fail(format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf(format, args...))
}

func (r *reader) warn(format string, args ...any) {
	r.warnings = append(r.warnings, fmt.Sprintf(format, args...))
}

// read reads the text of a file. What is wrong with it is in the reader, each
// with the block and key that it is about; the error says that it is no TOML.
func (r *reader) read(text string) error {
	if len(text) > maxFile {
		return fmt.Errorf("longer than %d bytes", maxFile)
	}
	var tables map[string]any
	meta, err := toml.Decode(text, &tables)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		table, ok := tables[name].(map[string]any)
		if !ok {
			r.fail("%s: want a block such as [\"default\"], not a value", name)
			continue
		}
		switch name {
		case "default":
			r.file.base = r.block(kind{name: `"default"`, id: `"default"`}, table)
		case "provider":
			r.providers(table, meta.Keys())
		default:
			r.name(name, table)
		}
	}
	return errors.Join(r.errs...)
}

// name reads the block of a site or domain.
func (r *reader) name(name string, table map[string]any) {
	id := strings.ToLower(name)
	// A site name such as host:port is no domain, and stays as it is.
	domain, err := mail.ParseDomain(name)
	if err == nil {
		id = string(domain)
		if !strings.Contains(id, ".") {
			r.warn("%q: one label; a domain in the name of a block stands in quotes: [\"%s.com\"]", name, name)
		}
	}
	b := r.block(kind{name: fmt.Sprintf("%q", name), id: id, rollup: true}, table)
	if _, taken := r.file.names[id]; taken {
		r.fail("%q: there is another block for this domain", name)
	}
	r.file.names[id] = b
}

// providers reads the blocks of providers in the order of the file.
func (r *reader) providers(tables map[string]any, keys []toml.Key) {
	seen := map[string]bool{}
	for _, k := range keys {
		if len(k) < 2 || k[0] != "provider" || seen[k[1]] {
			continue
		}
		id := k[1]
		seen[id] = true
		name := providerBlock(id)
		table, ok := tables[id].(map[string]any)
		if !ok {
			r.fail("%s: want a block", name)
			continue
		}
		if strings.Contains(id, "/") {
			r.fail("%s: the name of a provider must not contain /", name)
		}
		p := &provider{id: id}
		if value, has := table["match"]; has {
			match, doubts, err := readMatch(value)
			if err != nil {
				r.fail("%s.match: %w", name, err)
			}
			for _, d := range doubts {
				r.warn("%s.match: %s", name, d)
			}
			p.match = match
		}
		p.block = *r.block(kind{name: name, id: name, match: true, more: providerKeys(id)}, table)
		r.file.providers = append(r.file.providers, p)
	}
}

func readMatch(value any) (all []matcher, doubts []string, err error) {
	list, _ := value.([]any)
	if tables, ok := value.([]map[string]any); ok {
		for _, t := range tables {
			list = append(list, t)
		}
	}
	if len(list) == 0 {
		return nil, nil, errors.New("want a list such as [{MXSuffix=\".example.com\"}]")
	}
	for _, item := range list {
		table, _ := item.(map[string]any)
		mx, _ := table["MXSuffix"].(string)
		host, _ := table["HostName"].(string)
		domain, _ := table["DomainSuffix"].(string)
		if len(table) != 1 || mx+host+domain == "" {
			return nil, nil, fmt.Errorf("%v: want exactly one of MXSuffix, HostName and DomainSuffix with a text", item)
		}
		if text := mx + host + domain; !mayMatch(text) {
			doubts = append(doubts, fmt.Sprintf("%q matches nothing: no name of a host or domain can end so", text))
		}
		all = append(all, matcher{nameEnd(mx), nameEnd(host), nameEnd(domain)})
	}
	return all, doubts, nil
}

// nameEnd returns the end of a name as names are here: in lower case, without
// a final dot.
func nameEnd(text string) string { return strings.ToLower(strings.TrimSuffix(text, ".")) }

// mayMatch reports whether a name can end in a text.
func mayMatch(text string) bool {
	text = nameEnd(text)
	return text != "" && !strings.Contains(text, "..") && strings.Trim(text, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
}

// kind is what a block is about, and so what may be in it.
type kind struct {
	name   string // as errors call it
	id     string // for replace_base
	rollup bool   // mx_rollup
	match  bool   // match
	more   map[string]key
}

// block reads a table with those below it.
func (r *reader) block(k kind, table map[string]any) *block {
	b := &block{sources: map[string][]layer{}}
	rest := maps.Clone(table)
	take := func(word string) (any, bool) {
		value, has := rest[word]
		delete(rest, word)
		return value, has
	}
	if k.match {
		take("match")
	}
	flag := func(word string) bool {
		value, has := take(word)
		yes, ok := value.(bool)
		if has && !ok {
			r.fail("%s.%s: want true or false", k.name, word)
		}
		return yes
	}
	r.file.replaces[k.id] = flag("replace_base")
	if _, has := rest["mx_rollup"]; has {
		switch {
		case k.match:
			r.fail("%s.mx_rollup: only the block of a domain may have it", k.name)
		case !k.rollup:
			r.warn("%s.mx_rollup: only the block of a domain may have it", k.name)
		}
		_, ok := rest["mx_rollup"].(bool)
		b.apart, b.rollup = !flag("mx_rollup") && ok, ok
	}
	if value, has := take("automation"); has {
		b.rules = r.rules(k.name, value)
	}
	if value, has := take("sources"); has {
		sources, ok := value.(map[string]any)
		if !ok {
			r.fail("%s.sources: want blocks such as [%s.sources.\"name\"]", k.name, k.name)
		}
		for _, source := range slices.Sorted(maps.Keys(sources)) {
			name := fmt.Sprintf("%s.sources.%q", k.name, source)
			table, ok := sources[source].(map[string]any)
			if !ok {
				r.fail("%s: want a block", name)
				continue
			}
			b.sources[source] = []layer{r.layer(name, table, k.more)}
		}
	}
	b.layers = []layer{r.layer(k.name, rest, k.more)}
	return b
}

// layer reads the settings of a table.
func (r *reader) layer(name string, table map[string]any, more map[string]key) layer {
	l := layer{from: r.from, name: name}
	for _, word := range slices.Sorted(maps.Keys(table)) {
		value := table[word]
		if word == "unset" {
			l.unset = r.unset(name, value, more)
			continue
		}
		k, ok := keys[word]
		if !ok {
			k, ok = more[word]
		}
		if why, known := unused[word]; !ok && known {
			r.warn("%s.%s: known, and without effect here: %s", name, word, why)
			continue
		}
		if !ok {
			r.fail("%s.%s: unknown key%s", name, word, hint(value))
			continue
		}
		s, note, err := k.setting(word, value)
		if err != nil {
			r.fail("%s.%s: %w", name, word, err)
			continue
		}
		if note != "" {
			r.warn("%s.%s: %s", name, word, note)
		}
		l.settings = append(l.settings, s)
		l.limits = l.limits || k.limit
	}
	return l
}

// unset reads the keys that a table takes back.
func (r *reader) unset(name string, value any, more map[string]key) []string {
	list, ok := value.([]any)
	if !ok {
		r.fail("%s.unset: want a list of keys, such as [\"max_message_rate\"]", name)
	}
	var all []string
	for _, item := range list {
		word, _ := item.(string)
		_, known := keys[word]
		if _, also := more[word]; !known && !also {
			r.fail("%s.unset: unknown key %v", name, item)
		}
		all = append(all, word)
	}
	return all
}

// hint explains the usual slip: without quotes, [example.com] is the block
// com inside the block example.
func hint(value any) string {
	if _, isTable := value.(map[string]any); isTable {
		return ` (a domain in the name of a block stands in quotes: ["example.com"])`
	}
	return ""
}
