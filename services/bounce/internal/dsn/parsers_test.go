package dsn

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/postrider/postrider/pkg/mail"
)

// What mailing lists and newsletter software make of a report: Sisimai names
// the reason, flufl.bounce (Mailman) the recipients that failed for good or for
// now. tests/deps.sh installs both. A refusal of a recipient must be one of its
// mailbox to them, for they take the address off the list; one of the content
// must not.
func TestReportsAsOthersReadThem(t *testing.T) {
	const sisimai = `my $all = Sisimai->make($ARGV[0], "delivered" => 1) // []; print join(",", map { $_->reason } @$all);`
	const flufl = `import email, json, sys
from flufl.bounce import all_failures
now, ever = all_failures(email.message_from_binary_file(open(sys.argv[1], "rb")))
print(json.dumps({"now": sorted(x.decode() for x in now), "ever": sorted(x.decode() for x in ever)}))`
	cases := []struct {
		name   string
		phase  mail.Phase
		action mail.Action
		reply  mail.Reply
		status mail.EnhancedCode
		want   string // of Sisimai
	}{
		{"user unknown, no enhanced code", mail.PhaseRcpt, mail.Failed, reply(550, "", "<bob@remote.example>: user unknown"), mail.EnhancedCode{Class: 5}, "userunknown"},
		{"no such user, no enhanced code", mail.PhaseRcpt, mail.Failed, reply(550, "", "no such user here"), mail.EnhancedCode{Class: 5}, "userunknown"},
		{"user unknown", mail.PhaseRcpt, mail.Failed, reply(550, "5.1.1", "User unknown"), mail.EnhancedCode{Class: 5, Subject: 1, Detail: 1}, "userunknown"},
		{"spam", mail.PhaseDot, mail.Failed, reply(554, "", "This message looks like spam"), mail.EnhancedCode{Class: 5}, "spamdetected"},
		{"mailbox full", mail.PhaseRcpt, mail.Delayed, reply(452, "4.2.2", "Mailbox full"), mail.EnhancedCode{Class: 4, Subject: 2, Detail: 2}, "mailboxfull"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := plain(t)
			rcpt := &r.Recipients[0]
			rcpt.ORCPT, rcpt.Phase, rcpt.Action, rcpt.Reply, rcpt.Status = "", c.phase, c.action, c.reply, c.status
			dir := t.TempDir()
			file := filepath.Join(dir, "1.eml")
			if err := os.WriteFile(file, r.Compose().Content, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := output(t, "perl", "-MSisimai", "-e", sisimai, dir); string(got) != c.want {
				t.Errorf("Sisimai reads %q, want %q", got, c.want)
			}
			var failed struct{ Now, Ever []string }
			if err := json.Unmarshal(output(t, "/usr/bin/python3", "-c", flufl, file), &failed); err != nil {
				t.Fatal(err)
			}
			now, ever := 0, 1
			if c.action == mail.Delayed {
				now, ever = 1, 0
			}
			if len(failed.Now) != now || len(failed.Ever) != ever || append(failed.Now, failed.Ever...)[0] != "bob@remote.example" {
				t.Errorf("flufl.bounce reads %+v", failed)
			}
		})
	}
}

// output runs a program and returns what it prints.
func output(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	c := exec.CommandContext(t.Context(), name, args...)
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, stderr.Bytes())
	}
	return out
}
