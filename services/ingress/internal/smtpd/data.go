package smtpd

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/telemetry"
	"github.com/postrider/postrider/services/ingress/internal/access"
	"github.com/postrider/postrider/services/ingress/internal/mend"
	"github.com/postrider/postrider/services/ingress/internal/spool"
	"github.com/postrider/postrider/services/ingress/internal/submission"
)

// turnWait is how long a large message, or one that is to be mended, waits for
// its turn. The client has sent its end and waits for the reply, where RFC 5321
// §4.5.3.2.6 makes it wait for 10 minutes.
const turnWait = time.Minute

// maxMended is the largest content that is mended: that of mend is in memory,
// whole.
const maxMended = 8 << 20

var (
	errTooLarge = errors.New("message too large")
	errLongText = errors.New("line of content too long")
	errEndless  = errors.New("content without an end")
)

// doData receives the content and has the message accepted: RFC 5321
// §4.1.1.4, §6.1.
func (s *session) doData(arguments string) {
	if arguments != "" {
		s.refuse("DATA", replyNoArguments)
		return
	}
	if refusal := s.noContent(); refusal.Code != 0 {
		s.refuse("DATA", refusal)
		return
	}
	if s.mail.args.Body == mail.BodyBinaryMIME { // RFC 3030 §3
		s.refuse("DATA", replyBinaryData)
		return
	}
	buf, ok := s.newBuffer(s.mail.args.SizeBytes)
	if !ok {
		s.refuse("DATA", replyMemory)
		return
	}
	s.wire.reply(replyGoAhead)
	if s.cfg.NormalizeNewlines {
		s.dots.ResetLenient(s.wire.in)
	} else {
		s.dots.Reset(s.wire.in)
	}
	s.take("DATA", buf, &s.dots)
}

// newBuffer returns the buffer for content of about a size, or false when the
// client has no room.
func (s *session) newBuffer(sizeBytes int64) (*spool.Buffer, bool) {
	return s.server.spool.Buffer(s.server.memory, s.client.Address, sizeBytes)
}

// noContent says why no content may come now.
func (s *session) noContent() mail.Reply {
	switch {
	case !s.mail.open:
		return replyMailFirst
	case len(s.mail.recipients) == 0: // RFC 5321 §3.3
		return replyNoValidRcpt
	}
	return mail.Reply{}
}

// take receives content, and replies to its end. The transaction is over
// then, however it ended.
func (s *session) take(verb string, buf *spool.Buffer, content io.Reader) {
	defer buf.Close()
	defer func() { s.sub = mail.Submission{} }() // it holds the recipients
	defer s.mail.clear()
	in := newIncoming(s, content)
	defer in.close()
	s.seat.Begin()
	reply, err := s.receive(buf, in)
	if err == nil && reply.Positive() {
		s.messages++
		s.tried = efforts{}
		s.wire.reply(reply)
		return
	}
	s.seat.Leave()
	switch {
	case err == nil:
		s.refuse(verb, reply)
	case errors.Is(err, errInterrupted): // the next command is there already
	case errors.Is(err, errEndless):
		s.refuse(verb, reply)
		s.over = true
	default:
		s.broken(err)
	}
}

// incoming is the content of one message on its way in.
type incoming struct {
	s       *session
	content io.Reader // ends with io.EOF or smtp.ErrBareNewline
	lines   io.Reader // content, with the line ends that are relayed
	began   time.Time
	due     time.Time // when the next octets must be there
	size    int64
	line    int   // octets of the line so far
	maxLine int   // of a line with its CR; 0 is no limit
	long    bool  // there was a longer one
	err     error // how it ended: one of these, errTooLarge, or why not
}

func newIncoming(s *session, content io.Reader) *incoming {
	now := time.Now()
	in := &incoming{s: s, content: content, lines: content, began: now, due: now.Add(s.cfg.IdleTimeout)}
	if s.cfg.NormalizeNewlines && s.mail.args.Body != mail.BodyBinaryMIME {
		in.lines = smtp.NewNewlineReader(content)
	}
	if limit := s.cfg.MaxLine; limit > 0 && s.mail.args.Body != mail.BodyBinaryMIME {
		in.maxLine = limit + len("\r")
	}
	in.renew(0)
	return in
}

// renew moves the deadline on by what n octets have earned, at most to one
// idle timeout from now: a client that sends slower than the least rate is cut
// off, however steadily it sends and however fast it began. RFC 5321
// §4.5.3.2.5 lets it pause for 3 minutes. So content is here at the latest
// after one idle timeout and its size at the least rate.
func (in *incoming) renew(n int) {
	cfg := in.s.cfg
	most := time.Now().Add(cfg.IdleTimeout)
	in.due = in.due.Add(time.Duration(float64(n) / float64(cfg.MinDataRate) * float64(time.Second)))
	if in.due.After(most) {
		in.due = most
	}
	in.s.wire.setDataDeadline(in.due)
}

func (in *incoming) close() { in.s.wire.setDataDeadline(time.Time{}) }

// Read reads content up to the largest message that is taken.
func (in *incoming) Read(p []byte) (int, error) {
	if in.err != nil {
		return 0, in.err
	}
	n, err := in.lines.Read(p)
	in.size += int64(n)
	in.renew(n)
	if err == nil && in.size > in.s.cfg.MaxMessageBytes {
		err = errTooLarge
	}
	if in.measure(p[:n]); errors.Is(err, io.EOF) {
		// The last line of chunks need not end: who relays it ends it.
		in.long = in.long || in.maxLine > 0 && in.line == in.maxLine
		if in.long {
			err = errLongText
		}
	}
	in.err = err
	return n, err
}

// measure looks for a line over the limit: RFC 5321 §4.5.3.1.6. It tells at
// the end, so that the reply does not depend on how the content was cut.
func (in *incoming) measure(p []byte) {
	for in.maxLine > 0 && !in.long {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			in.line += len(p)
			in.long = in.line > in.maxLine
			return
		}
		in.long = in.line+i > in.maxLine
		in.line, p = 0, p[i+1:]
	}
}

// refuse passes over the rest of the content, so that the reply is the reply
// to its end. Content of twice the largest message ends the session.
func (in *incoming) refuse(reply mail.Reply) (mail.Reply, error) {
	if c, ok := in.content.(*chunks); ok {
		c.refusal = reply
	}
	end := in.s.discardable()
	scratch := make([]byte, readBuffer)
	for in.size < end {
		n, err := in.content.Read(scratch)
		in.size += int64(n)
		in.renew(n)
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), errors.Is(err, smtp.ErrBareNewline):
			return reply, nil
		default:
			return mail.Reply{}, err
		}
	}
	return reply, errEndless
}

// verdict returns the reply to content that cannot be taken, or the error that
// it broke off with.
func (in *incoming) verdict() (mail.Reply, error) {
	switch {
	case errors.Is(in.err, smtp.ErrBareNewline):
		return replyBareNewline, nil
	case errors.Is(in.err, errTooLarge):
		return in.refuse(replyTooLarge)
	case errors.Is(in.err, errLongText):
		return replyLongText, nil
	}
	return mail.Reply{}, in.err
}

// receive reads content into the buffer and returns the reply to the message.
// An error means that the end of the content was not seen.
func (s *session) receive(buf *spool.Buffer, in *incoming) (mail.Reply, error) {
	for {
		if len(buf.Free()) == 0 {
			if err := buf.Room(); err != nil {
				if !errors.Is(err, spool.ErrFull) {
					s.server.disk.Failed("content not kept", err, "client", s.client.Address)
				}
				return in.refuse(replyMemory)
			}
		}
		n, err := in.Read(buf.Free())
		buf.Wrote(n)
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && buf.Spilled():
			return s.stream(buf, in), nil
		case errors.Is(err, io.EOF):
			h, refusal := s.header(buf)
			if refusal.Code != 0 {
				return refusal, nil
			}
			return s.accept(buf, in, h), nil
		case errors.Is(err, errLongText) && s.cfg.MendLines:
			return s.mend(buf, in), nil
		default:
			return in.verdict()
		}
	}
}

// mend has a message committed whose lines are too long to be relayed, if
// they can be encoded.
func (s *session) mend(buf *spool.Buffer, in *incoming) mail.Reply {
	s.seat.Leave()
	ctx, cancel := context.WithTimeout(s.server.ctx, turnWait)
	defer cancel()
	select {
	case s.server.mending <- struct{}{}:
		defer func() { <-s.server.mending }()
	case <-ctx.Done():
		return replyMemory
	}
	whole, err := buf.Whole()
	switch {
	case err != nil:
		s.server.disk.Failed("content not read back", err, "client", s.client.Address)
		return replyStore
	case !whole && in.size > maxMended:
		return replyLongText
	case !whole || !buf.Borrow(int64(4*len(buf.Content()))): // more than it can become
		return replyMemory
	}
	h, refusal := s.header(buf)
	if refusal.Code != 0 {
		return refusal
	}
	mended, err := mend.Lines(buf.Content())
	switch {
	case errors.Is(err, mend.ErrSigned):
		return replyLongSigned
	case err != nil || !buf.Replace(mended):
		return replyLongText
	}
	in.size = int64(len(mended))
	slog.Info("long lines encoded", "client", s.client.Address, "size_bytes", in.size)
	return s.accept(buf, in, h)
}

// accept has a message committed whose content is all in memory.
func (s *session) accept(buf *spool.Buffer, in *incoming, h submission.Header) mail.Reply {
	span := s.submit(buf, in, h)
	s.sub.Content = buf.Content()
	s.sub.SizeBytes = int64(len(s.sub.Content))
	err := s.pay(s.sub.SizeBytes)
	if err == nil {
		if err = s.seat.Accept(&s.sub); err != nil {
			s.refund(s.sub.SizeBytes)
		}
	}
	return s.conclude(span, err)
}

// stream has a message committed whose content is in the spool.
func (s *session) stream(buf *spool.Buffer, in *incoming) mail.Reply {
	s.seat.Leave()
	ctx, cancel := context.WithTimeout(s.server.ctx, turnWait)
	defer cancel()
	end, err := s.server.committer.Turn(ctx)
	if err != nil {
		return replyMemory
	}
	defer end()
	if err := buf.Head(); err != nil {
		s.server.disk.Failed("content not read back", err, "client", s.client.Address)
		return replyStore
	}
	h, refusal := s.header(buf)
	if refusal.Code != 0 {
		return refusal
	}
	s.server.disk.Worked("content is kept again")
	span := s.submit(buf, in, h)
	if err = s.pay(in.size); err == nil {
		if err = s.server.committer.AcceptStream(context.Background(), &s.sub, buf.All()); err != nil {
			s.refund(in.size)
		}
	}
	return s.conclude(span, err)
}

// pay counts the message against the limits of who sends it.
func (s *session) pay(size int64) error {
	if s.id.Tenant == "" {
		return nil
	}
	return s.server.access.Take(s.server.ctx, s.id, len(s.sub.Recipients), size)
}

func (s *session) refund(size int64) {
	if s.id.Tenant != "" {
		s.server.access.GiveBack(s.id, len(s.sub.Recipients), size)
	}
}

// header reads the header section, holds it against the law, and leaves of it
// what is relayed. A reply with a code refuses it.
func (s *session) header(buf *spool.Buffer) (submission.Header, mail.Reply) {
	h, err := submission.Read(buf.Content(), s.rules())
	if err == nil && s.id.Tenant != "" {
		err = h.Authorize(s.id.MayFrom)
	}
	var refusal *submission.Refusal
	if errors.As(err, &refusal) {
		return h, replyContent(refusal)
	}
	buf.Insert(h.Gap, h.End)
	buf.Cut(spans(h.Cuts))
	return h, mail.Reply{}
}

// rules are those of a client that has proved who it is, or is let in for its
// address.
func (s *session) rules() submission.Rules {
	known := s.id.Tenant != ""
	return submission.Rules{Authors: known, KeepBcc: s.cfg.KeepBcc && !known, Complete: s.completes()}
}

// completes reports whether Date and Message-ID are added.
func (s *session) completes() bool { return s.id.Tenant != "" || s.cfg.AddMissing && s.known() }

// submit makes the submission from the transaction, and puts our trace field
// before the content.
func (s *session) submit(buf *spool.Buffer, in *incoming, h submission.Header) trace.Span {
	utf8 := s.mail.args.SMTPUTF8 && (!h.ASCII || !s.mail.ascii())
	client := s.client
	client.Trust = cmp.Or(string(s.id.Method), mail.Stranger)
	client.Protocol = protocol{esmtp: s.esmtp, utf8: utf8, tls: s.tls != nil, auth: s.authed}.String()
	ctx, span := s.server.tracer.Start(telemetry.Continue(context.Background(), h.Traceparent), "ingress.accept",
		trace.WithTimestamp(in.began), trace.WithSpanKind(trace.SpanKindServer))
	s.sub = mail.Submission{
		Message: mail.Message{
			ID: mail.NewQueueID(),
			Envelope: mail.Envelope{
				ReversePath: s.mail.args.ReversePath,
				Body:        s.mail.args.Body,
				SMTPUTF8:    utf8,
				Ret:         s.mail.args.Ret,
				EnvID:       s.mail.args.EnvID,
				RequireTLS:  s.mail.args.RequireTLS,
			},
			Tenant:      s.id.Tenant,
			TLSOptional: h.TLSOptional && !s.mail.args.RequireTLS, // RFC 8689 §4.1
			Priority:    s.id.Priority + int16(s.mail.args.Priority.Value),
			AcceptedAt:  time.Now().UTC(),
			Traceparent: telemetry.Traceparent(ctx),
		},
		Recipients: s.mail.recipients,
		Client:     client,
		HeaderID:   h.MessageID,
	}
	s.sub.ReleaseAt = s.release(s.sub.AcceptedAt)
	s.sub.Envelope.DeliverBy = s.deliverBy(s.sub.AcceptedAt)
	if s.known() {
		s.sub.IdempotencyKey, s.sub.Campaign = h.IdempotencyKey, h.Campaign
	}
	for i := range s.sub.Recipients {
		r := &s.sub.Recipients[i]
		r.ExpiresAt = s.expiry(s.sub.AcceptedAt, r.Domain)
	}
	if span.IsRecording() {
		span.SetAttributes(
			attribute.String("queue_id", s.sub.ID.String()),
			attribute.Int("recipients", len(s.sub.Recipients)),
			attribute.String("client", client.Address.String()),
			attribute.String("protocol", client.Protocol))
	}
	var field [spool.Headroom]byte
	fields := s.appendReceived(field[:0])
	if s.completes() {
		fields = h.AppendMissing(fields, &s.sub, s.cfg.Hostname)
	}
	buf.Prepend(fields)
	return span
}

// spans says the same to the buffer.
func spans(cuts []submission.Span) []spool.Span {
	all := make([]spool.Span, len(cuts))
	for i, c := range cuts {
		all[i] = spool.Span{From: c.From, To: c.To}
	}
	return all
}

// conclude ends the walk of a message through ingress, one way or the other.
func (s *session) conclude(span trace.Span, err error) mail.Reply {
	defer span.End()
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, "not accepted")
		reply, ours := notAccepted(err)
		if ours {
			s.server.store.Failed("message not accepted", err, "queue_id", s.sub.ID.String(), "trace_id", span.SpanContext().TraceID().String())
		}
		return reply
	}
	if span.IsRecording() {
		span.SetAttributes(attribute.Int64("size_bytes", s.sub.SizeBytes))
	}
	s.server.store.Worked("messages are accepted again")
	s.server.metrics.accepted(&s.sub)
	telemetry.Accepted(&s.sub)
	return replyQueued(s.sub.ID)
}

// notAccepted returns the reply to a message for which there was no commit,
// and whether that is our fault.
func notAccepted(err error) (reply mail.Reply, ours bool) {
	var quota *access.QuotaError
	var repeat *store.RepeatError
	switch {
	case errors.As(err, &quota) && quota.Never:
		return say(552, 7, 1, quota.Error()), false
	case errors.As(err, &quota):
		return say(452, 7, 1, quota.Error()), false
	case errors.As(err, &repeat): // accepted before: the client must hear the same as then
		return replyQueued(repeat.First), false
	case errors.Is(err, store.ErrKeyBusy):
		return replyKeyBusy, false
	case errors.Is(err, store.ErrKeyReused):
		return replyKeyReused, false
	}
	return replyStore, true
}
