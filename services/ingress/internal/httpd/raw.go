package httpd

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/services/ingress/internal/mend"
	"github.com/postrider/postrider/services/ingress/internal/spool"
	law "github.com/postrider/postrider/services/ingress/internal/submission"
)

const maxLine = 998 // RFC 5322 §2.1.1

// takeRaw has a whole message accepted, when all of it has come.
func (q *request) takeRaw(body *timed) (*result, error) {
	e, recipients, from, err := q.envelopeOf(q.http.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	buf, ok := q.s.spool.Buffer(q.s.budget.Budget, client(q.http), q.http.ContentLength)
	if !ok {
		return nil, errMemory
	}
	defer buf.Close()
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n%s\n", rawType, q.http.URL.RawQuery) // a hash takes everything
	in := &wholeMessage{in: io.TeeReader(body, sum), mends: q.s.cfg.MendLines}
	size, err := receive(buf, in)
	if err != nil {
		return nil, err
	}
	if in.long > 0 {
		if err := toMend(buf, in, size); err != nil {
			return nil, err
		}
	} else if buf.Spilled() {
		end, err := q.turn()
		if err != nil {
			return nil, err
		}
		defer end()
		if err := buf.Head(); err != nil {
			return nil, fmt.Errorf("content not read back: %w", err)
		}
	}
	h, err := q.header(buf.Content())
	if err != nil {
		return nil, err
	}
	if !from {
		if e.reversePath, err = parseAddress(h.Author()); err != nil {
			return nil, refuse(http.StatusBadRequest, "name a reverse_path", Fault{Detail: "From or Sender has none: " + err.Error(), Parameter: "reverse_path"})
		}
	}
	if err := q.mayReversePath(e.reversePath, Fault{Parameter: "reverse_path"}); err != nil {
		return nil, err
	}
	e.campaign, e.traceparent = cmp.Or(e.campaign, h.Campaign), h.Traceparent
	sub := q.submission(e, recipients)
	sub.TLSOptional = h.TLSOptional
	head := h.AppendMissing(q.s.appendReceived(nil, sub), &sub.Submission, q.s.cfg.Hostname)
	if in.long > 0 {
		mended, err := q.mend(in, append(h.AppendKept(nil, buf.Content()), buf.Content()[h.End:]...))
		if err != nil {
			return nil, err
		}
		sub.Content = append(head, mended...)
		sub.SizeBytes = int64(len(sub.Content))
		sub.has8Bit(in.eightBit)
		return q.accept([]*submission{sub}, sum.Sum(nil))
	}
	head = h.AppendKept(head, buf.Content())
	buf.Cut([]spool.Span{{To: h.End}})
	sub.SizeBytes = int64(len(head)) + size - int64(h.End)
	sub.has8Bit(in.eightBit)
	if buf.Spilled() {
		return q.acceptLarge(sub, io.MultiReader(bytes.NewReader(head), buf.All()), sum.Sum(nil))
	}
	if err := q.memory.take(sub.SizeBytes); err != nil {
		return nil, err
	}
	sub.Content = append(head, buf.Content()...)
	return q.accept([]*submission{sub}, sum.Sum(nil))
}

// toMend brings content that has too long lines into memory, if that is not
// too much.
func toMend(buf *spool.Buffer, in *wholeMessage, size int64) error {
	if size > largeContent {
		in.number = in.long - 1
		return in.refuse(tooLong)
	}
	whole, err := buf.Whole()
	switch {
	case err != nil:
		return fmt.Errorf("content not read back: %w", err)
	case !whole:
		return errMemory
	}
	return nil
}

// mend encodes what has too long lines.
func (q *request) mend(in *wholeMessage, content []byte) ([]byte, error) {
	if err := q.memory.take(int64(4 * len(content))); err != nil { // more than it can become
		return nil, err
	}
	mended, err := mend.Lines(content)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "the message cannot be sent as it is", Fault{Detail: fmt.Sprintf("line %d: %s", in.long, err)})
	}
	slog.Info("long lines encoded", "client", client(q.http), "size_bytes", len(mended))
	return mended, nil
}

func (s *submission) has8Bit(eightBit bool) {
	if eightBit {
		s.Envelope.Body = mail.Body8BitMIME
	}
}

// acceptLarge has a message accepted whose content is in the spool. The request
// has its turn.
func (q *request) acceptLarge(sub *submission, content io.Reader, fingerprint []byte) (*result, error) {
	messages := []*submission{sub}
	receipt := q.finish(messages)
	if q.key != "" {
		sub.IdempotencyKey, sub.Fingerprint, sub.Receipt = q.key, fingerprint, receipt
	}
	return q.conclude(messages, receipt, func() error {
		return q.s.committer.AcceptStream(q.context(), &sub.Submission, content)
	})
}

// receive reads all of a message into the buffer, however long it takes.
func receive(buf *spool.Buffer, in io.Reader) (size int64, err error) {
	for {
		if len(buf.Free()) == 0 {
			if err := buf.Room(); errors.Is(err, spool.ErrFull) {
				return size, errMemory
			} else if err != nil {
				return size, fmt.Errorf("content not kept: %w", err)
			}
		}
		n, err := in.Read(buf.Free())
		buf.Wrote(n)
		size += int64(n)
		switch {
		case errors.Is(err, io.EOF):
			return size, nil
		case err != nil:
			return size, broken(err)
		}
	}
}

// fill reads until buf is full or in has ended.
func fill(in io.Reader, buf []byte) (filled []byte, ended bool, err error) {
	for len(buf) < cap(buf) {
		n, err := in.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if errors.Is(err, io.EOF) {
			return buf, true, nil
		}
		if err != nil {
			return buf, false, err
		}
	}
	return buf, false, nil
}

// envelopeOf reads the query. reverse tells that it named a reverse-path.
func (q *request) envelopeOf(query string) (e envelope, recipients []address, reverse bool, err error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return e, nil, false, refuse(http.StatusBadRequest, "malformed query")
	}
	var f faults
	where := func(name string) Fault { return Fault{Parameter: name} }
	var o Options
	moment := func(name string) *time.Time {
		text := values.Get(name)
		if text == "" {
			return nil
		}
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			f.add(where(name), "want a time as in RFC 3339")
		}
		return &t
	}
	for name, all := range values {
		switch name {
		case "to":
			for _, text := range all {
				a, err := parseAddress(text)
				if err != nil {
					f.add(where(name), err.Error()+": "+strconv.Quote(text))
				}
				recipients = append(recipients, a)
			}
			continue
		case "reverse_path":
			reverse = true
			if all[0] != "" {
				if e.reversePath, err = parseAddress(all[0]); err != nil {
					f.add(where(name), err.Error())
				}
			}
		case "notify":
			o.Notify = strings.Split(all[0], ",")
		case "ret":
			o.Ret = all[0]
		case "envid":
			o.EnvID = all[0]
		case "campaign":
			o.Campaign = all[0]
		case "priority":
			n, err := strconv.ParseInt(all[0], 10, 16)
			if err != nil {
				f.add(where(name), "want -9 to 9")
			}
			o.Priority = int16(n)
		case "send_at":
			o.SendAt = moment(name)
		case "expires_at":
			o.ExpiresAt = moment(name)
		default:
			f.add(where(name), "no such parameter")
		}
		if len(all) > 1 {
			f.add(where(name), "given more than once")
		}
	}
	recipients = unique(recipients)
	switch n := len(recipients); {
	case n == 0:
		f.add(where("to"), "no recipients")
	case n > q.s.cfg.MaxRecipients:
		f.add(where("to"), fmt.Sprintf("%d recipients, at most %d", n, q.s.cfg.MaxRecipients))
	}
	path := e.reversePath
	e = o.envelope(q.began, where, &f)
	e.reversePath = path
	return e, recipients, reverse, f.problem("the query does not give a good envelope")
}

// wholeMessage passes a message on and checks each octet: lines end with CRLF
// and are at most 998 octets long, unless they will be mended, and there is no
// NUL (RFC 5322 §2.1.1, §2.3). A last line without an end gets one.
type wholeMessage struct {
	mends    bool
	long     int // number of the first line that is to be mended, from 1
	in       io.Reader
	eightBit bool
	line     int // octets of the line so far
	number   int // lines that have ended
	cr       bool
	over     bool   // in has ended
	end      string // what is still to come then
}

// Read reads on. Its errors are those of in, and Problems.
func (w *wholeMessage) Read(p []byte) (int, error) {
	if w.over {
		n := copy(p, w.end)
		if w.end = w.end[n:]; w.end == "" {
			return n, io.EOF
		}
		return n, nil
	}
	n, err := w.in.Read(p)
	for _, c := range p[:n] {
		if fault := w.octet(c); fault != "" {
			return 0, w.refuse(fault)
		}
	}
	if errors.Is(err, io.EOF) {
		if w.cr {
			return 0, w.refuse(bareNewline)
		}
		w.over, err = true, nil
		if w.line > 0 || w.number == 0 {
			w.end = "\r\n"
		}
	}
	return n, err
}

func (w *wholeMessage) refuse(fault string) error {
	return refuse(http.StatusBadRequest, "the message cannot be sent as it is", Fault{Detail: fmt.Sprintf("line %d: %s", w.number+1, fault)})
}

const tooLong = "more than 998 octets"

const bareNewline = "bare CR or LF; lines end with CR LF"

func (w *wholeMessage) octet(c byte) string {
	switch {
	case w.cr != (c == '\n'):
		return bareNewline
	case c == '\n':
		w.cr, w.line = false, 0
		w.number++
		return ""
	case c == '\r':
		w.cr = true
		return ""
	case c == 0:
		return "NUL"
	}
	w.eightBit = w.eightBit || c >= 0x80
	if w.line++; w.line > maxLine && w.long == 0 {
		if !w.mends {
			return tooLong
		}
		w.long = w.number + 1
	}
	return ""
}

// header reads the header section at the beginning of content, of which the
// whole header section is there, and holds it against the law.
func (q *request) header(content []byte) (law.Header, error) {
	h, err := law.Read(content, law.Rules{Authors: true, Complete: true})
	if err == nil {
		err = h.Authorize(q.id.MayFrom)
	}
	var refusal *law.Refusal
	if !errors.As(err, &refusal) {
		return h, err
	}
	if refusal.Kind == law.Forbidden {
		return h, refuse(http.StatusForbidden, "not allowed for this credential", Fault{Detail: refusal.Text})
	}
	return h, refuse(http.StatusBadRequest, "the message cannot be sent as it is", Fault{Detail: refusal.Text})
}
