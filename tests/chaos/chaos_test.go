// Package chaos kills what may be killed while mail flows, and counts
// afterwards. In the short form a scenario has a few hundred messages;
// POSTRIDER_CHAOS_MESSAGES=10000 is the full form.
package chaos

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/world"
)

const (
	takeOver = 10 * time.Second // DESIGN.md §2: until another process does the work of a dead one
	drained  = 3 * time.Minute  // until all mail of a scenario is through, on a slow machine

	from = "me@sender.test"
)

func TestMain(m *testing.M) { world.Main(m) }

// messages is the size of the load of one scenario.
func messages(t *testing.T) int {
	t.Helper()
	text := os.Getenv("POSTRIDER_CHAOS_MESSAGES")
	if text == "" {
		return 1500
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 100 {
		t.Fatalf("POSTRIDER_CHAOS_MESSAGES is %q, want a number from 100", text)
	}
	return n
}

// scene is a world under load with its remote hosts.
type scene struct {
	*world.World
	t       *testing.T
	domains []string // that take mail, and refused last, which does not
	hosts   map[string]*smtptest.Server
	reports *smtptest.Server // the sender's mail exchanger
	ledger  []string         // queue ids that clients have seen
	flying  int              // recipients that were in transactions when something was struck down, at most
}

const refused = "refused.test"

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{t: t, hosts: map[string]*smtptest.Server{}}
	s.World = world.Start(t, world.Options{
		Copies: 2,
		Env:    map[string]string{"POSTRIDER_RETRY_SCHEDULE": "1s,1s,2s", "POSTRIDER_LOG_LEVEL": "info"},
		Shaping: `["default"]
max_connection_rate = "unlimited"
max_message_rate = "unlimited"
`,
	})
	for i := range 9 {
		s.domains = append(s.domains, fmt.Sprintf("d%d.test", i))
	}
	s.domains = append(s.domains, refused)
	for _, d := range append(slices.Clone(s.domains), "sender.test") {
		script := smtptest.Script{Discard: true}
		switch d {
		case refused:
			script.Rules = []smtptest.Rule{{At: smtptest.Rcpt, Do: smtptest.Reply(550, "5.1.1 no such user")}}
		case "sender.test":
			script.Label = finalRecipient
		}
		host := s.Host(t, "mx."+d, script)
		s.MX(t, d, "10 mx."+d)
		if d == "sender.test" {
			s.reports = host
		} else {
			s.hosts[d] = host
		}
	}
	return s
}

// finalRecipient is the recipient that a report is about.
func finalRecipient(content []byte) string {
	_, rest, _ := strings.Cut(string(content), "\r\nFinal-Recipient:")
	line, _, _ := strings.Cut(rest, "\r\n")
	_, path, _ := strings.Cut(line, ";")
	return strings.TrimSpace(path)
}

// wave sends n messages and calls during when a third of them is accepted.
func (s *scene) wave(name string, n int, during func()) {
	s.t.Helper()
	l := startLoad(s.t, s.World, name, n, s.domains)
	l.waitAccepted(s.t, s.World, n/3)
	during()
	l.finish(s.t)
	s.ledger = append(s.ledger, l.all()...)
}

// wantTakenOver checks that every host that had to wait because of what
// happened at a moment got its next message within the take-over time.
func (s *scene) wantTakenOver(what string, at time.Time) {
	s.t.Helper()
	longest := time.Duration(0)
	for _, d := range slices.Sorted(maps.Keys(s.hosts)) {
		next := time.Duration(-1)
		for _, m := range s.hosts[d].Transactions() {
			if wait := m.MailAt.Sub(at); wait > 0 && (next < 0 || wait < next) {
				next = wait
			}
		}
		if next > takeOver {
			s.t.Errorf("%s: the next mail for %s came %s later, want at most %s", what, d, next.Round(time.Millisecond), takeOver)
		}
		longest = max(longest, next)
	}
	s.t.Logf("%s: every site was served again within %s", what, longest.Round(time.Millisecond))
	s.wantNoStragglers(what, at)
}

// wantNoStragglers checks that no recipient, and no report, waited much longer
// than the take-over time after it was accepted or after the event,
// whichever was later. The rest is the time that the load itself needs.
func (s *scene) wantNoStragglers(what string, at time.Time) {
	s.t.Helper()
	const ofLoad = 20 * time.Second // on a slow machine
	rows, err := s.DB.Query(s.t.Context(), `SELECT m.queue_id::text, m.report_of IS NOT NULL, extract(epoch FROM
			r.final_at - greatest($1, coalesce(o.final_at, m.accepted_at)))::float8 AS waited
		FROM postrider.recipients r JOIN postrider.messages m USING (queue_id)
		LEFT JOIN postrider.recipients o ON o.queue_id = m.report_of
		WHERE r.final_at > $1 ORDER BY waited DESC LIMIT 3`, at)
	if err != nil {
		s.t.Fatal(err)
	}
	defer rows.Close()
	late := map[string]string{}
	for first := true; rows.Next(); first = false {
		var id string
		var isReport bool
		var seconds float64
		if err := rows.Scan(&id, &isReport, &seconds); err != nil {
			s.t.Fatal(err)
		}
		if first {
			s.t.Logf("%s: the slowest message was final after %.1f s", what, seconds)
		}
		if seconds > (takeOver + ofLoad).Seconds() {
			late[id] = fmt.Sprintf("final only after %.1f s (a report: %v)", seconds, isReport)
		}
	}
	if err := rows.Err(); err != nil {
		s.t.Fatal(err)
	}
	for id, text := range late {
		s.t.Errorf("%s at %s: message %s was %s%s", what, at.UTC().Format(time.RFC3339Nano), id, text, s.story(id))
	}
}

// aroundAStrike is how many recipients more may begin a transaction between a
// look at Postgres and what is done next.
const aroundAStrike = 20

// strike does something that may cost delivery its transactions.
func (s *scene) strike(do func()) {
	s.t.Helper()
	before := s.inTransactions()
	do()
	s.flying += max(before, s.inTransactions()) + aroundAStrike
}

// inTransactions returns how many recipients are in transactions; none if
// Postgres does not answer.
func (s *scene) inTransactions() (n int) {
	if err := s.DB.QueryRow(s.t.Context(), `SELECT count(*) FROM postrider.recipients WHERE dispatched`).Scan(&n); err != nil {
		return 0
	}
	return n
}

// judge waits until all is done and holds the books against what the remote
// hosts saw.
func (s *scene) judge() {
	s.t.Helper()
	s.WaitIdle(s.t, drained)
	ctx := s.t.Context()
	a, err := s.Accounting(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	if a.Unaccounted != 0 || a.Queued != 0 || a.Expired != 0 || a.Cancelled != 0 {
		s.t.Errorf("accounting: %+v", a)
	}
	queue := s.recipients(ctx)
	s.wantAccepted(queue)
	uncertain := s.paths(ctx, `SELECT DISTINCT forward_path FROM postrider.history WHERE uncertain`)
	uncertainReports := s.paths(ctx, `SELECT DISTINCT o.forward_path FROM postrider.history h
		JOIN postrider.messages m USING (queue_id) JOIN postrider.recipients o ON o.queue_id = m.report_of WHERE h.uncertain`)
	got, reported := s.arrived()
	twice := 0
	for _, n := range got {
		twice += n - 1
	}
	for _, n := range reported {
		twice += n - 1
	}
	if twice > s.flying {
		s.t.Errorf("%d messages arrived that had arrived before, and at most %d were in transactions when something was struck down", twice, s.flying)
	}
	for path, r := range queue {
		switch {
		case r.report:
		case r.refused:
			s.wantOnce("the report on "+path, r, "failed", reported[path], uncertainReports[path])
		default:
			s.wantOnce(path, r, "relayed", got[path], uncertain[path])
		}
	}
	for path := range got {
		if _, ok := queue[path]; !ok {
			s.t.Errorf("%s arrived and is in no queue", path)
		}
	}
	s.t.Logf("%d messages seen accepted, accounting %+v, %d recipients marked uncertain, %d duplicates of at most %d; delays: %s",
		len(s.ledger), a, len(uncertain), twice, s.flying, s.delays())
}

// delays sums up why attempts did not succeed at once.
func (s *scene) delays() string {
	var text string
	err := s.DB.QueryRow(s.t.Context(), `SELECT coalesce(string_agg(format('%s at %s: %s %s (untried %s, for %s)', n, phase, reply_code, reply, untried, pause), '; '), 'none') FROM (
		SELECT phase, reply_code, reply, untried, date_trunc('second', next_attempt_at - started_at) AS pause, count(*) AS n
		FROM postrider.history WHERE action = 'delayed' GROUP BY 1, 2, 3, 4, 5 ORDER BY n DESC LIMIT 5) AS d`).Scan(&text)
	if err != nil {
		return err.Error()
	}
	return text
}

// queued is what the queue table says of a recipient.
type queued struct {
	id, state       string
	report, refused bool
}

func (s *scene) recipients(ctx context.Context) map[string]queued {
	s.t.Helper()
	rows, err := s.DB.Query(ctx, `SELECT r.forward_path, r.queue_id::text, r.state::text, m.report_of IS NOT NULL, r.domain = $1
		FROM postrider.recipients r JOIN postrider.messages m USING (queue_id)`, refused)
	if err != nil {
		s.t.Fatal(err)
	}
	defer rows.Close()
	all := map[string]queued{}
	for rows.Next() {
		var path string
		var q queued
		if err := rows.Scan(&path, &q.id, &q.state, &q.report, &q.refused); err != nil {
			s.t.Fatal(err)
		}
		if q.report {
			path = "report " + q.id // all have the same recipient
		}
		all[path] = q
	}
	if err := rows.Err(); err != nil {
		s.t.Fatal(err)
	}
	return all
}

// wantAccepted checks that each message whose 250 a client saw is in the
// books.
func (s *scene) wantAccepted(queue map[string]queued) {
	s.t.Helper()
	ids := map[string]bool{}
	for _, q := range queue {
		ids[q.id] = true
	}
	for _, id := range s.ledger {
		if !ids[id] {
			s.t.Errorf("message %s was accepted and is gone", id)
		}
	}
}

func (s *scene) paths(ctx context.Context, query string) map[string]bool {
	s.t.Helper()
	rows, err := s.DB.Query(ctx, query)
	if err != nil {
		s.t.Fatal(err)
	}
	defer rows.Close()
	all := map[string]bool{}
	for rows.Next() {
		var path string
		if err := rows.Scan(&path); err != nil {
			s.t.Fatal(err)
		}
		all[path] = true
	}
	if err := rows.Err(); err != nil {
		s.t.Fatal(err)
	}
	return all
}

// arrived counts what the remote hosts took: by recipient, and reports by
// the recipient that they are about.
func (s *scene) arrived() (mail, reports map[string]int) {
	mail, reports = map[string]int{}, map[string]int{}
	for _, host := range s.hosts {
		for _, m := range host.Messages() {
			for _, path := range m.Accepted() {
				mail[path]++
			}
		}
	}
	for _, m := range s.reports.Messages() {
		reports[m.Label]++
	}
	return mail, reports
}

// wantOnce checks one recipient. Twice is allowed only where the queue says
// so itself.
func (s *scene) wantOnce(what string, r queued, state string, times int, uncertain bool) {
	s.t.Helper()
	if r.state != state {
		s.t.Errorf("%s of message %s is %s, want %s", what, r.id, r.state, state)
	}
	if times == 0 || times > 1 && !uncertain {
		s.t.Errorf("%s of message %s arrived %d times (uncertain: %v)%s", what, r.id, times, uncertain, s.story(r.id))
	}
}

// story is what the history says of a message, for a failure.
func (s *scene) story(id string) string {
	var text string
	err := s.DB.QueryRow(s.t.Context(), `SELECT coalesce(string_agg(format(E'\n    %s worker %s attempt %s %s at %s: %s %s, uncertain %s, untried %s',
			h.started_at, h.worker_id, h.attempt, h.action, h.phase, h.reply_code, h.reply, h.uncertain, h.untried), '' ORDER BY h.started_at), ' no history')
		FROM postrider.history h WHERE h.queue_id = $1`, id).Scan(&text)
	if err != nil {
		return " (" + err.Error() + ")"
	}
	return text
}
