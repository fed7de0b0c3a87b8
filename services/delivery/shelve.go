package delivery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

// parkWithin is when a recipient is rung again that was recorded as waiting
// for its site and then not parked, because this process died between.
const parkWithin = 10 * time.Second

// shelve lays requests aside that nobody has claimed, for a site none of whose
// hosts can be reached: first the reason goes into their history, and a delay
// notice is planned, as if each had been tried; then they are parked until a
// probe gets through.
func (w *worker) shelve(ctx context.Context, requests []*mail.DeliveryRequest, outages []outage) error {
	if len(requests) == 0 {
		return nil
	}
	batch := make([]mail.Settlement, len(requests))
	for i, r := range requests {
		batch[i] = w.waiting(r, outages[i])
	}
	err := w.persist("shelve", func(ctx context.Context) error {
		_, err := w.store.SettleUnclaimed(ctx, batch)
		return err
	})
	if err != nil {
		return err
	}
	return w.park(ctx, underNextFence(requests))
}

// waiting returns the settlement that says why a request waits.
func (w *worker) waiting(r *mail.DeliveryRequest, o outage) mail.Settlement {
	now := time.Now()
	v := judge(circumstances{answer: o.answer, tls: r.Route.TLS, last: true})
	st := mail.Settlement{Message: r.Message, Transaction: mail.Transaction{
		StartedAt: now, Host: o.target.host.Name, Remote: o.target.addr, Site: r.Route.Site,
	}}
	for _, p := range r.Recipients {
		outcome := outcomeOf(p, o.answer, v)
		outcome.Action = mail.Delayed
		if !errors.As(o.answer.Err, new(noSource)) {
			outcome.Reply.Lines = []string{fmt.Sprintf("no host answers; last tried %s: %s", o.at.UTC().Format(time.RFC3339), outcome.Reply)}
		}
		outcome.Reply.Code, outcome.Reply.Enhanced = 0, mail.EnhancedCode{}
		outcome.PlanReport(r.Message, p, w.shaping.For(shaping.Query{Domain: p.Domain, Site: r.Route.Site, Hosts: r.Route.Hosts}).DelayNoticeAfter, mail.Promise{})
		outcome.Untried = true
		outcome.NextAttemptAt = now.Add(parkWithin)
		st.Outcomes = append(st.Outcomes, outcome)
	}
	return st
}

// delayed returns the settlement of a request that could not be tried, and is
// tried again by the schedule.
func (w *worker) delayed(r *mail.DeliveryRequest, answer smtpclient.Answer) mail.Settlement {
	now := time.Now()
	st := mail.Settlement{Message: r.Message, Transaction: mail.Transaction{StartedAt: now, Site: r.Route.Site}}
	v := delayed(answer, scopeTransaction, moveSettle)
	for _, p := range r.Recipients {
		outcome := outcomeOf(p, answer, v)
		values := w.shaping.For(shaping.Query{Domain: p.Domain, Site: r.Route.Site, Hosts: r.Route.Hosts})
		outcome.NextAttemptAt = values.RetrySchedule.NextAttempt(now, p.ExpiresAt, p.Tries, rand.Float64)
		outcome.PlanReport(r.Message, p, values.DelayNoticeAfter, mail.Promise{})
		st.Outcomes = append(st.Outcomes, outcome)
	}
	return st
}

// putDown is shelve for jobs that this worker has claimed.
func (w *worker) putDown(jobs []*job, o outage) error {
	requests := requestsOf(jobs)
	batch := make([]mail.Settlement, len(requests))
	for i, r := range requests {
		batch[i] = w.waiting(r, o)
	}
	settle := w.store.Settle
	return w.persist("put down", func(ctx context.Context) error {
		_, err := settle(ctx, w.id, batch)
		settle = w.store.Resettle // only the answer may be lost, or the park fail
		if err != nil {
			return err
		}
		return w.store.Park(ctx, 0, requests)
	})
}
