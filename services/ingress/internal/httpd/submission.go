package httpd

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/telemetry"
)

// largeContent is from where content is not put into a group.
const largeContent = 1 << 20

// turnWait is how long a large message waits for its turn.
const turnWait = 10 * time.Second

// submission is a mail.Submission with its span.
type submission struct {
	mail.Submission
	span trace.Span
}

func (a address) path() mail.ReversePath { return mail.ReversePath(a.text) }

// submission makes one from an envelope and recipients.
func (q *request) submission(e envelope, recipients []address) *submission {
	parent := telemetry.Continue(context.Background(), cmp.Or(q.http.Header.Get("Traceparent"), e.traceparent))
	ctx, span := q.s.tracer.Start(parent, "ingress.accept", trace.WithTimestamp(q.began), trace.WithSpanKind(trace.SpanKindServer))
	sub := &submission{span: span, Submission: mail.Submission{
		Message: mail.Message{
			ID:          mail.NewQueueID(),
			Envelope:    mail.Envelope{ReversePath: e.reversePath.path(), SMTPUTF8: e.reversePath.utf8, Ret: e.ret, EnvID: e.envID},
			Tenant:      q.id.Tenant,
			Campaign:    e.campaign,
			Priority:    q.id.Priority + e.priority,
			AcceptedAt:  time.Now().UTC(),
			Traceparent: telemetry.Traceparent(ctx),
		},
		Client: mail.Client{Address: client(q.http), Protocol: "HTTP", Trust: string(q.id.Method)},
	}}
	release := sub.AcceptedAt
	if e.sendAt.After(release) {
		release = e.sendAt.UTC()
		sub.ReleaseAt = release
	}
	for i, a := range recipients {
		lifetime := q.s.cfg.Lifetime(a.domain)
		if sub.Envelope.ReversePath.IsNull() {
			lifetime = min(lifetime, q.s.cfg.ReportLifetime)
		}
		expires := release.Add(lifetime)
		if !e.expiresAt.IsZero() && e.expiresAt.Before(expires) {
			expires = e.expiresAt.UTC()
		}
		sub.Recipients = append(sub.Recipients, mail.Recipient{
			No: int32(i) + 1, ForwardPath: mail.ForwardPath(a.text), Domain: a.domain, Notify: e.notify, ExpiresAt: expires,
		})
		sub.Envelope.SMTPUTF8 = sub.Envelope.SMTPUTF8 || a.utf8
	}
	if span.IsRecording() {
		span.SetAttributes(attribute.String("queue_id", sub.ID.String()), attribute.Int("recipients", len(recipients)), attribute.String("protocol", "HTTP"))
	}
	return sub
}

// needsUTF8 says that the header section is not ASCII: RFC 6532. Such content
// has 8-bit octets, too.
func (s *submission) needsUTF8(header bool) {
	if header {
		s.Envelope.SMTPUTF8 = true
		s.Envelope.Body = mail.Body8BitMIME
	}
}

// appendReceived appends our trace field. A recipient is named only when it is
// the only one: RFC 5321 §7.2. The client is not named: its address says
// where an application runs, and concerns nobody else.
func (s *Server) appendReceived(dst []byte, sub *submission) []byte {
	dst = append(dst, "Received: by "+s.cfg.Hostname+" with HTTP id "+sub.ID.String()...)
	if len(sub.Recipients) == 1 {
		dst = append(dst, "\r\n\tfor "+sub.Recipients[0].ForwardPath.String()...)
	}
	dst = append(dst, ";\r\n\t"...)
	dst = sub.AcceptedAt.AppendFormat(dst, time.RFC1123Z)
	return append(dst, "\r\n"...)
}

// accept has the messages of a request accepted, all or none.
func (q *request) accept(messages []*submission, fingerprint []byte) (*result, error) {
	head := messages[0]
	receipt := q.finish(messages)
	if q.key != "" {
		head.IdempotencyKey, head.Fingerprint, head.Receipt = q.key, fingerprint, receipt
	}
	for _, m := range messages[1:] {
		head.With = append(head.With, &m.Submission)
	}
	if len(messages) == 1 && len(head.Content) > largeContent {
		content := head.Content
		head.Content = nil
		return q.conclude(messages, receipt, func() error { return q.stream(head, bytes.NewReader(content)) })
	}
	return q.conclude(messages, receipt, func() error {
		seat := q.s.committer.Seat()
		defer seat.Leave()
		return seat.Accept(&head.Submission)
	})
}

// finish writes what the client is told.
func (q *request) finish(messages []*submission) []byte {
	r := Receipt{}
	for _, m := range messages {
		a := Accepted{ID: m.ID.String(), MessageID: m.HeaderID}
		for i := range m.Recipients {
			a.Recipients = append(a.Recipients, string(m.Recipients[i].ForwardPath))
		}
		r.Messages = append(r.Messages, a)
	}
	text, err := json.Marshal(r)
	if err != nil { // our own types: a bug
		panic(err)
	}
	return append(text, '\n')
}

// stream has a large message accepted in a transaction of its own, when it has
// its turn.
func (q *request) stream(sub *submission, content io.Reader) error {
	end, err := q.turn()
	if err != nil {
		return err
	}
	defer end()
	return q.s.committer.AcceptStream(q.context(), &sub.Submission, content)
}

// turn waits until a large message may be written.
func (q *request) turn() (end func(), err error) {
	ctx, cancel := context.WithTimeout(q.context(), turnWait)
	defer cancel()
	if end, err = q.s.committer.Turn(ctx); err != nil {
		return nil, errMemory
	}
	return end, nil
}

// conclude counts the messages against the quotas, has them accepted, and
// says what came of it.
func (q *request) conclude(messages []*submission, receipt []byte, accept func() error) (*result, error) {
	taken := 0
	giveBack := func() {
		for _, m := range messages[:taken] {
			q.s.keeper.GiveBack(q.id, len(m.Recipients), m.SizeBytes)
		}
	}
	recipients, bytes := 0, int64(0)
	for _, m := range messages {
		recipients, bytes = recipients+len(m.Recipients), bytes+m.SizeBytes
	}
	err := q.id.Fits(recipients, bytes) // all or none
	for _, m := range messages {
		if err != nil {
			break
		}
		if err = q.s.keeper.Take(q.context(), q.id, len(m.Recipients), m.SizeBytes); err != nil {
			break
		}
		taken++
	}
	if err == nil {
		err = accept()
	}
	for _, m := range messages {
		if err != nil {
			m.span.SetStatus(codes.Error, "not accepted")
		} else {
			telemetry.Accepted(&m.Submission)
			q.s.metrics.accepted(&m.Submission)
		}
		m.span.End()
	}
	if err == nil {
		return &result{receipt: receipt}, nil
	}
	giveBack()
	var repeat *store.RepeatError
	if errors.As(err, &repeat) {
		return &result{receipt: repeat.Receipt, replayed: true}, nil
	}
	return nil, err
}
