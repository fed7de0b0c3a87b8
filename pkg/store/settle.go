package store

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// settledRow is one outcome on its way to its recipient.
type settledRow struct {
	rowKey
	outcome *mail.Outcome
}

// settleColumns are the arrays of settleRows.
type settleColumns struct {
	ids         []mail.QueueID
	nos         []int32
	attempts    []int32
	states      []string
	nexts       []*time.Time
	tried       []int16
	reports     []*time.Time
	reportKinds []string
}

// A row that is no longer the worker's is left alone: whoever has it now
// settles it. $1 is NULL for rows that nobody claimed. A row that stands as it
// did before the claim is the worker's too: a crash of Postgres forgot the
// claim, whose commit had not waited for the disk, and nobody has claimed the
// row since. A delay never goes past the expiry.
const settleRows = `WITH settled AS (
    UPDATE recipients_%s r
    SET state           = t.state::recipient_state,
        attempt         = t.attempt + CASE WHEN $1::integer IS NULL THEN 1 ELSE 0 END,
        next_attempt_at = CASE WHEN t.next_attempt_at IS NOT NULL THEN least(t.next_attempt_at, r.expires_at) END,
        final_at        = CASE WHEN t.next_attempt_at IS NULL THEN now() END,
        tries           = r.tries + t.tried,
        worker_id       = NULL,
        slot            = NULL,
        dispatched      = false,
        rung            = false,
        final_reported  = t.next_attempt_at IS NULL AND t.report_at IS NULL
    FROM unnest($2::uuid[], $3::integer[], $4::integer[], $5::text[], $6::timestamptz[], $7::smallint[], $8::timestamptz[], $9::text[])
         AS t (queue_id, recipient_no, attempt, state, next_attempt_at, tried, report_at, kind)
    WHERE r.queue_id = t.queue_id AND r.recipient_no = t.recipient_no AND r.state = 'queued'
      AND (r.attempt = t.attempt AND r.worker_id IS NOT DISTINCT FROM $1
           OR r.attempt = t.attempt - 1 AND r.worker_id IS NULL AND $1 IS NOT NULL)
    RETURNING r.queue_id, r.recipient_no, t.attempt, t.report_at, t.kind),
due AS (
    INSERT INTO reports (queue_id, kind, due_at)
    SELECT DISTINCT s.queue_id, s.kind, s.report_at FROM settled s WHERE s.report_at IS NOT NULL)
SELECT s.queue_id, s.recipient_no, s.attempt FROM settled s`

// Settle records the outcomes of settlements in one transaction, each fenced
// by the worker's claim, and writes the history. It returns the number of
// outcomes whose recipients were no longer the worker's: their history is
// written all the same, because the remote host did say so.
func (s *Store) Settle(ctx context.Context, worker mail.WorkerID, settlements []mail.Settlement) (lost int, err error) {
	rows := settledRowsOf(settlements)
	if len(rows) == 0 {
		return 0, nil
	}
	won := make(map[fence]bool, len(rows))
	batch := &pgx.Batch{} // one batch is one implicit transaction
	queueSettle(batch, &worker, rows, won)
	queueAttempts(batch, &worker, settlements)
	if err := s.durable.SendBatch(ctx, batch).Close(); err != nil {
		return 0, fmt.Errorf("settle: %w", err)
	}
	if lost = len(rows) - len(won); lost > 0 {
		if err := s.markTwice(ctx, rows, won); err != nil {
			return lost, fmt.Errorf("settle: %w", err)
		}
	}
	return lost, nil
}

// SettleUnclaimed records outcomes that were found without a claim, such as
// those of the resolver. Outcome.Attempt is the fence as the hint gave it.
// Outcomes that lost by it, such as those of a repeated hint, leave no trace.
func (s *Store) SettleUnclaimed(ctx context.Context, settlements []mail.Settlement) (lost int, err error) {
	rows := settledRowsOf(settlements)
	if len(rows) == 0 {
		return 0, nil
	}
	won := make(map[fence]bool, len(rows))
	err = inTx(ctx, s.durable, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		queueSettle(batch, nil, rows, won)
		if err := tx.SendBatch(ctx, batch).Close(); err != nil {
			return err
		}
		lost = len(rows) - len(won)
		batch = &pgx.Batch{}
		queueAttempts(batch, nil, keepOutcomes(settlements, won))
		return tx.SendBatch(ctx, batch).Close()
	})
	if err != nil {
		return 0, fmt.Errorf("settle: %w", err)
	}
	return lost, nil
}

func settledRowsOf(settlements []mail.Settlement) []settledRow {
	var rows []settledRow
	for i := range settlements {
		for j := range settlements[i].Outcomes {
			o := &settlements[i].Outcomes[j]
			rows = append(rows, settledRow{rowKey{settlements[i].Message.ID, o.RecipientNo}, o})
		}
	}
	return rows
}

func queueSettle(batch *pgx.Batch, worker *mail.WorkerID, rows []settledRow, won map[fence]bool) {
	for _, b := range byLeaf(rows, func(r settledRow) mail.QueueID { return r.id }, day) {
		c := settleColumnsOf(b.items)
		batch.Queue(fmt.Sprintf(settleRows, b.leaf),
			worker, c.ids, c.nos, c.attempts, c.states, c.nexts, c.tried, c.reports, c.reportKinds).Query(collectFences(won))
	}
}

func queueAttempts(batch *pgx.Batch, worker *mail.WorkerID, settlements []mail.Settlement) {
	for _, b := range byLeaf(settlements, func(s mail.Settlement) mail.QueueID { return s.Message.ID }, day) {
		c := attemptColumnsOf(worker, b.items)
		batch.Queue(fmt.Sprintf(insertAttempts, b.leaf), c.args()...)
	}
}

// keepOutcomes returns the settlements with only the outcomes that won, each
// once.
func keepOutcomes(settlements []mail.Settlement, won map[fence]bool) []mail.Settlement {
	var kept []mail.Settlement
	for _, st := range settlements {
		var outcomes []mail.Outcome
		for _, o := range st.Outcomes {
			f := fence{rowKey{st.Message.ID, o.RecipientNo}, o.Attempt}
			if won[f] {
				delete(won, f)
				outcomes = append(outcomes, o)
			}
		}
		if st.Outcomes = outcomes; len(outcomes) > 0 {
			kept = append(kept, st)
		}
	}
	return kept
}

// markTwice marks the history of recipients that were relayed although
// somebody else has them now: they may be, or have been, relayed twice.
func (s *Store) markTwice(ctx context.Context, rows []settledRow, won map[fence]bool) error {
	const q = `UPDATE attempts a SET uncertain = true
FROM unnest($1::uuid[], $2::integer[], $3::integer[]) AS t (queue_id, recipient_no, attempt)
WHERE a.queue_id = t.queue_id AND a.attempt = t.attempt AND t.recipient_no = ANY (a.recipient_nos) AND a.action = 'relayed'`
	var c columns
	for _, r := range rows {
		if r.outcome.Action == mail.Relayed && !won[fence{r.rowKey, r.outcome.Attempt}] {
			c.ids = append(c.ids, r.id)
			c.nos = append(c.nos, r.no)
			c.attempts = append(c.attempts, r.outcome.Attempt)
		}
	}
	if len(c.ids) == 0 {
		return nil
	}
	_, err := s.durable.Exec(ctx, q, c.ids, c.nos, c.attempts)
	return err
}

func settleColumnsOf(rows []settledRow) (c settleColumns) {
	for _, r := range rows {
		o := r.outcome
		state, next, tried, kind := string(o.Action), (*time.Time)(nil), int16(0), "final"
		if o.Action == mail.Delayed {
			state, next, kind = "queued", &o.NextAttemptAt, "delay"
			if !o.Untried {
				tried = 1
			}
		}
		c.ids = append(c.ids, r.id)
		c.nos = append(c.nos, r.no)
		c.attempts = append(c.attempts, o.Attempt)
		c.states = append(c.states, state)
		c.nexts = append(c.nexts, next)
		c.tried = append(c.tried, tried)
		c.reports = append(c.reports, timeOrNull(o.ReportAt))
		c.reportKinds = append(c.reportKinds, kind)
	}
	return c
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

const insertAttempts = `INSERT INTO attempts_%s (queue_id, recipient_nos, attempt, action, phase, status, reply_code, uncertain, untried,
    worker_id, started_at, duration, next_attempt_at, reply, host, remote, local, tls, site, source)
SELECT t.queue_id, t.recipient_nos::integer[], t.attempt, t.action, t.phase, t.status, t.reply_code, t.uncertain, t.untried,
    $1, t.started_at, t.microseconds * interval '1 microsecond', t.next_attempt_at, t.reply, t.host, t.remote, t.local, t.tls, t.site, t.source
FROM unnest($2::uuid[], $3::text[], $4::integer[], $5::text[], $6::text[], $7::text[], $8::smallint[], $9::boolean[], $10::boolean[],
    $11::timestamptz[], $12::bigint[], $13::timestamptz[], $14::text[], $15::text[], $16::text[], $17::text[], $18::text[], $19::text[], $20::text[])
    AS t (queue_id, recipient_nos, attempt, action, phase, status, reply_code, uncertain, untried,
          started_at, microseconds, next_attempt_at, reply, host, remote, local, tls, site, source)`

// attemptColumns are the arrays of insertAttempts.
type attemptColumns struct {
	worker                          *mail.WorkerID
	ids                             []mail.QueueID
	recipientNos                    []string
	attempts                        []int32
	actions, phases, statuses       []string
	replyCodes                      []int16
	uncertain, untried              []bool
	startedAt                       []time.Time
	microseconds                    []int64
	nexts                           []*time.Time
	replies, hosts, remotes, locals []string
	tls, sites, sources             []string
}

func (c *attemptColumns) args() []any {
	return []any{c.worker, c.ids, c.recipientNos, c.attempts, c.actions, c.phases, c.statuses, c.replyCodes, c.uncertain, c.untried,
		c.startedAt, c.microseconds, c.nexts, c.replies, c.hosts, c.remotes, c.locals, c.tls, c.sites, c.sources}
}

// maxReplyBytes bounds the text of a remote reply in the history.
const maxReplyBytes = 2000

// attemptColumnsOf makes one history row for the recipients of a settlement
// that were treated alike.
func attemptColumnsOf(worker *mail.WorkerID, settlements []mail.Settlement) *attemptColumns {
	c := &attemptColumns{worker: worker}
	for i := range settlements {
		st := &settlements[i]
		t := &st.Transaction
		for j := 0; j < len(st.Outcomes); {
			o := &st.Outcomes[j]
			var nos strings.Builder
			nos.WriteByte('{')
			k := j
			for ; k < len(st.Outcomes) && alike(o, &st.Outcomes[k]); k++ {
				if k > j {
					nos.WriteByte(',')
				}
				nos.WriteString(strconv.Itoa(int(st.Outcomes[k].RecipientNo)))
			}
			nos.WriteByte('}')
			j = k
			c.ids = append(c.ids, st.Message.ID)
			c.recipientNos = append(c.recipientNos, nos.String())
			c.attempts = append(c.attempts, o.Attempt)
			c.actions = append(c.actions, string(o.Action))
			c.phases = append(c.phases, string(o.Phase))
			c.statuses = append(c.statuses, statusText(o.Status))
			c.replyCodes = append(c.replyCodes, int16(o.Reply.Code))
			c.uncertain = append(c.uncertain, o.Uncertain)
			c.untried = append(c.untried, o.Untried)
			c.startedAt = append(c.startedAt, t.StartedAt)
			c.microseconds = append(c.microseconds, t.Duration.Microseconds())
			c.nexts = append(c.nexts, timeOrNull(o.NextAttemptAt))
			c.replies = append(c.replies, validText(replyText(o.Reply), maxReplyBytes))
			c.hosts = append(c.hosts, validText(t.Host, 255))
			if t.Remote.IsValid() {
				c.remotes = append(c.remotes, t.Remote.String())
			} else {
				c.remotes = append(c.remotes, "")
			}
			if t.Local.IsValid() {
				c.locals = append(c.locals, t.Local.String())
			} else {
				c.locals = append(c.locals, "")
			}
			c.tls = append(c.tls, t.TLS)
			c.sites = append(c.sites, string(t.Site))
			c.sources = append(c.sources, t.Source)
		}
	}
	return c
}

func alike(a, b *mail.Outcome) bool {
	if a == b {
		return true
	}
	return a.Attempt == b.Attempt && a.Action == b.Action && a.Status == b.Status && a.Phase == b.Phase &&
		a.Uncertain == b.Uncertain && a.Untried == b.Untried && a.NextAttemptAt.Equal(b.NextAttemptAt) &&
		a.Reply.Code == b.Reply.Code && a.Reply.Text() == b.Reply.Text()
}

func statusText(c mail.EnhancedCode) string {
	if c.IsZero() {
		return ""
	}
	return c.String()
}

// replyText is what the remote host wrote behind the reply code, or what we
// say where it said nothing.
func replyText(r mail.Reply) string {
	if r.Enhanced.IsZero() {
		return r.Text()
	}
	return r.Enhanced.String() + " " + r.Text()
}

// validText makes text of the outside world fit for a text column: bounded,
// valid UTF-8, without NUL.
func validText(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
