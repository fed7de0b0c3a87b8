package mx

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestRollup(t *testing.T) {
	for _, c := range []struct {
		hosts []string
		want  string
	}{
		{[]string{"mx.a.test"}, "mx.a.test"},
		{[]string{"alt1.aspmx.l.google.com", "alt2.aspmx.l.google.com"}, "(alt1|alt2).aspmx.l.google.com"},
		{[]string{"alt2.aspmx.l.google.com", "aspmx.l.google.com", "alt1.aspmx.l.google.com"}, "(alt1|alt2)?.aspmx.l.google.com"},
		{[]string{"mta7.am0.yahoodns.net", "mta5.am0.yahoodns.net", "mta6.am0.yahoodns.net"}, "(mta5|mta6|mta7).am0.yahoodns.net"},
		{[]string{"mx.b.test", "mx.a.test"}, "mx.a.test,mx.b.test"},
		{[]string{"mx1.b.test", "mx.a.test", "mx2.b.test"}, "(mx1|mx2).b.test,mx.a.test"},
		{[]string{"test"}, "test"},
		{[]string{"a.test", "a.test"}, "a.test"},
	} {
		if got := rollup(c.hosts); string(got) != c.want {
			t.Errorf("%v: got %s, want %s", c.hosts, got, c.want)
		}
	}
}

// unroll reads a name that rollup wrote.
func unroll(site string) []string {
	var hosts []string
	for part := range strings.SplitSeq(site, ",") {
		inner, ok := strings.CutPrefix(part, "(")
		if !ok {
			hosts = append(hosts, part)
			continue
		}
		labels, parent, _ := strings.Cut(inner, ")")
		if p, ok := strings.CutPrefix(parent, "?."); ok {
			hosts = append(hosts, p)
		}
		for l := range strings.SplitSeq(labels, "|") {
			hosts = append(hosts, l+"."+strings.TrimPrefix(strings.TrimPrefix(parent, "?"), "."))
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// The name says the set and nothing else: not the order, and no two sets
// share one.
func TestRollupIsExact(t *testing.T) {
	name := rapid.StringMatching(`([ab]\.){0,3}(x|y)`)
	rapid.Check(t, func(t *rapid.T) {
		hosts := rapid.SliceOfN(name, 1, 8).Draw(t, "hosts")
		site := rollup(hosts)
		set := slices.Compact(slices.Sorted(slices.Values(hosts)))
		if got := unroll(string(site)); !slices.Equal(got, set) {
			t.Fatalf("%v became %s, which is %v", set, site, got)
		}
		shuffled := slices.Clone(hosts)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if other := rollup(shuffled); other != site {
			t.Fatalf("%v became %s, %v became %s", hosts, site, shuffled, other)
		}
	})
}

func TestLongSiteNames(t *testing.T) {
	set := func(last string) []string {
		var hosts []string
		for i := range 30 {
			hosts = append(hosts, fmt.Sprintf("a-rather-long-host-name-%d.provider.test", i))
		}
		return append(hosts, last)
	}
	one, same, other := rollup(set("z1.test")), rollup(set("z1.test")), rollup(set("z2.test"))
	if len(one) > maxSite || one != same || one == other {
		t.Errorf("sites %s, %s, %s: want at most %d octets, equal for equal sets only", one, same, other, maxSite)
	}
}
