package routes

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/smtptest"
)

// large is a shaping file in KumoMTA's grammar, as a large sender has it: 30
// providers, of which number n allows n%3+1 connections, and 200 domains, of
// which number n allows n%2+1.
func large() string {
	var b strings.Builder
	for n := range 30 {
		fmt.Fprintf(&b, "\n[provider.\"p%d\"]\nmatch=[{MXSuffix=\".mx.p%d.test\"}]\nconnection_limit = %d\nprovider_connection_limit = %d\n", n, n, n%3+1, n%3+1)
		fmt.Fprintf(&b, "\n[[provider.\"p%d\".automation]]\nregex = '''\\[P%d\\]'''\naction = \"Suspend\"\nduration = \"1h\"\n", n, n)
	}
	for n := range 200 {
		fmt.Fprintf(&b, "\n[\"d%d.large.test\"]\nmx_rollup = false\nconnection_limit = %d\nmax_deliveries_per_connection = %d\n", n, n%2+1, n%5+1)
	}
	return b.String()
}

// TestALargeShapingFile: what it says of a provider, and of a domain, is what
// their hosts see and what postrider shaping explain prints.
func TestALargeShapingFile(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	slow := smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Mail, Do: smtptest.Later(50*time.Millisecond, smtptest.Reply(250, "ok"))}}}
	for _, c := range []struct {
		host        string
		domains     []string // all that it serves
		connections int
		perSession  int
		block       string
	}{
		{"a.mx.p6.test", []string{"one.large.test", "two.large.test"}, 1, 100, `provider."p6"`},
		{"a.mx.p7.test", []string{"three.large.test", "four.large.test"}, 2, 100, `provider."p7"`},
		{"a.mx.p29.test", []string{"five.large.test", "six.large.test"}, 3, 100, `provider."p29"`},
		{"mx.d10.test", []string{"d10.large.test"}, 1, 1, `"d10.large.test"`},
		{"mx.d199.test", []string{"d199.large.test"}, 2, 5, `"d199.large.test"`},
	} {
		host := r.Host(t, c.host, slow)
		for _, d := range c.domains {
			r.MX(t, d, "10 "+c.host)
		}
		for i := range 24 {
			r.send("", "a@"+c.domains[i%len(c.domains)])
		}
		r.Eventually(t, deadline, "24 messages relayed", func(context.Context) error {
			if n := host.Count(); n != 24 {
				return fmt.Errorf("%d are", n)
			}
			return nil
		})
		if n := host.HighWater(); n > c.connections {
			t.Errorf("%s: %d connections at once, want at most %d", c.host, n, c.connections)
		}
		served := map[int]int{}
		for _, m := range host.Messages() {
			if served[m.Connection]++; served[m.Connection] > c.perSession {
				t.Errorf("%s: %d messages on one connection, want at most %d", c.host, served[m.Connection], c.perSession)
			}
		}
		for _, d := range c.domains {
			found := false
			out := r.command("shaping", "explain", d)
			for line := range strings.Lines(out) {
				f := strings.Fields(line)
				found = found || len(f) > 2 && f[0] == "connection_limit" && f[1] == fmt.Sprint(c.connections) && f[2] == c.block
			}
			if !found {
				t.Errorf("%s: connection_limit is not %d by %s:\n%s", d, c.connections, c.block, out)
			}
		}
	}
	r.command("shaping", "validate", r.Dir+"/shaping.toml")
}
