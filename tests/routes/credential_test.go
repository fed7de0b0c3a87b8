package routes

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/smtptest"
)

// TestCredentials: they are proved by each mechanism, over verified TLS, and
// leave in no other way.
func TestCredentials(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	users := map[string]string{"app": "a secret"}
	offers := func(mechanisms string) []string {
		return append(slices.Clone(smtptest.DefaultExtensions), "AUTH "+mechanisms)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	for name, text := range map[string]string{"right": "a secret\n", "wrong": "another\n"} {
		if err := os.WriteFile(secret, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r.command("route", "credential", "set", name, "--username", "app", "--password-file", secret)
	}
	if out := r.command("route", "credential", "list"); !strings.Contains(out, "right") || strings.Contains(out, "a secret") {
		t.Errorf("the list of credentials is\n%s", out)
	}
	var rules []string
	good := map[string]*smtptest.Server{}
	for _, mechanism := range []string{"SCRAM-SHA-256", "PLAIN", "LOGIN"} {
		domain := strings.ToLower(mechanism) + ".auth.test"
		host, at := r.host("mx."+domain, r.secure("mx."+domain, smtptest.Script{Extensions: offers(mechanism), Users: users}))
		good[domain] = host
		rules = append(rules, domain+" "+at+" --credential right")
	}
	implicit, at := r.host("mx.implicit.auth.test", r.secure("mx.implicit.auth.test", smtptest.Script{Extensions: offers("PLAIN"), Users: users, ImplicitTLS: true}))
	good["implicit.auth.test"] = implicit
	rules = append(rules, "implicit.auth.test smtps://"+at+" --credential right")

	// Where nothing may leave.
	unknown, err := smtptest.SelfSigned("mx.unknown.auth.test")
	if err != nil {
		t.Fatal(err)
	}
	untrusted, at := r.host("mx.unknown.auth.test", smtptest.Script{TLS: unknown, Extensions: offers("PLAIN"), Users: users})
	rules = append(rules, "unknown.auth.test "+at+" --credential right")
	plain, at := r.host("mx.plain-text.auth.test", smtptest.Script{Extensions: offers("PLAIN"), Users: users})
	rules = append(rules, "plain-text.auth.test "+at+" --credential right")

	// A refusal is not tried at the next host: that locks accounts.
	refusing, one := r.host("mx1.wrong.auth.test", r.secure("mx1.wrong.auth.test", smtptest.Script{Extensions: offers("PLAIN"), Users: users}))
	next, two := r.host("mx2.wrong.auth.test", r.secure("mx2.wrong.auth.test", smtptest.Script{Extensions: offers("PLAIN"), Users: users}))
	rules = append(rules, "wrong.auth.test "+one+" "+two+" --credential wrong")
	r.route(rules...)

	for domain, host := range good {
		if l := r.relayed(r.send("", "a@"+domain)); l.TLS == "" {
			t.Errorf("%s: %+v, want TLS", domain, l)
		}
		if all := host.Messages(); len(all) != 1 || all[0].User != "app" {
			t.Errorf("%s: %+v, want one message of app", domain, all)
		}
	}
	r.delayed(r.send("", "a@unknown.auth.test"), "4.7.5")
	r.delayed(r.send("", "a@plain-text.auth.test"), "4.7.4")
	for _, host := range []*smtptest.Server{untrusted, plain} {
		for _, c := range host.Connections() {
			if slices.Contains(c.Commands, "AUTH") {
				t.Errorf("AUTH over a connection that is not verified TLS: %q", c.Commands)
			}
		}
	}
	r.delayed(r.send("", "a@wrong.auth.test"), "4.7.8")
	if n := len(next.Connections()); n > 0 || len(refusing.Connections()) == 0 {
		t.Errorf("the password was tried at the next host: %d connections", n)
	}
	if _, err := r.Output(t.Context(), "route", "credential", "remove", "right"); err == nil {
		t.Error("a credential that rules name can be removed")
	}
}

// TestLMTP: each recipient has its own reply to the content.
func TestLMTP(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	host, at := r.host("lmtp.lmtp.test", smtptest.Script{LMTP: true, Rules: []smtptest.Rule{
		{At: smtptest.Dot, Match: "full@", Do: smtptest.Reply(452, "4.2.2 mailbox full")},
		{At: smtptest.Dot, Match: "never@", Do: smtptest.Reply(550, "5.7.1 not this one")},
	}})
	r.route("lmtp.test lmtp://" + at)
	id := r.send("", "a@lmtp.test", "full@lmtp.test", "never@lmtp.test", "b@lmtp.test")
	want := map[string]string{"a@lmtp.test": "relayed 2.0.0", "full@lmtp.test": "queued 4.2.2", "never@lmtp.test": "failed 5.7.1", "b@lmtp.test": "relayed 2.0.0"}
	r.until(id, "relayed", func(l last) bool { return l.State == "relayed" })
	rows, err := r.DB.Query(t.Context(), `SELECT r.forward_path, r.state::text || ' ' || h.status FROM postrider.recipients r
		JOIN postrider.history h USING (queue_id, recipient_no) WHERE queue_id = $1`, id)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for ; rows.Next(); n++ {
		var path, got string
		if err := rows.Scan(&path, &got); err != nil {
			t.Fatal(err)
		}
		if got != want[path] {
			t.Errorf("%s: %s, want %s", path, got, want[path])
		}
	}
	if err := rows.Err(); err != nil || n != len(want) {
		t.Errorf("%d outcomes, %v", n, err)
	}
	r.command("cancel", "--reason", "the test is over", id)
	if v := host.Violations(); len(v) > 0 {
		t.Error(v)
	}
}
