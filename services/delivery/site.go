package delivery

import (
	"slices"
	"sync"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/services/delivery/internal/pace"
)

// site is everything that this process knows of one site while it is its
// home: what waits, the connections, the limits. There is one such value in
// the whole cluster at a time, so its limits need no word with anybody.
//
// Whatever changes it calls dispatch, which hands jobs to connections as far
// as the limits allow. So nothing polls, and nothing waits for a limit but
// the jobs themselves.
type site struct {
	name mail.Site
	slot int16
	home *worker

	mu          sync.Mutex // guards all below
	limits      shaping.Limits
	named       bool          // a block of the site's or a domain's own name set the limits
	idleTimeout time.Duration // of connections without work
	longest     time.Duration // between probes of the breaker

	ready   ready
	coming  int  // jobs that have a place in ready and are being claimed or pulled
	parked  bool // more may wait in Postgres
	pulling bool

	messages    pace.Window
	connections pace.Window
	concurrency pace.Concurrency
	sessions    map[*session]bool // those that still connect too
	idle        []*session        // greeted sessions without work, longest idle first
	failures    failures
	breaker     breaker
	outage      outage // the last time that no host was reached

	suspendedUntil time.Time
	stopped        bool // this process is no longer its home: nothing more goes out
	changed        bool // since the state was saved
	wakeUp         *time.Timer
}

// learn takes over the values for the domain of a request, before any of it
// goes out.
func (s *site) learn(v shaping.Values) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heed(v)
}

// heed takes over the values for the domain of a request. Limits of a name
// count before those of a block for many; of two names the stricter. Caller
// holds mu.
func (s *site) heed(v shaping.Values) {
	s.idleTimeout = v.IdleTimeout
	s.longest = v.RetrySchedule.Next(0, evenly)
	switch {
	case v.Named && !s.named:
		s.limits, s.named = v.Limits, true
	case v.Named:
		s.limits = s.limits.Stricter(v.Limits)
	default:
		return
	}
	s.applyLimits()
	if over := len(s.sessions) - s.limits.Connections; over > 0 {
		s.dismiss(min(over, len(s.idle)))
	}
}

func (s *site) applyLimits() {
	s.messages.SetRate(s.limits.MessageRate)
	s.connections.SetRate(s.limits.ConnectionRate)
	s.concurrency.SetLimit(s.limits.Connections)
}

// room returns how many more jobs the site may hold in memory: its own bound,
// and never more than what all others leave free, so that there is always
// room for a site that has nothing here yet.
func (s *site) room() int {
	return min(s.limits.Ready, s.home.freeJobs()) - s.ready.len() - s.coming
}

// place is where a request that comes from the bus goes.
type place int

const (
	none      place = iota // to Postgres: it is parked
	queued                 // into the ready queue
	connected              // to a connection that is free for it, now or after its transaction in hand
)

// admit reserves room for the jobs of a request that is about to be claimed.
// None means that it is to be parked: there is no room, or older mail of the
// site is parked already and goes first, or no host of the site can be
// reached: then why is set. Mail of high priority does not wait behind the
// parked.
func (s *site) admit(request *mail.DeliveryRequest, v shaping.Values) (p place, why *outage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heed(v)
	if s.breaker.isOpen() && !s.stopped {
		s.parked = true
		o := s.outage
		return none, &o
	}
	now := time.Now()
	if s.stopped || now.Before(s.suspendedUntil) || s.parked && request.Message.Priority <= 0 || s.room() < 1 {
		s.parked = true
		return none, nil
	}
	p = queued
	if s.ready.len()+s.coming < len(s.sessions) {
		if at, ok := s.messages.Next(now); ok && !at.After(now) {
			p = connected
		}
	}
	s.reserve(1)
	return p, nil
}

// reserve counts n jobs as coming; a negative n takes that back.
func (s *site) reserve(n int) {
	s.coming += n
	s.home.jobs.Add(int64(n))
}

// add puts jobs that are claimed into the ready queue, against so many
// reserved places. It returns the jobs if the site has stopped meanwhile.
func (s *site) add(jobs []*job, reserved int) (refused []*job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserve(-reserved)
	if s.stopped {
		return jobs
	}
	for _, j := range jobs {
		s.ready.add(j)
	}
	s.home.jobs.Add(int64(len(jobs)))
	s.dispatch()
	return nil
}

// next puts a job back at the head, for a session that is about to ask for
// one. It returns the job if the site has stopped.
func (s *site) next(j *job) (refused []*job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
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

// dispatch hands jobs to connections as far as the limits allow, and sees to
// it that it is called again when they allow more. Caller holds mu.
func (s *site) dispatch() {
	now := time.Now()
	for s.ready.len() > 0 && s.mayBegin(now) && s.assign(now) {
	}
	s.pull(now)
}

// mayBegin reports whether one more transaction may begin now.
func (s *site) mayBegin(now time.Time) bool {
	if s.stopped || now.Before(s.suspendedUntil) {
		return false
	}
	if may, at := s.breaker.mayTry(now); !may {
		s.wakeAt(at)
		return false
	}
	at, ok := s.messages.Next(now)
	if ok && at.After(now) {
		s.wakeAt(at)
	}
	return ok && !at.After(now)
}

// assign gives one job to a connection: to the one that has been idle the
// shortest, so that those that are not needed end, else to a new one.
func (s *site) assign(now time.Time) bool {
	for i, ss := range slices.Backward(s.idle) {
		if j := s.take(ss.serves); j != nil {
			s.idle = slices.Delete(s.idle, i, i+1)
			s.messages.Begin(now)
			ss.work <- j
			return true
		}
	}
	if len(s.sessions) >= s.concurrency.Allowed() {
		if len(s.idle) > 0 {
			// The place of a connection that no job can use is wanted.
			s.dismiss(1)
		}
		return false
	}
	at, ok := s.connections.Next(now)
	if !ok || at.After(now) {
		s.wakeAt(at)
		return false
	}
	j := s.take(anyConnection)
	s.messages.Begin(now)
	s.connections.Begin(now)
	s.breaker.begin()
	s.sessions[s.home.startSession(s, j)] = true
	return true
}

func anyConnection(*job) bool { return true }

func (s *site) take(fits func(*job) bool) *job {
	j := s.ready.take(fits)
	if j != nil {
		s.changed = true
		s.home.jobs.Add(-1)
	}
	return j
}

// dismiss ends the n connections that have been idle the longest.
func (s *site) dismiss(n int) {
	for _, ss := range s.idle[:n] {
		ss.work <- nil
	}
	s.idle = slices.Delete(s.idle, 0, n)
}

// wakeAt has dispatch called again; a zero time means that some event will.
func (s *site) wakeAt(at time.Time) {
	if at.IsZero() {
		return
	}
	if s.wakeUp == nil {
		s.wakeUp = time.AfterFunc(time.Until(at), s.kick)
		return
	}
	s.wakeUp.Reset(time.Until(at))
}

// kick calls dispatch.
func (s *site) kick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dispatch()
}

// rest takes a greeted session that has no work, and gives it some if there
// is any that may begin. It returns how long the session may wait for it.
// False means that the session must end.
func (s *site) rest(ss *session) (idle time.Duration, mayGoOn bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return 0, false
	}
	s.idle = append(s.idle, ss)
	s.dispatch()
	return s.idleTimeout, true
}

// leave takes a session out of those that wait for work. False means that it
// was given some, or told to end, just before.
func (s *site) leave(ss *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.idle, ss)
	if i < 0 {
		return false
	}
	s.idle = slices.Delete(s.idle, i, i+1)
	return true
}

// ended says that a session has closed its connection.
func (s *site) ended(ss *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, ss)
	s.dispatch()
}

// mailOver says that the reply to MAIL was read, or that the transaction
// ended in another way after MAIL was sent. seen is false if it never was.
func (s *site) mailOver(seen bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if seen {
		s.messages.Over(time.Now())
	} else {
		s.messages.Cancel()
	}
	s.dispatch()
}

func (s *site) drop() []*job {
	jobs := s.ready.drop()
	s.home.jobs.Add(-int64(len(jobs)))
	return jobs
}

// stop ends the work for the site in this process: idle connections end, busy
// ones after their transaction. It returns what has not begun.
func (s *site) stop() []*job {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	s.dismiss(len(s.idle))
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
	s.parked = true
	s.dispatch()
}

// suspend stops transactions until a time; the zero time ends that. It
// returns the jobs that are to wait in Postgres meanwhile.
func (s *site) suspend(until time.Time) []*job {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.suspendedUntil = until
	if !time.Now().Before(until) {
		s.dispatch()
		return nil
	}
	s.dismiss(len(s.idle))
	s.parked = true
	return s.drop()
}

// quiet reports whether nothing is open, waits or is remembered: the site can
// be forgotten.
func (s *site) quiet() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	return len(s.sessions) == 0 && s.ready.len() == 0 && s.coming == 0 && !s.parked && !now.Before(s.suspendedUntil) &&
		!now.Before(s.breaker.probeAt) && s.messages.Idle(now) && s.connections.Idle(now)
}

// busy reports whether any connection is open or on its way.
func (s *site) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions) > 0
}
