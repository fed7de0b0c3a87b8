package delivery

import (
	"math"
	"time"

	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/services/delivery/internal/pace"
)

// lane is the way from one source to a site: the connections from there and
// the limits that hold for them. The site guards it.
type lane struct {
	site   *site
	source *source
	limits shaping.Limits

	messages    pace.Window
	connections pace.Window
	concurrency pace.Concurrency
	open        int        // sessions, those that still connect too
	idle        []*session // greeted sessions without work, longest idle first
	openable    bool       // as of the last look: one more connection may be opened
	pass        float64    // of the pool that used it last

	suspendedUntil time.Time
}

// whole is the limits that all lanes of a site share, and what they count.
type whole struct {
	messages    pace.Window
	connections pace.Window
	maxOpen     int
}

func (w *whole) setLimits(shaping.Limits) { w.maxOpen = math.MaxInt }

func (w *whole) idle(now time.Time) bool { return w.messages.Idle(now) && w.connections.Idle(now) }

// lane returns the lane of a source; it is made when it is first wanted.
// Caller holds mu.
func (s *site) lane(from *source) *lane {
	for _, l := range s.lanes {
		if l.source.name == from.name {
			l.source = from
			return l
		}
	}
	l := &lane{site: s, source: from, limits: s.home.shaping.For(shaping.Query{Site: s.name, Source: from.name}).Limits}
	first := true
	for domain, route := range s.named {
		v := s.home.shaping.For(shaping.Query{Domain: domain, Site: s.name, Hosts: route.Hosts, Source: from.name})
		l.limits = stricter(l.limits, v.Limits, !first)
		first = false
	}
	l.apply()
	s.before.restore(l)
	s.lanes = append(s.lanes, l)
	return l
}

// heed takes over limits of a name.
func (l *lane) heed(limits shaping.Limits, named bool) {
	l.limits = stricter(l.limits, limits, named)
	l.apply()
	if over := l.open - l.limits.Connections; over > 0 {
		l.dismiss(min(over, len(l.idle)))
	}
}

func (l *lane) apply() {
	l.messages.SetRate(l.limits.MessageRate)
	l.connections.SetRate(l.limits.ConnectionRate)
	l.concurrency.SetLimit(l.limits.Connections)
}

// mayBegin reports whether one more transaction may begin here now.
func (l *lane) mayBegin(now time.Time) bool {
	if now.Before(l.suspendedUntil) {
		l.site.wakeAt(l.suspendedUntil)
		return false
	}
	at, ok := l.messages.Next(now)
	return l.site.notBefore(now, at, ok)
}

// closed reports whether its connections are to end.
func (l *lane) closed() bool { return time.Now().Before(l.suspendedUntil) }

// dismiss ends the n connections that have been idle the longest.
func (l *lane) dismiss(n int) {
	for _, ss := range l.idle[:n] {
		ss.work <- nil
	}
	l.idle = append(l.idle[:0], l.idle[n:]...)
}

// quiet reports whether nothing is open or remembered.
func (l *lane) quiet(now time.Time) bool {
	return l.open == 0 && !now.Before(l.suspendedUntil) && l.messages.Idle(now) && l.connections.Idle(now)
}

// over says that an event has ended, and whether the remote host can have seen
// it.
func over(w *pace.Window, seen bool) {
	if seen {
		w.Over(time.Now())
	} else {
		w.Cancel()
	}
}
