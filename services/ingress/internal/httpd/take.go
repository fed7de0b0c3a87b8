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
	law "github.com/postrider/postrider/services/ingress/internal/submission"
)

const (
	jsonType = "application/json"
	rawType  = "message/rfc822"

	maxKey      = 255
	jsonFactor  = 3        // memory of a JSON request: text, strings, files
	valueMemory = 128      // and for each of its values
	draftMemory = 4 << 10  // and for each of its messages
	firstRead   = 64 << 10 // of a body; a buffer grows with what comes
	maxTogether = 8 << 20  // content of all messages of one request
	minRate     = 1 << 10  // bytes per second
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
	q := &request{s: s, http: r, began: time.Now().UTC(), memory: s.budget.share(client(r)), control: http.NewResponseController(w)}
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
	m, sum, err := q.readJSON(body)
	if err != nil {
		return nil, err
	}
	c := &checker{ctx: q.http.Context(), m: m, now: q.began, maxRecipients: q.s.cfg.MaxRecipients, memory: &q.memory}
	drafts, err := c.check()
	if err != nil {
		return nil, err
	}
	if err := q.mayName(c); err != nil {
		return nil, err
	}
	messages, err := q.compose(c.envelope, drafts)
	if err != nil {
		return nil, err
	}
	return q.accept(messages, sum)
}

// readJSON reads a Message, and returns its fingerprint, too. The text itself
// is not kept.
func (q *request) readJSON(body *timed) (*Message, []byte, error) {
	text, err := q.readAll(body)
	if err != nil {
		return nil, nil, err
	}
	m, err := q.s.parse(text, &q.memory)
	if err != nil {
		return nil, nil, err
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n%s", jsonType, text) // a hash takes everything
	return m, sum.Sum(nil), nil
}

// readAll reads a JSON body. It takes of the budget what has come, not what
// was announced: a client that stops in between holds no more.
func (q *request) readAll(body *timed) (text []byte, err error) {
	size := q.http.ContentLength
	if size < 0 {
		size = q.s.cfg.MaxBodyBytes
	}
	size++ // room to see the end in
	for room := min(size, firstRead); ; room = min(size, 2*room) {
		if err := q.memory.take(jsonFactor * (room - int64(cap(text)))); err != nil {
			return nil, err
		}
		text = append(make([]byte, 0, room), text...)
		var ended bool
		text, ended, err = fill(body, text)
		switch {
		case err != nil:
			return nil, broken(err)
		case ended:
			return text, nil
		}
	}
}

// parse reads a Message, after it was held against the schema.
func (s *Server) parse(text []byte, memory *share) (*Message, error) {
	if !validText(text) { // encoding/json would replace it
		return nil, refuse(http.StatusBadRequest, "the request is not UTF-8", Fault{Detail: "invalid UTF-8", Pointer: "#"})
	}
	if err := json.Unmarshal(text, &unread{}); err != nil {
		var syntax *json.SyntaxError
		detail := err.Error()
		if errors.As(err, &syntax) {
			detail = fmt.Sprintf("%s, at octet %d", detail, syntax.Offset)
		}
		return nil, refuse(http.StatusBadRequest, "the request is not JSON", Fault{Detail: detail, Pointer: "#"})
	}
	values, err := s.doc.check(text)
	if err != nil {
		return nil, err
	}
	if err := memory.take(int64(values) * valueMemory); err != nil {
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
func (q *request) mayName(c *checker) error {
	var f faults
	if !q.id.MayFrom(c.from.text) {
		f.add(at("from/address"), "the credential may not send from this address")
	}
	if c.base.Sender != nil && !q.id.MayFrom(c.base.Sender.Address) {
		f.add(at("sender/address"), "the credential may not send from this address")
	}
	for _, box := range []struct {
		member string
		shown  *compose.Mailbox
	}{{"from", &c.base.From}, {"sender", c.base.Sender}} {
		if box.shown == nil {
			continue
		}
		if stranger := law.Stranger(box.shown.Name, q.id.MayFrom); stranger != "" {
			f.add(at("%s/name", box.member), fmt.Sprintf("the name has %+.100q, and the credential may not send from this address", stranger))
		}
	}
	if !q.id.MayReversePath(c.envelope.reversePath.path()) {
		f.add(at("reverse_path"), "the credential may not send with this reverse-path")
	}
	if len(f.all) > 0 {
		return refuse(http.StatusForbidden, "not allowed for this credential", f.all...)
	}
	return nil
}

// mayReversePath is as mayName, of a whole message.
func (q *request) mayReversePath(path address, where Fault) error {
	if q.id.MayReversePath(path.path()) {
		return nil
	}
	where.Detail = "the credential may not send with this reverse-path"
	return refuse(http.StatusForbidden, "not allowed for this credential", where)
}

// compose writes the messages of a request, one after the other: no more than
// fits into one transaction that is held in memory.
func (q *request) compose(e envelope, drafts []draft) ([]*submission, error) {
	messages := make([]*submission, len(drafts))
	total := 0
	for i := range drafts {
		if err := gone(q.http.Context()); err != nil {
			return nil, err
		}
		sub, err := q.write(e, &drafts[i])
		if err != nil {
			return nil, err
		}
		if total += len(sub.Content); len(drafts) > 1 && total > maxTogether {
			return nil, tooMuchTogether()
		}
		messages[i] = sub
	}
	return messages, nil
}

// write makes one message of a draft. Of the budget it takes what that needs
// before it needs it, and gives back what was needed for a moment only.
func (q *request) write(e envelope, d *draft) (*submission, error) {
	passing := q.memory.of.share(q.memory.client)
	defer passing.release()
	if err := passing.take(d.expanded); err != nil {
		return nil, err
	}
	d.fill()
	sub := q.submission(e, d.recipients)
	m := d.message
	if m.MessageID == "" {
		m.MessageID = "<" + sub.ID.String() + "@" + q.s.cfg.Hostname + ">"
	}
	sub.HeaderID = m.MessageID
	m.Date = sub.AcceptedAt
	sub.TLSOptional = d.tlsOptional()
	sub.needsUTF8(d.utf8)
	received := q.s.appendReceived(nil, sub)
	d.message = compose.Message{} // its texts are in m alone
	content := compose.Prepare(&m)
	size := len(received) + content.Size()
	if err := q.memory.take(int64(size)); err != nil {
		return nil, err
	}
	sub.Content = content.Append(append(make([]byte, 0, size), received...))
	if sub.SizeBytes = int64(len(sub.Content)); sub.SizeBytes > q.s.cfg.MaxMessageBytes {
		return nil, refuse(http.StatusRequestEntityTooLarge, fmt.Sprintf("the message has %d bytes, at most %d", sub.SizeBytes, q.s.cfg.MaxMessageBytes))
	}
	return sub, nil
}

// gone reports that the client is: nobody would hear what became of the rest.
func gone(client context.Context) error {
	if client.Err() != nil {
		return refuse(http.StatusBadRequest, "the request broke off")
	}
	return nil
}

// context is without the end of the request: a client that hangs up may have
// its answer with the next attempt, and the committer has its own timeout.
func (q *request) context() context.Context { return context.WithoutCancel(q.http.Context()) }
