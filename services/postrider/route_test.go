package postrider

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestRouteCommands(t *testing.T) {
	l := newCommandLine(t)
	l.in = "a secret\n"
	l.ok("route credential set relay --username app@example.net --password-stdin", "credential relay is set")
	l.in = "\n"
	l.fails("route credential set empty --username app --password-stdin", "the password is empty", false)
	l.in = ""
	l.fails("route credential set relay --password-stdin", "--username is missing", true)
	l.fails("route credential set relay --username app", "--password-stdin or --password-file", true)
	l.fails("route credential set a@b --username app --password-stdin", "want up to 63", true)
	if out := l.ok("route credential list", "relay", "app@example.net") + l.ok("route credential list -o json", `"username": "app@example.net"`); strings.Contains(out, "a secret") {
		t.Errorf("a password is shown:\n%s", out)
	}

	l.ok("route set example.com smart1.example.net:587 smart2.example.net:587 --tls verify", "goes by smart1.example.net:587 smart2.example.net:587; 0 waiting")
	l.ok("route set *.example.com a.example.net:587*3+b.example.net:587")
	l.ok("route set * smtps://relay.example.net --credential relay --tenant acme", "as relay")
	l.ok("route set example.com --from news.example.com --fallback smart.example.net:587", "after 3 tries")
	l.ok("route set example.com --from <> --hold reports", "is held: reports")
	l.ok("route set load.example --discard load-test", "is discarded: load-test")
	for line, want := range map[string]string{
		"route set example.com":                                                "say where mail goes",
		"route set example.com host:99999":                                     "want HOST:PORT",
		"route set example.com --fallback-tries 2":                             "a fallback wants --fallback",
		"route set example.com smart.example.net --discard x":                  "--discard stands alone",
		"route set example.com --credential relay":                             "a credential is for named hosts",
		"route set example.com smart.example.net --credential relay --tls may": "over verified TLS only",
		"route set ex..ample smart.example.net":                                "ex..ample",
		"route set example.com smart.example.net --from @example.com":          "want user@example.com",
		"route explain example.com":                                            "want user@example.com",
	} {
		l.fails(line, want, true)
	}
	l.fails("route set example.com smart.example.net --credential nobody", "there is no credential nobody", false)
	l.fails("route set example.com smart.example.net --tls bogus", "TLS level", true)
	l.ok("route list", "smart1.example.net:587 smart2.example.net:587", "by MX records; after 3 tries smart.example.net:587", "held: reports", "discarded: load-test")

	l.ok("route explain you@example.com --from me@news.example.com --tenant acme",
		"counts\n  why   the recipient's domain is example.com, the sender's domain is news.example.com\n  goes  by MX records; after 3 tries smart.example.net:587",
		"passed over, less specific\n  why   the recipient's domain is example.com\n  goes  smart1.example.net:587 smart2.example.net:587, TLS verify",
		"why   it is for all recipients, the tenant is acme\n  goes  smtps://relay.example.net as relay, TLS verify")
	l.ok("route explain you@example.com", "the reverse-path is null", "held: reports")
	l.ok("route explain you@x.example.com --from me@sender.test", "the recipient's domain is below example.com", "a.example.net:587*3+b.example.net:587")
	l.ok("route explain you@example.org --from me@sender.test", "no rule is for you@example.org: its MX records show the way")
	var e explanation
	if err := json.Unmarshal([]byte(l.ok("route explain you@load.example -o json")), &e); err != nil || len(e.Rules) != 1 || e.Rules[0].Discard != "load-test" {
		t.Errorf("%+v, %v", e, err)
	}

	l.fails("route credential remove relay", "relay", false)
	l.ok("route remove * --tenant acme", "removed")
	l.fails("route remove * --tenant acme", "is not in the routing table", false)
	l.ok("route credential remove relay", "removed credential relay")
	l.fails("route credential remove relay", "there is no credential relay", false)
}
