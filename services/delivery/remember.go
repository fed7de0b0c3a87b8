package delivery

import (
	"encoding/json"
	"log/slog"
	"time"

	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/delivery/internal/adapt"
	"github.com/postrider/postrider/services/delivery/internal/pace"
)

// siteState is the saved form of what a site remembers.
type siteState struct {
	SavedAt time.Time         `json:"saved_at"`          // for workers of the version before this one
	Clean   bool              `json:"clean"`             // the home ended in order: nothing happened after
	Unknown time.Duration     `json:"unknown,omitempty"` // else: how long before the end of the home the first event that it lacks
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
	unseen  time.Duration // that the windows of the state may lack
}

func predecessorOf(saved store.SiteState, in *slot) predecessor {
	p := predecessor{takenAt: in.takenAt, savedAt: in.takenAt.Add(-saved.Age)}
	if len(saved.State) > 0 {
		if err := json.Unmarshal(saved.State, &p.state); err != nil {
			slog.Warn("state of a site not understood", "site", saved.Site, "error", err)
			p.state = siteState{} // as after a home that died
		}
	}
	if !p.state.Clean && !in.orderly {
		// A home that died may have gone on for as long as it may without
		// saving what it did.
		if p.unseen = p.state.Unknown; p.unseen <= 0 {
			p.unseen = unknown(maxSave)
		}
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
	if p.unseen > 0 {
		messages.Assume(p.takenAt, p.unseen)
		connections.Assume(p.takenAt, p.unseen)
	}
}
