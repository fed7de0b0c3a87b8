package httpd

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/ingress/internal/access"
)

// Problem says why a request was refused: RFC 9457.
type Problem struct {
	Type   string  `json:"type" example:"about:blank"`
	Title  string  `json:"title"`
	Status int     `json:"status"`
	Detail string  `json:"detail,omitempty"`
	Errors []Fault `json:"errors,omitempty" doc:"Everything that is wrong, as far as it was looked at."`

	retryAfter time.Duration
}

// Fault is one thing that is wrong, and where.
type Fault struct {
	Detail    string `json:"detail"`
	Pointer   string `json:"pointer,omitempty" doc:"JSON Pointer into the request (RFC 6901), as a URI fragment."`
	Parameter string `json:"parameter,omitempty" doc:"Query parameter."`
	Header    string `json:"header,omitempty" doc:"Header field of the request."`
}

// Error is the text for our log.
func (p *Problem) Error() string { return fmt.Sprintf("%d %s: %v", p.Status, p.Detail, p.Errors) }

func refuse(status int, detail string, faults ...Fault) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail, Errors: faults}
}

// later is a refusal that ends by itself.
func later(status int, after time.Duration, detail string) *Problem {
	p := refuse(status, detail)
	p.retryAfter = after
	return p
}

// problemOf returns what the client is told of an error, and whether it is
// ours.
func problemOf(err error) (p *Problem, ours bool) {
	if p := theirs(err); p != nil {
		return p, false
	}
	return later(http.StatusServiceUnavailable, 2*time.Second, "the message cannot be stored now"), true
}

// theirs is what the client has to hear of its own doing; nil: it is ours.
func theirs(err error) *Problem {
	var p *Problem
	var quota *access.QuotaError
	var tooMany *access.TooManyError
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, access.ErrRefused):
		return refuse(http.StatusUnauthorized, "the API key is not valid")
	case errors.As(err, &tooMany):
		return later(http.StatusTooManyRequests, tooMany.RetryAfter, "too many attempts with an invalid API key")
	case errors.As(err, &quota) && quota.Never:
		return refuse(http.StatusForbidden, quota.Text)
	case errors.As(err, &quota):
		return later(http.StatusTooManyRequests, quota.RetryAfter, quota.Text)
	case errors.As(err, &tooLarge):
		return refuse(http.StatusRequestEntityTooLarge, fmt.Sprintf("the request has more than %d bytes", tooLarge.Limit))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return refuse(http.StatusRequestTimeout, "the request came too slowly")
	case errors.Is(err, store.ErrKeyReused):
		return refuse(http.StatusUnprocessableEntity, "this Idempotency-Key was used for another request", Fault{Detail: "used before", Header: "Idempotency-Key"})
	case errors.Is(err, store.ErrKeyBusy):
		return later(http.StatusConflict, time.Second, "a request with this Idempotency-Key is under way")
	}
	return nil
}

// write sends the problem. A client that is gone misses nothing.
func (p *Problem) write(w http.ResponseWriter) {
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="postrider"`) // RFC 6750 §3
	}
	if p.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(p.retryAfter.Seconds()))))
	}
	writeJSON(w, p.Status, "application/problem+json", p)
}

func writeJSON(w http.ResponseWriter, status int, contentType string, v any) {
	text, err := json.Marshal(v)
	if err != nil { // our own types: a bug
		panic(err)
	}
	writeBody(w, status, contentType, text)
}

func writeBody(w http.ResponseWriter, status int, contentType string, text []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	if _, err := w.Write(text); err != nil {
		slog.Debug("HTTP reply not sent", "error", err)
	}
}
