package resolver

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/mail"
)

// busy is how many recipients of one batch make a domain worth an
// announcement.
const busy = 4

// announce tells ingress the ways of the busy domains of a batch, so that the
// mail behind it goes straight to its home (ADR 0010). They hold until homes
// and routing table are read again, so nothing that operators or workers
// change is seen later than here. Ways that are not the same for all mail to
// a domain are not announced: a rule of the routing table may ask for the
// sender, and the parts of a divided site take turns by message.
func (r *resolver) announce(ctx context.Context, requests []*mail.DeliveryRequest) {
	valid := time.Until(*r.freshUntil.Load())
	if valid <= 0 {
		return
	}
	homes, table := r.homes.Load(), r.routing.Load()
	recipients := make(map[mail.Domain]int, len(requests))
	var ways []bus.Way
	for _, request := range requests {
		home := homes.of[request.Slot()]
		if _, divided := homes.divided[request.Route.Site]; divided || !home.Live {
			continue
		}
		for i := range request.Recipients {
			domain := request.Recipients[i].Domain
			if recipients[domain]++; recipients[domain] == busy && !table.concerns(domain) {
				ways = append(ways, bus.Way{
					Domain: domain, Worker: home.Worker, Route: request.Route,
					Valid: min(valid, time.Until(request.Route.ExpiresAt)),
				})
			}
		}
	}
	if len(ways) == 0 {
		return
	}
	if err := r.nc.AnnounceWays(ctx, ways); err != nil && !errors.Is(err, bus.ErrDown) {
		slog.WarnContext(ctx, "ways were not announced", "error", err)
	}
}
