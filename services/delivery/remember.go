package delivery

import (
	"cmp"
	"encoding/json"
	"log/slog"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/delivery/internal/adapt"
	"github.com/postrider/postrider/services/delivery/internal/pace"
)

// siteState is the saved form of what a site remembers.
type siteState struct {
	Home    mail.WorkerID     `json:"home,omitempty"`    // who saved it; 0: a worker of the version before this one
	Clean   bool              `json:"clean"`             // the home ended in order: nothing happened after
	Died    time.Duration     `json:"died,omitempty"`    // how long before it was saved a home had died; 0: none had
	SavedAt time.Time         `json:"saved_at"`          // for workers of the version before this one
	Unknown time.Duration     `json:"unknown,omitempty"` // likewise: how long before the end of the home the first event that it lacks
	counts                    // of the lane without a source
	Lanes   map[string]counts `json:"lanes,omitempty"` // by source
	Outage  *savedOutage      `json:"outage,omitempty"`
	Failed  []savedFailure    `json:"failed,omitempty"`
}

// counts is what the windows of a lane have counted.
type counts struct {
	Messages    []pace.Tally `json:"messages,omitempty"`
	Connections []pace.Tally `json:"connections,omitempty"`
	Warming     []pace.Tally `json:"warming,omitempty"`
	Slow        *adapt.Saved `json:"slow,omitempty"`
	Allowed     int          `json:"allowed,omitempty"` // connections that slow start had reached
}

func count(now time.Time, messages, connections *pace.Window) counts {
	return counts{Messages: messages.Save(now), Connections: connections.Save(now)}
}

// predecessor is what is known of the home before this one.
type predecessor struct {
	state   siteState
	savedAt time.Time // by our clock; the events in it are not younger
	takenAt time.Time
	diedAt  time.Time // when the slot was last taken from a home that had died; zero: none had
	died    bool      // this one had: it may have begun what it did not save

	outlasts time.Duration // shorter periods are over when a home has died
}

func predecessorOf(saved store.SiteState, in *slot, homeLease time.Duration) predecessor {
	p := predecessor{outlasts: homeLease, takenAt: in.takenAt, savedAt: in.takenAt.Add(-saved.Age)}
	if len(saved.State) > 0 {
		if err := json.Unmarshal(saved.State, &p.state); err != nil {
			slog.Warn("state of a site not understood", "site", saved.Site, "error", err)
			p.state = siteState{} // as after a home that died
		}
	}
	// What an earlier home said when it ended says nothing of the last one.
	p.died = !in.orderly && !(p.state.Clean && p.state.Home == in.before)
	switch {
	case p.died:
		p.diedAt = p.takenAt
	case p.state.Died > 0:
		p.diedAt = p.savedAt.Add(-p.state.Died)
	}
	return p
}

// of returns what is known of the lane of a source.
func (p *predecessor) of(l *lane) counts {
	if l.source.Name == "" {
		return p.state.counts
	}
	return p.state.Lanes[l.source.Name]
}

// restore has a lane count what its source did before.
func (p *predecessor) restore(l *lane) {
	c := p.of(l)
	l.concurrency.Restore(c.Allowed)
	p.count(c, &l.messages, &l.connections)
	p.count(counts{Messages: c.Warming}, &l.warming, &pace.Window{})
}

// restoreSlow has a lane go as slowly as its source did before.
func (p *predecessor) restoreSlow(l *lane) {
	if slow := p.of(l).Slow; slow != nil {
		slow.Age += max(time.Since(p.savedAt), 0)
		l.slow.Restore(time.Now(), slow)
	}
}

func (p *predecessor) count(c counts, messages, connections *pace.Window) {
	now := time.Now()
	passed := max(now.Sub(p.savedAt), 0)
	// What was in flight then was over when the lease was, at the latest.
	messages.Linger(p.takenAt, c.Messages)
	connections.Linger(p.takenAt, c.Connections)
	messages.Restore(now, passed, c.Messages)
	connections.Restore(now, passed, c.Connections)
	if p.died {
		p.assume(messages, now)
		p.assume(connections, now)
	}
}

// assume has a window count what a home that died may have begun without
// saving it.
func (p *predecessor) assume(w *pace.Window, now time.Time) {
	old := p.state.Home == 0 && !p.state.SavedAt.IsZero() // of a worker of the version before this one
	if isLong := w.Period() > p.outlasts; isLong && !old {
		w.AssumeAhead(p.takenAt, now, 2*storeWithin)
		return
	}
	w.Assume(p.takenAt, cmp.Or(p.state.Unknown, unknown(maxSave)))
	if old {
		w.Owe()
	}
}
