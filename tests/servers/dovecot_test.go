package servers

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/proc"
	"github.com/postrider/postrider/tests/world"
)

const dovecotConfig = `base_dir = %[1]s/run
state_dir = %[1]s/run
log_path = /dev/stderr
protocols = lmtp
auth_mechanisms = plain login scram-sha-256
ssl = yes
ssl_cert = <%[4]s
ssl_key = <%[5]s
first_valid_uid = 1
mail_location = maildir:%[1]s/mail/%%n
passdb {
  driver = passwd-file
  args = %[1]s/users
}
userdb {
  driver = passwd-file
  args = %[1]s/users
}
service lmtp {
  inet_listener lmtp {
    address = %[2]s
    port = %[3]d
  }
}
service auth {
  inet_listener {
    address = %[2]s
    port = %[6]d
  }
}
mail_plugins = quota
plugin {
  quota = maildir:user
}
`

// authPort is where Dovecot proves the clients of Postfix.
const authPort = 12626

// dovecot starts the server. app has a password; full@ has no room.
func (s *server) dovecot() {
	t := s.t
	t.Helper()
	account, err := user.Lookup("dovecot")
	if err != nil {
		t.Fatalf("%v: the tests need Debian's package dovecot-lmtpd", err)
	}
	if err := os.MkdirAll(s.file("mail"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.file("mail"), 0o777); err != nil {
		t.Fatal(err)
	}
	var users strings.Builder
	for name, extra := range map[string]string{"you@" + s.domain: "", "app": "", "full@" + s.domain: "userdb_quota_rule=*:bytes=10"} {
		fmt.Fprintf(&users, "%s:{PLAIN}a secret:%s:%s::%s/mail::%s\n", name, account.Uid, account.Gid, s.dir, extra)
	}
	s.write(s.file("users"), users.String())
	s.write(s.file("dovecot.conf"), fmt.Sprintf(dovecotConfig, s.dir, s.ip, world.RemotePort, s.certificate, s.key, authPort))
	p, err := proc.Start(proc.Spec{Name: "dovecot", Path: "/usr/sbin/dovecot", Args: []string{"-F", "-c", s.file("dovecot.conf")}, LogDir: s.dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(syscall.SIGTERM, 10*time.Second); err != nil {
			t.Logf("dovecot: %v", err)
		}
		if t.Failed() {
			t.Log(p.Log(1 << 13))
		}
	})
	s.waitListens()
}

// route sets a rule; the domain is not known to any resolver before.
func (s *server) route(args ...string) {
	s.t.Helper()
	if err := s.w.Command(s.t.Context(), append([]string{"route", "set"}, args...)...); err != nil {
		s.t.Fatal(err)
	}
}

// TestDovecot: its LMTP over verified TLS, with a reply for each recipient.
func TestDovecot(t *testing.T) {
	s := begin(t, "dovecot")
	s.dovecot()
	s.route(s.domain, fmt.Sprintf("lmtp://%s:%d", s.host, world.RemotePort), "--tls", "verify")
	sent := content("intact " + s.domain)
	// Until the rule is known SMTP is spoken, at which LMTP servers hang up.
	if l := s.wait(s.send("you", "BODY=8BITMIME", sent), "relayed"); !strings.HasPrefix(l.tls, "TLS1.") {
		t.Errorf("relayed with TLS %q", l.tls)
	}
	if got := s.inMailbox("intact " + s.domain); !strings.HasSuffix(got, string(sent)) {
		t.Errorf("the content changed:\n%q\n%q", got, sent)
	}
	if l := s.wait(s.send("gone", "", content("gone")), "failed"); !strings.HasPrefix(l.status, "5.1.1") {
		t.Errorf("gone: %+v", l)
	}
	if l := s.wait(s.send("full", "", content("full")), "failed"); l.status != "5.2.2" {
		t.Errorf("full: %+v", l)
	}
}

// TestPostfixAsSmartHost: with SASL by Dovecot, for who authenticates only.
func TestPostfixAsSmartHost(t *testing.T) {
	if types, err := exec.Command("postconf", "-a").Output(); err != nil || !strings.Contains(string(types), "dovecot") {
		t.Fatalf("this Postfix knows no SASL by Dovecot: %q, %v", types, err)
	}
	d := begin(t, "sasl")
	d.dovecot()
	s := begin(t, "smart")
	s.postfix("smtpd_sasl_auth_enable = yes\nsmtpd_sasl_type = dovecot\nsmtpd_sasl_path = inet:" + fmt.Sprintf("%s:%d", d.ip, authPort) +
		"\nsmtpd_tls_auth_only = yes\nsmtpd_sasl_authenticated_header = yes\nsmtpd_relay_restrictions = permit_sasl_authenticated, reject" +
		"\nsmtpd_recipient_restrictions = permit_sasl_authenticated, reject")
	for name, password := range map[string]string{"right": "a secret\n", "wrong": "another\n"} {
		s.write(s.file(name), password)
		if err := s.w.Command(t.Context(), "route", "credential", "set", name, "--username", "app", "--password-file", s.file(name)); err != nil {
			t.Fatal(err)
		}
	}
	at := fmt.Sprintf("%s:%d", s.host, world.RemotePort)
	s.route("in.smart.test", at, "--credential", "right")
	s.route("out.smart.test", at, "--credential", "wrong")
	// Where mail waits until the rules are known.
	s.w.Host(t, "mx.later.test", smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Mail, Do: smtptest.Reply(451, "4.3.0 not now")}}})
	s.w.MX(t, "in.smart.test", "10 mx.later.test")
	s.w.MX(t, "out.smart.test", "10 mx.later.test")

	s.domain = "in.smart.test"
	s.wait(s.send("you", "", content("authenticated")), "relayed")
	s.reports.WaitMessages(t, 1, deadline)
	if got := string(s.reports.Messages()[0].Content); !strings.Contains(got, "Authenticated sender: app") {
		t.Errorf("Postfix has not seen who we are:\n%s", got)
	}
	s.domain = "out.smart.test"
	id := s.send("you", "", content("refused"))
	s.delayed(id, "4.7.8")
	if err := s.w.Command(t.Context(), "cancel", id, "--reason", "the test is over"); err != nil {
		t.Fatal(err)
	}
}
