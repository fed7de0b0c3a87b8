package mx

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/postrider/postrider/pkg/mail"
)

// maxSite bounds the length of a site's name, which is a column and a label.
const maxSite = 200

// rollup names the site of a set of MX hosts: hosts that differ only in
// their first label are written once, as KumoMTA does.
//
//	alt1.aspmx.l.google.com, alt2.aspmx.l.google.com -> (alt1|alt2).aspmx.l.google.com
//	aspmx.l.google.com with both                     -> (alt1|alt2)?.aspmx.l.google.com
//	mx.a.test, mx.b.test                             -> mx.a.test,mx.b.test
//
// The name depends on the set alone, not on its order, and two sets never
// share one (KumoMTA's factors of several labels can): limits of one provider
// must not be reached through another's name. A longer name than 200 octets is
// cut and ends in a hash of the whole.
func rollup(hosts []string) mail.Site {
	names := slices.Compact(slices.Sorted(slices.Values(hosts)))
	labels := map[string][]string{} // parent -> first labels, sorted
	for _, name := range names {
		if first, parent, ok := strings.Cut(name, "."); ok {
			labels[parent] = append(labels[parent], first)
		}
	}
	// A host that is itself the parent of others is their "?". Parents are
	// taken before their children.
	written := map[string]bool{}
	slices.SortStableFunc(names, func(a, b string) int { return strings.Count(a, ".") - strings.Count(b, ".") })
	var parts []string
	for _, name := range names {
		switch _, parent, _ := strings.Cut(name, "."); {
		case written[name]:
		case len(labels[name]) > 0:
			parts = append(parts, "("+strings.Join(labels[name], "|")+")?."+name)
			for _, l := range labels[name] {
				written[l+"."+name] = true
			}
		case len(labels[parent]) > 1:
			parts = append(parts, "("+strings.Join(labels[parent], "|")+")."+parent)
			for _, l := range labels[parent] {
				written[l+"."+parent] = true
			}
		default:
			parts = append(parts, name)
		}
	}
	slices.Sort(parts)
	return bounded(strings.Join(parts, ","))
}

// bounded cuts a name that is too long for a site.
func bounded(name string) mail.Site {
	if len(name) <= maxSite {
		return mail.Site(name)
	}
	sum := sha256.Sum256([]byte(name))
	return mail.Site(name[:maxSite-17] + "#" + hex.EncodeToString(sum[:8]))
}
