package bus

import (
	"context"
	"fmt"
	"strconv"

	"github.com/postrider/postrider/pkg/mail"
)

// PublishQueued rings for messages with due recipients: as few frames as
// bear them. It does not wait for JetStream, so nil does not say that they
// arrived. Errors: ErrDown, or ctx was done before it began.
func (b *Bus) PublishQueued(ctx context.Context, messages []mail.QueuedMessage) error {
	return b.publish(ctx, subjectQueued, func(f *framer) error {
		for i := range messages {
			if err := f.addQueued(&messages[i], messages[i].Recipients); err != nil {
				return err
			}
		}
		return nil
	})
}

// PublishReady hands delivery requests to their home worker, with each route
// once per frame. Otherwise as PublishQueued.
func (b *Bus) PublishReady(ctx context.Context, worker mail.WorkerID, requests []*mail.DeliveryRequest) error {
	return b.publish(ctx, readySubject(worker), func(f *framer) error {
		for _, r := range requests {
			if err := f.addRequest(r, r.Recipients); err != nil {
				return err
			}
		}
		return nil
	})
}

// PublishFailed rings for messages that have recipients to report on.
// Otherwise as PublishQueued.
func (b *Bus) PublishFailed(ctx context.Context, ids []mail.QueueID) error {
	return b.publish(ctx, subjectFailed, func(f *framer) error {
		for _, id := range ids {
			if err := f.addFailed(id); err != nil {
				return err
			}
		}
		return nil
	})
}

func (b *Bus) publish(ctx context.Context, subject string, fill func(*framer) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("publish %s: %w", subject, err)
	}
	if up, _, why := b.state(); !up {
		b.metrics.refused(ctx)
		return fmt.Errorf("publish %s: %w: %w", subject, ErrDown, why)
	}
	// A core publish to the subject of a stream: JetStream stores it and acks
	// nothing, for no reply is asked for. The client copies the frame.
	err := frames(func(frame []byte) error {
		return b.signer.send(subject, frame, func(subject string, frame []byte) error {
			b.metrics.published(ctx, len(frame))
			return b.nc.Publish(subject, frame)
		})
	}, fill)
	if err != nil {
		b.metrics.refused(ctx)
		return fmt.Errorf("publish %s: %w: %w", subject, ErrDown, err)
	}
	return nil
}

func readySubject(worker mail.WorkerID) string {
	return subjectReady + strconv.Itoa(int(worker))
}
