package delivery

import (
	"net/netip"
	"slices"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

const (
	// firstPause is how long an address that failed is tried after all
	// others; the pause doubles with each failure up to maxPause.
	firstPause = 30 * time.Second
	maxPause   = 5 * time.Minute
	// failedFor is how long it is remembered that an address failed: others
	// have their turn before it in the meantime.
	failedFor = 24 * time.Hour
	// maxFailures bounds what is remembered of one site.
	maxFailures = 256
)

// target is one address of one host.
type target struct {
	host mail.Host
	addr netip.AddrPort
}

// failures remembers the addresses of a site that failed lately, so that the
// next message goes to the second host at once. Not safe for concurrent use;
// the site guards it.
type failures map[netip.AddrPort]failure

type failure struct {
	at      time.Time // when it was last found
	until   time.Time
	pause   time.Duration
	probing bool // one connection finds out whether the address is back
}

// order returns the targets of a route in the order to be tried: by
// preference, those that failed lately last, and of those the ones first that
// have not been tried for the longest. So an attempt that can try a few only
// comes to others than the one before. The first caller after a pause finds
// the best of the addresses whose pause is over in its place again, and
// everyone else not yet: one connection finds out whether it is back
// (half-open).
func (f failures) order(route *mail.Route, now time.Time) []target {
	var good, bad []target
	probes := false
	for _, h := range route.Hosts {
		for _, a := range h.Addresses {
			t := target{h, netip.AddrPortFrom(a, h.Port)}
			failed, ok := f[t.addr]
			switch {
			case ok && now.Sub(failed.at) > failedFor:
				delete(f, t.addr)
				good = append(good, t)
			case !ok:
				good = append(good, t)
			case now.Before(failed.until) || probes:
				bad = append(bad, t)
			default:
				probes = true
				failed.until, failed.probing = now.Add(failed.pause), true
				f[t.addr] = failed
				good = append(good, t)
			}
		}
	}
	slices.SortStableFunc(bad, func(a, b target) int { return f[a.addr].at.Compare(f[b.addr].at) })
	return append(good, bad...)
}

// balance cuts targets to so many, of both address families if there are
// some of both: a machine or a host may have lost one of them. Their order
// stays. It is Postfix's smtp_balance_inet_protocols.
func balance(all []target, most int) []target {
	if len(all) <= most {
		return all
	}
	first := familyOf(all[0].addr.Addr())
	others := 0
	for _, t := range all {
		if familyOf(t.addr.Addr()) != first {
			others++
		}
	}
	// What one family has too few for, the other may have.
	others = min(others, max(most/2, most-(len(all)-others)))
	same := most - others
	return slices.DeleteFunc(slices.Clone(all), func(t target) bool {
		left := &others
		if familyOf(t.addr.Addr()) == first {
			left = &same
		}
		*left--
		return *left < 0
	})
}

// failed reports whether that is news: several connections may fail together.
func (f failures) failed(addr netip.AddrPort, now time.Time) (news bool) {
	pause := firstPause
	old, again := f[addr]
	news = !again || old.probing || !now.Before(old.until)
	switch {
	case again && news:
		pause = min(2*old.pause, maxPause)
	case again: // one of several at once: one failure
		pause = old.pause
	}
	f[addr] = failure{at: now, until: now.Add(pause), pause: pause}
	f.prune(addr)
	return news
}

// prune forgets the oldest failure, but not that of keep, where there are too
// many: hosts may have other addresses each day.
func (f failures) prune(keep netip.AddrPort) {
	if len(f) <= maxFailures {
		return
	}
	oldest := keep
	for addr, failed := range f {
		if addr != keep && (oldest == keep || failed.at.Before(f[oldest].at)) {
			oldest = addr
		}
	}
	delete(f, oldest)
}

// succeeded reports whether the address had failed before.
func (f failures) succeeded(addr netip.AddrPort) (back bool) {
	_, back = f[addr]
	delete(f, addr)
	return back
}

// idle reports whether no address is tried after others now.
func (f failures) idle(now time.Time) bool {
	for _, failed := range f {
		if now.Before(failed.until) {
			return false
		}
	}
	return true
}

// breaker stops the attempts at a site none of whose hosts can be reached. It
// opens after some failures in a row; after a pause one attempt is let
// through. Not safe for concurrent use; the site guards it.
type breaker struct {
	inRow   int
	probeAt time.Time // zero: closed
	probing bool
	pause   time.Duration
}

// failuresToOpen is how many attempts in a row must reach no host.
const failuresToOpen = 3

// isOpen reports whether attempts must wait at all.
func (b *breaker) isOpen() bool { return !b.probeAt.IsZero() }

// mayTry reports whether an attempt may begin now, and if not, when to ask
// again; a zero time says when the probe under way has ended.
func (b *breaker) mayTry(now time.Time) (bool, time.Time) {
	switch {
	case !b.isOpen():
		return true, now
	case b.probing:
		return false, time.Time{}
	case now.Before(b.probeAt):
		return false, b.probeAt
	}
	return true, now
}

// begin says that an attempt begins.
func (b *breaker) begin() { b.probing = b.isOpen() }

// reached says that a host answered; it reports whether that closed the
// breaker.
func (b *breaker) reached() (closed bool) {
	closed = b.isOpen()
	*b = breaker{}
	return closed
}

// unreached says that an attempt reached no host; it reports whether that
// opened the breaker. The pause is never longer than longest, the time after
// which the site's mail would be tried again anyway. atOnce is for failures of
// which one is enough.
func (b *breaker) unreached(now time.Time, longest time.Duration, atOnce bool) (opened bool) {
	b.inRow++
	if b.isOpen() && !b.probing || b.inRow < failuresToOpen && !atOnce {
		return false
	}
	opened = !b.isOpen()
	b.pause = min(max(2*b.pause, firstPause), maxPause)
	b.probeAt = now.Add(min(b.pause, longest))
	b.probing = false
	return opened
}
