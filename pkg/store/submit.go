package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// AnnounceHostname says what this mail system is called, for Received and
// Message-ID of what is submitted by SQL. A name that an operator has set
// counts more.
func (s *Store) AnnounceHostname(ctx context.Context, hostname string) error {
	if _, err := s.plain.Exec(ctx, `SELECT postrider.announce_hostname($1)`, hostname); err != nil {
		return fmt.Errorf("announce hostname: %w", err)
	}
	return nil
}

// No rows are locked before they are deleted: a scheduler may delete here and
// not change. Of two that want the same rows the second finds them gone.
const takeSubmitted = `WITH seen AS (
    DELETE FROM submitted
    WHERE queue_id IN (SELECT queue_id FROM submitted LIMIT $1)
    RETURNING queue_id)
SELECT m.queue_id, m.accepted_at, m.reverse_path, m.recipient_count, m.size_bytes, m.tenant, m.traceparent, m.message_id, m.client_hello, m.protocol
FROM seen
JOIN messages m ON m.queue_id = seen.queue_id`

// TakeSubmitted returns up to limit messages that were accepted by SQL and not
// returned before, with what their log line and their trace need; of the
// recipients only their number. Each is returned once, also when the caller
// dies.
func (s *Store) TakeSubmitted(ctx context.Context, limit int) ([]*mail.Submission, error) {
	rows, err := s.plain.Query(ctx, takeSubmitted, limit)
	if err != nil {
		return nil, fmt.Errorf("take submitted: %w", err)
	}
	subs, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*mail.Submission, error) {
		m := &mail.Submission{}
		var count int32
		err := row.Scan(&m.ID, &m.AcceptedAt, &m.Envelope.ReversePath, &count, &m.SizeBytes, &m.Tenant, &m.Traceparent, &m.HeaderID, &m.Client.Hello, &m.Client.Protocol)
		m.Recipients = make([]mail.Recipient, count)
		return m, err
	})
	if err != nil {
		return nil, fmt.Errorf("take submitted: %w", err)
	}
	return subs, nil
}

// SetTraceparents keeps the trace of each message for those who deliver it.
func (s *Store) SetTraceparents(ctx context.Context, subs []*mail.Submission) error {
	ids, traces := make([]mail.QueueID, len(subs)), make([]string, len(subs))
	for i, sub := range subs {
		ids[i], traces[i] = sub.ID, sub.Traceparent
	}
	const q = `UPDATE messages m SET traceparent = t.traceparent
FROM unnest($1::uuid[], $2::text[]) t (queue_id, traceparent)
WHERE m.queue_id = t.queue_id`
	if _, err := s.plain.Exec(ctx, q, ids, traces); err != nil {
		return fmt.Errorf("set traceparents: %w", err)
	}
	return nil
}
