package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
)

const (
	// waitsEvery is how often it is looked at what mail waits for.
	waitsEvery = 2 * time.Second
	// noteAgain is how often a wait is noted that lasts.
	noteAgain = 20 * time.Second
	// worthAWord is the shortest wait that is worth a word.
	worthAWord = 3 * time.Second
)

// noted is what has been noted of the waits of a site.
type noted struct {
	reason string
	at     time.Time
}

// runWaits notes what claimed mail waits for, until ctx is done: it has no
// history, and looks as if nothing became of it.
func (w *worker) runWaits(ctx context.Context) error {
	tick := time.NewTicker(waitsEvery)
	defer tick.Stop()
	known := map[sitePart]noted{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := time.Now()
		seen := map[sitePart]noted{}
		var changed []store.Wait
		for _, s := range w.sitesIn(nil) {
			part := sitePart{s.name, s.slot}
			before := known[part]
			is := noted{s.waitsFor(now), before.at}
			if is.reason != before.reason || is.reason != "" && now.Sub(is.at) >= noteAgain {
				is.at = now
				changed = append(changed, store.Wait{Site: s.name, Slot: s.slot, Reason: is.reason})
			}
			if is.reason != "" {
				seen[part] = is
			}
		}
		within, cancel := context.WithTimeout(ctx, storeWithin)
		err := w.store.NoteWaits(within, changed)
		cancel()
		if err != nil {
			slog.Debug("what mail waits for is not noted", "worker_id", w.id, "error", err)
			continue // all of it is noted again
		}
		known = seen
	}
}

// waitsFor says which limit keeps all that is ready waiting, who set it and
// until when; "" if nothing waits, or not for long.
func (s *site) waitsFor(now time.Time) (reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready.len() == 0 || s.closed() || now.Before(s.suspendedUntil) {
		return ""
	}
	var soonest time.Time
	for _, l := range s.lanes {
		why, until := l.waitsFor(now)
		if why == "" {
			return ""
		}
		if reason == "" || until.Before(soonest) {
			reason, soonest = why, until
		}
	}
	return reason
}

// waitsFor is that of a site for what leaves by the lane.
func (l *lane) waitsFor(now time.Time) (reason string, until time.Time) {
	if why := l.unusable(now); why != "" {
		return why, l.heldUntil
	}
	at, ok := l.messages.Next(now)
	if ok && at.Sub(now) > worthAWord {
		return l.limited("max_message_rate", l.allowed().MessageRate, l.full.MessageRate, at), at
	}
	if at, ok = l.warming.Next(now); ok && at.Sub(now) > worthAWord {
		return l.limited("source_selection_rate", l.fullWarming, l.fullWarming, at), at
	}
	at, ok = l.nextConnection(now)
	switch {
	case len(l.idle) > 0:
	case l.inUse() >= l.concurrency.Allowed():
		if now.Sub(l.lastOver) > stuckAfter {
			return fmt.Sprintf("all %d connections are in use", l.inUse()), now
		}
	case ok && at.Sub(now) > worthAWord && l.open == 0:
		return l.limited("max_connection_rate", l.limits.ConnectionRate, l.full.ConnectionRate, at), at
	}
	return "", time.Time{}
}

// limited names a limit, and the block that set it.
func (l *lane) limited(key string, is, full shaping.Rate, until time.Time) string {
	by := "built in"
	s := l.site
	q := shaping.Query{Site: s.name, Hosts: s.hosts, Source: l.source.Name}
	for domain, route := range s.named {
		q.Domain, q.Hosts = domain, route.Hosts
	}
	for _, o := range s.home.shaping.Now().Explain(q) {
		if o.Key == key && o.Block != "" {
			by = o.Block + " of " + o.From
		}
	}
	switch {
	case key == "source_selection_rate" && l.source.WarmUp != "":
		by = "the warm-up " + l.source.WarmUp + " of source " + l.source.Name
	case is != full && l.slow.Share() < 1:
		by += ", and the site has asked for patience"
	}
	// To the minute: what is noted is to change seldom.
	return fmt.Sprintf("waits for %s %s, set by %s, until %s", key, is, by, until.UTC().Truncate(time.Minute).Add(time.Minute).Format("2006-01-02 15:04Z"))
}
