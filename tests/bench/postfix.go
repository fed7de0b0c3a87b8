package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/postrider/postrider/tests/internal/proc"
)

// postfix is an instance of Debian's Postfix with directories of its own.
type postfix struct {
	dir    string
	master int
}

const postfixAddress = "127.0.77.2:12525"

// mainCF is the tuned configuration: no flow delay, full concurrency from
// the start, connections to the destination kept, and nothing that relaying
// does not need (TLS, look-ups of client names, local delivery, limits).
const mainCF = `compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = postfix.bench.example
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
mydestination =
alias_maps =
alias_database =
local_recipient_maps =
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
smtpd_tls_security_level = none
smtp_tls_security_level = none
smtp_dns_support_level = disabled
in_flow_delay = 0
default_process_limit = 100
initial_destination_concurrency = 20
default_destination_concurrency_limit = 20
smtp_connection_cache_on_demand = yes
smtp_connection_cache_destinations = static:all
transport_maps = inline:{%[2]s}
`

const masterCF = `127.0.77.2:12525 inet n - n - - smtpd
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
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
`

func (p *postfix) name() string { return "postfix-tuned" }
func (p *postfix) smtp() string { return postfixAddress }

func (p *postfix) start(ctx context.Context, dir string, w workload) error {
	if os.Getuid() != 0 {
		return errors.New("postfix: its master must be started as root")
	}
	p.dir = dir
	config := filepath.Join(dir, "config")
	for _, d := range []string{config, filepath.Join(dir, "queue"), filepath.Join(dir, "data")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	var routes []string
	for i := range w.recipients {
		routes = append(routes, fmt.Sprintf("{%s=smtp:[%s]:%d}", domain(i), sinkAddress(i), sinkPort))
	}
	for name, text := range map[string]string{
		"main.cf": fmt.Sprintf(mainCF, dir, strings.Join(routes, ", ")), "master.cf": masterCF,
	} {
		if err := os.WriteFile(filepath.Join(config, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := run(ctx, "chown", "postfix", filepath.Join(dir, "data")); err != nil {
		return err
	}
	if err := run(ctx, "postfix", "-c", config, "start"); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(dir, "queue/pid/master.pid"))
	if err != nil {
		return err
	}
	if p.master, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
		return err
	}
	return accepts(ctx, postfixAddress)
}

func (p *postfix) parts() []part { return []part{{"postfix", p.master}} }

// queued counts the files of messages that Postfix has not done with.
func (p *postfix) queued(context.Context) (int, error) {
	n := 0
	for _, q := range []string{"maildrop", "incoming", "active", "deferred", "hold"} {
		err := filepath.WalkDir(filepath.Join(p.dir, "queue", q), func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				n++
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it went while we looked
			}
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}

func (p *postfix) stop() error {
	if p.master == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := run(ctx, "postfix", "-c", filepath.Join(p.dir, "config"), "stop"); err != nil {
		return err
	}
	return proc.Poll(ctx, func(context.Context) error {
		t, err := proc.ReadTree()
		if err == nil && len(t.Under(p.master)) > 0 {
			err = fmt.Errorf("postfix master %d still runs", p.master)
		}
		return err
	})
}

// logs: a Postfix program whose output is not a terminal tells its troubles
// to syslog only.
func (p *postfix) logs() string {
	return "to see why, run in a terminal: postfix -c " + filepath.Join(p.dir, "config") + " start"
}

func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
