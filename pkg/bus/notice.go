package bus

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

const subjectNotice = "postrider.notice." // and the topic

// SlotsTopic is the notice of delivery workers that slots have a new home.
const SlotsTopic = "slots"

// Announce tells everyone who watches the topic that something changed. It is
// not stored: watchers that are away look again when they come back. Topics
// have letters, digits, dots and hyphens. Errors: ErrDown.
func (b *Bus) Announce(ctx context.Context, topic string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("announce %s: %w", topic, err)
	}
	if err := b.signer.send(subjectNotice+topic, nil, b.nc.Publish); err != nil {
		return fmt.Errorf("announce %s: %w: %w", topic, ErrDown, err)
	}
	return nil
}

// Watch calls changed for each notice on the topic, and whenever the bus came
// back, because a notice may have been missed. Notices that come while
// changed runs are one. It returns nil when ctx is done, and an error only if
// the topic is malformed.
func (b *Bus) Watch(ctx context.Context, topic string, changed func(context.Context)) error {
	noticed := make(chan struct{}, 1)
	sub, err := b.subscribe(subjectNotice+topic, func([]byte, time.Duration) error {
		select {
		case noticed <- struct{}{}:
		default:
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("watch %s: %w", topic, err)
	}
	defer sub.Unsubscribe() //nolint:errcheck // fails only if the connection is closed
	_, period, _ := b.state()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-noticed:
		case <-period.Done():
			var up bool
			if up, period, _ = b.state(); !up {
				continue
			}
		}
		changed(ctx)
	}
}

// subscribe calls take with what is in each notice that is let in, and how old
// it is; one call runs at a time.
func (b *Bus) subscribe(subject string, take func(body []byte, age time.Duration) error) (*nats.Subscription, error) {
	gate := newGate(b.keys, noticeAge)
	var position uint64 // of notices, as they come: NATS keeps the order of each publisher
	return b.nc.Subscribe(subject, func(m *nats.Msg) {
		position++
		body, age, err := gate.open(b.keep, m.Subject, m.Data, position)
		if err == nil {
			err = take(body, age)
		}
		if err != nil {
			b.refuse(m.Subject, len(m.Data), err)
		}
	})
}
