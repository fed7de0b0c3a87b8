package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postrider/postrider/pkg/mail"
)

const (
	// ChunkBytes is the size of a stored chunk of content. Content up to one
	// chunk is read with the claim; larger content is streamed.
	ChunkBytes = 256 << 10

	// Rearm is how long a hint may stay without a claim before the scheduler
	// looks whether it was lost.
	Rearm = 5 * time.Second
)

// PartialError says which submissions of a group were not accepted: those
// with a non-nil error. The others are durable.
type PartialError struct{ Errors []error }

// Error names all failures.
func (e *PartialError) Error() string { return errors.Join(e.Errors...).Error() }

// Unwrap returns the failures.
func (e *PartialError) Unwrap() []error { return e.Errors }

// Accept makes a group of submissions durable in one transaction. When it
// returns nil, or a *PartialError without an error for a submission, the
// commit of that submission is on disk. Any other error leaves the group
// unaccepted, or, if the connection broke at the commit, unknown: the caller
// must answer with a temporary failure.
//
// A submission whose values Postgres refuses does not take the others with
// it: the group is then accepted one by one. What a submission has in With is
// accepted with it or not at all.
//
// Of a submission with an idempotency key the error may be a *RepeatError,
// ErrKeyBusy or ErrKeyReused. The key is taken in the same transaction.
func (s *Store) Accept(ctx context.Context, group []*mail.Submission) error {
	err := s.acceptGroup(ctx, group)
	if err == nil || !aboutData(err) || len(group) == 1 {
		return err
	}
	partial := &PartialError{Errors: make([]error, len(group))}
	failed := false
	for i := range group {
		if partial.Errors[i] = s.acceptGroup(ctx, group[i:i+1]); partial.Errors[i] != nil {
			failed = true
		}
	}
	if failed {
		return partial
	}
	return nil
}

func (s *Store) acceptGroup(ctx context.Context, group []*mail.Submission) error {
	accept := s.acceptPlain
	if withKeys(group) {
		accept = s.acceptWithKeys
	}
	err := accept(ctx, group)
	if hasCode(err, undefinedTable) {
		// The scheduler makes partitions ahead of time. Without one for a
		// day, we make ours.
		for _, sub := range group {
			if err := s.EnsurePartitions(ctx, sub.ID.Time(), sub.ID.Time()); err != nil {
				return fmt.Errorf("accept: %w", err)
			}
			for _, with := range sub.With {
				if err := s.EnsurePartitions(ctx, with.ID.Time(), with.ID.Time()); err != nil {
					return fmt.Errorf("accept: %w", err)
				}
			}
		}
		err = accept(ctx, group)
	}
	if errors.Is(err, errTooLate) && ctx.Err() == nil { // by a clock that was set since we saw it
		err = accept(ctx, group)
	}
	var partial *PartialError
	if err != nil && !errors.As(err, &partial) {
		return fmt.Errorf("accept %d messages: %w", len(group), err)
	}
	return err
}

// acceptPlain is the hot path: one write, one wait.
func (s *Store) acceptPlain(ctx context.Context, group []*mail.Submission) error {
	x := newExchange()
	defer x.free()
	x.accept(group)
	if err := s.inTime(ctx, x); err != nil {
		return err
	}
	return s.late(x.run(ctx, s.durable))
}

// acceptWithKeys takes the keys of a group first: three more round trips.
func (s *Store) acceptWithKeys(ctx context.Context, group []*mail.Submission) error {
	var errs []error
	err := inTx(ctx, s.durable, func(tx pgx.Tx) error {
		fresh, refused, err := takeKeys(ctx, tx, group)
		errs = refused
		if err != nil || len(fresh) == 0 {
			return err
		}
		x := newExchange()
		defer x.free()
		x.accept(fresh)
		if err := s.inTime(ctx, x); err != nil {
			return err
		}
		return s.late(x.within(ctx, tx.Conn()))
	})
	if err == nil && errors.Join(errs...) != nil {
		return &PartialError{Errors: errs}
	}
	return err
}

// onConn runs f on a connection of the pool, and on another one as long as f
// says that a dead one was all that was wrong.
func onConn(ctx context.Context, pool *pgxpool.Pool, f func(context.Context, *pgx.Conn) error) error {
	for {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return err
		}
		err = f(ctx, conn.Conn())
		conn.Release()
		if !errors.Is(err, errNotSent) || ctx.Err() != nil {
			return err
		}
	}
}

// errNotSent says that a connection was dead before anything was sent.
var errNotSent = errors.New("nothing was sent")

// roundTrip writes messages that end in one that Postgres answers with
// ReadyForQuery, and reads all answers: it hands over each row, with the number
// of the statement that it is a result of. It talks to Postgres below pgx. A
// broken connection is closed, so that its pool drops it.
func roundTrip(ctx context.Context, pg *pgconn.PgConn, messages []byte, row func(statement int, fields [][]byte)) error {
	broken := func(err error) error {
		pg.Conn().Close()
		closeCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		cancel()
		pg.Close(closeCtx) // already done, says what is left to say to its pool
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	stop := context.AfterFunc(ctx, func() { pg.Conn().SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // a closed connection fails below
	defer stop()
	if n, err := pg.Conn().Write(messages); err != nil {
		if n == 0 {
			err = fmt.Errorf("%w: %w", errNotSent, err)
		}
		return broken(err)
	}
	var failure error
	for statement := 0; ; {
		msg, err := pg.Frontend().Receive()
		if err != nil {
			return broken(err)
		}
		switch msg := msg.(type) {
		case *pgproto3.DataRow:
			row(statement, msg.Values)
		case *pgproto3.CommandComplete:
			statement++
		case *pgproto3.ErrorResponse:
			if failure == nil {
				failure = pgconn.ErrorResponseToPgError(msg)
			}
		case *pgproto3.ReadyForQuery:
			if !stop() {
				return broken(ctx.Err()) // the deadline may have been set: do not use the connection again
			}
			if failure != nil && msg.TxStatus != 'I' {
				if _, err := pg.Exec(ctx, "ROLLBACK").ReadAll(); err != nil {
					return broken(err)
				}
			}
			return failure
		}
	}
}

// accept adds the rows of a group: one COPY for each table and leaf.
func (x *exchange) accept(group []*mail.Submission) {
	for _, sub := range group {
		if len(sub.With) > 0 {
			group = append(group[:len(group):len(group)], sub.With...)
		}
	}
	id := func(sub *mail.Submission) mail.QueueID { return sub.ID }
	for _, b := range byLeaf(group, id, hour) { // an hour lies within a day
		today := day(b.items[0].ID)
		x.copyIn("messages_"+today, fmt.Sprintf(copyMessages, today), func() {
			for _, sub := range b.items {
				appendMessage(&x.copyMessage, sub)
			}
		})
		x.copyIn("recipients_"+today, fmt.Sprintf(copyRecipients, today), func() {
			for _, sub := range b.items {
				for i := range sub.Recipients {
					appendRecipient(&x.copyMessage, sub, &sub.Recipients[i])
				}
			}
		})
		x.copyIn("contents_"+b.leaf, fmt.Sprintf(copyContents, b.leaf), func() {
			for _, sub := range b.items {
				appendContent(&x.copyMessage, sub)
			}
		})
	}
	if notices := withNotices(group); len(notices) > 0 {
		x.copyIn("notices", copyNotices, func() {
			for _, sub := range notices {
				appendNotice(&x.copyMessage, sub)
			}
		})
	}
}

const copyMessages = `COPY messages_%s (queue_id, accepted_at, recipient_count, size_bytes, priority, smtputf8, report_of,
reverse_path, tenant, body_type, ret, envid, traceparent, message_id, client_address, client_hello, protocol,
campaign, require_tls, tls_optional, deliver_by, deliver_by_mode, trust) FROM STDIN BINARY`

func appendMessage(c *copyMessage, sub *mail.Submission) {
	c.row(23)
	c.uuid(sub.ID)
	c.time(sub.AcceptedAt)
	c.int4(int32(len(sub.Recipients)))
	c.int8(sub.SizeBytes)
	c.int2(sub.Priority)
	c.bool(sub.Envelope.SMTPUTF8)
	if sub.ReportOf.IsZero() {
		c.null()
	} else {
		c.uuid(sub.ReportOf)
	}
	c.text(string(sub.Envelope.ReversePath))
	c.text(sub.Tenant)
	c.text(string(sub.Envelope.Body))
	c.text(string(sub.Envelope.Ret))
	c.text(sub.Envelope.EnvID)
	c.text(sub.Traceparent)
	c.text(sub.HeaderID)
	if sub.Client.Address.IsValid() {
		c.text(sub.Client.Address.String())
	} else {
		c.text("")
	}
	c.text(sub.Client.Hello)
	c.text(sub.Client.Protocol)
	c.text(sub.Campaign)
	c.bool(sub.Envelope.RequireTLS)
	c.bool(sub.TLSOptional)
	if by := sub.Envelope.DeliverBy; by.At.IsZero() {
		c.null()
		c.text("")
	} else {
		c.time(by.At)
		c.text(deliverByMode(by))
	}
	c.text(sub.Client.Trust)
}

// deliverByMode is the mode as RFC 2852 §4 writes it.
func deliverByMode(by mail.DeliverBy) string {
	mode := "N"
	if by.Return {
		mode = "R"
	}
	if by.Trace {
		mode += "T"
	}
	return mode
}

// Recipients are inserted armed: if the hint is never published, the
// scheduler rings when next_attempt_at has come. No hint is published for
// those that are held until later.
const copyRecipients = `COPY recipients_%s (queue_id, recipient_no, next_attempt_at, expires_at, priority, notify, rung,
domain, forward_path, orcpt) FROM STDIN BINARY`

func appendRecipient(c *copyMessage, sub *mail.Submission, r *mail.Recipient) {
	c.row(10)
	c.uuid(sub.ID)
	c.int4(r.No)
	if sub.Held() {
		c.time(sub.ReleaseAt)
	} else {
		c.time(sub.AcceptedAt.Add(Rearm))
	}
	c.time(r.ExpiresAt)
	c.int2(sub.Priority)
	c.int2(int16(r.Notify))
	c.bool(!sub.Held())
	c.text(string(r.Domain))
	c.text(string(r.ForwardPath))
	c.text(r.ORCPT)
}

// copyNotices plans what RFC 2852 §4 has in mode N: the sender is told at the
// time of BY of what has not left by then.
const copyNotices = `COPY reports (queue_id, kind, due_at) FROM STDIN BINARY`

func withNotices(group []*mail.Submission) (notices []*mail.Submission) {
	for _, sub := range group {
		by := sub.Envelope.DeliverBy
		if by.Notice() && by.At.After(sub.AcceptedAt) && !sub.Envelope.ReversePath.IsNull() {
			notices = append(notices, sub)
		}
	}
	return notices
}

func appendNotice(c *copyMessage, sub *mail.Submission) {
	c.row(3)
	c.uuid(sub.ID)
	c.text("delay")
	c.time(sub.Envelope.DeliverBy.At)
}

const copyContents = `COPY contents_%s (queue_id, chunk_no, content) FROM STDIN BINARY`

func appendContent(c *copyMessage, sub *mail.Submission) {
	for no, content := int32(0), sub.Content; len(content) > 0; no++ {
		n := min(len(content), ChunkBytes)
		c.row(3)
		c.uuid(sub.ID)
		c.int4(no)
		c.bytes(content[:n])
		content = content[n:]
	}
}

// AcceptStream makes one submission durable whose content is too large to
// hold: it is read from content chunk by chunk, in a transaction of its own.
// Memory: one chunk. It sets sub.SizeBytes. Everything else of sub but its ID
// is looked at after content has ended, so content may fill it in. An error of
// content rolls everything back and is returned. Of a submission with an
// idempotency key the error may be as of Accept.
func (s *Store) AcceptStream(ctx context.Context, sub *mail.Submission, content io.Reader) error {
	// The content can be read once, so a missing partition is made before.
	if err := s.EnsurePartitions(ctx, sub.ID.Time(), sub.ID.Time()); err != nil {
		return fmt.Errorf("accept %s: %w", sub.ID, err)
	}
	err := inTx(ctx, s.durable, func(tx pgx.Tx) error {
		var err error
		if sub.SizeBytes, err = insertChunks(ctx, tx, sub.ID, content); err != nil {
			return err
		}
		if err := takeKey(ctx, tx, sub); err != nil {
			return err
		}
		return acceptInTx(ctx, tx, sub)
	})
	if err != nil {
		return fmt.Errorf("accept %s: %w", sub.ID, err)
	}
	return nil
}

func insertChunks(ctx context.Context, tx pgx.Tx, id mail.QueueID, content io.Reader) (size int64, err error) {
	q := `INSERT INTO contents_` + hour(id) + ` (queue_id, chunk_no, content) VALUES ($1, $2, $3)`
	chunk := make([]byte, ChunkBytes)
	for no := int32(0); ; no++ {
		n, err := fill(content, chunk)
		if err != nil {
			return size, err
		}
		if n > 0 {
			if _, err := tx.Exec(ctx, q, id, no, chunk[:n]); err != nil {
				return size, err
			}
			size += int64(n)
		}
		if n < len(chunk) {
			return size, nil
		}
	}
}

// fill reads until chunk is full or content ends. io.ReadFull would not let
// us tell content that ended from content that broke off.
func fill(content io.Reader, chunk []byte) (n int, err error) {
	for n < len(chunk) {
		m, err := content.Read(chunk[n:])
		n += m
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// acceptInTx accepts a submission as part of a larger transaction.
func acceptInTx(ctx context.Context, tx pgx.Tx, sub *mail.Submission) error {
	x := newExchange()
	defer x.free()
	x.accept([]*mail.Submission{sub})
	return x.within(ctx, tx.Conn())
}
