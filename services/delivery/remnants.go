package delivery

import "slices"

// A slot may be lost while a host says nothing to a final dot: that session
// goes on, for as long as it may take. The slot is taken back meanwhile. The
// site as it was is a remnant of the site as it is now: its connections are
// open at the hosts, so they count against the limits there, until they have
// ended. All other sites of the slot have nothing to do with it.

// leaveRemnants sets the sites of slots that are taken apart: they were stopped
// when the slots were lost. Caller holds mu.
func (w *worker) leaveRemnants(slots []int16) {
	for part, s := range w.sites {
		if slices.Contains(slots, part.slot) {
			w.remnants[part] = append(w.remnants[part], s)
			delete(w.sites, part)
		}
	}
}

// forgetRemnants drops those whose last connection has ended. Caller holds mu.
func (w *worker) forgetRemnants() {
	for part, all := range w.remnants {
		if all = slices.DeleteFunc(all, func(s *site) bool { return !s.busy() }); len(all) == 0 {
			delete(w.remnants, part)
		} else {
			w.remnants[part] = all
		}
	}
}

// remnantEnded has the site as it is now look, because a connection of one of its
// remnants has ended.
func (w *worker) remnantEnded(s *site) {
	w.mu.Lock()
	now := w.sites[sitePart{s.name, s.slot}]
	w.mu.Unlock()
	if now != nil && now != s {
		now.kick()
	}
}

// isOpen reports whether any connection to sites of a slot is open or on its
// way.
func (w *worker) isOpen(slot int16) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for part, s := range w.sites {
		if part.slot == slot && s.busy() {
			return true
		}
	}
	for part, all := range w.remnants {
		if part.slot == slot && slices.ContainsFunc(all, (*site).busy) {
			return true
		}
	}
	return false
}

// inUse returns how many connections from the lane's source are open, those of
// remnants too. Caller holds mu.
func (l *lane) inUse() int {
	n := l.open
	for _, s := range l.site.remnants {
		n += s.openFrom(l.source.Name)
	}
	return n
}

func (s *site) openFrom(source string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lanes {
		if l.source.Name == source {
			return l.open
		}
	}
	return 0
}

// isCutting reports whether a session is about to end that does not wait for
// the answer to a final dot: what it has sent may still be on its way.
func (s *site) isCutting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ss := range s.sessions {
		if !ss.atDot() {
			return true
		}
	}
	return false
}

// atDot reports whether the session waits for the answer to a final dot.
func (ss *session) atDot() bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.dotSent
}
