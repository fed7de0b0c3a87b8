package delivery

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

const (
	// lookEvery is how often the sites with parked mail, and suspensions, are
	// looked for: mail flows at this pace even without the bus.
	lookEvery = time.Second
	// forgetEvery is how often sites that have nothing to do are forgotten.
	forgetEvery = 5 * time.Second
	// pullBatch bounds one pull.
	pullBatch = 500
	// maxMoves is how many batches of parked mail one look hands on.
	maxMoves = 10
	// pullers is how many pulls may be under way.
	pullers = 2
)

// pull orders parked mail when little is left of a pool. While the breaker is
// open it orders one probe. Caller holds mu.
func (s *site) pull(now time.Time) {
	if s.wantsMore() || s.breaker.isOpen() && s.ready.len()+s.coming == 0 {
		s.orderPull(now)
	}
}

// pullNow has what is parked looked at, however much is here.
func (s *site) pullNow() { s.orderPull(time.Now()) }

// orderPull has what is parked looked at, and pulled as there is room.
func (s *site) orderPull(now time.Time) {
	if !s.parked || s.pulling || s.closed() || now.Before(s.suspendedUntil) {
		return
	}
	if may, at := s.breaker.mayTry(now); !may {
		s.wakeAt(at)
		return
	}
	select {
	case s.home.pulls <- s:
		s.pulling = true
	default: // many sites pull already; the next look tries again
	}
}

// runPuller carries out pull orders until ctx is done.
func (w *worker) runPuller(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-w.pulls:
			if err := w.carryOut(ctx, s); err != nil {
				return err
			}
		}
	}
}

func (w *worker) carryOut(ctx context.Context, s *site) error {
	// A pull that has begun is finished: half of one is not known to anybody.
	within, cancel := context.WithTimeout(w.keep, storeWithin)
	defer cancel()
	from := s.parkedPart()
	flows, whole, err := w.flows(within, s, from)
	if err != nil {
		s.pulled(nil, nil, false)
		slog.Warn("parked flows not read", "worker_id", w.id, "site", s.name, "error", err)
		sleep(ctx, firstStorePause)
		return nil
	}
	shares := s.plan(flows, whole, time.Now())
	if len(shares) == 0 {
		s.pulled(nil, nil, whole)
		return nil
	}
	wanted := make([]store.Share, len(shares))
	reserved := make([]places, len(shares))
	for i, sh := range shares {
		wanted[i] = store.Share{Flow: sh.parked, Recipients: sh.n}
		reserved[i] = places{sh.flow, sh.n}
	}
	requests, err := w.store.Pull(within, w.id, from, wanted)
	var jobs []*job
	got := map[flow]int{}
	for _, r := range requests {
		r.SetSlot(s.slot)
		v := w.values(r)
		s.learn(r, v)
		split := w.split(r, boundsOf(r, v))
		got[split[0].flow] += len(r.Recipients)
		jobs = append(jobs, split...)
	}
	if err != nil {
		for _, sh := range shares {
			got[sh.flow] = sh.n // nothing is known of what is left
		}
	}
	w.add(s, jobs, reserved...)
	s.pulled(shares, got, whole)
	if err == nil {
		return nil
	}
	slog.Warn("pull failed", "worker_id", w.id, "site", s.name, "error", err)
	if didNothing(err) {
		sleep(ctx, firstStorePause)
		return nil
	}
	return errUnknownClaims
}

// flows returns the flows that are parked for a site: all, or where there are
// many those of the highest priorities, and others by turns.
func (w *worker) flows(ctx context.Context, s *site, from store.ParkedSite) (flows []store.Flow, whole bool, err error) {
	flows, err = w.store.ParkedFlows(ctx, from, nil, maxFlows)
	if err != nil || len(flows) < maxFlows {
		return flows, err == nil, err
	}
	// Only the puller of the site reads and writes the cursor.
	after := &flows[len(flows)-1]
	if s.cursor != nil {
		after = s.cursor
	}
	more, err := w.store.ParkedFlows(ctx, from, after, maxFlows)
	s.cursor = nil
	if len(more) == maxFlows {
		s.cursor = &more[len(more)-1]
	}
	for _, f := range more {
		if !slices.Contains(flows, f) {
			flows = append(flows, f)
		}
	}
	return flows, false, err
}

// didNothing reports whether a step has surely not been committed: there was
// no connection, or Postgres itself said that it failed. After any other
// error it may have been, and what a pull has claimed then is known to nobody
// here: the worker must end its life, which gives back all its claims.
func didNothing(err error) bool {
	var network *net.OpError
	var said interface{ SQLState() string }
	return errors.As(err, &said) || errors.As(err, &network) && network.Op == "dial"
}

// runLook finds parked mail and suspensions in our slots until ctx is done.
func (w *worker) runLook(ctx context.Context) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	forget := time.NewTicker(forgetEvery)
	defer forget.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-forget.C:
			w.forgetQuiet()
			continue
		case <-look.C:
		case <-w.lookNow:
		}
		w.recover()
		slots := w.slotsIn(ours)
		if len(slots) == 0 {
			continue
		}
		if err := w.lookForSuspended(ctx); err != nil && ctx.Err() == nil {
			slog.Warn("suspensions not read", "worker_id", w.id, "error", err)
		}
		if err := w.lookForParked(ctx, slots); err != nil && ctx.Err() == nil {
			slog.Warn("parked sites not read", "worker_id", w.id, "error", err)
		}
	}
}

func (w *worker) lookForParked(ctx context.Context, slots []int16) error {
	parked, err := w.store.ParkedSites(ctx, w.withSiblings(slots))
	if err != nil {
		return err
	}
	own := map[store.ParkedSite]bool{}
	for _, p := range parked {
		own[p] = true
	}
	for _, p := range parked {
		if !slices.Contains(slots, p.Slot) {
			w.help(p, own)
			continue
		}
		if d := w.divisionOf(p.Site); !d.Takes(p.Slot) {
			if err := w.moveParked(ctx, p, d.Takers()); err != nil {
				return err
			}
			continue
		}
		if s := w.siteOf(p.Site, p.Slot); s != nil {
			s.found(p.Slot)
			w.help(p, own)
		}
	}
	return nil
}

// moveParked hands on what is parked in a slot in which its site has no part
// any more, as much as a look may take time for.
func (w *worker) moveParked(ctx context.Context, from store.ParkedSite, to []int16) error {
	for range maxMoves {
		moved, err := w.store.MoveParked(ctx, from, to)
		if err != nil || moved == 0 {
			return err
		}
	}
	return nil
}

// lookForSuspended applies the operators' suspensions, and ends those that
// are over.
func (w *worker) lookForSuspended(ctx context.Context) error {
	found, err := w.store.Suspended(ctx)
	if err != nil {
		return err
	}
	now := suspensions{}
	for _, f := range found {
		now[f.Site] = f.SuspendedUntil
	}
	w.mu.Lock()
	w.suspended = now // for the sites that are met from now on
	w.mu.Unlock()
	for _, s := range w.sitesIn(nil) {
		if until := now.of(s.name); !until.IsZero() || s.isSuspended() {
			w.layAside(s.suspend(until))
		}
	}
	return nil
}

// suspensions are when those of operators end, of sites and of whole
// providers.
type suspensions map[mail.Site]time.Time

// of returns when the suspension of a site ends; the zero time if there is
// none.
func (all suspensions) of(name mail.Site) time.Time {
	own, group := all[name], all[name.Group()]
	if group.After(own) {
		return group
	}
	return own
}
