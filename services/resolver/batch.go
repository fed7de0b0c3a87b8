package resolver

import (
	"cmp"
	"context"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/telemetry"
)

// batch is a set of messages whose recipients' ways are being found. It has
// one owner at a time.
type batch struct {
	messages []mail.QueuedMessage
	open     map[aim][]place // recipients whose way is not found yet
	began    time.Time
	spans    []trace.Span // resolver.resolve, one per message
	left     []int        // open recipients per message; at 0 the span ends
}

// place is a recipient of the batch by its indexes.
type place struct{ message, recipient int }

func (r *resolver) newBatch(messages []mail.QueuedMessage) *batch {
	b := &batch{
		messages: messages,
		open:     make(map[aim][]place, len(messages)),
		began:    time.Now(),
		spans:    make([]trace.Span, len(messages)),
		left:     make([]int, len(messages)),
	}
	for i := range messages {
		m := &messages[i]
		_, b.spans[i] = telemetry.Start(context.Background(), r.tracer, "resolver.resolve", &m.Message)
		b.left[i] = len(m.Recipients)
	}
	return b
}

// again reports whether a recipient is not looked up for the first time.
func (b *batch) again() bool {
	for i := range b.messages {
		for _, p := range b.messages[i].Recipients {
			if p.Attempt > 0 {
				return true
			}
		}
	}
	return false
}

// aimed is a recipient of the batch with what its way was looked up by.
type aimed struct {
	place
	aim aim
}

// take removes the recipients of the given aims from the open ones and
// returns them in the order of the batch.
func (b *batch) take(ways map[aim]way) []aimed {
	var taken []aimed
	for a := range ways {
		for _, p := range b.open[a] {
			taken = append(taken, aimed{p, a})
		}
		delete(b.open, a)
	}
	slices.SortFunc(taken, func(x, y aimed) int {
		return cmp.Or(cmp.Compare(x.message, y.message), cmp.Compare(x.recipient, y.recipient))
	})
	return taken
}

// split moves what is open of the given aims into a batch of its own, so
// that a slow domain does not keep in memory the messages that have left.
func (b *batch) split(aims []aim) (slow *batch, recipients int) {
	slow = &batch{open: map[aim][]place{}, began: b.began}
	at := map[int]int{} // message here -> message there
	for _, a := range aims {
		for _, p := range b.open[a] {
			i, moved := at[p.message]
			if !moved {
				i = len(slow.messages)
				at[p.message] = i
				slow.messages = append(slow.messages, mail.QueuedMessage{Message: b.messages[p.message].Message})
				slow.spans = append(slow.spans, b.spans[p.message])
				slow.left = append(slow.left, 0)
			}
			to := &slow.messages[i]
			slow.open[a] = append(slow.open[a], place{i, len(to.Recipients)})
			to.Recipients = append(to.Recipients, b.messages[p.message].Recipients[p.recipient])
			slow.left[i]++
			recipients++
		}
		delete(b.open, a)
	}
	return slow, recipients
}

// wave is what the ways that were found together make of a batch.
type wave struct {
	requests    []*mail.DeliveryRequest
	settlements []mail.Settlement
}

// waveOf makes one delivery request per message and route, and one
// settlement per message with recipients in trouble.
func (r *resolver) waveOf(b *batch, ways map[aim]way) wave {
	type requestKey struct {
		message int
		route   *mail.Route
	}
	var w wave
	routes := make(map[string]*mail.Route, len(ways))
	routeOf := make(map[aim]*mail.Route, len(ways))
	for a, way := range ways {
		if way.trouble != nil {
			continue
		}
		key := way.key()
		route := routes[key]
		if route == nil {
			route = way.route()
			routes[key] = route
		}
		if way.plan.ExpiresAt.Before(route.ExpiresAt) {
			route.ExpiresAt = way.plan.ExpiresAt
		}
		routeOf[a] = route
	}
	requests := make(map[requestKey]*mail.DeliveryRequest, len(b.messages))
	for _, p := range b.take(ways) {
		m := &b.messages[p.message]
		recipient := m.Recipients[p.recipient]
		b.left[p.message]--
		if trouble := ways[p.aim].trouble; trouble != nil {
			w.settle(b, m, r.outcome(m.Message, recipient, *trouble))
			b.note(p.message, "trouble", attribute.String("status", trouble.Status.String()), attribute.String("why", trouble.Text))
			continue
		}
		key := requestKey{p.message, routeOf[p.aim]}
		request := requests[key]
		if request == nil {
			request = &mail.DeliveryRequest{Message: m.Message, Route: key.route}
			requests[key] = request
			w.requests = append(w.requests, request)
			b.note(p.message, "route", attribute.String("site", string(key.route.Site)), attribute.Int("hosts", len(key.route.Hosts)))
		}
		request.Recipients = append(request.Recipients, recipient)
	}
	return w
}

// settle adds an outcome to the settlement of its message, which is the last
// one or none yet: places come by message.
func (w *wave) settle(b *batch, m *mail.QueuedMessage, o mail.Outcome) {
	if n := len(w.settlements); n == 0 || w.settlements[n-1].Message.ID != m.ID {
		w.settlements = append(w.settlements, mail.Settlement{
			Message:     m.Message,
			Transaction: mail.Transaction{StartedAt: b.began, Duration: time.Since(b.began)},
		})
	}
	last := &w.settlements[len(w.settlements)-1]
	last.Outcomes = append(last.Outcomes, o)
}

// note adds an event to the span of a message.
func (b *batch) note(message int, event string, facts ...attribute.KeyValue) {
	if span := b.spans[message]; span.IsRecording() {
		span.AddEvent(event, trace.WithAttributes(facts...))
	}
}

// end ends the spans of messages that have no open recipient, or of all if
// err is not nil.
func (b *batch) end(err error) {
	for i, span := range b.spans {
		switch {
		case span == nil:
		case err != nil:
			span.SetStatus(codes.Error, err.Error())
			span.End()
			b.spans[i] = nil
		case b.left[i] == 0:
			span.End()
			b.spans[i] = nil
		}
	}
}
