// Package straight hands new mail for busy domains to the home of its site,
// past the resolver, which has just told where it goes (ADR 0010). All other
// mail goes by the resolver. Both are hints: if one is lost, the scheduler
// rings.
package straight

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/telemetry"
)

// maxWays bounds the ways that are known at a time; those announced beyond it
// are passed over.
const maxWays = 1000

// Bus is what hints are published to, and announced on. *bus.Bus is one.
type Bus interface {
	PublishQueued(ctx context.Context, messages []mail.QueuedMessage) error
	PublishReady(ctx context.Context, worker mail.WorkerID, requests []*mail.DeliveryRequest) error
	WatchWays(ctx context.Context, learn func([]bus.Way)) error
	Watch(ctx context.Context, topic string, changed func(context.Context)) error
}

// Publisher rings for new messages. Its methods may be called at the same
// time.
type Publisher struct {
	bus       Bus
	tracer    trace.Tracer
	published metric.Int64Counter

	mu    sync.Mutex // guards what follows
	known map[mail.Domain]way
}

// way is where mail for a domain goes.
type way struct {
	worker mail.WorkerID
	route  *mail.Route
	until  time.Time
}

// New returns a publisher that knows no way yet.
func New(b Bus) *Publisher {
	p := &Publisher{bus: b, tracer: telemetry.Tracer("ingress"), known: map[mail.Domain]way{}}
	var err error
	p.published, err = telemetry.Meter("ingress").Int64Counter("postrider.ingress.straight", metric.WithUnit("{message}"),
		metric.WithDescription("Accepted messages that were handed to the home of their site past the resolver."))
	if err != nil {
		otel.Handle(err) // a bad name: the instrument does nothing
	}
	return p
}

// Run learns ways until ctx is done, and then returns nil.
func (p *Publisher) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.bus.WatchWays(ctx, p.learn) })
	g.Go(func() error { return p.bus.Watch(ctx, bus.SlotsTopic, func(context.Context) { p.forget() }) })
	return g.Wait()
}

func (p *Publisher) learn(ways []bus.Way) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.known)+len(ways) > maxWays {
		for domain, w := range p.known {
			if !w.until.After(now) {
				delete(p.known, domain)
			}
		}
	}
	for _, w := range ways {
		if len(p.known) < maxWays {
			p.known[w.Domain] = way{w.Worker, w.Route, now.Add(w.Valid)}
		}
	}
}

func (p *Publisher) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.known)
}

// PublishQueued hands messages whose recipients are all in one domain with a
// known way to the home there, and rings for the others. Errors are those of
// the bus; some of the messages may have left.
func (p *Publisher) PublishQueued(ctx context.Context, messages []mail.QueuedMessage) error {
	straight, others := p.sort(messages)
	for worker, requests := range straight {
		if err := p.bus.PublishReady(ctx, worker, requests); err != nil {
			return err
		}
		p.published.Add(ctx, int64(len(requests)))
		for _, r := range requests {
			p.resolved(ctx, r)
		}
	}
	if len(others) == 0 {
		return nil
	}
	return p.bus.PublishQueued(ctx, others)
}

// sort tells apart the messages with a known way, by home, and the others.
func (p *Publisher) sort(messages []mail.QueuedMessage) (straight map[mail.WorkerID][]*mail.DeliveryRequest, others []mail.QueuedMessage) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.known) == 0 {
		return nil, messages
	}
	straight = map[mail.WorkerID][]*mail.DeliveryRequest{}
	for i := range messages {
		m := &messages[i]
		w, ok := p.wayOf(m, now)
		if !ok {
			others = append(others, *m)
			continue
		}
		straight[w.worker] = append(straight[w.worker], &mail.DeliveryRequest{Message: m.Message, Route: w.route, Recipients: m.Recipients})
	}
	return straight, others
}

// wayOf returns the way of a message, if all of it goes one way that is known.
func (p *Publisher) wayOf(m *mail.QueuedMessage, now time.Time) (way, bool) {
	domain := m.Recipients[0].Domain
	for i := range m.Recipients {
		if m.Recipients[i].Domain != domain {
			return way{}, false
		}
	}
	w, ok := p.known[domain]
	return w, ok && w.until.After(now)
}

// resolved tells what the resolver tells of a message that goes by it.
func (p *Publisher) resolved(ctx context.Context, r *mail.DeliveryRequest) {
	_, span := telemetry.Start(ctx, p.tracer, "resolver.resolve", &r.Message)
	if span.IsRecording() {
		span.AddEvent("route", trace.WithAttributes(attribute.String("site", string(r.Route.Site)),
			attribute.Int("hosts", len(r.Route.Hosts)), attribute.Bool("announced", true)))
	}
	span.End()
	telemetry.Resolved(r)
}
