package smtpclient

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/delivery/internal/sevenbit"
)

// Conversion says what becomes of 8-bit content for a host that takes 7-bit
// only: RFC 6152 §3.
type Conversion string

// The conversions.
const (
	ConvertAlways   Conversion = "always"
	ConvertUnsigned Conversion = "unsigned" // signed content is not sent
	ConvertNever    Conversion = "never"
)

// check finds what the host cannot take, before it is asked, and what the
// content must become.
func (x *sending) check() error {
	m := x.t.Message
	x.eightBit = x.has8Bit()
	switch {
	case x.over:
		return ErrClosed
	case m.Envelope.RequireTLS && (x.secure == "" || !x.verified || !x.offers.requireTLS):
		return ErrNeedsRequireTLS
	case x.offers.maxSizeBytes > 0 && x.sizeBytes() > x.offers.maxSizeBytes:
		return fmt.Errorf("%w: %d octets of at most %d", ErrTooBig, x.sizeBytes(), x.offers.maxSizeBytes)
	}
	if err := x.checkTime(); err != nil {
		return err
	}
	if !x.offers.smtputf8 {
		if err := x.checkUTF8(); err != nil {
			return err
		}
	}
	x.binary = m.Envelope.Body == mail.BodyBinaryMIME
	if x.binary && !x.offers.binary || !x.binary && x.eightBit && !x.offers.eightBit {
		return x.convert()
	}
	return nil
}

// checkTime refuses what may not be there in time, by the next host's own
// word: RFC 2852 §4.1.
func (x *sending) checkTime() error {
	by := x.t.Message.Envelope.DeliverBy
	if by.At.IsZero() || !by.Return {
		return nil
	}
	left := time.Until(by.At)
	switch {
	case left < time.Second:
		return ErrTooLate
	case !x.offers.deliverBy:
		// It would keep the message for days, and deliver it then.
		return fmt.Errorf("%w: the host does not offer DELIVERBY", ErrTooLate)
	case left < x.offers.minBy:
		return fmt.Errorf("%w: the host needs %v", ErrTooLate, x.offers.minBy)
	}
	return nil
}

// checkUTF8 refuses what needs SMTPUTF8 from a host without it. What is ASCII
// in its envelope and its header sections needs none, whatever its client
// said: RFC 6531 §3.2.
func (x *sending) checkUTF8() error {
	if x.utf8Paths() {
		return ErrNeedsSMTPUTF8
	}
	if !x.t.Message.Envelope.SMTPUTF8 {
		return nil
	}
	plan, err := x.scan()
	if err != nil {
		return err
	}
	if plan.EightFields {
		return ErrNeedsSMTPUTF8
	}
	return nil
}

// utf8Paths reports whether a path has octets over 127, which never leave
// without SMTPUTF8.
func (x *sending) utf8Paths() bool {
	if !ascii(x.t.Message.Envelope.ReversePath) {
		return true
	}
	for i := range x.t.Recipients {
		if !ascii(x.t.Recipients[i].ForwardPath) {
			return true
		}
	}
	return false
}

// scan looks at the whole content, once.
func (x *sending) scan() (*sevenbit.Plan, error) {
	if x.plan != nil {
		return x.plan, nil
	}
	content, err := x.open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = content.Close() }()
	if x.plan, err = sevenbit.Scan(content); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrContent, err)
	}
	return x.plan, nil
}

// open returns a reader of the content.
func (x *sending) open() (io.ReadCloser, error) {
	if x.t.Content != nil {
		return io.NopCloser(bytes.NewReader(x.t.Content)), nil
	}
	content, err := x.t.Open()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrContent, err)
	}
	return content, nil
}

// convert makes the content 7-bit, or has it made so as it is streamed.
func (x *sending) convert() error {
	plan, err := x.scan()
	if err != nil {
		return err
	}
	if !plan.EightBit && !plan.EightFields && !plan.LongLines {
		// Declared for no need.
		x.eightBit, x.binary = false, false
		return nil
	}
	refused := ErrNeeds8Bit
	if x.binary {
		refused = ErrNeedsBinary
	}
	switch {
	case x.t.Conversion == ConvertNever:
		return refused
	case x.t.Conversion == ConvertUnsigned && plan.Signed:
		return fmt.Errorf("%w: and it is signed, which a conversion would break", refused)
	case !plan.Convertible():
		return fmt.Errorf("%w: %w", refused, sevenbit.ErrNoConversion)
	}
	x.eightBit, x.binary, x.converting = false, false, true
	if x.t.Content == nil {
		return nil // as it is streamed
	}
	var out bytes.Buffer
	if err := plan.Convert(&out, bytes.NewReader(x.t.Content)); err != nil {
		return fmt.Errorf("%w: %w", ErrContent, err)
	}
	if x.offers.maxSizeBytes > 0 && int64(out.Len()) > x.offers.maxSizeBytes {
		return fmt.Errorf("%w: %d octets of at most %d, once converted to 7-bit", ErrTooBig, out.Len(), x.offers.maxSizeBytes)
	}
	t := *x.t
	t.Content = out.Bytes()
	x.t, x.converting = &t, false
	return nil
}

func (x *sending) sizeBytes() int64 {
	if x.t.Content != nil {
		return int64(len(x.t.Content))
	}
	return x.t.Message.SizeBytes
}

// has8Bit reports whether the content is, or may be, 8-bit. Content that is
// streamed cannot be looked at, so the client's word counts, and no word is
// taken for yes: to declare it without need does no harm.
func (x *sending) has8Bit() bool {
	if x.t.Content != nil {
		return x.t.Message.Envelope.Body == mail.Body8BitMIME || !ascii(x.t.Content)
	}
	return x.t.Message.Envelope.Body != mail.Body7Bit
}

// mailArgs are the arguments of MAIL, of what the host offers.
func (x *sending) mailArgs() smtp.MailArgs {
	e := &x.t.Message.Envelope
	args := smtp.MailArgs{
		ReversePath: e.ReversePath,
		SMTPUTF8:    x.offers.smtputf8 && (e.SMTPUTF8 || x.utf8Paths()),
		RequireTLS:  e.RequireTLS,
	}
	if x.offers.size {
		args.SizeBytes = x.sizeBytes()
	}
	switch {
	case x.binary:
		args.Body = mail.BodyBinaryMIME
	case x.eightBit && x.offers.eightBit:
		args.Body = mail.Body8BitMIME
	}
	if x.offers.dsn {
		args.Ret, args.EnvID = e.Ret, e.EnvID
	}
	if x.offers.deliverBy && !e.DeliverBy.At.IsZero() {
		args.DeliverBy = remaining(e.DeliverBy, time.Now())
	}
	if p := x.t.Message.Priority; x.offers.priority && p != 0 {
		// Ours may be more than RFC 6710 has words for.
		args.Priority = smtp.MTPriority{Value: int8(min(max(p, -9), 9)), Given: true}
	}
	return args
}

// maxBy is the longest time of BY: nine digits, RFC 2852 §4.
const maxBy = 999999999 * time.Second

// remaining returns what BY says at a moment: RFC 2852 §4.1.3 has the time
// that went by taken off.
func remaining(by mail.DeliverBy, now time.Time) smtp.DeliverBy {
	left := by.At.Sub(now)
	// Down to whole seconds, so that no hop adds any.
	left = time.Duration(math.Floor(left.Seconds())) * time.Second
	left = min(max(left, -maxBy), maxBy)
	if by.Return {
		left = max(left, time.Second)
	}
	return smtp.DeliverBy{Within: left, Return: by.Return, Trace: by.Trace, Given: true}
}

// isOurs reports whether an error says that content was given up here.
func isOurs(err error) bool {
	return errors.Is(err, ErrContent) || errors.Is(err, ErrWithheld) || errors.Is(err, smtp.ErrBareNewline)
}
