package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/postrider/postrider/pkg/mail"
)

// settledRow is one outcome on its way to its recipient.
type settledRow struct {
	rowKey
	outcome *mail.Outcome
}

// A row that is no longer the worker's is left alone: whoever has it now
// settles it. $1 is NULL for rows that nobody claimed. A row that stands as it
// did before the claim is the worker's too: a crash of Postgres forgot the
// claim, whose commit had not waited for the disk, and nobody has claimed the
// row since. A delay never goes past the expiry.
const settleRows = `UPDATE recipients_%s r
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
     WITH ORDINALITY AS t (queue_id, recipient_no, attempt, state, next_attempt_at, tried, report_at, kind, ord)
WHERE r.queue_id = t.queue_id AND r.recipient_no = t.recipient_no AND r.state = 'queued'
  AND (r.attempt = t.attempt AND r.worker_id IS NOT DISTINCT FROM $1
       OR r.attempt = t.attempt - 1 AND r.worker_id IS NULL AND $1 IS NOT NULL)
RETURNING t.ord`

// settleAndReport does the same for outcomes of which some are to be reported.
const settleAndReport = `WITH settled AS (
` + settleRows + `, r.queue_id, t.report_at, t.kind),
due AS (
    INSERT INTO reports (queue_id, kind, due_at)
    SELECT DISTINCT s.queue_id, s.kind, s.report_at FROM settled s WHERE s.report_at IS NOT NULL)
SELECT s.ord FROM settled s`

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
	x := newExchange()
	defer x.free()
	x.settle(&worker, rows, won)
	x.attempts(&worker, settlements)
	if err := x.run(ctx, s.durable); err != nil {
		return 0, fmt.Errorf("settle: %w", err)
	}
	s.held.drop(worker, len(rows), func(i int) fence { return fence{rows[i].rowKey, rows[i].outcome.Attempt} })
	if lost = len(rows) - len(won); lost > 0 {
		if err := s.markTwice(ctx, rows, won); err != nil {
			return lost, fmt.Errorf("settle: %w", err)
		}
	}
	return lost, nil
}

// Resettle is Settle for settlements of which an earlier try may have been
// committed, because its answer was lost: what was is left as it is.
func (s *Store) Resettle(ctx context.Context, worker mail.WorkerID, settlements []mail.Settlement) (lost int, err error) {
	rest, err := s.unrecorded(ctx, worker, settlements)
	if err != nil {
		return 0, fmt.Errorf("settle again: %w", err)
	}
	return s.Settle(ctx, worker, rest)
}

// unrecorded returns the settlements without the outcomes that have their line
// in the history: it is written in the transaction that changes the recipient.
func (s *Store) unrecorded(ctx context.Context, worker mail.WorkerID, settlements []mail.Settlement) ([]mail.Settlement, error) {
	var ids []mail.QueueID
	var nos, attempts []int32
	var actions []string
	var began []time.Time
	missing := map[fence]bool{}
	var all []fence
	for _, st := range settlements {
		for _, o := range st.Outcomes {
			f := fence{rowKey{st.Message.ID, o.RecipientNo}, o.Attempt}
			all, missing[f] = append(all, f), true
			ids, nos, attempts = append(ids, f.id), append(nos, f.no), append(attempts, f.attempt)
			actions, began = append(actions, string(o.Action)), append(began, st.Transaction.StartedAt)
		}
	}
	// An earlier try that is still at it has its rows locked.
	const await = `SELECT FROM recipients WHERE (queue_id, recipient_no) IN (SELECT * FROM unnest($1::uuid[], $2::integer[])) FOR SHARE`
	const recorded = `SELECT t.ord FROM unnest($2::uuid[], $3::integer[], $4::integer[], $5::text[], $6::timestamptz[])
    WITH ORDINALITY AS t (queue_id, recipient_no, attempt, action, started_at, ord)
WHERE EXISTS (SELECT FROM attempts a WHERE a.queue_id = t.queue_id AND a.attempt = t.attempt AND a.worker_id = $1
                AND a.action = t.action AND a.started_at = t.started_at AND t.recipient_no = ANY (a.recipient_nos))`
	if _, err := s.plain.Exec(ctx, await, ids, nos); err != nil {
		return nil, err
	}
	rows, err := s.plain.Query(ctx, recorded, worker, ids, nos, attempts, actions, began)
	if err != nil {
		return nil, err
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, err
	}
	for _, ord := range found {
		delete(missing, all[ord-1])
	}
	s.held.drop(worker, len(found), func(i int) fence { return all[found[i]-1] })
	return keepOutcomes(settlements, missing), nil
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
		x := newExchange()
		x.settle(nil, rows, won)
		if err := x.within(ctx, tx.Conn()); err != nil {
			return err
		}
		x.free()
		lost = len(rows) - len(won)
		x = newExchange()
		defer x.free()
		x.attempts(nil, keepOutcomes(settlements, won))
		return x.within(ctx, tx.Conn())
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

// settle adds the statements that record outcomes. Those that count get into
// won.
func (x *exchange) settle(worker *mail.WorkerID, rows []settledRow, won map[fence]bool) {
	for _, b := range byLeaf(rows, func(r settledRow) mail.QueueID { return r.id }, day) {
		rows := b.items
		wins := func(fields [][]byte) {
			r := &rows[ordinal(fields[0])]
			won[fence{r.rowKey, r.outcome.Attempt}] = true
		}
		st := hotStatement{"settle_" + b.leaf, fmt.Sprintf(settleRows, b.leaf), wins}
		if slices.ContainsFunc(rows, func(r settledRow) bool { return !r.outcome.ReportAt.IsZero() }) {
			st = hotStatement{"settle_and_report_" + b.leaf, fmt.Sprintf(settleAndReport, b.leaf), wins}
		}
		x.call(st, 9, func() { x.settled(worker, rows) })
	}
}

// settled appends the parameters of settleRows.
func (x *exchange) settled(worker *mail.WorkerID, rows []settledRow) {
	n := len(rows)
	delayed := func(i int) bool { return rows[i].outcome.Action == mail.Delayed }
	x.worker(worker)
	x.ids(n, func(i int) mail.QueueID { return rows[i].id })
	x.int4s(n, func(i int) int32 { return rows[i].no })
	x.int4s(n, func(i int) int32 { return rows[i].outcome.Attempt })
	x.texts(n, func(i int) string {
		if delayed(i) {
			return "queued"
		}
		return string(rows[i].outcome.Action)
	})
	x.array(pgtype.TimestamptzOID, n, func(i int) {
		if delayed(i) {
			x.time(rows[i].outcome.NextAttemptAt)
		} else {
			x.null()
		}
	})
	x.array(pgtype.Int2OID, n, func(i int) {
		tried := int16(0)
		if delayed(i) && !rows[i].outcome.Untried {
			tried = 1
		}
		x.int2(tried)
	})
	x.array(pgtype.TimestamptzOID, n, func(i int) { x.timeOrNull(rows[i].outcome.ReportAt) })
	x.texts(n, func(i int) string {
		if delayed(i) {
			return "delay"
		}
		return "final"
	})
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
	var ids []mail.QueueID
	var nos, attempts []int32
	for _, r := range rows {
		if r.outcome.Action == mail.Relayed && !won[fence{r.rowKey, r.outcome.Attempt}] {
			ids = append(ids, r.id)
			nos = append(nos, r.no)
			attempts = append(attempts, r.outcome.Attempt)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	_, err := s.durable.Exec(ctx, q, ids, nos, attempts)
	return err
}

const copyAttempts = `COPY attempts_%s (queue_id, recipient_nos, attempt, action, phase, status, reply_code, uncertain, untried,
    worker_id, started_at, duration, next_attempt_at, reply, host, remote, local, tls, site, source) FROM STDIN BINARY`

// attempts adds the history of settlements.
func (x *exchange) attempts(worker *mail.WorkerID, settlements []mail.Settlement) {
	for _, b := range byLeaf(settlements, func(s mail.Settlement) mail.QueueID { return s.Message.ID }, day) {
		x.copyIn("attempts_"+b.leaf, fmt.Sprintf(copyAttempts, b.leaf), func() {
			for i := range b.items {
				x.history(worker, &b.items[i])
			}
		})
	}
}

// maxReplyBytes bounds the text of a remote reply in the history.
const maxReplyBytes = 2000

// history appends one row for the recipients of a settlement that were treated
// alike.
func (x *exchange) history(worker *mail.WorkerID, st *mail.Settlement) {
	for rest := st.Outcomes; len(rest) > 0; {
		n := 1
		for n < len(rest) && alike(&rest[0], &rest[n]) {
			n++
		}
		x.attempt(worker, st, rest[:n])
		rest = rest[n:]
	}
}

func (x *exchange) attempt(worker *mail.WorkerID, st *mail.Settlement, outcomes []mail.Outcome) {
	o, t := &outcomes[0], &st.Transaction
	x.row(20)
	x.uuid(st.Message.ID)
	x.int4s(len(outcomes), func(i int) int32 { return outcomes[i].RecipientNo })
	x.int4(o.Attempt)
	x.text(string(o.Action))
	x.text(string(o.Phase))
	x.text(statusText(o.Status))
	x.int2(int16(o.Reply.Code))
	x.bool(o.Uncertain)
	x.bool(o.Untried)
	x.worker(worker)
	x.time(t.StartedAt)
	x.interval(t.Duration)
	x.timeOrNull(o.NextAttemptAt)
	x.text(validText(replyText(o.Reply), maxReplyBytes))
	x.text(validText(t.Host, 255))
	x.address(t.Remote)
	x.address(t.Local)
	x.text(t.TLS)
	x.text(string(t.Site))
	x.text(t.Source)
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
