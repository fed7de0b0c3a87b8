package delivery

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

const (
	// lookEvery is how often the sites with parked mail, and suspensions, are
	// looked for: mail flows at this pace even without the bus.
	lookEvery = time.Second
	// pullBatch bounds one pull.
	pullBatch = 500
	// pullers is how many pulls may be under way.
	pullers = 2
)

// pullOrder asks for so many parked recipients of a site, for which places
// are reserved.
type pullOrder struct {
	site *site
	n    int
}

// pull orders parked mail when half of the room is free. While the breaker is
// open it orders one probe. Caller holds mu.
func (s *site) pull(now time.Time) {
	if !s.parked || s.pulling || s.stopped || now.Before(s.suspendedUntil) {
		return
	}
	if may, at := s.breaker.mayTry(now); !may {
		s.wakeAt(at)
		return
	}
	held := s.ready.len() + s.coming
	n := min(s.room(), pullBatch)
	if s.breaker.isOpen() {
		n = min(n, 1-held)
	}
	if n < 1 || held > s.limits.Ready/2 {
		return
	}
	select {
	case s.home.pulls <- pullOrder{s, n}:
		s.pulling = true
		s.reserve(n)
	default: // many sites pull already; the next look tries again
	}
}

// runPuller carries out pull orders until ctx is done.
func (w *worker) runPuller(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case o := <-w.pulls:
			if err := w.carryOut(ctx, o); err != nil {
				return err
			}
		}
	}
}

func (w *worker) carryOut(ctx context.Context, o pullOrder) error {
	// A pull that has begun is finished: half of one is not known to anybody.
	within, cancel := context.WithTimeout(w.keep, storeWithin)
	requests, err := w.store.Pull(within, w.id, o.site.name, o.n)
	cancel()
	var jobs []*job
	recipients := 0
	for _, r := range requests {
		recipients += len(r.Recipients)
		v := w.values(r)
		o.site.learn(r, v)
		jobs = append(jobs, w.split(r, v.RecipientsPerTransaction)...)
	}
	o.site.pulled(recipients == o.n || err != nil)
	w.add(o.site, jobs, o.n)
	if err == nil {
		return nil
	}
	slog.Warn("pull failed", "worker_id", w.id, "site", o.site.name, "error", err)
	if didNothing(err) {
		sleep(ctx, firstStorePause)
		return nil
	}
	return errUnknownClaims
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

// pulled says whether more of the site may be parked.
func (s *site) pulled(more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pulling = false
	s.parked = more
}

// runLook finds parked mail and suspensions in our slots until ctx is done.
func (w *worker) runLook(ctx context.Context) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	save := time.NewTicker(saveEvery)
	defer save.Stop()
	suspended := map[mail.Site]bool{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-save.C:
			w.saveSites(ctx)
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
		if err := w.lookForSuspended(ctx, slots, suspended); err != nil && ctx.Err() == nil {
			slog.Warn("suspensions not read", "worker_id", w.id, "error", err)
		}
		if err := w.lookForParked(ctx, slots); err != nil && ctx.Err() == nil {
			slog.Warn("parked sites not read", "worker_id", w.id, "error", err)
		}
	}
}

func (w *worker) lookForParked(ctx context.Context, slots []int16) error {
	parked, err := w.store.ParkedSites(ctx, slots)
	if err != nil {
		return err
	}
	for _, p := range parked {
		if s := w.siteOf(p.Site); s != nil {
			s.mu.Lock()
			s.parked = true
			s.dispatch()
			s.mu.Unlock()
		}
	}
	return nil
}

// lookForSuspended applies the operators' suspensions, and ends those that
// are over. known has the sites that were suspended at the last look.
func (w *worker) lookForSuspended(ctx context.Context, slots []int16, known map[mail.Site]bool) error {
	found, err := w.store.Suspended(ctx, slots)
	if err != nil {
		return err
	}
	now := map[mail.Site]bool{}
	for _, f := range found {
		now[f.Site] = true
		known[f.Site] = true
		if s := w.siteOf(f.Site); s != nil {
			w.layAside(s.suspend(f.SuspendedUntil))
		}
	}
	for name := range known {
		if now[name] {
			continue
		}
		delete(known, name)
		if s := w.siteOf(name); s != nil {
			s.suspend(time.Time{})
		}
	}
	return nil
}
