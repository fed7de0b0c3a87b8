package delivery

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

const (
	// claimBatch bounds the requests of one claim.
	claimBatch = 500
	// mapAge is how old the map of the slots may be that requests for other
	// homes are passed on by.
	mapAge = 500 * time.Millisecond
)

// claim is the part of a frame that is to be claimed.
type claim struct {
	admitted []admitted
	done     chan error // gets one value
}

// admitted is a request with a place reserved at its site.
type admitted struct {
	site    *site
	flow    flow
	request *mail.DeliveryRequest
	bounds  bounds
	load    *load // not nil if a connection takes it next: its content comes with the claim
}

// receive takes the requests of a frame: those of our slots are claimed, or
// parked where there is no room; those of other slots are passed on to their
// home. The frame may be acked when it returns nil: then row and lease are
// the truth.
func (w *worker) receive(ctx context.Context, requests []*mail.DeliveryRequest) error {
	var strangers, full, dead []*mail.DeliveryRequest
	var outages []outage
	var obeyed []mail.Settlement
	c := &claim{done: make(chan error, 1)}
	for _, r := range requests {
		if len(r.Recipients) == 0 {
			continue
		}
		s := w.siteFor(r)
		if s == nil {
			strangers = append(strangers, r)
			continue
		}
		if m := w.measureOf(r, nil); m != nil {
			obeyed = append(obeyed, w.obeyed(r, m))
			continue
		}
		v := w.values(r)
		f := w.flowOf(r)
		switch place, why := s.admit(r, f, v); {
		case place != none:
			a := admitted{site: s, flow: f, request: r, bounds: boundsOf(r, v)}
			if place == connected && a.bounds.holds(r.Recipients) {
				a.load = w.tryReserve(r)
			}
			c.admitted = append(c.admitted, a)
		case why != nil:
			dead, outages = append(dead, r), append(outages, *why)
		default:
			full = append(full, r)
		}
	}
	if len(c.admitted) > 0 {
		select {
		case w.claims.in <- c:
		case <-ctx.Done():
			w.giveUp(c)
			return context.Cause(ctx)
		}
	}
	err := errors.Join(w.park(ctx, append(full, w.passOn(ctx, strangers)...)), w.shelve(ctx, dead, outages), w.obeyUnclaimed(obeyed))
	if err != nil {
		return err
	}
	if len(c.admitted) == 0 {
		return nil
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// giveUp frees the reserved places.
func (w *worker) giveUp(c *claim) {
	for _, a := range c.admitted {
		w.unload(a.load)
		w.add(a.site, nil, places{a.flow, 1})
	}
}

// claim claims what several frames have brought. What a connection takes next
// is dispatched in the same step.
func (w *worker) claim(claims []*claim) {
	var all []*mail.DeliveryRequest
	var now []bool
	for _, c := range claims {
		for _, a := range c.admitted {
			all = append(all, a.request)
			now = append(now, a.load != nil)
		}
	}
	var contents []store.Content
	var unknown []*mail.DeliveryRequest // of a try that may have been committed all the same
	err := w.persist("claim", func(ctx context.Context) (err error) {
		contents, err = w.store.ClaimAndDispatch(ctx, w.id, all, now)
		if err != nil && !didNothing(err) && unknown == nil {
			unknown = underNextFence(all)
		}
		return err
	})
	w.giveBackUnknown(unknown, all)
	i := 0
	for _, c := range claims {
		for _, a := range c.admitted {
			var jobs []*job
			if err == nil {
				jobs = w.split(a.request, a.bounds)
			}
			if a.load != nil && len(jobs) == 1 && contents[i].Bytes != nil {
				a.load.content = contents[i]
				jobs[0].load = a.load
			} else {
				w.unload(a.load)
			}
			w.add(a.site, jobs, places{a.flow, 1})
			i++
		}
		c.done <- err
	}
}

// giveBackUnknown gives back what a try of a claim may have won without our
// hearing of it: the recipients that are not in the hands of a request now.
// The try that succeeded has waited for it.
func (w *worker) giveBackUnknown(unknown, claimed []*mail.DeliveryRequest) {
	if unknown == nil {
		return
	}
	type key struct {
		id mail.QueueID
		no int32
	}
	ours := map[key]bool{}
	for _, r := range claimed {
		for _, p := range r.Recipients {
			ours[key{r.Message.ID, p.No}] = true
		}
	}
	for _, r := range unknown {
		r.Recipients = slices.DeleteFunc(r.Recipients, func(p mail.Pending) bool { return ours[key{r.Message.ID, p.No}] })
	}
	if err := w.persist("give back", func(ctx context.Context) error { return w.store.GiveBack(ctx, w.id, unknown) }); err != nil {
		slog.Warn("claims not given back: they are taken back when the lease ends", "worker_id", w.id, "error", err)
	}
}

// underNextFence returns the requests as they look when they were claimed.
func underNextFence(requests []*mail.DeliveryRequest) []*mail.DeliveryRequest {
	claimed := make([]*mail.DeliveryRequest, len(requests))
	for i, r := range requests {
		next := *r
		next.Recipients = make([]mail.Pending, len(r.Recipients))
		for k, p := range r.Recipients {
			p.Attempt++
			next.Recipients[k] = p
		}
		claimed[i] = &next
	}
	return claimed
}

// passOn publishes requests to the homes of their slots and returns those
// that have none at the moment.
func (w *worker) passOn(ctx context.Context, requests []*mail.DeliveryRequest) (homeless []*mail.DeliveryRequest) {
	if len(requests) == 0 {
		return nil
	}
	homes, err := w.slotMap.get(ctx, w.store)
	if err != nil {
		slog.Warn("map of the slots not read", "worker_id", w.id, "error", err)
		return requests
	}
	by := map[mail.WorkerID][]*mail.DeliveryRequest{}
	for _, r := range requests {
		home := homes[r.Slot()]
		if !home.Live || home.Worker == w.id {
			homeless = append(homeless, r)
			continue
		}
		by[home.Worker] = append(by[home.Worker], r)
	}
	for worker, theirs := range by {
		if err := w.bus.PublishReady(ctx, worker, theirs); err != nil {
			homeless = append(homeless, theirs...)
		}
	}
	return homeless
}

// park lays requests aside that nobody has claimed.
func (w *worker) park(ctx context.Context, requests []*mail.DeliveryRequest) error {
	if len(requests) == 0 {
		return nil
	}
	w.metrics.parked.Add(ctx, int64(len(requests)))
	return w.persist("park", func(ctx context.Context) error { return w.store.Park(ctx, 0, requests) })
}

// layAside lays jobs aside that this worker has claimed, for the next home.
func (w *worker) layAside(jobs []*job) {
	if len(jobs) > 0 {
		w.aside.in <- aside{jobs: jobs}
	}
}

// aside is jobs to be laid aside.
type aside struct {
	jobs []*job
	why  *outage // nil unless no host of their site can be reached
}

// putAside parks jobs in Postgres. A worker that ends gives them back
// instead: maybe there is no other, and they have waited for long before
// there is one.
func (w *worker) putAside(batch []aside) {
	var all []*mail.DeliveryRequest
	var err error
	for _, a := range batch {
		for _, j := range a.jobs {
			w.unload(j.load)
			j.load = nil
		}
		if a.why != nil {
			err = errors.Join(err, w.putDown(a.jobs, *a.why))
			continue
		}
		all = append(all, requestsOf(a.jobs)...)
	}
	err = errors.Join(err, w.persist("lay aside", func(ctx context.Context) error {
		if w.taking.Err() != nil {
			return w.store.GiveBack(ctx, w.id, all)
		}
		return w.store.Park(ctx, w.id, all)
	}))
	if err != nil {
		slog.Warn("jobs not laid aside: they are taken back when the lease ends", "worker_id", w.id, "requests", len(all), "error", err)
	}
}

// slotMap is the map of the slots, as of lately.
type slotMap struct {
	sem    chan struct{} // holds one token; guards the rest
	homes  [mail.Slots]store.Home
	readAt time.Time
}

func newSlotMap() *slotMap { return &slotMap{sem: make(chan struct{}, 1)} }

func (m *slotMap) get(ctx context.Context, from *store.Store) ([mail.Slots]store.Home, error) {
	select {
	case m.sem <- struct{}{}:
	case <-ctx.Done():
		return m.homes, context.Cause(ctx)
	}
	defer func() { <-m.sem }()
	if time.Since(m.readAt) < mapAge {
		return m.homes, nil
	}
	homes, err := from.SlotHomes(ctx)
	if err == nil {
		m.homes, m.readAt = homes, time.Now()
	}
	return m.homes, err
}
