package postrider

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/dnstest"
)

// shapingZone has two domains at one MX set, one at a provider, and one that
// does not exist.
var shapingZone = dnstest.Zone{
	MX: map[string][]string{
		"orange.example": {"10 smtp.orange.test"}, "wanadoo.example": {"10 smtp.orange.test"},
		"corp.example": {"10 a.big.test", "20 b.big.test"},
	},
	A: map[string][]string{"smtp.orange.test": {"192.0.2.1"}, "a.big.test": {"192.0.2.2"}, "b.big.test": {"192.0.2.3"}},
}

const shapingFile = `
["default"]
connection_limit = 12
data_timeout = "30s"
remember_broken_tls = "1 day"

[provider."big"]
match = [{MXSuffix=".big.test"}]
provider_connection_limit = 20
max_message_rate = "50/s"

[[provider."big".automation]]
regex = 'slow'
action = ["Suspend", {SetConfig={name="connection_limit", value=1}}]
trigger = {Threshold="3/hr"}
duration = "30m"

[provider."big".sources."new"]
max_message_rate = "5/min"

[provider."bigger"]
match = [{MXSuffix="a.big.test"}]

["orange.example"]
connection_limit = 3

["wanadoo.example"]
max_ready = 7

["gone.example"]
max_ready = 7
`

func TestShapingCommands(t *testing.T) {
	l := newCommandLine(t)
	t.Setenv("POSTRIDER_DNS_SERVERS", dnstest.Start(t, shapingZone).Addr())
	t.Setenv("POSTRIDER_ALLOW_TARGETS", "192.0.2.0/24")
	t.Setenv("POSTRIDER_SHAPING_PRESETS", "none")
	file := filepath.Join(t.TempDir(), "shaping.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(shapingFile)
	l.fails("shaping show", "no version was applied", false)
	l.ok("shaping validate "+file,
		`"default".remember_broken_tls: known, and without effect here`,
		`"gone.example": `,
		`provider."big" and provider."bigger" overlap`,
		`orange.example, wanadoo.example are one site, smtp.orange.test`,
		"can be applied")
	l.fails("shaping rollback", "there is no earlier version", false)
	l.ok("shaping apply "+file+" --note first", "version 1 holds")
	l.ok("shaping show", "provider_connection_limit = 20")
	out := l.ok("shaping explain corp.example --source new", "goes to site provider:big/(a|b).big.test", "a.big.test b.big.test", "provider  big", "slots     ", "homes", "3/1h", "Suspend, SetConfig connection_limit 1")
	for _, want := range [][]string{
		{"connection_limit", "12", `"default"`, "version 1"}, {"max_message_rate", "5/1m", `provider."big".sources."new"`, "version 1"},
		{"max_ready", "1000", "-", "default"}, {"data_timeout", "30s", `"default"`, "version 1"},
	} {
		found := false
		for _, line := range strings.Split(out, "\n") {
			found = found || strings.Join(strings.Fields(line), " ") == strings.Join(want, " ")
		}
		if !found {
			t.Errorf("no line %v in\n%s", want, out)
		}
	}
	var e shaped
	if err := json.Unmarshal([]byte(l.ok("shaping explain corp.example -o json")), &e); err != nil || e.Site != "provider:big/(a|b).big.test" || len(e.Shared) != 1 || len(e.Rules) != 1 {
		t.Errorf("%+v, %v", e, err)
	}
	l.ok("shaping explain gone.example", "no known hosts", "gone.example", "connection_limit")
	l.ok("route set routed.example smart.example:587", "routed.example goes by")
	l.ok("shaping explain routed.example", "goes to site smart.example:587", "by the routing table", "connection_limit")

	write("[\"default\"]\nconnection_limt = 1\n[[\"default\".automation]]\nregex=\"(x\"\naction=\"Suspend\"\nduration=\"1h\"")
	for _, command := range []string{"shaping validate ", "shaping apply "} {
		l.fails(command+file, "connection_limt: unknown key", false)
		l.fails(command+file, "missing closing )", false)
	}
	write("[\"default\"]\nconnection_limit = 2")
	l.ok("shaping apply "+file, "version 2 holds")
	l.ok("shaping explain orange.example", "connection_limit", `version 2`)
	l.ok("shaping rollback", "version 3 holds")
	l.ok("shaping history", "version 1 again", "first")
	l.ok("shaping show 2", "connection_limit = 2")
	l.fails("shaping show 17", "no such version", false)
}

func TestSuspensionCommands(t *testing.T) {
	l := newCommandLine(t)
	l.fails("suspension add --reason x", "say whose mail", true)
	l.fails("suspension add --tenant acme", "--reason is missing", true)
	l.ok("suspension add --site mx.test --source one --for 2h --reason blocked", "suspend of site mx.test, source one for 2h")
	l.ok("suspension add --tenant acme --bounce --reason closed", "bounce of tenant acme")
	l.ok("suspension list", "site mx.test, source one", "bounce", "closed")
	var all []measureLine
	if err := json.Unmarshal([]byte(l.ok("suspension list -o json")), &all); err != nil || len(all) != 2 || all[0].Until == nil {
		t.Fatalf("%+v, %v", all, err)
	}
	l.ok("suspension cancel 1", "cancelled")
	l.fails("suspension cancel 1", "does not hold", false)
	l.fails("suspension cancel one", "want a number", true)
}
