package delivery

import (
	"slices"
	"sync"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/services/delivery/internal/adapt"
)

// site is everything that this process knows of one site, or of one part of a
// divided one, while it is its home: what waits, the lanes to it, what holds
// for all of them together. There is one such value in the whole cluster at a
// time, so its limits, or its portion of them, need no word with anybody.
//
// Whatever changes it calls dispatch, which hands jobs to connections as far
// as the limits allow. So nothing polls, and nothing waits for a limit but
// the jobs themselves.
type site struct {
	name mail.Site
	slot int16
	home *worker

	mu           sync.Mutex // guards all below, the lanes too
	division     mail.Division
	crowdedSince time.Time                   // only runDivisions uses it
	passive      bool                        // it has no part in the division that stays: nothing more goes out
	limits       shaping.Limits              // of the site as a whole
	hosts        []mail.Host                 // of the first route; nil before
	named        map[mail.Domain]*mail.Route // domains whose own block, or the site's, sets limits; with a route of theirs
	idleTimeout  time.Duration               // of connections without work
	longest      time.Duration               // between probes of the breaker

	ready  ready
	coming int // jobs that have a place in ready and are being claimed or pulled
	backlog

	lanes    []*lane           // one for each source that has been used, or wanted
	turns    map[string]*turn  // by pool
	sessions map[*session]bool // of all lanes, those that still connect too
	failures failures
	breaker  breaker
	greeted  bool          // a host has greeted us since it is known, or its last home
	hung     bool          // the last dial gave its seat up to others that waited
	opening  int           // sessions that no host has greeted
	cost     time.Duration // how long the last session took that no host greeted
	promises []*joint      // that may hold a seat for the site
	waits    bool          // it may be in line for a seat
	outage   outage        // the last time that no host was reached
	watch    adapt.Watch

	held int64 // bytes of content of the transactions in hand

	suspendedUntil time.Time
	stopped        bool      // this process is no longer its home: nothing more goes out
	unsaved        time.Time // the first event since the state was saved; zero: there was none
	urgent         bool      // it is to be saved at once
	saving         time.Time // the first event in the state that is being saved
	wake           time.Time // the earliest moment at which a limit allows more
	wakeUp         *time.Timer
	before         predecessor
	remnants       []*site // that were busy when this one was made
}

// learn takes over the values for the domain of a request, before any of it
// goes out.
func (s *site) learn(r *mail.DeliveryRequest, v shaping.Values) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heed(r, v)
}

// heed takes over the values for the domain of a request. Limits of a name
// count before those of a block for many; of two names the stricter. Caller
// holds mu.
func (s *site) heed(r *mail.DeliveryRequest, v shaping.Values) {
	s.idleTimeout = v.IdleTimeout
	s.longest = v.RetrySchedule.Next(0, evenly)
	domain := r.Recipients[0].Domain
	_, known := s.named[domain]
	if s.hosts != nil && (known || !v.Named) {
		return
	}
	if v.Named {
		s.named[domain] = r.Route
	}
	s.meet(r.Route.Hosts)
}

// meet takes over what shaping says of the site, now that its hosts are known.
// Caller holds mu.
func (s *site) meet(hosts []mail.Host) {
	if s.hosts == nil {
		// Providers are told by the hosts, of which the name says nothing.
		s.hosts = hosts
	}
	s.relimit()
}

// relimit takes over what shaping says of the site. Caller holds mu.
func (s *site) relimit() {
	all := s.valuesFrom("")
	s.limits = limitsOf(all)
	for _, l := range s.lanes {
		l.relimit(s.portion())
	}
}

// stricter returns the limits of a name over those known so far: the stricter
// ones if those are of a name too.
func stricter(known, of shaping.Limits, named bool) shaping.Limits {
	if !named {
		return of
	}
	return known.Stricter(of)
}

// place is where a request that comes from the bus goes.
type place int

const (
	none      place = iota // to Postgres: it is parked
	queued                 // into the ready queue
	connected              // to a connection that is free for it, now or after its transaction in hand
)

// admit reserves room for the jobs of a request that is about to be claimed.
// None means that it is to be parked: there is no room, or older mail of its
// flow is parked already and goes first, or no host of the site can be
// reached, or no source be used: then why is set.
func (s *site) admit(request *mail.DeliveryRequest, f flow, v shaping.Values) (p place, why *outage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heed(request, v)
	now := time.Now()
	switch {
	case s.closed() || now.Before(s.suspendedUntil):
	case s.breaker.isOpen():
		o := s.outage
		why = &o
	default:
		why = s.stranded(f.pool, now)
	}
	if why != nil || s.closed() || now.Before(s.suspendedUntil) || s.mustWait(f) {
		s.parkedOne(f)
		return none, why
	}
	p = queued
	if s.ready.len()+s.coming < len(s.sessions) {
		if s.mayBegin(now) && slices.ContainsFunc(s.lanes, func(l *lane) bool { return l.mayBegin(now) }) {
			p = connected
		}
	}
	s.reserve(places{f, 1}, 1)
	return p, nil
}

// places are reserved for so many jobs of a flow.
type places struct {
	flow
	n int
}

// reserve counts jobs as coming, or with sign -1 takes that back.
func (s *site) reserve(p places, sign int) {
	s.coming += sign * p.n
	s.ready.reserve(p.flow, sign*p.n)
	s.home.jobs.Add(int64(sign * p.n))
}

// unservable is a job that no source of its pool has the address family for.
type unservable struct {
	job *job
	err error
}

// add puts jobs that are claimed into the ready queue, against the places
// reserved. It returns those that are to be laid aside, because the site has
// stopped meanwhile or no host was reached: then one stays, for the probe; and
// those that no source can serve.
func (s *site) add(jobs []*job, reserved []places) (asides []aside, never []unservable) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range reserved {
		s.reserve(p, -1)
	}
	if s.closed() {
		return []aside{{jobs: jobs}}, nil
	}
	var waits []*job
	for _, j := range jobs {
		if err := s.unservable(j); err != nil {
			never = append(never, unservable{j, err})
			continue
		}
		if s.breaker.isOpen() && (s.breaker.probing || s.ready.len() > 0) {
			waits = append(waits, j)
			continue
		}
		s.ready.add(j)
		s.home.jobs.Add(1)
	}
	if len(waits) > 0 {
		s.parked = true
		o := s.outage
		asides = []aside{{waits, &o}}
	}
	s.dispatch()
	return asides, never
}

// closed reports whether jobs are to be laid aside: the site has another home,
// or this one has no part in it. Caller holds mu.
func (s *site) closed() bool { return s.stopped || s.passive }

// next puts a job back at the head, for a session that is about to ask for
// one. It returns the job if the site has stopped.
func (s *site) next(j *job) (refused []*job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed() {
		return []*job{j}
	}
	s.ready.again(j)
	s.home.jobs.Add(1)
	return nil
}

// again puts a job back at the head, to be tried at once.
func (s *site) again(j *job) (refused []*job) {
	refused = s.next(j)
	s.kick()
	return refused
}

func (s *site) drop() []*job {
	jobs := s.ready.drop()
	s.home.jobs.Add(-int64(len(jobs)))
	s.decline(time.Now())
	return jobs
}

// stop ends the work for the site in this process: idle connections end and
// those that no host has greeted, busy ones after their transaction. It returns
// what has not begun.
func (s *site) stop() []*job {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	s.dismissAll()
	for ss := range s.sessions {
		if !ss.greeted {
			ss.giveWay(errMoves)
		}
	}
	if s.wakeUp != nil {
		s.wakeUp.Stop()
	}
	return s.drop()
}

// goOn takes back stop.
func (s *site) goOn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = false
	// What was saved last says that nothing comes after.
	s.note(time.Now())
	for _, l := range s.lanes {
		for _, w := range l.windows() {
			w.Owe()
		}
	}
	s.parked = true
	s.pullNow()
	s.dispatch()
}

// suspend stops transactions until a time; the zero time ends that. It
// returns the jobs that are to wait in Postgres meanwhile.
func (s *site) suspend(until time.Time) []*job {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.suspendedUntil = until
	if !time.Now().Before(until) {
		s.pullNow()
		s.dispatch()
		return nil
	}
	s.dismissAll()
	s.parked = true
	return s.drop()
}

// isSuspended reports whether transactions are stopped by an operator.
func (s *site) isSuspended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.suspendedUntil.IsZero()
}

// retire stops a site where nothing is open, waits or is remembered, so that
// it can be forgotten: whoever has just got hold of it parks its mail, and the
// limits are never counted in two places. It reports whether it did.
func (s *site) retire() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped || !s.quiet(time.Now()) {
		return false
	}
	s.stopped = true
	return true
}

// quiet reports whether nothing is open, waits or is remembered. Caller holds
// mu.
func (s *site) quiet(now time.Time) bool {
	return len(s.sessions) == 0 && len(s.promises) == 0 && s.ready.len() == 0 && s.coming == 0 && !s.parked && !now.Before(s.suspendedUntil) &&
		!now.Before(s.breaker.probeAt) && s.watch.Idle(now) && s.failures.idle(now) &&
		!slices.ContainsFunc(s.lanes, func(l *lane) bool { return !l.quiet(now) })
}

// busy reports whether any connection is open or on its way.
func (s *site) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions) > 0
}
