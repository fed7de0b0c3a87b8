package shaping

import (
	"slices"
	"strings"

	"github.com/postrider/postrider/pkg/mail"
)

// ofSite returns the blocks that have a name of the site, lowest first. The
// site of smart hosts, "host:port,host:port" with "credential@" in front where
// there is one, has many: each host without its port, each with it, all of
// them, and all of them with the credential.
func (all *blocks) ofSite(site mail.Site) (found []*block) {
	if len(all.names) == 0 || site == "" {
		return nil
	}
	add := func(name string) {
		if b := all.names[name]; b != nil && !slices.Contains(found, b) {
			found = append(found, b)
		}
	}
	name := strings.ToLower(string(site))
	_, set, by := strings.Cut(name, "@")
	if !by {
		set = name
	}
	if hosts, smart := cutHosts(set); smart {
		for _, h := range hosts {
			add(strings.Trim(h[:strings.LastIndexByte(h, ':')], "[]"))
		}
		for _, h := range hosts {
			add(h)
		}
		add(set)
	}
	add(name)
	return found
}

// cutHosts splits the name of a set of smart hosts. Each of them has a port,
// which mail exchangers have not.
func cutHosts(set string) (hosts []string, smart bool) {
	if !strings.Contains(set, ":") {
		return nil, false
	}
	hosts = strings.Split(set, ",")
	for _, h := range hosts {
		at := strings.LastIndexByte(h, ':')
		if at < 1 || at == len(h)-1 || strings.Trim(h[at+1:], "0123456789") != "" {
			return nil, false
		}
	}
	return hosts, true
}
