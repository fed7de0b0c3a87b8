package delivery

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/telemetry"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

// untriedPause is when a recipient is looked at again whose attempt our own
// trouble has ended, while this process goes on.
const untriedPause = time.Minute

// ownTrouble is the verdict when the transaction could not be begun for
// reasons of our own. A content that Postgres does not give is tried again
// by the schedule, everything else without loss of a try.
func (a *attempt) ownTrouble(answer smtpclient.Answer) verdict {
	v := delayed(answer, scopeSession, moveSettle)
	v.status = mail.EnhancedCode{Class: 4, Subject: 3}
	v.untried = !errors.Is(answer.Err, errUnreadable)
	return v
}

// outcome makes the outcome of a recipient whose verdict stands.
func (a *attempt) outcome(p mail.Pending, answer smtpclient.Answer, v verdict) mail.Outcome {
	o := outcomeOf(p, answer, v)
	o.Untried = o.Untried && !errors.Is(answer.Err, errUnreadable) // or it would be tried for ever
	var delayNotice time.Duration
	if o.Action == mail.Delayed {
		values := a.shaping.For(shaping.Query{Domain: p.Domain, Site: a.site.name, Hosts: a.job.request.Route.Hosts})
		delayNotice = values.DelayNoticeAfter
		switch {
		case !o.Untried:
			scheduled := values.RetrySchedule.NextAttempt(a.over, p.ExpiresAt, p.Tries, a.jitter)
			o.NextAttemptAt = earlier(patienceOf(&o, p.Tries).next(a.over, scheduled), p.ExpiresAt)
		case errors.Is(answer.Err, errLeaseOver) || a.taking.Err() != nil || a.lease.left() <= 0:
			o.NextAttemptAt = a.over // for whoever goes on: the next home, or the next life
		default:
			o.NextAttemptAt = earlier(a.over.Add(untriedPause), p.ExpiresAt)
		}
	}
	o.PlanReport(a.job.request.Message, p, delayNotice, answer.Promised)
	return o
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// settleAll has every recipient of the job settled alike.
func (a *attempt) settleAll(answer smtpclient.Answer, v verdict) {
	a.over = time.Now()
	a.unload(a.job.load)
	a.job.load = nil
	outcomes := make([]mail.Outcome, len(a.job.request.Recipients))
	for i, p := range a.job.request.Recipients {
		outcomes[i] = a.outcome(p, answer, v)
	}
	a.settleOutcomes(outcomes)
}

// settleOutcomes hands outcomes to the settler.
func (a *attempt) settleOutcomes(outcomes []mail.Outcome) {
	if len(outcomes) == 0 {
		return
	}
	t := mail.Transaction{
		StartedAt: a.began, Duration: a.over.Sub(a.began), Site: a.site.name, Source: a.source.Name,
		Host: a.target.host.Name, Remote: a.target.addr,
	}
	if a.conn != nil {
		t.Local, t.TLS = a.conn.Local(), a.conn.TLS()
	}
	st := mail.Settlement{Message: a.job.request.Message, Transaction: t, Outcomes: outcomes}
	telemetry.Attempted(&st)
	if a.span.IsRecording() {
		a.span.SetAttributes(attribute.String("host", t.Host), attribute.String("remote", t.Remote.String()), attribute.String("tls", t.TLS))
		for i := range outcomes {
			if o := &outcomes[i]; o.Action != mail.Relayed {
				a.span.SetStatus(codes.Error, string(o.Action)+": "+o.Reply.String())
			}
		}
	}
	a.settles.in <- st
}

// saw adds one exchange with the remote host to the span.
func (a *attempt) saw(step smtpclient.Step) {
	if !a.span.IsRecording() {
		return
	}
	attrs := []attribute.KeyValue{attribute.Int64("took_us", step.Took.Microseconds())}
	if step.Reply.Code != 0 {
		attrs = append(attrs, attribute.Int("code", step.Reply.Code), attribute.String("reply", step.Reply.String()))
	}
	if step.Err != nil {
		attrs = append(attrs, attribute.String("error", step.Err.Error()))
	}
	a.span.AddEvent("smtp."+string(step.Phase), trace.WithAttributes(attrs...))
}

// sleepUntil waits until a time, or until ctx is done.
func sleepUntil(ctx context.Context, at time.Time) {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
