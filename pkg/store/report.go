package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// ReportKind says what a DSN is about.
type ReportKind string

// The kinds of report. One message may need several at once.
const (
	ReportFailure ReportKind = "failure" // failed or expired recipients
	ReportDelay   ReportKind = "delay"   // recipients still queued
	ReportSuccess ReportKind = "success" // relayed recipients that asked for it (RFC 3461 NOTIFY=SUCCESS)
)

// ReportInput is what a DSN is written from.
type ReportInput struct {
	Kind       ReportKind
	Message    mail.Message
	HeaderID   string // the Message-ID field of the original; "" if it had none
	Trust      string // what vouches for the sender: as mail.Client has it
	Recipients []ReportRecipient
	Header     []byte // header section of the original, up to 64 KiB, with its empty line; nil when the content is gone
	Content    []byte // the whole original when RET=FULL was asked and it is at most 64 KiB; else nil
}

// ReportRecipient is a recipient with what its last attempt said.
type ReportRecipient struct {
	mail.Recipient
	State         string // queued, relayed, failed, expired
	Status        string // enhanced status code; "" if there was no attempt
	Reply         mail.Reply
	Phase         mail.Phase
	Host          string // of the last attempt; "" if none was reached
	Remote        string // address:port
	LastAttemptAt time.Time
}

// maxReportContent bounds what a report reads of the original.
const maxReportContent = 64 << 10

// DueReports returns up to limit messages that may have something to report
// now, oldest first.
func (s *Store) DueReports(ctx context.Context, limit int) ([]mail.QueueID, error) {
	const q = `SELECT queue_id FROM (
    SELECT DISTINCT ON (queue_id) queue_id, due_at FROM reports WHERE due_at <= now() ORDER BY queue_id, due_at) due
ORDER BY due_at LIMIT $1`
	rows, err := s.plain.Query(ctx, q, limit)
	if err != nil {
		return nil, fmt.Errorf("due reports: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[mail.QueueID])
	if err != nil {
		return nil, fmt.Errorf("due reports: %w", err)
	}
	return ids, nil
}

// lockReports takes the work of one message. Another process that works on
// the same message has them locked: then there is nothing for us.
const lockReports = `SELECT report_id, kind FROM reports
WHERE queue_id = $1 AND due_at <= now()
ORDER BY report_id
FOR UPDATE SKIP LOCKED`

// What is to be reported is read and locked after lockReports, so a second
// process sees what the first has marked.
const reportable = `SELECT c.recipient_no, c.forward_path, c.domain, c.notify, c.orcpt, c.expires_at, c.state::text,
    coalesce(last.status, ''), coalesce(last.reply_code, 0), coalesce(last.reply, ''), coalesce(last.phase, ''),
    coalesce(last.host, ''), coalesce(last.remote, ''), coalesce(last.started_at, c.final_at, now())
FROM recipients c
LEFT JOIN LATERAL (
    SELECT a.* FROM attempts a
    WHERE a.queue_id = $1 AND c.recipient_no = ANY (a.recipient_nos) AND (a.reply_code > 0 OR a.action <> 'expired')
    ORDER BY a.started_at DESC LIMIT 1) last ON true
WHERE c.queue_id = $1
  AND CASE WHEN c.next_attempt_at IS NULL THEN NOT c.final_reported ELSE $2 AND NOT c.delay_reported END
ORDER BY c.recipient_no
FOR UPDATE OF c`

// Report writes what is to be reported of one message: it locks the
// unreported recipients, has write make a DSN for each kind of report, and
// accepts the DSNs together with the mark that they were sent, in one
// transaction: exactly once, whoever repeats it. write may return nil when
// nothing is to be sent; the mark is made all the same. It returns the DSNs
// accepted, none if there was nothing to report or another process is at it.
func (s *Store) Report(ctx context.Context, id mail.QueueID, write func(ReportInput) (*mail.Submission, error)) (sent []*mail.Submission, err error) {
	err = inTx(ctx, s.durable, func(tx pgx.Tx) error {
		var work []int64
		delay := false
		rows, err := tx.Query(ctx, lockReports, id)
		if err != nil {
			return err
		}
		var workID int64
		var kind string
		if _, err = pgx.ForEachRow(rows, []any{&workID, &kind}, func() error {
			work = append(work, workID)
			delay = delay || kind == "delay"
			return nil
		}); err != nil || len(work) == 0 {
			return err
		}
		if sent, err = s.writeReports(ctx, tx, id, delay, write); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `DELETE FROM reports WHERE report_id = ANY ($1)`, work)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("report %s: %w", id, err)
	}
	return sent, nil
}

func (s *Store) writeReports(ctx context.Context, tx pgx.Tx, id mail.QueueID, delay bool, write func(ReportInput) (*mail.Submission, error)) ([]*mail.Submission, error) {
	kinds, err := readReportable(ctx, tx, id, delay)
	if err != nil || len(kinds) == 0 {
		return nil, err
	}
	in := ReportInput{}
	const q = `SELECT m.message_id, m.trust, ` + messageColumns + ` FROM messages m WHERE m.queue_id = $1`
	err = tx.QueryRow(ctx, q, id).Scan(append([]any{&in.HeaderID, &in.Trust}, messageFields(&in.Message)...)...)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil // the message has left the history: nobody is left to tell
	}
	if err != nil {
		return nil, err
	}
	if err := readOriginal(ctx, tx, &in); err != nil {
		return nil, err
	}
	var sent []*mail.Submission
	for _, kind := range []ReportKind{ReportFailure, ReportDelay, ReportSuccess} {
		if len(kinds[kind]) == 0 {
			continue
		}
		in.Kind, in.Recipients = kind, kinds[kind]
		sub, err := write(in)
		if err != nil {
			return nil, err
		}
		if sub != nil {
			if err := acceptInTx(ctx, tx, sub); err != nil {
				return nil, err
			}
			sent = append(sent, sub)
		}
		if err := markReported(ctx, tx, id, kind, kinds[kind]); err != nil {
			return nil, err
		}
	}
	return sent, nil
}

func readReportable(ctx context.Context, tx pgx.Tx, id mail.QueueID, delay bool) (map[ReportKind][]ReportRecipient, error) {
	rows, err := tx.Query(ctx, reportable, id, delay)
	if err != nil {
		return nil, err
	}
	kinds := map[ReportKind][]ReportRecipient{}
	var r ReportRecipient
	var reply string
	_, err = pgx.ForEachRow(rows, []any{&r.No, &r.ForwardPath, &r.Domain, &r.Notify, &r.ORCPT, &r.ExpiresAt, &r.State,
		&r.Status, &r.Reply.Code, &reply, &r.Phase, &r.Host, &r.Remote, &r.LastAttemptAt}, func() error {
		r.Reply.Lines = []string{reply}
		switch r.State {
		case "failed", "expired":
			kinds[ReportFailure] = append(kinds[ReportFailure], r)
		case "relayed":
			kinds[ReportSuccess] = append(kinds[ReportSuccess], r)
		case "queued", "held":
			kinds[ReportDelay] = append(kinds[ReportDelay], r)
		}
		return nil
	})
	return kinds, err
}

// readOriginal reads the beginning of the original's content.
func readOriginal(ctx context.Context, tx pgx.Tx, in *ReportInput) error {
	var content []byte
	err := tx.QueryRow(ctx, readChunk, in.Message.ID, 0).Scan(&content)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	if in.Message.Envelope.Ret == mail.RetFull && in.Message.SizeBytes <= maxReportContent {
		in.Content = content
	}
	header := content
	if end := bytes.Index(header, []byte("\r\n\r\n")); end >= 0 {
		header = header[:end+4]
	}
	in.Header = header[:min(len(header), maxReportContent)]
	return nil
}

func markReported(ctx context.Context, tx pgx.Tx, id mail.QueueID, kind ReportKind, recipients []ReportRecipient) error {
	q := `UPDATE recipients SET final_reported = true WHERE queue_id = $1 AND recipient_no = ANY ($2)`
	if kind == ReportDelay {
		q = `UPDATE recipients SET delay_reported = true WHERE queue_id = $1 AND recipient_no = ANY ($2)`
	}
	var nos []int32
	for _, r := range recipients {
		nos = append(nos, r.No)
	}
	_, err := tx.Exec(ctx, q, id, nos)
	return err
}
