package delivery

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/services/delivery/internal/pace"
)

// modelPart is the home of one slot, and the site's part in it if it has one.
type modelPart struct {
	slot    int16
	s       *site
	l       *lane
	flying  []flight
	saved   []pace.Tally
	savedAt time.Time
}

// take makes a home for the slot, which knows the division.
func (m *modelPart) take(d mail.Division, full shaping.Limits) {
	m.s = &site{name: d.Site, slot: m.slot, home: &worker{}, division: d, hosts: []mail.Host{{Name: "mx.a.test"}}}
	m.l = &lane{site: m.s, source: here, full: full}
	m.s.lanes = []*lane{m.l}
	m.flying = nil
}

// limit has the lane keep to a portion, as lane.relimit does.
func (m *modelPart) limit(p mail.Portion) {
	m.l.portion, m.l.limits = p, m.l.full.Portion(p)
	m.l.closed = least(p, m.l.full) == 0
	m.l.messages.SetRate(m.l.limits.MessageRate)
}

func (m *modelPart) save(now time.Time) {
	m.saved, m.savedAt = m.l.messages.Save(now), now
	m.l.messages.Saving()
	m.l.messages.Saved(true)
}

// land ends what is over.
func (m *modelPart) land(now time.Time) {
	slices.SortFunc(m.flying, func(a, b flight) int { return a.over.Compare(b.over) })
	for len(m.flying) > 0 && !m.flying[0].over.After(now) {
		m.l.messages.Over(m.flying[0].over)
		m.flying = m.flying[1:]
	}
}

// TestLimitsHoldWhilePartsSplitAndMerge: a site is divided anew again and
// again, homes hear of that late, and die at any moment. At no time do all
// parts have more connections open than the limit, and in no window of the
// remote host have more transactions begun.
func TestLimitsHoldWhilePartsSplitAndMerge(t *testing.T) {
	for range 10 {
		rapid.Check(t, divideAtRandom)
	}
}

func divideAtRandom(t *rapid.T) {
	const slots = 5
	full := shaping.Limits{
		Connections: rapid.IntRange(1, 8).Draw(t, "connections"),
		MessageRate: shaping.Rate{Events: rapid.IntRange(1, 80).Draw(t, "events"), Period: time.Second, Burst: rapid.IntRange(0, 20).Draw(t, "burst")},
	}
	now := time.Unix(0, 0)
	truth := mail.Division{Site: "a.test", Slots: []int16{0}}
	var parts []*modelPart
	for slot := range int16(slots) {
		m := &modelPart{slot: slot, savedAt: now}
		m.take(truth, full)
		m.limit(truth.Portion(slot))
		parts = append(parts, m)
	}
	var seen []time.Time
	steps := 0 // of divisions
	for range rapid.IntRange(1, 400).Draw(t, "steps") {
		m := parts[rapid.IntRange(0, slots-1).Draw(t, "part")]
		for _, other := range parts {
			other.land(now)
		}
		switch step := rapid.IntRange(0, 19).Draw(t, "step"); {
		case step == 0 && truth.Next == nil:
			next := rapid.SliceOfNDistinct(rapid.Int16Range(1, slots-1), 0, slots-1, rapid.ID[int16]).Draw(t, "next")
			truth = mail.Division{Site: truth.Site, Slots: truth.Slots, Next: append([]int16{0}, next...), Epoch: truth.Epoch + 1}
			steps++
		case step <= 2: // hears how it is
			m.s.division = truth
			m.s.passive = !truth.Takes(m.slot)
			m.limit(truth.Portion(m.slot))
		case step <= 5: // agrees, or is not heard
			d := m.s.division
			if d.Epoch != truth.Epoch || truth.Next == nil || !slices.Contains(truth.Slots, m.slot) || slices.Contains(truth.Agreed, m.slot) || !m.s.keeps(now) {
				continue
			}
			truth.Agreed = append(slices.Clone(truth.Agreed), m.slot)
			if len(truth.Agreed) == len(truth.Slots) {
				truth = mail.Division{Site: truth.Site, Slots: truth.Next, Epoch: truth.Epoch + 1}
			}
		case step == 6: // dies, and has a successor when what it sent has arrived
			for _, f := range m.flying {
				now = later(now, f.seen)
			}
			saved, savedAt := m.saved, m.savedAt
			m.take(truth, full)
			m.limit(truth.Before(m.slot))
			m.l.messages.Linger(now, saved)
			m.l.messages.Restore(now, now.Sub(savedAt), saved)
			m.l.messages.AssumeAhead(now, now, 0)
			m.limit(truth.Portion(m.slot))
			m.s.passive = !truth.Takes(m.slot)
		case step == 7:
			now = now.Add(time.Duration(rapid.IntRange(0, 700).Draw(t, "pause")) * time.Millisecond)
		case step == 8 && m.l.open > 0:
			m.l.open--
		case step <= 10:
			if !m.s.closed() && !m.l.closed && m.l.open < m.l.limits.Connections {
				m.l.open++
			}
		default:
			at, ok := m.l.messages.Next(now)
			if m.s.closed() || m.l.closed || !ok || at.After(now) {
				continue
			}
			if m.l.isAhead(&m.l.messages, now) {
				m.save(now) // nothing begins before
			}
			m.l.messages.Begin(now)
			takes := time.Duration(rapid.IntRange(0, 1500).Draw(t, "takes")) * time.Millisecond
			f := flight{now.Add(time.Duration(rapid.Float64Range(0, 1).Draw(t, "seen") * float64(takes))), now.Add(takes)}
			m.flying, seen = append(m.flying, f), append(seen, f.seen)
		}
		open := 0
		for _, m := range parts {
			open += m.l.open
		}
		if open > full.Connections {
			t.Fatalf("%d connections open, the limit is %d", open, full.Connections)
		}
	}
	slices.SortFunc(seen, time.Time.Compare)
	r := full.MessageRate
	for i := r.Events; i < len(seen); i++ {
		if gap := seen[i].Sub(seen[i-r.Events]); gap <= r.Period {
			t.Fatalf("the remote host saw %d transactions begin within %v, more than %s, after %d changes", r.Events+1, gap, r, steps)
		}
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
