package delivery

import (
	"net/netip"
	"slices"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/services/delivery/internal/pace"
)

// This file is what the sessions of a site tell it about their connections,
// and ask it before they open more.

// targets returns the addresses of a route in the order to be tried.
func (s *site) targets(route *mail.Route) []target {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failures.order(route, time.Now())
}

// connecting asks for one more connection of the same session, after another
// address failed. It returns when to ask again; zero means now, and that the
// connection counts. False means never: the part of the site is served
// elsewhere.
func (l *lane) connecting() (at time.Time, may bool) {
	l.site.mu.Lock()
	defer l.site.mu.Unlock()
	now := time.Now()
	if l.site.home.tenure.left() <= 0 || l.isAhead(&l.connections, now) {
		return now.Add(saveTick), true
	}
	if l.closed {
		l.site.breaker.probing = false
		return now, false
	}
	at, ok := l.connections.Next(now)
	if !ok {
		return now.Add(time.Second), true
	}
	if at.After(now) {
		return at, true
	}
	l.connections.Begin(now)
	l.site.note(now)
	return time.Time{}, true
}

// mailing asks for one more transaction of the session, for a message that has
// had one. It returns when to ask again; zero means now, and that the
// transaction counts.
func (ss *session) mailing() time.Time {
	s, l := ss.site, ss.lane
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.home.tenure.left() <= 0 || l.isAhead(&l.messages, now) || l.isAhead(&l.warming, now) {
		return now.Add(saveTick)
	}
	for _, w := range []*pace.Window{&l.messages, &l.warming} {
		at, ok := w.Next(now)
		if !ok {
			return now.Add(time.Second)
		}
		if at.After(now) {
			return at
		}
	}
	if !l.beginShared(now) {
		return now.Add(saveTick)
	}
	l.messages.Begin(now)
	l.warming.Begin(now)
	ss.begun = l.joints
	s.note(now)
	return time.Time{}
}

// connectionSeen says that an attempt to connect has ended, with a greeting or
// not, and whether the remote host can have seen it.
func (l *lane) connectionSeen(seen bool) {
	l.site.mu.Lock()
	defer l.site.mu.Unlock()
	if seen {
		l.brokenAt, l.brokenWhy, l.pause = time.Time{}, "", 0
	}
	over(&l.connections, seen)
}

// reached says that a host has answered.
func (s *site) reached(addr netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered(addr)
}

// greet says that a host has greeted the session.
func (ss *session) greet(addr netip.AddrPort) {
	s := ss.site
	s.mu.Lock()
	defer s.mu.Unlock()
	ss.greeted = true
	s.opening--
	now := time.Now()
	for _, st := range ss.seats {
		st.greet(now)
	}
	if first := !s.greeted || s.hung; first && len(ss.seats) > 0 {
		defer s.dispatch() // it may have waited for this
	}
	s.answered(addr)
}

// answered is reached for a caller that holds mu.
func (s *site) answered(addr netip.AddrPort) {
	s.greeted, s.hung = true, false
	back := s.failures.succeeded(addr)
	if back || s.breaker.isOpen() {
		s.noteOutage(time.Now())
	}
	if s.breaker.reached() {
		s.pullNow()
		s.dispatch()
	}
}

// blame says that an address does not serve us: it is tried last for a while.
func (l *lane) blame(addr netip.AddrPort) { l.trouble(addr, true) }

// unreached says that no host of a route could be reached. It returns the
// jobs to be parked when that ended the attempts for now: they wait in
// Postgres until a probe gets through.
func (s *site) unreached(o outage) []*job {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outage = o
	now := time.Now()
	// One dial without an answer is enough where each takes the place of others.
	opened := s.breaker.unreached(now, s.longest, s.hung && !s.greeted)
	if s.breaker.isOpen() {
		s.noteOutage(now)
	}
	if !opened {
		s.dispatch()
		return nil
	}
	s.parked = true
	return s.drop()
}

// trouble says that a session broke: its host is tried last for a while if
// the host is to blame.
func (l *lane) trouble(addr netip.AddrPort, hostFailed bool) {
	l.site.mu.Lock()
	defer l.site.mu.Unlock()
	l.concurrency.Failed()
	if now := time.Now(); hostFailed && l.site.failures.failed(addr, now) {
		l.site.noteOutage(now)
	}
}

// wentWell says that a transaction ended as transactions should.
func (l *lane) wentWell() {
	l.site.mu.Lock()
	defer l.site.mu.Unlock()
	l.concurrency.Succeeded()
}

// probed says that a session ends before it is known whether a host answers.
func (l *lane) probed() {
	l.site.mu.Lock()
	defer l.site.mu.Unlock()
	l.site.breaker.probing = false
}

// wasHung says that a dial without an answer has given way to others.
func (s *site) wasHung() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hung = true
}

// connected says that a host has taken the connection.
func (ss *session) connected() {
	ss.site.mu.Lock()
	defer ss.site.mu.Unlock()
	for _, st := range ss.seats {
		st.connected()
	}
}

// neverBegan says that a session ends without an attempt to connect.
func (l *lane) neverBegan() {
	l.site.mu.Lock()
	defer l.site.mu.Unlock()
	l.connections.Cancel()
	l.site.breaker.probing = false
}

// abandon ends all sessions because the lease is over.
func (s *site) abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ss := range s.sessions {
		ss.abandon()
	}
}

// servesOn reports whether a connection that has served so many
// transactions may serve another one: not if it has served its share, or if
// more are open than the limits allow by now.
func (ss *session) servesOn(used int) bool {
	l := ss.lane
	l.site.mu.Lock()
	defer l.site.mu.Unlock()
	return !l.closed && used < l.limits.MessagesPerConnection && l.inUse() <= l.concurrency.Allowed() && !slices.ContainsFunc(ss.seats, (*seat).isCrowded) &&
		l.site.openIsFair(len(l.site.sessions))
}
