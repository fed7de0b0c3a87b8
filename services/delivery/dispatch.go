package delivery

import (
	"slices"
	"time"
)

// dispatch hands jobs to connections as far as the limits allow, and sees to
// it that it is called again when they allow more. Caller holds mu.
func (s *site) dispatch() {
	now := time.Now()
	s.wake = time.Time{}
	for s.ready.len() > 0 && s.mayBegin(now) && s.assign(now) {
	}
	s.decline(now)
	s.pull(now)
	s.setWakeUp()
}

// mayBegin reports whether one more transaction may begin now, as far as it
// does not depend on the lane.
func (s *site) mayBegin(now time.Time) bool {
	if s.closed() || now.Before(s.suspendedUntil) || !s.mayHold() {
		return false
	}
	if s.home.tenure.left() <= 0 {
		s.wakeAt(now.Add(saveTick)) // Postgres may answer yet
		return false
	}
	if may, at := s.breaker.mayTry(now); !may {
		s.wakeAt(at)
		return false
	}
	return true
}

// assign gives one job to a connection: to the one of a lane that has been
// idle the shortest, so that those that are not needed end, else to a new one.
func (s *site) assign(now time.Time) bool {
	if len(s.lanes) > 1 {
		s.survey(now) // their turns depend on what the others can take
	}
	return s.reuse(now) || s.open(now)
}

// reuse gives a job to an idle connection.
func (s *site) reuse(now time.Time) bool {
	for _, l := range s.byTurn() {
		if len(l.idle) == 0 || !l.mayBegin(now) {
			continue
		}
		for i, ss := range slices.Backward(l.idle) {
			j := s.take(ss.serves)
			if j == nil {
				continue
			}
			if !l.beginShared(now) {
				s.untake(j)
				return false
			}
			l.idle = slices.Delete(l.idle, i, i+1)
			ss.works()
			s.begin(l, j, now)
			ss.begun = l.joints
			ss.work <- j
			return true
		}
	}
	return false
}

// open gives a job to a new connection, from that of the job's sources whose
// turn it is.
func (s *site) open(now time.Time) bool {
	if !s.mayOpen() {
		s.makePlace()
		return false
	}
	var j *job
	if s.survey(now) {
		j = s.take(func(j *job) bool { return s.turn(j.flow.pool).next(j) != nil })
	}
	if j == nil {
		s.makePlace()
		return false
	}
	l := s.turn(j.flow.pool).next(j)
	if !l.beginShared(now) {
		s.untake(j)
		return false
	}
	ss := newSession(s.home, l)
	var seated bool
	if ss.seats, seated = l.seats(now, ss.giveUp); !seated {
		for _, shared := range l.joints {
			shared.over(false)
		}
		ss.cancel(nil)
		s.untake(j)
		return false
	}
	s.begin(l, j, now)
	l.connections.Begin(now)
	s.breaker.begin()
	l.open++
	s.opening++
	s.home.opened.Add(1)
	s.sessions[ss] = true
	s.home.startSession(ss, j)
	return true
}

// survey marks the lanes that may open one more connection for one more
// transaction now, and those that take a job now or soon. It reports whether
// a connection may be opened.
func (s *site) survey(now time.Time) (found bool) {
	for _, l := range s.lanes {
		l.openable, l.takes = false, false
		if !l.mayBegin(now) {
			continue
		}
		if l.inUse() < l.concurrency.Allowed() {
			at, ok := l.nextConnection(now)
			l.openable = s.notBefore(now, at, ok) && !l.isAhead(&l.connections, now) && l.maySeat(now)
		}
		stuckAt := l.lastOver.Add(stuckAfter)
		l.takes = l.openable || l.open > 0 && now.Before(stuckAt)
		if l.takes && !l.openable && len(s.lanes) > 1 {
			s.wakeAt(stuckAt)
		}
		found = found || l.openable
	}
	return found
}

// makePlace ends an idle connection where jobs wait that it cannot serve and
// its place is wanted.
func (s *site) makePlace() {
	whole := !s.mayOpen()
	for _, l := range s.lanes {
		if len(l.idle) == 0 || !whole && l.inUse() < l.concurrency.Allowed() {
			continue
		}
		if s.ready.has(func(j *job) bool { return whole || s.turn(j.flow.pool).may(l, j) }) {
			l.dismiss(1)
			return
		}
	}
}

// begin counts a transaction on a lane as begun.
func (s *site) begin(l *lane, j *job, now time.Time) {
	l.messages.Begin(now)
	l.warming.Begin(now)
	s.hold(&j.request.Message, 1)
	s.turn(j.flow.pool).took(l)
}

func anyConnection(*job) bool { return true }

func (s *site) take(fits func(*job) bool) *job {
	j := s.ready.take(fits)
	if j != nil {
		s.note(time.Now())
		s.home.jobs.Add(-1)
	}
	return j
}

// untake puts back a job that cannot begin after all.
func (s *site) untake(j *job) {
	s.ready.again(j)
	s.home.jobs.Add(1)
}

// notBefore reports whether the answer of a window is now; if not, dispatch is
// called when it will be.
func (s *site) notBefore(now, at time.Time, ok bool) bool {
	if ok && at.After(now) {
		s.wakeAt(at)
	}
	return ok && !at.After(now)
}

// wakeAt has dispatch called again at the earliest of the times that it is
// given; a zero time means that some event will.
func (s *site) wakeAt(at time.Time) {
	if !at.IsZero() && (s.wake.IsZero() || at.Before(s.wake)) {
		s.wake = at
	}
}

func (s *site) setWakeUp() {
	switch {
	case s.wake.IsZero() || s.closed():
	case s.wakeUp == nil:
		s.wakeUp = time.AfterFunc(time.Until(s.wake), s.kick)
	default:
		s.wakeUp.Reset(time.Until(s.wake))
	}
}

// kick calls dispatch.
func (s *site) kick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dispatch()
}

// dismissAll ends all idle connections.
func (s *site) dismissAll() {
	for _, l := range s.lanes {
		l.dismiss(len(l.idle))
	}
}

// rest takes a greeted session that has no work, and gives it some if there
// is any that may begin. It returns how long the session may wait for it.
// False means that the session must end.
func (s *site) rest(ss *session) (idle time.Duration, mayGoOn bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed() || ss.lane.over(ss) {
		return 0, false
	}
	ss.lane.idle = append(ss.lane.idle, ss)
	s.dispatch()
	i := slices.Index(ss.lane.idle, ss)
	if i < 0 {
		return s.idleTimeout, true
	}
	now := time.Now()
	if slices.ContainsFunc(ss.seats, func(st *seat) bool { return st.isMissed(s, now) }) {
		ss.lane.idle = slices.Delete(ss.lane.idle, i, i+1)
		return 0, false
	}
	for _, st := range ss.seats {
		st.rests(now)
	}
	return s.idleTimeout, true
}

// leave takes a session out of those that wait for work. False means that it
// was given some, or told to end, just before.
func (s *site) leave(ss *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(ss.lane.idle, ss)
	if i < 0 {
		return false
	}
	ss.lane.idle = slices.Delete(ss.lane.idle, i, i+1)
	return true
}

// ended says that a session has closed its connection.
func (s *site) ended(ss *session) {
	if s.end(ss) {
		s.home.remnantEnded(s)
	}
}

// end is ended for the site itself; it reports whether it has stopped.
func (s *site) end(ss *session) (stopped bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ss.lane.open--
	delete(s.sessions, ss)
	now := time.Now()
	if !ss.greeted {
		s.opening--
		s.cost = 0
		if len(ss.seats) > 0 {
			s.cost = now.Sub(ss.seats[0].since)
		}
	}
	for _, st := range ss.seats {
		st.leave(now)
	}
	s.home.opened.Add(-1)
	s.dispatch()
	return s.stopped
}

// mailOver says that the reply to MAIL was read, or that the transaction
// ended in another way after MAIL was sent. seen is false if it never was.
func (s *site) mailOver(ss *session, seen bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := ss.lane
	l.lastOver = time.Now()
	over(&l.messages, seen)
	over(&l.warming, seen)
	for _, j := range ss.begun {
		j.over(seen)
	}
	ss.begun = nil
	s.dispatch()
}
