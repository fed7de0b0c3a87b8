package commit

import (
	"context"
	"log/slog"

	"github.com/postrider/postrider/pkg/mail"
)

// queuedPublisher rings for new messages. *bus.Bus is one.
type queuedPublisher interface {
	PublishQueued(ctx context.Context, messages []mail.QueuedMessage) error
}

// backlog is how many groups may wait to be published. Beyond it a group is
// left to its re-arm time: publishing never delays mail.
const backlog = 64

// publisher rings for committed groups, one frame each, in order.
type publisher struct {
	bus     queuedPublisher
	groups  chan []mail.QueuedMessage
	metrics *metrics
	failing bool // only run uses it
}

func newPublisher(b queuedPublisher, m *metrics) *publisher {
	return &publisher{bus: b, groups: make(chan []mail.QueuedMessage, backlog), metrics: m}
}

// publish hands a group over. It does not wait.
func (p *publisher) publish(group []mail.QueuedMessage) {
	if len(group) == 0 {
		return
	}
	select {
	case p.groups <- group:
	default:
		p.metrics.unpublished(len(group))
	}
}

// run publishes until ctx is done and nothing is left.
func (p *publisher) run(ctx context.Context) {
	for {
		select {
		case group := <-p.groups:
			p.ring(ctx, group)
		case <-ctx.Done():
			for len(p.groups) > 0 { // nobody else receives
				p.ring(ctx, <-p.groups)
			}
			return
		}
	}
}

func (p *publisher) ring(ctx context.Context, group []mail.QueuedMessage) {
	err := p.bus.PublishQueued(context.WithoutCancel(ctx), group)
	if err != nil {
		p.metrics.unpublished(len(group))
	}
	if failing := err != nil; failing != p.failing { // once, not for each group
		p.failing = failing
		if failing {
			slog.Warn("new messages are not rung for; the scheduler will", "error", err)
		} else {
			slog.Info("new messages are rung for again")
		}
	}
}

// accepted returns what to ring for: copies of the submissions without error,
// and of those accepted with them, that are not held until later.
func accepted(subs []*mail.Submission, errs []error) []mail.QueuedMessage {
	due := make([]*mail.Submission, 0, len(subs))
	total := 0
	add := func(sub *mail.Submission) {
		if !sub.Held() {
			due = append(due, sub)
			total += len(sub.Recipients)
		}
	}
	for i, sub := range subs {
		if errs[i] == nil {
			add(sub)
			for _, with := range sub.With {
				add(with)
			}
		}
	}
	pending := make([]mail.Pending, 0, total)
	messages := make([]mail.QueuedMessage, 0, len(due))
	for _, sub := range due {
		first := len(pending)
		for _, r := range sub.Recipients {
			pending = append(pending, mail.Pending{Recipient: r})
		}
		messages = append(messages, mail.QueuedMessage{Message: sub.Message, Recipients: pending[first:len(pending):len(pending)]})
	}
	return messages
}
