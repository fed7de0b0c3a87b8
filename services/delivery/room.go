package delivery

import "github.com/postrider/postrider/pkg/mail"

// The connections of a process and its memory for contents are for all of its
// sites. A site has at most as much of either as all sites leave free: so one
// that crawls has half of it at most, and two have a third each, and whoever
// has nothing finds room. A site that has nothing may always begin, and then an
// idle connection of another one makes way. Nobody
// needs to be told when there is more room: whoever waits for it has a
// transaction in hand, and looks again at its end.

// mayOpen reports whether one more connection would not be more than the site
// may have of those of the process. Caller holds mu.
func (s *site) mayOpen() bool { return len(s.sessions) == 0 || s.openIsFair(len(s.sessions)+1) }

// openIsFair reports whether the site may have so many connections. Caller
// holds mu.
func (s *site) openIsFair(n int) bool {
	others := s.home.opened.Load() - int64(len(s.sessions))
	return n <= 1 || int64(2*n) <= s.home.config.Connections-others+1
}

// takePlace waits until this process may have one more connection. If it has
// all that it may, the one that has been idle the longest is closed for it,
// whatever its site. False means that the session has ended meanwhile.
func (ss *session) takePlace() bool {
	if ss.connections.TryAcquire(1) {
		return true
	}
	ss.placeless.Add(1)
	ss.want()
	err := ss.connections.Acquire(ss.opening, 1)
	ss.placeless.Add(-1)
	ss.want()
	return err == nil
}

// want has as many idle connections wanted as sessions have no place.
func (w *worker) want() {
	wanted, placeless := int64(len(w.wanted)), w.placeless.Load()
	switch {
	case wanted < placeless:
		select {
		case w.wanted <- struct{}{}:
		default: // all that there are
		}
	case wanted > placeless:
		select {
		case <-w.wanted: // a busy one has ended instead
		default:
		}
	}
}

// mayHold reports whether the content of one more transaction, of any size,
// leaves as much free as the site then has. Caller holds mu.
func (s *site) mayHold() bool {
	return s.held == 0 || s.held+2*streamBytes <= s.home.config.ContentBytes-s.home.held.Load()
}

// hold counts the content of a transaction that begins, or with sign -1 of one
// that is over. Caller holds mu.
func (s *site) hold(m *mail.Message, sign int64) {
	n := sign * min(m.SizeBytes, streamBytes)
	s.held += n
	s.home.held.Add(n)
}

// letGo says that a transaction is over, or never began.
func (s *site) letGo(j *job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold(&j.request.Message, -1)
}
