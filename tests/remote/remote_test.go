package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/remote/hostile"
	"github.com/postrider/postrider/tests/world"
)

// deadline is how long a test waits for mail to move, far above what is
// needed.
const deadline = 60 * time.Second

// atOnce is how many hosts misbehave at the same time. They mostly wait.
const atOnce = 40

var shared = &world.Shared{Options: world.Options{
	Shaping: hostile.Shaping(),
	Env:     map[string]string{"POSTRIDER_TLS_SELF_SIGNED": "true", "POSTRIDER_SMTP_BINARYMIME": "true"},
}}

// authority vouches for the hosts that are in order.
var authority *smtptest.Authority

func TestMain(m *testing.M) {
	flag.Parse()
	err := flag.Set("test.parallel", fmt.Sprint(atOnce))
	if err == nil {
		authority, err = smtptest.NewAuthority()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	shared.Options.Roots = authority.PEM()
	world.Main(m, shared)
}

// TestTable: docs/failures.md says what the tests below have shown.
func TestTable(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(world.Root(), "docs", "failures.md"))
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != hostile.Table() {
		t.Error("docs/failures.md is out of date: go run ./tests/remote -table > docs/failures.md")
	}
}

// TestHostileHosts runs every line of the table, with the host alone and with
// a good one behind it.
func TestHostileHosts(t *testing.T) {
	w := shared.Get(t)
	certificate, err := authority.Server("mx.good.test")
	if err != nil {
		t.Fatal(err)
	}
	good := w.Host(t, "mx.good.test", smtptest.Script{TLS: certificate, Extensions: append(slices.Clone(smtptest.DefaultExtensions), "DELIVERBY", "REQUIRETLS")})
	t.Run("hosts", func(t *testing.T) {
		for _, s := range hostile.All() {
			t.Run(s.Name, func(t *testing.T) {
				t.Parallel()
				(&trial{Scenario: s, t: t, w: w, good: good}).run()
			})
		}
	})
	w.WaitIdle(t, deadline)
}

// trial is one scenario under way.
type trial struct {
	*hostile.Scenario
	t    *testing.T
	w    *world.World
	good *smtptest.Server // the second mail exchanger

	kit     hostile.Kit
	address string
	host    *smtptest.Server // nil while it does not listen
	free    func()           // ends the black hole
	script  smtptest.Script
}

func (r *trial) run() {
	r.set()
	r.alone()
	r.heal()
	r.recovered()
	if r.Script != nil && !r.Used && !r.Owed {
		r.host.SetRules(r.script.Rules...)
		r.kit.Healed.Store(false)
	}
	r.withAnother()
}

// set puts the host into the network.
func (r *trial) set() {
	r.kit.Authority = authority
	var err error
	if r.address, err = r.w.Remote(r.MX()); err != nil {
		r.t.Fatal(err)
	}
	r.w.MX(r.t, r.Domain(), "10 "+r.MX())
	r.w.MX(r.t, r.Next(), "10 "+r.MX(), "20 mx.good.test")
	if r.Unanswered {
		r.free = smtptest.Unanswered(r.t, r.address)
	}
	if r.Script == nil {
		return
	}
	if r.script, err = r.Script(&r.kit); err != nil {
		r.t.Fatal(err)
	}
	r.listen(r.script)
}

// listen starts the host. What a client does to a host that breaks the
// protocol first is judged by the table alone.
func (r *trial) listen(script smtptest.Script) {
	script.Address, script.Hostname = r.address, r.MX()
	script.Discard = true
	host, err := smtptest.Listen(script)
	if err != nil {
		r.t.Fatal(err)
	}
	r.host = host
	r.t.Cleanup(host.Close)
}

// alone sends a message to the host and looks at what comes of it.
func (r *trial) alone() {
	domain := r.Domain()
	if r.Used {
		id := r.send("before", []string{"before@" + domain})
		r.settled(id, []hostile.Outcome{{State: "relayed", Status: "2.0.0"}}, false)
	}
	if r.Owed {
		id := r.send("before", []string{"refused@" + domain})
		r.settled(id, []hostile.Outcome{{State: "failed", Status: "5.1.1"}}, false)
	}
	connections, transactions := r.seen()
	id := r.send("alone", r.addresses(domain))
	r.settled(id, r.Want.Outcomes, r.Want.Uncertain)
	r.wantSeen(connections, transactions)
	r.wantTLS(id)
}

func (r *trial) addresses(domain string) []string {
	var to []string
	for _, local := range r.Recipients() {
		to = append(to, local+"@"+domain)
	}
	return to
}

// send submits a message with a null reverse-path, so that nobody is told of
// its fate.
func (r *trial) send(subject string, to []string) string {
	r.t.Helper()
	var b strings.Builder
	b.WriteString("From: Sender <sender@sender.test>\r\nSubject: " + subject + "\r\nMessage-ID: <" + subject + "." + r.Name + "@sender.test>\r\n\r\nHello\r\n.\r\n")
	if r.EightBit {
		b.WriteString("Grüße\r\n")
	}
	for b.Len() < r.Bytes {
		b.WriteString("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n")
	}
	id, err := submit.Send(r.t.Context(), r.w.SMTP(0), submit.Message{To: to, Params: r.Params, Each: r.Each, Content: []byte(b.String())})
	if err != nil {
		r.t.Fatalf("submit: %v", err)
	}
	return id
}

// settled waits until one attempt is over and everything is as wanted: the
// state and last status of each recipient, and that nobody holds it.
func (r *trial) settled(id string, want []hostile.Outcome, uncertain bool) {
	r.t.Helper()
	const query = `SELECT r.state::text, r.tries, r.worker_id IS NOT NULL, r.slot IS NOT NULL,
			COALESCE(r.next_attempt_at > now() + interval '20 minutes', false),
			COALESCE(h.status, ''), COALESCE(h.uncertain, false), COALESCE(h.reply, ''),
			(SELECT count(*) FROM postrider.history h WHERE h.queue_id = r.queue_id AND h.recipient_no = r.recipient_no)
		FROM postrider.recipients r
		LEFT JOIN LATERAL (SELECT * FROM postrider.history h WHERE h.queue_id = r.queue_id AND h.recipient_no = r.recipient_no
			ORDER BY h.attempt DESC LIMIT 1) h ON true
		WHERE r.queue_id = $1 ORDER BY r.recipient_no`
	r.w.Eventually(r.t, deadline, "the outcome of message "+id, func(ctx context.Context) error {
		rows, err := r.w.DB.Query(ctx, query, id)
		if err != nil {
			return err
		}
		defer rows.Close()
		n := 0
		for ; rows.Next(); n++ {
			var state, status, reply string
			var tries, attempts int
			var claimed, parked, later, unsure bool
			if err := rows.Scan(&state, &tries, &claimed, &parked, &later, &status, &unsure, &reply, &attempts); err != nil {
				return err
			}
			waits := state == "queued" && tries == 1 && !claimed && !parked && later
			switch got := (hostile.Outcome{State: state, Status: status}); {
			case n >= len(want):
				return fmt.Errorf("more than %d recipients", len(want))
			case attempts != 1:
				return fmt.Errorf("recipient %d: %d attempts, after %q; want 1", n+1, attempts, reply)
			case state == "relayed" && want[n].State == "relayed":
			case got != want[n] && (got.State != want[n].State || status != r.Want.Or), unsure != uncertain, state == "queued" && !waits:
				return fmt.Errorf("recipient %d: %s, uncertain %v, %d tries, claimed %v, parked %v, waits long %v, after %q; want %s, uncertain %v",
					n+1, got, unsure, tries, claimed, parked, later, reply, want[n], uncertain)
			}
		}
		if err := rows.Err(); err != nil {
			return err
		}
		if n != len(want) {
			return fmt.Errorf("%d recipients, want %d", n, len(want))
		}
		return nil
	})
}

// seen counts connections and MAIL commands at the host.
func (r *trial) seen() (connections, transactions int) {
	if r.host == nil {
		return 0, 0
	}
	for _, c := range r.host.Connections() {
		for _, verb := range c.Commands {
			if verb == "MAIL" {
				transactions++
			}
		}
		connections++
	}
	return connections, transactions
}

// wantSeen checks what the host has seen since, and that no connection stays
// open: none but one that is kept for the next message.
func (r *trial) wantSeen(connections, transactions int) {
	r.t.Helper()
	c, n := r.seen()
	if c -= connections; c != r.Want.Connections {
		r.t.Errorf("%d connections, want %d", c, r.Want.Connections)
	}
	if n -= transactions; n != r.Want.Transactions {
		r.t.Errorf("%d transactions, want %d", n, r.Want.Transactions)
	}
	kept := 0
	if r.Used || r.Owed {
		kept = 1
	}
	if r.host == nil {
		return
	}
	r.w.Eventually(r.t, deadline, "connections closed", func(context.Context) error {
		if open := r.host.Open(); open > kept {
			return fmt.Errorf("%d are open", open)
		}
		return nil
	})
}

// wantTLS checks how a message left, where that is the point.
func (r *trial) wantTLS(id string) {
	r.t.Helper()
	if !r.Want.Plaintext && !r.Want.Encrypted {
		return
	}
	var tls string
	err := r.w.DB.QueryRow(r.t.Context(), `SELECT tls FROM postrider.history WHERE queue_id = $1 AND action = 'relayed'`, id).Scan(&tls)
	if err != nil || (tls != "") != r.Want.Encrypted {
		r.t.Errorf("the history says TLS %q, %v; want encrypted %v", tls, err, r.Want.Encrypted)
	}
}

// heal puts the host in order.
func (r *trial) heal() {
	r.kit.Healed.Store(true)
	if r.free != nil {
		r.free()
	}
	if r.host == nil {
		r.listen(smtptest.Script{})
		return
	}
	r.host.SetRules()
}

// recovered: what waited is relayed at its next attempt, once, and so is the
// next message.
func (r *trial) recovered() {
	want := 0
	for _, o := range r.Want.Outcomes {
		if o.State == "relayed" {
			want++
		}
	}
	if r.Want.Twice {
		want++
	}
	r.w.Eventually(r.t, deadline, "what the host has taken", func(context.Context) error {
		if taken := r.taken(); taken != want {
			return fmt.Errorf("the message for %d recipients, want %d", taken, want)
		}
		return nil
	})
	if _, err := r.w.DB.Exec(r.t.Context(), `SELECT postrider.retry_now(domain => $1)`, r.Domain()); err != nil {
		r.t.Fatal(err)
	}
	r.w.Eventually(r.t, deadline, "what waited relayed", func(ctx context.Context) error {
		var waiting int
		err := r.w.DB.QueryRow(ctx, `SELECT count(*) FROM postrider.recipients WHERE domain = $1 AND final_at IS NULL`, r.Domain()).Scan(&waiting)
		if err == nil && waiting > 0 {
			err = fmt.Errorf("%d recipients wait", waiting)
		}
		return err
	})
	r.w.Eventually(r.t, deadline, "the next message relayed", r.relay("next@"+r.Domain()))
}

// taken counts the recipients for whom the host has taken the message.
func (r *trial) taken() int {
	n := 0
	for _, m := range r.host.Messages() {
		for _, path := range m.Accepted() {
			if path != "before@"+r.Domain() {
				n++
			}
		}
	}
	return n
}

// relay sends a plain message and returns a check that it was relayed.
func (r *trial) relay(to string) func(context.Context) error {
	id, err := submit.Send(r.t.Context(), r.w.SMTP(0), submit.Message{To: []string{to}, Content: []byte("Subject: next\r\n\r\nHello\r\n")})
	if err != nil {
		r.t.Fatalf("submit: %v", err)
	}
	return func(ctx context.Context) error {
		var state string
		err := r.w.DB.QueryRow(ctx, `SELECT state::text FROM postrider.recipients WHERE queue_id = $1`, id).Scan(&state)
		if err == nil && state != "relayed" {
			err = fmt.Errorf("it is %s", state)
		}
		return err
	}
}

// withAnother sends a message to a domain that has a good mail exchanger
// behind the hostile one, and cancels what waits.
func (r *trial) withAnother() {
	if r.Script == nil || r.Used || r.Owed {
		return
	}
	to := r.addresses(r.Next())
	id := r.send("another", to)
	want := r.Want.Outcomes
	if r.Want.Next {
		want = nil
		for range r.Want.Outcomes {
			want = append(want, hostile.Outcome{State: "relayed"})
		}
	}
	r.settled(id, want, r.Want.Uncertain)
	taken := 0
	for _, m := range r.good.Messages() {
		for _, path := range m.Accepted() {
			if strings.HasSuffix(path, "@"+r.Next()) {
				taken++
			}
		}
	}
	if wantTaken := map[bool]int{true: len(to)}[r.Want.Next]; taken != wantTaken {
		r.t.Errorf("the second mail exchanger has taken the message for %d recipients, want %d", taken, wantTaken)
	}
	if _, err := r.w.DB.Exec(r.t.Context(), `SELECT postrider.cancel('end of the test', domain => $1)`, r.Next()); err != nil {
		r.t.Error(err)
	}
}
