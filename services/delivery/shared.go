package delivery

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
)

// This file keeps the limits that sites share by name, whatever worker is
// their home. Each worker that has mail for such a limit holds a portion of
// it, which Postgres has on record; the portions on record never sum to more
// than the limit. To use less, a worker does so first and has it recorded
// then; to use more, it has that recorded first. So no transaction waits for a
// word with anybody.

const (
	// shareEvery is how often portions are looked at.
	shareEvery = 500 * time.Millisecond
	// keepShare is how long a worker without mail keeps its portion.
	keepShare = 10 * time.Second
	// takeTurns is how long, besides a period, a worker keeps what is too
	// little for all, before it is another's turn.
	takeTurns = 10 * time.Second
)

// jointOf returns the limit of a name.
func (w *worker) jointOf(name string) *joint {
	w.sharing.Lock()
	defer w.sharing.Unlock()
	j := w.joints[name]
	if j == nil {
		j = &joint{name: name, worker: w.id, outlasts: w.config.HomeLease, soon: w.shareSoon, counts: map[mail.WorkerID]bool{}}
		w.joints[name] = j
	}
	return j
}

// shareSoon has the portions looked at at once.
func (w *worker) shareSoon() {
	select {
	case w.shareNow <- struct{}{}:
	default:
	}
}

// runShares keeps the portions of shared limits until ctx is done.
func (w *worker) runShares(ctx context.Context) error {
	tick := time.NewTicker(shareEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-w.shareNow:
		}
		within, cancel := context.WithTimeout(ctx, storeWithin)
		err := w.share(within)
		cancel()
		if err != nil && ctx.Err() == nil {
			slog.Warn("portions of shared limits stay as they are", "worker_id", w.id, "error", err)
			sleep(ctx, firstStorePause)
		}
	}
}

// wish is what the sites of this worker want of a limit.
type wish struct {
	limit  shaping.Shared // the strictest that one of them knows
	known  bool
	wanted bool
}

// wishes returns what the sites want of each limit.
func (w *worker) wishes() map[*joint]wish {
	all := map[*joint]wish{}
	for _, s := range w.sitesIn(nil) {
		s.mu.Lock()
		for _, l := range s.lanes {
			for i, j := range l.joints {
				of := all[j]
				if of.known {
					of.limit = strictest(of.limit, l.shared[i])
				} else {
					of.limit, of.known = l.shared[i], true
				}
				of.wanted = of.wanted || l.open > 0 || s.ready.len() > 0
				all[j] = of
			}
		}
		s.mu.Unlock()
	}
	return all
}

// strictest settles what two say of a limit of one name.
func strictest(a, b shaping.Shared) shaping.Shared {
	if a.Connections == 0 || b.Connections > 0 && b.Connections < a.Connections {
		a.Connections = b.Connections
	}
	a.MessageRate = a.MessageRate.Slower(b.MessageRate)
	return a
}

// share looks at all shared limits.
func (w *worker) share(ctx context.Context) error {
	w.sharing.Lock()
	var joints []*joint
	for _, j := range w.joints {
		joints = append(joints, j)
	}
	voided := w.voided
	w.sharing.Unlock()
	if len(joints) == 0 {
		return nil
	}
	wishes := w.wishes()
	all, at, err := w.store.Holdings(ctx)
	if err != nil {
		return err
	}
	byName := map[string][]store.Holding{}
	for _, h := range all {
		byName[h.Name] = append(byName[h.Name], h)
	}
	for _, j := range joints {
		if err := w.shareOne(ctx, j, wishes[j], holdings{byName[j.name], at, voided}); err != nil {
			return err
		}
	}
	return nil
}

// shareOne looks at one limit, and has on record what it comes to.
func (w *worker) shareOne(ctx context.Context, j *joint, wish wish, hs holdings) error {
	r := j.look(wish, hs, time.Now())
	switch {
	case r.released:
		return w.store.Release(ctx, w.id, j.name)
	case r.want.Name == "":
		return nil
	}
	j.shed(j.excess())
	got := r.want
	var err error
	if r.changed {
		got, err = w.store.Hold(ctx, r.want, r.uses)
	}
	j.saved(err)
	w.sharing.Lock()
	defer w.sharing.Unlock()
	if err == nil && hs.voided == w.voided {
		j.hold(got)
	}
	return err
}

// turnOf returns the portion of one of the workers that hold a limit. Where it
// is too little for all, they have it by turns.
func turnOf(holders []mail.WorkerID, id mail.WorkerID, limit shaping.Shared, at time.Time) mail.Portion {
	rank := slices.Index(holders, id)
	n := len(holders)
	if c := limit.Connections; c > 0 && c < n || !limit.MessageRate.IsUnlimited() && limit.MessageRate.Events < n {
		rank = (rank + int(at.UnixNano()/int64(takeTurns+limit.MessageRate.Period))) % n
	}
	return mail.PortionOf(rank, n)
}

// voidShares gives up what is held of all limits, because the lease on the
// slots may have ended: then others hold it.
func (w *worker) voidShares() {
	w.sharing.Lock()
	defer w.sharing.Unlock()
	w.voided++
	for _, j := range w.joints {
		j.void()
	}
}

// leaveShares leaves on record what this worker has begun, for another one to
// count it.
func (w *worker) leaveShares(ctx context.Context) error {
	for _, j := range w.joints {
		left, uses := j.leave(time.Now())
		if left.Name == "" || left.Period <= j.outlasts {
			continue // the end of a short period is waited for
		}
		_, err := w.store.Hold(ctx, left, uses)
		if err != nil {
			return err
		}
	}
	return nil
}

// shareBy has the lane keep to limits by name, which it learns or that have
// changed. Its open connections count against them. Caller holds the site's mu.
func (l *lane) shareBy(limits []shaping.Shared) {
	var joints []*joint
	for _, of := range limits {
		joints = append(joints, l.site.home.jointOf(of.Name))
	}
	l.shared = limits
	if slices.Equal(joints, l.joints) {
		return
	}
	l.joints = joints
	now := time.Now()
	for ss := range l.site.sessions {
		if ss.lane == l {
			ss.reseat(joints, now)
		}
	}
}

// ofSelection ends the name of the limit of a provider that holds a source
// back among those of its pool, or while it warms up.
const ofSelection = "/selection"

// sharedFrom returns the limits by name that mail from a source counts
// against, sorted. Caller holds mu.
func (s *site) sharedFrom(from *source) (all []shaping.Shared) {
	add := func(of shaping.Shared) {
		if of.Connections == 0 && of.MessageRate.IsUnlimited() {
			return
		}
		i, seen := slices.BinarySearchFunc(all, of.Name, func(a shaping.Shared, name string) int { return strings.Compare(a.Name, name) })
		if seen {
			all[i] = strictest(all[i], of)
		} else {
			all = slices.Insert(all, i, of)
		}
	}
	for _, v := range s.valuesFrom(from.Name) {
		for _, of := range v.Shared {
			add(of)
			if of.OfProvider() && from.Name != "" {
				add(shaping.Shared{Name: of.Name + ofSelection, MessageRate: of.SelectionRate})
			}
		}
	}
	if group := s.name.Group(); group != s.name {
		r, _ := s.home.sources.Load().warmUpRate(from, s.name, time.Now())
		add(shaping.Shared{Name: string(group) + "/" + from.Name + ofSelection, MessageRate: r})
	}
	return all
}

// beginShared counts a transaction against the limits by name, if all allow
// it; if not, the site is called when they may.
func (l *lane) beginShared(now time.Time) bool {
	for i, j := range l.joints {
		if !j.begin(l.site, now) {
			for _, before := range l.joints[:i] {
				before.over(false)
			}
			return false
		}
	}
	return true
}

// seats returns a seat at each of the limits by name for one more connection,
// if all have one; giveUp is called when others wait for it in vain.
func (l *lane) seats(now time.Time, giveUp func()) (all []*seat, ok bool) {
	for _, j := range l.joints {
		st := j.take(l.site.bid(), now, giveUp)
		if st == nil {
			for _, before := range all {
				before.leave(now)
			}
			return nil, false
		}
		all = append(all, st)
	}
	return all, true
}

// maySeat reports whether each of the limits by name has a seat for one more
// connection. A site of which nobody knows that it lives tries one at a time.
func (l *lane) maySeat(now time.Time) bool {
	c := l.site.bid()
	if len(l.joints) > 0 && c.standing != living && l.site.opening > 0 {
		return false
	}
	for _, j := range l.joints {
		if !j.maySeat(c, now) {
			l.site.waits = true
			return false
		}
	}
	return true
}

// bid is what the site says of itself to a shared limit. Caller holds mu.
func (s *site) bid() bid {
	c := bid{by: s, standing: untried, cost: s.cost}
	switch {
	case s.breaker.isOpen() || s.hung:
		c.standing = silent
	case s.greeted:
		c.standing = living
	}
	return c
}

// offered has the site look, because there may be something for it at a
// limit that it shares.
func (s *site) offered(j *joint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.promises, j) {
		s.promises = append(s.promises, j)
	}
	s.dispatch()
	j.passOn(s, time.Now())
}

// decline gives back what was promised by shared limits, but for seats that
// will be used as soon as the limit allows one more transaction, and waits for
// nothing more if there is no job for it. Caller holds mu.
func (s *site) decline(now time.Time) {
	if s.waits && s.ready.len() == 0 {
		s.waits = false
		for _, l := range s.lanes {
			for _, j := range l.joints {
				j.withdraw(s, now)
			}
		}
	}
	if len(s.promises) == 0 {
		return
	}
	wants := s.ready.len() > 0 && s.mayBegin(now)
	s.promises = slices.DeleteFunc(s.promises, func(j *joint) bool {
		if wants && j.waitsToBegin(s) {
			return false
		}
		j.decline(s, now)
		return true
	})
}

// isSeated reports whether the connection counts against a limit by name.
func (ss *session) isSeated() bool {
	ss.site.mu.Lock()
	defer ss.site.mu.Unlock()
	return len(ss.seats) > 0
}

// reseat has a session count against other limits than it did. Caller holds
// the site's mu.
func (ss *session) reseat(joints []*joint, now time.Time) {
	var seats []*seat
	for _, j := range joints {
		i := slices.IndexFunc(ss.seats, func(st *seat) bool { return st.joint == j })
		if i >= 0 {
			seats = append(seats, ss.seats[i])
		} else {
			seats = append(seats, j.opened(now, ss.giveUp))
		}
	}
	for _, st := range ss.seats {
		if !slices.Contains(joints, st.joint) {
			st.leave(now)
		}
	}
	ss.seats = seats
}

// sameHolding reports whether what is on record is what is wanted.
func sameHolding(a, b store.Holding) bool {
	return a.Name == b.Name && a.Connections == b.Connections && a.Events == b.Events && a.OverConnections == b.OverConnections &&
		a.OverEvents == b.OverEvents && a.AllConnections == b.AllConnections &&
		a.AllEvents == b.AllEvents && a.Period == b.Period && bytes.Equal(a.State, b.State)
}
