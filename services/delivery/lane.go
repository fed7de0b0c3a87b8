package delivery

import (
	"slices"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/services/delivery/internal/adapt"
	"github.com/postrider/postrider/services/delivery/internal/pace"
)

// lane is the way from one source to a site: the connections from there and
// the limits that hold for them. The site guards it.
type lane struct {
	site    *site
	source  *source
	full    shaping.Limits // of the site as a whole
	limits  shaping.Limits // our portion of them
	portion mail.Portion
	closed  bool             // our portion of a limit is none
	shared  []shaping.Shared // limits by name that hold besides
	joints  []*joint         // what counts against them

	messages    pace.Window
	connections pace.Window
	selection   shaping.Rate
	fullWarming shaping.Rate // what selection and the warm-up of the source allow
	warming     pace.Window  // our portion of that
	warmedOn    int64        // the day that it holds for
	concurrency pace.Concurrency
	open        int        // sessions, those that still connect too
	idle        []*session // greeted sessions without work, longest idle first
	openable    bool       // as of the last look: one more connection may be opened
	takes       bool       // as of the last look: it takes a job now or soon
	pass        float64    // of the pool that used it last
	lastOver    time.Time  // when a transaction ended here

	slow adapt.Slowdown // below the limits, as the site has asked

	heldUntil  time.Time // not used before, and why
	heldWhy    string
	brokenAt   time.Time // when the source was last found not to work, and why; zero: it works
	brokenWhy  string
	blockedAt  time.Time // by the site, as far as only this process knows
	blockedWhy string
	pause      time.Duration
}

const (
	// firstSourcePause is how long a source that does not work is left alone
	// for a site; the pause doubles each time up to maxSourcePause.
	firstSourcePause = 15 * time.Second
	maxSourcePause   = 4 * time.Minute
	// stuckAfter is how long a lane that is full may end no transaction before
	// its turns go to others.
	stuckAfter = 5 * time.Second
)

// lane returns the lane of a source; it is made when it is first wanted.
// Caller holds mu.
func (s *site) lane(from *source) *lane {
	for _, l := range s.lanes {
		if l.source.Name == from.Name {
			if l.source != from {
				l.source = from
				l.refresh(time.Now())
			}
			return l
		}
	}
	l := &lane{site: s, source: from}
	s.before.restoreSlow(l)
	l.relimit(s.division.Before(s.slot)) // what our predecessor kept to counts in full
	l.refresh(time.Now())
	s.before.restore(l)
	l.relimit(s.portion())
	s.lanes = append(s.lanes, l)
	return l
}

// relimit takes over what shaping says of the lane, and of that our portion.
func (l *lane) relimit(p mail.Portion) {
	l.portion = p
	l.full, l.selection = l.site.limitsFrom(l.source.Name), l.site.selectionOf(l.source.Name)
	l.limits = l.full.Portion(p)
	l.shareBy(l.site.sharedFrom(l.source))
	l.warm(time.Now())
	l.fit()
}

func (l *lane) apply() {
	limits := l.allowed()
	l.messages.SetRate(limits.MessageRate)
	l.connections.SetRate(limits.ConnectionRate)
	l.concurrency.SetLimit(limits.Connections)
}

// refresh looks at what holds the source back. Idle connections that were
// made from it as it was before end.
func (l *lane) refresh(now time.Time) {
	l.heldUntil, l.heldWhy = time.Time{}, ""
	hold := func(until time.Time, why string) {
		if now.Before(until) && until.After(l.heldUntil) {
			l.heldUntil, l.heldWhy = until, why
		}
	}
	hold(l.source.SuspendedUntil, "suspended: "+l.source.SuspendReason)
	if b, blocked := l.site.home.sources.Load().blocks[blockKey{l.source.Name, l.site.name.Group()}]; blocked {
		hold(b.Until, "blocked by the site: "+b.Reason)
	}
	if !l.blockedAt.IsZero() {
		hold(l.blockedAt.Add(hearWithin), "blocked by the site: "+l.blockedWhy)
	}
	if l.source.WarmUp != "" {
		l.shareBy(l.site.sharedFrom(l.source))
	}
	if l.warm(now) {
		hold(now.UTC().Truncate(day).Add(day), "its warm-up has not begun")
	}
	if m := l.suspension(); m != nil {
		hold(m.Until, "suspended by "+m.By+": "+m.Reason)
	}
	if !l.brokenAt.IsZero() {
		hold(l.brokenAt.Add(l.pause), l.brokenWhy)
	}
	for i := len(l.idle) - 1; i >= 0; i-- {
		if l.over(l.idle[i]) {
			l.idle[i].work <- nil
			l.idle = slices.Delete(l.idle, i, i+1)
		}
	}
}

// over reports whether a connection is to end: its source has changed or is
// held back.
func (l *lane) over(ss *session) bool {
	return ss.source != l.source || time.Now().Before(l.heldUntil)
}

// unusable says why nothing can leave from here now, whatever the limits; ""
// if it can.
func (l *lane) unusable(now time.Time) string {
	switch {
	case now.Before(l.heldUntil):
		return l.heldWhy
	case l.source.reach == 0:
		return l.source.trouble
	}
	return ""
}

// mayBegin reports whether one more transaction may begin here now.
func (l *lane) mayBegin(now time.Time) bool {
	if now.Before(l.heldUntil) {
		l.site.wakeAt(l.heldUntil)
		return false
	}
	if l.source.reach == 0 || l.closed {
		return false
	}
	if l.isStale(now) {
		l.refresh(now)
	}
	at, ok := l.messages.Next(now)
	if !l.site.notBefore(now, at, ok) {
		return false
	}
	if at, ok = l.warming.Next(now); !l.site.notBefore(now, at, ok) || l.isAhead(&l.messages, now) || l.isAhead(&l.warming, now) {
		return false
	}
	return !slices.ContainsFunc(l.joints, func(j *joint) bool { return !j.mayBegin(l.site, now) })
}

// nextConnection returns when the next connection may be opened, as
// pace.Window.Next. When a home has died not long ago another one may: part of
// the rate is for the first connection of whoever comes then.
func (l *lane) nextConnection(now time.Time) (time.Time, bool) {
	if died := l.site.before.diedAt; l.open > 0 && !died.IsZero() && now.Sub(died) <= l.connections.Period() {
		return l.connections.NextSparing(now)
	}
	return l.connections.Next(now)
}

// dismiss ends the n connections that have been idle the longest.
func (l *lane) dismiss(n int) {
	for _, ss := range l.idle[:n] {
		ss.work <- nil
	}
	l.idle = append(l.idle[:0], l.idle[n:]...)
}

// quiet reports whether nothing is open or remembered.
func (l *lane) quiet(now time.Time) bool {
	return l.open == 0 && !now.Before(l.heldUntil) && l.messages.Idle(now) && l.connections.Idle(now) && l.warming.Idle(now) && l.slow.Share() == 1
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

// broke says that no connection could be made from the source, for a reason
// that has nothing to do with the site. It is left alone for a while, and the
// other sources of the pool go on. The jobs that no other one can take are
// returned.
func (l *lane) broke(err error) []aside {
	l.site.mu.Lock()
	defer l.site.mu.Unlock()
	now := time.Now()
	l.pause = min(max(2*l.pause, firstSourcePause), maxSourcePause)
	l.brokenAt, l.brokenWhy = now, err.Error()
	l.refresh(now)
	l.connections.Cancel()
	l.site.breaker.probing = false
	return l.site.strand(now)
}
