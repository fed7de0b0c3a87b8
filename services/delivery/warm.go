package delivery

import (
	"context"
	"log/slog"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/delivery/internal/blame"
)

const day = 24 * time.Hour

// warmUpRate returns how much a source may send to a site while it warms up,
// on a day: so many messages in any 24 hours, evenly spread, so that they do
// not all leave at midnight. notYet says that its warm-up has not begun.
func (all *sources) warmUpRate(src *source, site mail.Site, now time.Time) (r shaping.Rate, notYet bool) {
	if src.WarmUp == "" {
		return r, false
	}
	age := int32(now.UTC().Truncate(day).Sub(src.WarmUpFrom.UTC().Truncate(day))/day) + 1
	if src.WarmUpFrom.IsZero() || age < 1 {
		return r, true
	}
	age = max(age-src.WarmUpPaused, 1)
	steps := all.warmUps[warmUpKey{src.WarmUp, site.Provider()}]
	if steps == nil {
		steps = all.warmUps[warmUpKey{src.WarmUp, ""}]
	}
	if len(steps) == 0 {
		return r, true // a schedule that is not there
	}
	if age > steps[len(steps)-1].Day {
		return r, false
	}
	step := steps[0]
	for _, s := range steps {
		if s.Day <= age {
			step = s
		}
	}
	return shaping.Rate{Events: int(step.Messages), Period: day, Burst: max(int(step.Messages)/50, 1)}, false
}

// warm has the lane keep to the warm-up of its source, which changes from day
// to day.
func (l *lane) warm(now time.Time) (notYet bool) {
	l.warmedOn = now.Unix() / int64(day/time.Second)
	r, notYet := l.site.home.sources.Load().warmUpRate(l.source, l.site.name, now)
	if l.site.name.Provider() != "" {
		r = shaping.Rate{} // it holds for all sites of the provider: see sharedFrom
	}
	l.fullWarming = r.Slower(l.selection)
	l.warming.SetRate(l.fullWarming.Portion(l.portion))
	l.closed = least(l.portion, l.full) == 0 || leastOf(l.portion, l.fullWarming) == 0
	return notYet
}

// isStale reports whether the warm-up is that of another day.
func (l *lane) isStale(now time.Time) bool {
	return l.source.WarmUp != "" && l.warmedOn != now.Unix()/int64(day/time.Second)
}

// selectionOf returns how often a source may be chosen for the site: what goes
// beyond leaves from the others. Without a source there are no others. Caller
// holds mu.
func (s *site) selectionOf(source string) (r shaping.Rate) {
	if source == "" {
		return r
	}
	for _, v := range s.valuesFrom(source) {
		r = r.Slower(v.SelectionRate)
		for _, l := range v.Shared {
			if !l.OfProvider() {
				r = r.Slower(l.SelectionRate)
			}
		}
	}
	return r
}

const (
	// blockFor is how long a source is not used for a site that blocks it.
	blockFor = time.Hour
	// hearWithin is how long this process takes a block for true before it
	// must have read it from Postgres, where operators can remove it.
	hearWithin = 5 * time.Second
)

// block takes a source out for a site that does not want it, by its own
// words. It returns the jobs that no other source can take.
func (l *lane) block(words string) []aside {
	l.site.mu.Lock()
	defer l.site.mu.Unlock()
	now := time.Now()
	l.blockedAt, l.blockedWhy = now, words
	l.refresh(now)
	return l.site.strand(now)
}

// blocked sees to a reply that speaks of our address: the source is taken out
// for the site, in all processes.
func (a *attempt) blocked(reply mail.Reply) {
	words := reply.String()
	for _, waits := range a.lane.block(words) {
		a.aside.in <- waits
	}
	b := store.SourceBlock{Source: a.source.Name, Site: a.site.name.Group(), Until: time.Now().Add(blockFor), Reason: words}
	slog.Warn("a source is blocked", "worker_id", a.id, "source", b.Source, "site", b.Site, "reply", words)
	if err := a.persist("block a source", func(ctx context.Context) error { return a.store.BlockSource(ctx, b) }); err != nil {
		slog.Warn("a block is known to this process only", "worker_id", a.id, "source", b.Source, "error", err)
	}
}

// isBlocked reports whether a reply means the source, and not the message.
// Without sources there is no other one to go on with.
func (a *attempt) isBlocked(r mail.Reply) bool {
	return a.source != here && blame.Of(r) == blame.Address
}
