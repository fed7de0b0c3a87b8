// Package routes sets rules of the routing table with the postrider command,
// while the services run, and looks at where mail goes, and as whom.
package routes

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

// deadline is how long a test waits for mail to move, far above what is
// needed.
const deadline = 60 * time.Second

var (
	shared = &world.Shared{Options: world.Options{
		Env: map[string]string{"POSTRIDER_RETRY_SCHEDULE": "1s,1s,1s,1h"},
		Shaping: `
["default"]
max_connection_rate = "unlimited"

["live.test"]
mx_rollup = false
retry_schedule = "1h"

["balanced.test"]
mx_rollup = false
max_deliveries_per_connection = 1
`,
	}}
	authority *smtptest.Authority
)

func TestMain(m *testing.M) {
	var err error
	if authority, err = smtptest.NewAuthority(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	shared.Options.Roots = authority.PEM()
	shared.Options.Shaping += large()
	world.Main(m, shared)
}

// rig is the shared world for one test.
type rig struct {
	*world.World
	t *testing.T
}

func newRig(t *testing.T) *rig { return &rig{shared.Get(t), t} }

// command runs the postrider command.
func (r *rig) command(args ...string) string {
	r.t.Helper()
	out, err := r.Output(r.t.Context(), args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// route sets rules, each a command line behind "postrider route set", and
// waits until the resolver knows them.
func (r *rig) route(rules ...string) {
	r.t.Helper()
	for _, rule := range rules {
		r.command(append([]string{"route", "set"}, strings.Fields(rule)...)...)
	}
	// The table is read as a whole, so who knows the last rule knows all.
	name := strings.ToLower(strings.ReplaceAll(r.t.Name(), "/", "-")) + ".known.test"
	r.command("route", "set", name, "--discard", "known")
	r.Eventually(r.t, deadline, "the rules known", func(ctx context.Context) error {
		id, err := submit.Send(ctx, r.SMTP(0), submit.Message{To: []string{"a@" + name}, Content: content("known")})
		if err != nil {
			return err
		}
		var state string
		for state != "cancelled" && state != "failed" && err == nil && ctx.Err() == nil {
			err = r.DB.QueryRow(ctx, `SELECT state::text FROM postrider.recipients WHERE queue_id = $1`, id).Scan(&state)
		}
		if err == nil && state != "cancelled" {
			err = fmt.Errorf("a message is %s", state)
		}
		return err
	})
	r.command("route", "remove", name)
}

// host starts a host and returns it with its name and port, as a rule names
// it.
func (r *rig) host(name string, script smtptest.Script) (*smtptest.Server, string) {
	r.t.Helper()
	return r.Host(r.t, name, script), fmt.Sprintf("%s:%d", name, world.RemotePort)
}

// exchanger starts the mail exchanger of a domain.
func (r *rig) exchanger(domain string, script smtptest.Script) *smtptest.Server {
	r.t.Helper()
	r.MX(r.t, domain, "10 mx."+domain)
	return r.Host(r.t, "mx."+domain, script)
}

// secure is a script with a good certificate.
func (r *rig) secure(name string, script smtptest.Script) smtptest.Script {
	r.t.Helper()
	var err error
	if script.TLS, err = authority.Server(name); err != nil {
		r.t.Fatal(err)
	}
	return script
}

func content(subject string) []byte {
	return []byte("From: Sender <me@sender.test>\r\nSubject: " + subject + "\r\n\r\nHello\r\n")
}

func (r *rig) send(from string, to ...string) string {
	r.t.Helper()
	id, err := submit.Send(r.t.Context(), r.SMTP(0), submit.Message{From: from, To: to, Content: content("routes")})
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

// last is the last entry in the history of a message, and the state of its
// first recipient.
type last struct {
	State, Phase, Status, Reply, Host, TLS string
	Attempts                               int
}

func (r *rig) last(ctx context.Context, id string) (l last, err error) {
	err = r.DB.QueryRow(ctx, `SELECT r.state::text, COALESCE(h.phase, ''), COALESCE(h.status, ''), COALESCE(h.reply, ''),
			COALESCE(h.host, ''), COALESCE(h.tls, ''), count(h.attempt) OVER ()
		FROM postrider.recipients r LEFT JOIN postrider.history h USING (queue_id, recipient_no)
		WHERE r.queue_id = $1 ORDER BY r.recipient_no, h.attempt DESC LIMIT 1`, id).
		Scan(&l.State, &l.Phase, &l.Status, &l.Reply, &l.Host, &l.TLS, &l.Attempts)
	return l, err
}

// until waits until a message is as wanted.
func (r *rig) until(id, what string, wanted func(last) bool) last {
	r.t.Helper()
	var l last
	r.Eventually(r.t, deadline, what, func(ctx context.Context) (err error) {
		if l, err = r.last(ctx, id); err == nil && !wanted(l) {
			err = fmt.Errorf("message %s is %+v", id, l)
		}
		return err
	})
	return l
}

func (r *rig) relayed(id string) last {
	r.t.Helper()
	return r.until(id, "relayed", func(l last) bool { return l.State == "relayed" })
}

// delayed waits for an attempt that came to nothing, and drops the message.
func (r *rig) delayed(id, status string) last {
	r.t.Helper()
	l := r.until(id, "delayed with "+status, func(l last) bool { return l.State == "queued" && l.Status == status })
	r.command("cancel", "--reason", "the test is over", id)
	return l
}
