package resolver

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/telemetry"
	"github.com/postrider/postrider/services/resolver/internal/mx"
)

// send hands on all that became of a wave. After an error some of it may
// have left: doing it again is harmless.
func (r *resolver) send(ctx context.Context, w wave) error {
	return errors.Join(r.publish(ctx, w.requests), r.settle(ctx, w.settlements))
}

// publish hands each request to the home of its site, or of one part of it,
// one frame per home, and parks those that have none or cannot be published.
func (r *resolver) publish(ctx context.Context, requests []*mail.DeliveryRequest) error {
	homes := r.homes.Load()
	byWorker := map[mail.WorkerID][]*mail.DeliveryRequest{}
	var homeless []*mail.DeliveryRequest
	for _, request := range requests {
		request.SetSlot(homes.divided.SlotOf(request.Route.Site, request.Message.ID))
		if home := homes.of[request.Slot()]; home.Live {
			byWorker[home.Worker] = append(byWorker[home.Worker], request)
		} else {
			homeless = append(homeless, request)
		}
	}
	for worker, requests := range byWorker {
		err := r.nc.PublishReady(ctx, worker, requests)
		switch {
		case err == nil:
			r.metrics.count(ctx, "published", requests)
		case errors.Is(err, bus.ErrDown):
			homeless = append(homeless, requests...)
		default:
			return err
		}
	}
	if len(homeless) > 0 {
		// Park keeps in the requests only the recipients that it parked: the
		// others are in someone's hands already.
		if err := r.db.Park(ctx, 0, homeless); err != nil {
			return err
		}
		r.metrics.count(ctx, "parked", homeless)
	}
	for _, request := range requests {
		if len(request.Recipients) > 0 {
			telemetry.Resolved(request)
		}
	}
	return nil
}

// settle records the outcomes of recipients in trouble, and rings for the
// messages that have to be reported on.
func (r *resolver) settle(ctx context.Context, settlements []mail.Settlement) error {
	if len(settlements) == 0 {
		return nil
	}
	if _, err := r.db.SettleUnclaimed(ctx, settlements); err != nil {
		return err
	}
	var failed []mail.QueueID
	for i := range settlements {
		s := &settlements[i]
		telemetry.Settled(s)
		became := map[mail.Action]int{}
		for _, o := range s.Outcomes {
			became[o.Action]++
		}
		for action, n := range became {
			r.metrics.add(ctx, string(action), n)
		}
		if became[mail.Failed] > 0 {
			failed = append(failed, s.Message.ID)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	// The reports are rows; bounce finds them without the hint, only later.
	if err := r.nc.PublishFailed(ctx, failed); err != nil && !errors.Is(err, bus.ErrDown) {
		slog.WarnContext(ctx, "bounce was not rung", "error", err)
	}
	return nil
}

// outcome turns a trouble with a domain into the outcome of one recipient.
func (r *resolver) outcome(m mail.Message, p mail.Pending, trouble mx.Trouble) mail.Outcome {
	v := r.shaping.For(shaping.Query{Domain: p.Domain})
	o := mail.Outcome{
		RecipientNo: p.No,
		Attempt:     p.Attempt,
		Action:      mail.Failed,
		Status:      trouble.Status,
		Reply:       mail.Reply{Lines: []string{trouble.Text}},
		Phase:       mail.PhaseResolve,
	}
	if !trouble.Permanent {
		o.Action = mail.Delayed
		o.NextAttemptAt = v.RetrySchedule.NextAttempt(time.Now(), p.ExpiresAt, p.Tries, rand.Float64)
	}
	o.PlanReport(m, p, v.DelayNoticeAfter, mail.Promise{})
	return o
}
