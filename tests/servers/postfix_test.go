package servers

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/postrider/postrider/tests/world"
)

const postfixMain = `compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = %[2]s
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.255.255.255/32
mydestination =
alias_maps =
alias_database =
relayhost = [%[3]s]:%[4]d
smtp_dns_support_level = disabled
smtp_tls_security_level = none
smtpd_peername_lookup = no
smtpd_tls_security_level = encrypt
smtpd_tls_chain_files = %[5]s, %[6]s
message_size_limit = %[7]d
virtual_mailbox_limit = 0
virtual_mailbox_domains = %[8]s
virtual_mailbox_base = %[1]s/mail
virtual_mailbox_maps = inline:{ {you@%[8]s = you/} {later@%[8]s = later/} }
virtual_uid_maps = static:%[9]s
virtual_gid_maps = static:%[10]s
virtual_minimum_uid = 1
%[11]s
`

const postfixMaster = `%s:%d inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
virtual unix - n n - - virtual
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
`

// TestPostfix: with a policy service that delays later@, as greylisting does.
func TestPostfix(t *testing.T) {
	s := begin(t, "postfix")
	var open atomic.Bool
	s.pass = func() { open.Store(true) }
	s.postfix("smtpd_relay_restrictions = reject_unauth_destination\n" +
		"smtpd_recipient_restrictions = check_policy_service inet:" + greylist(t, &open))
	s.prove()
}

// postfix starts the server, with restrictions of its own.
func (s *server) postfix(restrictions string) {
	t := s.t
	t.Helper()
	account, err := user.Lookup("postfix")
	if err != nil {
		t.Fatalf("%v: the tests need Debian's package postfix", err)
	}
	_, port, err := net.SplitHostPort(s.sender)
	if err != nil {
		t.Fatal(err)
	}
	senderPort, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	senderIP := strings.TrimSuffix(s.sender, ":"+port)
	uid, err := strconv.Atoi(account.Uid)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"config", "queue", "data", "mail"} {
		if err := os.Mkdir(s.file(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"data", "mail"} {
		if err := os.Chown(s.file(d), uid, -1); err != nil {
			t.Fatal(err)
		}
	}
	s.write(s.file("config/main.cf"), fmt.Sprintf(postfixMain, s.dir, s.host, senderIP, senderPort, s.key, s.certificate,
		maxSize, s.domain, account.Uid, account.Gid, restrictions))
	s.write(s.file("config/master.cf"), fmt.Sprintf(postfixMaster, s.ip, world.RemotePort))
	postfix := func(verb string) {
		if out, err := exec.Command("postfix", "-c", s.file("config"), verb).CombinedOutput(); err != nil {
			t.Errorf("postfix %s: %v\n%s", verb, err, out)
		}
	}
	postfix("start")
	t.Cleanup(func() { postfix("stop") })
	s.waitListens()
}

// greylist is a policy service of Postfix that delays later@ until it is open.
func greylist(t *testing.T, open *atomic.Bool) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answerPolicy(c, open)
		}
	}()
	return l.Addr().String()
}

// answerPolicy answers the requests of one connection: lines of attributes,
// and an empty one.
func answerPolicy(c net.Conn, open *atomic.Bool) {
	defer c.Close()
	later := false
	for lines := bufio.NewScanner(c); lines.Scan(); {
		switch line := lines.Text(); {
		case strings.HasPrefix(line, "recipient=later@"):
			later = true
		case line == "" && later && !open.Load():
			fmt.Fprint(c, "action=450 4.2.0 greylisted\n\n")
			later = false
		case line == "":
			fmt.Fprint(c, "action=DUNNO\n\n")
			later = false
		}
	}
}
