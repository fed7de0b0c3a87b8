package postrider

import (
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/store"
)

func TestSourcesAndPools(t *testing.T) {
	l := newCommandLine(t)
	l.ok("source set one --ipv4 192.0.2.1 --hello one.mail.example.com")
	l.ok("source set two --ipv4 192.0.2.2 --ipv6 2001:db8::2 --egress socks5://me:secret@proxy.example.com:1080 --warm-up default")
	l.fails("source set three", "give it an address", true)
	l.fails("source set three --ipv4 2001:db8::1", "--ipv4", true)
	l.fails("source set Three --ipv4 192.0.2.3", "lower-case", true)
	l.ok("pool set default one=3 two")
	l.fails("pool set default one=0", "weight", true)
	l.fails("pool set default four", "one of the sources is not there", false)
	l.fails("source set five --ipv4 192.0.2.5 --egress socks5://me:secret@proxy", "want socks5://[user", true)
	l.fails("source set five --ipv4 192.0.2.5 --warm-up nosuch", "no warm-up schedule nosuch", true)
	l.ok("tenant add acme")
	l.ok("pool assign acme default", "mail of tenant acme leaves from pool default")
	l.ok("pool list", "default  one=3 two=1  acme")
	l.ok("source suspend one --for 2h --reason moving")
	err := l.db.BlockSource(t.Context(), store.SourceBlock{Source: "two", Site: "provider:big", Until: time.Now().Add(time.Hour), Reason: "550 blocked"})
	if err != nil {
		t.Fatal(err)
	}
	out := l.ok("source list", "one     192.0.2.1", "suspended until", ": moving", "by socks5://proxy.example.com:1080", "warm-up default from", "blocked by provider:big", "550 blocked")
	if strings.Contains(out, "secret") {
		t.Errorf("the password of a proxy is shown:\n%s", out)
	}
	l.ok("source list -o json", `"ipv6": "2001:db8::2"`, `"default=3"`, `"site": "provider:big"`)
	l.ok("pool list -o json", `"one": 3`)
	l.ok("source unblock two provider:big")
	l.fails("source unblock two provider:big", "block of source", false)
	l.ok("source resume one")
	s, err := l.db.Source(t.Context(), "one")
	if err != nil || !s.SuspendedUntil.IsZero() || s.Hello != "one.mail.example.com" {
		t.Errorf("source %+v, %v: want it as it was, not suspended", s, err)
	}
	l.ok("source set one --hello other.example.com")
	if s, err = l.db.Source(t.Context(), "one"); err != nil || s.Hello != "other.example.com" || s.IPv4.String() != "192.0.2.1" {
		t.Errorf("source %+v, %v: want another name, the same address", s, err)
	}
	l.fails("source delete one", "is in a pool", false)
	l.ok("pool delete default")
	l.ok("source delete one")
	l.fails("source delete one", "source", false)
}
