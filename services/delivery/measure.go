package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/telemetry"
	"github.com/postrider/postrider/services/delivery/internal/adapt"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

// This file is how delivery heeds what shaping says now, and how it answers
// hosts that ask for patience: by rules of automation, which order measures
// for all processes, and by going slower from the source that was asked.

// orderBatch bounds the measures of one transaction.
const orderBatch = 64

// followShaping keeps every site at what shaping says, until ctx is done.
func (w *worker) followShaping(ctx context.Context) error {
	known := w.shaping.Measures()
	w.reshape()
	return w.shaping.Follow(ctx, w.store, func() {
		w.reshape()
		now := w.shaping.Measures()
		w.wake(ctx, known, now)
		known = now
	})
}

// wake has the mail tried that waits for a suspension which was cancelled:
// until now this worker may have let some wait.
func (w *worker) wake(ctx context.Context, before, now mail.Measures) {
	for i := range before {
		m := &before[i]
		stands := slices.ContainsFunc(now, func(other mail.Measure) bool { return other.ID == m.ID })
		if stands || m.Kind != mail.MeasureSuspend || !m.OfMessages() || time.Now().After(m.Until) {
			continue
		}
		err := w.persist("wake suspended", func(ctx context.Context) error {
			_, err := w.store.WakeSuspended(ctx, m.ID)
			return err
		})
		if err != nil && ctx.Err() == nil {
			slog.Warn("what was suspended waits until its time is over", "worker_id", w.id, "measure", m.ID, "error", err)
		}
	}
}

// reshape applies what shaping says now to every site.
func (w *worker) reshape() {
	for _, s := range w.sitesIn(nil) {
		w.setAside(s.reshape())
	}
}

// reshape takes over the values and measures that hold now. It returns the
// jobs that must wait.
func (s *site) reshape() []aside {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.home.shaping.For(shaping.Query{Site: s.name, Hosts: s.hosts})
	s.idleTimeout, s.longest = v.IdleTimeout, v.RetrySchedule.Next(0, evenly)
	for domain, route := range s.named {
		if !s.home.shaping.For(shaping.Query{Domain: domain, Site: s.name, Hosts: route.Hosts}).Named {
			delete(s.named, domain)
		}
	}
	s.relimit()
	now := time.Now()
	for _, l := range s.lanes {
		l.refresh(now)
	}
	asides := s.strand(now)
	s.dispatch()
	return asides
}

// valuesFrom returns the values of the site from a source, and those of the
// domains with blocks of their own that it serves. Caller holds mu.
func (s *site) valuesFrom(source string) []shaping.Values {
	all := []shaping.Values{s.home.shaping.For(shaping.Query{Site: s.name, Hosts: s.hosts, Source: source})}
	for domain, route := range s.named {
		all = append(all, s.home.shaping.For(shaping.Query{Domain: domain, Site: s.name, Hosts: route.Hosts, Source: source}))
	}
	return all
}

// limitsFrom returns the limits of a lane: never more than those of a provider
// that it shares with others. Caller holds mu.
func (s *site) limitsFrom(source string) shaping.Limits {
	all := s.valuesFrom(source)
	limits := limitsOf(all)
	for _, v := range all {
		for _, l := range v.Shared {
			if !l.OfProvider() {
				continue // it may hold for more than one source
			}
			if l.Connections > 0 {
				limits.Connections = min(limits.Connections, l.Connections)
			}
			limits.MessageRate = limits.MessageRate.Slower(l.MessageRate)
		}
	}
	return limits
}

// limitsOf returns the limits of a name before those for many, and the
// stricter of two names.
func limitsOf(all []shaping.Values) shaping.Limits {
	limits := all[0].Limits
	for i, v := range all[1:] {
		limits = stricter(limits, v.Limits, i > 0)
	}
	return limits
}

// fit applies the limits, and ends idle connections that are too many.
func (l *lane) fit() {
	l.apply()
	over := l.open - l.allowed().Connections
	if l.closed {
		over = l.open
	}
	if over > 0 {
		l.dismiss(min(over, len(l.idle)))
	}
}

// allowed is what the limits leave while the site has asked for patience.
func (l *lane) allowed() shaping.Limits { return l.slow.Apply(l.limits) }

// suspension returns the measure that keeps all mail of a lane waiting, or
// nil.
func (l *lane) suspension() *mail.Measure {
	var longest *mail.Measure
	all := l.site.home.shaping.Measures()
	for i := range all {
		m := &all[i]
		if m.Kind == mail.MeasureSuspend && !m.OfMessages() && m.Covers(mail.Traffic{Site: l.site.name, Source: l.source.Name}) &&
			(longest == nil || m.Until.After(longest.Until)) {
			longest = m
		}
	}
	return longest
}

// recover lets lanes go faster that have not been asked for patience for a
// while.
func (w *worker) recover() {
	for _, s := range w.sitesIn(nil) {
		s.mu.Lock()
		faster := false
		for _, l := range s.lanes {
			if l.slow.Recover(time.Now()) {
				l.apply()
				faster = true
				s.note(time.Now())
			}
		}
		if faster {
			s.dispatch()
		}
		s.mu.Unlock()
	}
}

// traffic is what measures look at in a request that leaves from a source.
func traffic(r *mail.DeliveryRequest, source string) mail.Traffic {
	return mail.Traffic{Site: r.Route.Site, Source: source, Tenant: r.Message.Tenant, Campaign: r.Message.Campaign, Domain: r.Recipients[0].Domain}
}

// measureOf returns the measure that decides about a request in place of an
// attempt, or nil. From no source yet, it is one about tenant or campaign.
func (w *worker) measureOf(r *mail.DeliveryRequest, from *source) *mail.Measure {
	all := w.shaping.Measures()
	if len(all) == 0 || len(r.Recipients) == 0 {
		return nil
	}
	of := traffic(r, "")
	if from != nil {
		of.Source = from.Name
	}
	m := all.For(of)
	if m == nil || from == nil && !m.OfMessages() || m.Kind == mail.MeasureSuspend && !m.OfMessages() {
		return nil // the lane sees to it
	}
	return m
}

// obeyed returns the settlement of a request that a measure has decided about.
func (w *worker) obeyed(r *mail.DeliveryRequest, m *mail.Measure) mail.Settlement {
	now := time.Now()
	st := mail.Settlement{Message: r.Message, Transaction: mail.Transaction{StartedAt: now, Site: r.Route.Site}}
	answer := smtpclient.Answer{Phase: mail.PhaseQueue}
	v := delayed(answer, scopeTransaction, moveSettle)
	v.status, v.untried = mail.EnhancedCode{Class: 4, Subject: 7}, true
	said := fmt.Sprintf("suspended until %s by %s: %s", m.Until.UTC().Format(time.RFC3339), m.By, m.Reason)
	if m.Kind == mail.MeasureBounce {
		v.action, v.status, v.untried = mail.Failed, mail.EnhancedCode{Class: 5, Subject: 7, Detail: 1}, false
		said = fmt.Sprintf("bounced by %s: %s", m.By, m.Reason)
	}
	for _, p := range r.Recipients {
		o := outcomeOf(p, answer, v)
		o.Reply = mail.Reply{Lines: []string{said}}
		values := w.shaping.For(shaping.Query{Domain: p.Domain, Site: r.Route.Site, Hosts: r.Route.Hosts})
		if o.Action == mail.Delayed {
			o.NextAttemptAt = m.Until
			if p.ExpiresAt.Before(o.NextAttemptAt) {
				o.NextAttemptAt = p.ExpiresAt
			}
		}
		o.PlanReport(r.Message, p, values.DelayNoticeAfter, mail.Promise{})
		st.Outcomes = append(st.Outcomes, o)
	}
	return st
}

// obeyUnclaimed settles requests that nobody has claimed by their measures.
func (w *worker) obeyUnclaimed(batch []mail.Settlement) error {
	if len(batch) == 0 {
		return nil
	}
	return w.persist("obey measures", func(ctx context.Context) error {
		_, err := w.store.SettleUnclaimed(ctx, batch)
		return err
	})
}

// obey settles the job by a measure, before anything of it has been sent.
func (a *attempt) obey(m *mail.Measure) {
	a.unload(a.job.load)
	a.job.load = nil
	st := a.obeyed(a.job.request, m)
	telemetry.Attempted(&st)
	a.settles.in <- st
}

// heard takes in what a host has said, other than that all is well.
func (a *attempt) heard(domain mail.Domain, answer smtpclient.Answer) {
	reply := answer.Reply
	if reply.Code == 0 {
		reply = mail.Reply{Lines: []string{explain(answer)}}
	}
	if reply.Positive() {
		return
	}
	r := a.job.request
	of := traffic(r, a.source.Name)
	of.Domain = domain
	v := a.shaping.For(shaping.Query{Domain: domain, Site: a.site.name, Hosts: r.Route.Hosts, Source: a.source.Name})
	fired, slowed := a.lane.heard(reply, of, v.Rules)
	if slowed {
		slog.Info("a site asks for patience", "worker_id", a.id, "site", a.site.name, "source", a.source.Name, "reply", reply.String())
		a.metrics.adapted(a.keep, v.Provider, "slow down")
	}
	for _, f := range fired {
		slog.Warn("automation", "worker_id", a.id, "site", a.site.name, "source", a.source.Name, "rule", f.Rule.Block, "regex", f.Pattern, "reply", reply.String())
		a.span.AddEvent("automation", trace.WithAttributes(attribute.String("rule", f.Rule.Block), attribute.String("regex", f.Pattern)))
		for _, action := range f.Rule.Actions {
			a.metrics.adapted(a.keep, v.Provider, string(action.Kind))
		}
		for _, m := range f.Measures {
			select {
			case a.orders.in <- m:
			default: // Postgres is away; the rule goes off again with the next reply
			}
		}
	}
}

// heard counts a reply and reports the rules that go off, and whether the lane
// goes slower by itself: only where no rule says what to do.
func (l *lane) heard(reply mail.Reply, of mail.Traffic, rules []shaping.Rule) (fired []adapt.Fired, slowed bool) {
	l.site.mu.Lock()
	defer l.site.mu.Unlock()
	now := time.Now()
	fired, handled := l.site.watch.Heard(now, reply, of, rules)
	if handled || !adapt.AsksForPatience(reply) || !l.slow.Asked(now) {
		return fired, false
	}
	l.fit()
	l.site.note(time.Now())
	return fired, true
}

// order tells all processes of measures.
func (w *worker) order(batch []mail.Measure) {
	err := w.persist("order measures", func(ctx context.Context) error { return w.store.Order(ctx, batch) })
	if err != nil {
		slog.Warn("measures not ordered", "worker_id", w.id, "measures", len(batch), "error", err)
	}
}
