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
	SavedAt time.Time         `json:"saved_at"`
	Clean   bool              `json:"clean"` // the home ended in order: nothing happened after
	counts                    // of the lane without a source
	Whole   counts            `json:"whole"`
	Lanes   map[string]counts `json:"lanes,omitempty"` // by source
}

// counts is what the windows of a lane have counted.
type counts struct {
	Messages    []pace.Tally `json:"messages,omitempty"`
	Connections []pace.Tally `json:"connections,omitempty"`
	Warming     []pace.Tally `json:"warming,omitempty"`
	Slow        *adapt.Saved `json:"slow,omitempty"`
}

func count(now time.Time, messages, connections *pace.Window) counts {
	return counts{Messages: messages.Save(now), Connections: connections.Save(now)}
}

// predecessor is what is known of the home before this one.
type predecessor struct {
	state   siteState
	takenAt time.Time
	unseen  time.Duration // that the windows of the state may lack
}

func predecessorOf(saved store.SiteState, takenAt time.Time, unseen time.Duration) predecessor {
	p := predecessor{takenAt: takenAt}
	if len(saved.State) > 0 {
		if err := json.Unmarshal(saved.State, &p.state); err != nil {
			slog.Warn("state of a site not understood", "site", saved.Site, "error", err)
			p.state = siteState{} // as after a home that died
		}
	}
	if !p.state.Clean {
		// A home that died may have gone on until its lease ended.
		p.unseen = unseen
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
	p.count(c, &l.messages, &l.connections)
	p.count(counts{Messages: c.Warming}, &l.warming, &pace.Window{})
}

// restoreSlow has a lane go as slowly as its source did before.
func (p *predecessor) restoreSlow(l *lane) {
	if slow := p.of(l).Slow; slow != nil {
		slow.Age += max(time.Since(p.state.SavedAt), 0)
		l.slow.Restore(time.Now(), slow)
	}
}

func (p *predecessor) restoreWhole(w *whole) { p.count(p.state.Whole, &w.messages, &w.connections) }

func (p *predecessor) count(c counts, messages, connections *pace.Window) {
	now := time.Now()
	passed := max(now.Sub(p.state.SavedAt)-maxClockSkew, 0)
	messages.Restore(now, passed, c.Messages)
	connections.Restore(now, passed, c.Connections)
	if p.unseen > 0 {
		messages.Assume(p.takenAt, p.unseen)
		connections.Assume(p.takenAt, p.unseen)
	}
}

// save returns what the next home should know of the site.
func (s *site) save(clean bool) store.SiteState {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.changed = false
	for name := range s.before.state.Lanes {
		s.lane(s.home.sourceOf(name)) // not used here: still to be remembered
	}
	state := siteState{SavedAt: now, Clean: clean, Whole: count(now, &s.whole.messages, &s.whole.connections), Lanes: map[string]counts{}}
	for _, l := range s.lanes {
		c := count(now, &l.messages, &l.connections)
		c.Slow, c.Warming = l.slow.Save(now), l.warming.Save(now)
		if l.source.Name == "" {
			state.counts = c
		} else if len(c.Messages)+len(c.Connections)+len(c.Warming) > 0 || c.Slow != nil {
			state.Lanes[l.source.Name] = c
		}
	}
	text, err := json.Marshal(state)
	if err != nil {
		panic(err) // a struct of numbers and times
	}
	return store.SiteState{Site: s.name, State: text}
}

// toSave reports whether a successor would miss what the site remembers: for
// short periods it waits one out.
func (s *site) toSave() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var longest time.Duration
	slow := false
	for _, l := range s.lanes {
		slow = slow || l.slow.Share() < 1 || l.source.WarmUp != ""
		longest = max(longest, l.limits.MessageRate.Period, l.limits.ConnectionRate.Period)
	}
	for _, l := range s.shared {
		longest = max(longest, l.MessageRate.Period)
	}
	return s.changed && !s.stopped && (slow || longest > s.home.config.Lease)
}
