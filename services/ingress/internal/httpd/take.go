package httpd

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/postrider/postrider/services/ingress/internal/access"
	"github.com/postrider/postrider/services/ingress/internal/compose"
)

const (
	jsonType = "application/json"
	rawType  = "message/rfc822"

	maxKey      = 255
	jsonFactor  = 4       // memory of a JSON request: text, values, files, content
	maxTogether = 8 << 20 // content of all messages of one request
	minRate     = 1 << 10 // bytes per second
)

// request is a submission by HTTP on its way.
type request struct {
	s       *Server
	http    *http.Request
	began   time.Time
	id      access.Identity
	key     string // Idempotency-Key
	memory  share
	control *http.ResponseController
}

// result is what the client gets with a 202.
type result struct {
	receipt  []byte
	replayed bool
}

// take does one request.
func (s *Server) take(w http.ResponseWriter, r *http.Request) (*result, error) {
	q := &request{s: s, http: r, began: time.Now().UTC(), memory: share{of: &s.budget}, control: http.NewResponseController(w)}
	defer q.memory.release()
	// It stays when the request is refused: net/http reads what is left of the
	// body after that.
	if err := q.control.SetReadDeadline(q.began.Add(s.cfg.ReadTimeout)); err != nil {
		return nil, fmt.Errorf("deadline: %w", err)
	}
	kind, parameters, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset := strings.ToLower(parameters["charset"])
	if err != nil || kind != jsonType && kind != rawType || kind == jsonType && charset != "" && charset != "utf-8" || r.Header.Get("Content-Encoding") != "" {
		return nil, refuse(http.StatusUnsupportedMediaType, "want Content-Type "+jsonType+" in UTF-8, or "+rawType+", and no Content-Encoding")
	}
	if q.id, err = s.authenticate(r); err != nil {
		return nil, err
	}
	if q.key, err = idempotencyKey(r.Header); err != nil {
		return nil, err
	}
	limit := s.cfg.MaxBodyBytes
	if kind == rawType {
		limit = s.cfg.MaxMessageBytes
	}
	if r.ContentLength > limit {
		return nil, &http.MaxBytesError{Limit: limit}
	}
	body := &timed{q: q, body: http.MaxBytesReader(w, r.Body, limit)}
	if kind == rawType {
		return q.takeRaw(body)
	}
	return q.takeJSON(body)
}

// idempotencyKey reads the header field. A key in quotes, as the draft of the
// IETF has it, is the key without them.
func idempotencyKey(h http.Header) (string, error) {
	values := h.Values("Idempotency-Key")
	if len(values) == 0 {
		return "", nil
	}
	key := values[0]
	if n := len(key); n >= 2 && key[0] == '"' && key[n-1] == '"' {
		key = key[1 : n-1]
	}
	ok := len(values) == 1 && key != "" && len(key) <= maxKey
	for i := range len(key) {
		ok = ok && key[i] > ' ' && key[i] <= '~'
	}
	if !ok {
		return "", refuse(http.StatusBadRequest, "malformed Idempotency-Key",
			Fault{Detail: fmt.Sprintf("want one key of 1 to %d printable ASCII characters without spaces", maxKey), Header: "Idempotency-Key"})
	}
	return key, nil
}

// timed reads a body, and cuts off a client that sends too slowly.
type timed struct {
	q    *request
	body io.Reader
	size int64
}

// Read reads on, with a deadline that moves with what has come. At the end
// there is none any more: net/http looks whether the client is still there
// while the commit is under way.
func (t *timed) Read(p []byte) (int, error) {
	earned := time.Duration(float64(t.size) / minRate * float64(time.Second))
	if err := t.q.control.SetReadDeadline(t.q.began.Add(t.q.s.cfg.ReadTimeout + earned)); err != nil {
		return 0, fmt.Errorf("deadline: %w", err)
	}
	n, err := t.body.Read(p)
	t.size += int64(n)
	if errors.Is(err, io.EOF) {
		if err := t.q.control.SetReadDeadline(time.Time{}); err != nil {
			return n, fmt.Errorf("deadline: %w", err)
		}
	}
	return n, err
}

// broken is an error of the body: the client's doing.
func broken(err error) error {
	var tooLarge *http.MaxBytesError
	var p *Problem
	if errors.As(err, &tooLarge) || errors.As(err, &p) || isTimeout(err) {
		return err
	}
	return refuse(http.StatusBadRequest, "the request broke off")
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// takeJSON composes messages and has them accepted.
func (q *request) takeJSON(body *timed) (*result, error) {
	expected := q.http.ContentLength
	if expected < 0 {
		expected = q.s.cfg.MaxBodyBytes
	}
	if err := q.memory.take(jsonFactor * expected); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(body)
	if err != nil {
		return nil, broken(err)
	}
	m, err := q.s.parse(text)
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n%s", jsonType, text) // a hash takes everything
	c := &checker{m: m, now: q.began, maxRecipients: q.s.cfg.MaxRecipients}
	drafts, err := c.check()
	if err != nil {
		return nil, err
	}
	if err := q.mayName(c.envelope.reversePath, "#/reverse_path", []string{c.from.text}, "#/from/address"); err != nil {
		return nil, err
	}
	messages, err := q.compose(c.envelope, drafts)
	if err != nil {
		return nil, err
	}
	return q.accept(messages, sum.Sum(nil))
}

// parse reads a Message, after it was held against the schema.
func (s *Server) parse(text []byte) (*Message, error) {
	if !validText(text) { // encoding/json would replace it
		return nil, refuse(http.StatusBadRequest, "the request is not UTF-8", Fault{Detail: "invalid UTF-8", Pointer: "#"})
	}
	var value any
	if err := json.Unmarshal(text, &value); err != nil {
		var syntax *json.SyntaxError
		detail := err.Error()
		if errors.As(err, &syntax) {
			detail = fmt.Sprintf("%s, at octet %d", detail, syntax.Offset)
		}
		return nil, refuse(http.StatusBadRequest, "the request is not JSON", Fault{Detail: detail, Pointer: "#"})
	}
	if err := s.doc.check(value); err != nil {
		return nil, err
	}
	m := &Message{}
	if err := json.Unmarshal(text, m); err != nil {
		where := Fault{Detail: err.Error(), Pointer: "#"}
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			where = Fault{Detail: "not of the right type", Pointer: pointer(wrong.Field)}
		}
		return nil, refuse(http.StatusBadRequest, "the request does not match its schema", where)
	}
	return m, nil
}

// mayName checks what the credential allows.
func (q *request) mayName(reversePath address, reverseAt string, from []string, fromAt string) error {
	var f faults
	if !q.id.MayFrom(from...) {
		f.add(Fault{Pointer: fromAt}, "the credential may not send from this address")
	}
	if !q.id.MayReversePath(reversePath.path()) {
		f.add(Fault{Pointer: reverseAt}, "the credential may not send with this reverse-path")
	}
	if len(f.all) > 0 {
		return refuse(http.StatusForbidden, "not allowed for this credential", f.all...)
	}
	return nil
}

// compose writes the messages of a request: no more than fits into one
// transaction that is held in memory.
func (q *request) compose(e envelope, drafts []draft) ([]*submission, error) {
	messages := make([]*submission, len(drafts))
	total := 0
	for i := range drafts {
		d := &drafts[i]
		sub := q.submission(e, d.recipients)
		if d.message.MessageID == "" {
			d.message.MessageID = "<" + sub.ID.String() + "@" + q.s.cfg.Hostname + ">"
		}
		sub.HeaderID = d.message.MessageID
		d.message.Date = sub.AcceptedAt
		sub.TLSOptional = d.tlsOptional()
		sub.needsUTF8(d.utf8)
		sub.Content = compose.Append(q.s.appendReceived(nil, sub), &d.message)
		sub.SizeBytes = int64(len(sub.Content))
		if sub.SizeBytes > q.s.cfg.MaxMessageBytes {
			return nil, refuse(http.StatusRequestEntityTooLarge, fmt.Sprintf("the message has %d bytes, at most %d", sub.SizeBytes, q.s.cfg.MaxMessageBytes))
		}
		if total += len(sub.Content); len(drafts) > 1 {
			if total > maxTogether {
				return nil, refuse(http.StatusRequestEntityTooLarge, fmt.Sprintf("the messages of one request have more than %d bytes; split it", maxTogether))
			}
			if err := q.memory.take(sub.SizeBytes); err != nil {
				return nil, err
			}
		}
		messages[i] = sub
	}
	return messages, nil
}

// context is without the end of the request: a client that hangs up may have
// its answer with the next attempt, and the committer has its own timeout.
func (q *request) context() context.Context { return context.WithoutCancel(q.http.Context()) }
