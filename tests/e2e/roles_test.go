package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

// Each service has a database login that may do no more than it must, and so
// have the people at the command line. Nothing that they need is missing.
func TestUnderTheLeastPrivilegedRoles(t *testing.T) {
	w := world.Start(t, world.Options{Roles: true, Env: map[string]string{"POSTRIDER_RETRY_SCHEDULE": "1s", "POSTRIDER_ACCOUNTING_INTERVAL": "1s"}})
	host := w.Host(t, "mx.roles.test", smtptest.Script{Rules: []smtptest.Rule{
		{At: smtptest.Rcpt, Match: "nobody@roles.test", Do: smtptest.Reply(550, "5.1.1 no such user")},
		{At: smtptest.Rcpt, Match: "later@roles.test", Times: 1, Do: smtptest.Reply(450, "4.2.0 later")},
		{At: smtptest.Rcpt, Match: "never@roles.test", Do: smtptest.Reply(450, "4.2.0 later")},
	}})
	w.MX(t, "roles.test", "10 mx.roles.test")
	w.MX(t, "sender.test", "10 mx.roles.test")
	for _, to := range []string{"friend@roles.test", "later@roles.test"} {
		waitState(t, w, send(t, w, 0, submit.Message{From: "a@sender.test", To: []string{to}, Content: content(to)}), "relayed")
	}
	refused := send(t, w, 0, submit.Message{From: "a@sender.test", To: []string{"nobody@roles.test"}, Content: content("refused")})
	waitState(t, w, refused, "failed")
	w.WaitIdle(t, deadline)
	if n := len(host.Messages()); n != 3 {
		t.Errorf("%d messages arrived, want two and a report", n)
	}
	commandsUnderRoles(t, w, func() string {
		return send(t, w, 0, submit.Message{From: "a@sender.test", To: []string{"never@roles.test"}, Content: content("never")})
	})
	logs, err := filepath.Glob(filepath.Join(w.Dir, "*.log"))
	if err != nil || len(logs) < len(world.Services) {
		t.Fatalf("logs %v, %v", logs, err)
	}
	for _, path := range logs {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "permission denied") {
				t.Errorf("%s: %s", filepath.Base(path), line)
			}
		}
	}
}

// commandsUnderRoles runs every command as a reader and then as an operator,
// in an order in which each finds what it is about.
func commandsUnderRoles(t *testing.T, w *world.World, waiting func() string) {
	t.Helper()
	one, two := waiting(), waiting()
	shaping := filepath.Join(w.Dir, "some.toml")
	if err := os.WriteFile(shaping, []byte("[\"roles.test\"]\nmax_message_rate = \"10/s\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	password := filepath.Join(w.Dir, "password")
	if err := os.WriteFile(password, []byte("a secret of a smart host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const (
		looks = iota // readers may
		acts         // only operators may
		sql          // done by the owner: no command does it
		local        // the database has no part in it, or only the owner's
	)
	done := map[string]bool{}
	for _, c := range []struct {
		kind int
		line string
	}{
		{looks, "queue"}, {looks, "show " + one}, {looks, "site list"},
		{acts, "tenant add acme"}, {acts, "tenant set acme --priority 3"}, {looks, "tenant list"},
		{acts, "tenant suspend acme --reason test"}, {acts, "tenant resume acme"},
		{acts, "domain add acme.test --tenant acme"}, {looks, "domain list"},
		{acts, "credential add app --tenant acme"}, {acts, "credential set app --new-password"},
		{acts, "credential disable app"}, {acts, "credential enable app"}, {looks, "credential list"},
		{acts, "source set one --ipv4 192.0.2.1 --egress socks5://user:secret@127.0.0.1:1080 --warm-up default"},
		{acts, "source suspend one"}, {acts, "source resume one"}, {looks, "source list"},
		{sql, "SELECT postrider.block_source('one', 'mx.roles.test', now() + interval '1 hour', 'test')"}, {acts, "source unblock one mx.roles.test"},
		{acts, "pool set bulk one=2"}, {acts, "pool assign acme bulk"}, {looks, "pool list"},
		{acts, "route credential set smart --username us --password-file " + password}, {looks, "route credential list"},
		{acts, "route set smart.test smart.example.net:587 --credential smart --tls verify --pool bulk"}, {looks, "route list"}, {looks, "route explain user@smart.test"},
		{acts, "route remove smart.test"}, {acts, "route credential remove smart"},
		{looks, "shaping validate " + shaping}, {acts, "shaping apply " + shaping}, {acts, "shaping apply " + shaping + " --note again"}, {acts, "shaping rollback"},
		{looks, "shaping show"}, {looks, "shaping history"}, {looks, "shaping explain roles.test"},
		{acts, "site suspend mx.roles.test --reason test"}, {looks, "suspension list"}, {acts, "site resume mx.roles.test"},
		{acts, "suspension add --tenant acme --reason test"}, {acts, "suspension cancel 1"},
		{looks, "tls broken"}, {looks, "tls policies"}, {looks, "tls reports"}, {acts, "tls forget --all"}, {local, "tls record"}, {acts, "bus rotate"},
		{acts, "hold --domain roles.test"}, {acts, "release --domain roles.test"}, {acts, "retry --domain roles.test"},
		{acts, "fail " + one + " --reason test"}, {acts, "cancel " + two + " --reason test"},
		{acts, "pool delete bulk"}, {acts, "source delete one"}, {acts, "domain delete acme.test"},
		{acts, "credential delete app"}, {acts, "tenant delete acme"},
		{looks, "migrate status"}, {local, "migrate up"}, {local, "version"},
	} {
		if c.kind == sql {
			if _, err := w.DB.Exec(t.Context(), c.line); err != nil {
				t.Fatal(err)
			}
			continue
		}
		args := strings.Fields(c.line)
		for _, login := range []string{"mta_reader", "mta_operator"} {
			out, complaint, code, err := w.As(t.Context(), login, args...)
			if err != nil {
				t.Fatal(err)
			}
			may := c.kind == looks || c.kind == acts && login == "mta_operator"
			switch {
			case may && code != 0:
				t.Errorf("%s: postrider %s: exit code %d: %s", login, c.line, code, complaint)
			case c.kind == acts && !may && (code == 0 || !strings.Contains(complaint, "may not do this")):
				t.Errorf("%s: postrider %s: exit code %d, %q; want it refused", login, c.line, code, complaint)
			case code != 0 && (strings.Count(complaint, "\n") != 1 || !strings.HasPrefix(complaint, "postrider: ")):
				t.Errorf("%s: postrider %s says %q, want one line", login, c.line, complaint)
			case strings.Contains(out, "secret"):
				t.Errorf("%s: postrider %s prints a secret: %s", login, c.line, out)
			}
		}
		done[args[0]] = true
		for n := 1; n < len(args); n++ {
			done[strings.Join(args[:n+1], " ")] = true
		}
	}
	// What is new is tried too.
	untried := func(path ...string) {
		names, err := w.CommandsBelow(t.Context(), path...)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if !done[name] && name != "dev" {
				t.Errorf("postrider %s is not tried", name)
			}
		}
	}
	untried()
	for _, group := range []string{"site", "route", "source", "pool", "tenant", "credential", "domain", "shaping", "suspension", "tls", "bus", "migrate"} {
		untried(group)
	}
}
