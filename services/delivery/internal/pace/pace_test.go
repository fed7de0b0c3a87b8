package pace_test

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/services/delivery/internal/pace"
)

var start = time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)

func window(events int, period time.Duration, burst int) *pace.Window {
	w := &pace.Window{}
	w.SetRate(shaping.Rate{Events: events, Period: period, Burst: burst})
	return w
}

// flight is an event on its way.
type flight struct{ seen, over time.Time }

// check fails if any window of the period holds more than n of the times.
func check(t *rapid.T, seen []time.Time, n int, period time.Duration) {
	slices.SortFunc(seen, time.Time.Compare)
	for i := n; i < len(seen); i++ {
		if gap := seen[i].Sub(seen[i-n]); gap <= period {
			t.Fatalf("the remote host saw %d events begin within %v, more than %d in %v", n+1, gap, n, period)
		}
	}
}

// The remote host sees each event at a moment that we do not know, between
// its start and its reply. Events overlap, take any time, are cancelled, and
// the home of the site changes, with its state or without.
func TestNoWindowAtTheRemoteHostHoldsMoreThanTheRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		events := rapid.IntRange(1, 30).Draw(t, "events")
		period := time.Second
		burst := rapid.IntRange(0, 40).Draw(t, "burst")
		w := window(events, period, burst)
		now := start
		unknown := time.Duration(rapid.IntRange(1, 800).Draw(t, "unknown")) * time.Millisecond
		var saved []pace.Tally
		savedAt, unsaved := now, time.Time{} // the first event that is not saved
		save := func() { saved, savedAt, unsaved = w.Save(now), now, time.Time{} }
		var flying []flight
		var seen []time.Time
		land := func() {
			slices.SortFunc(flying, func(a, b flight) int { return a.over.Compare(b.over) })
			for len(flying) > 0 && !flying[0].over.After(now) {
				w.Over(flying[0].over)
				flying = flying[1:]
			}
		}
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			switch rapid.IntRange(0, 22).Draw(t, "step") {
			case 21:
				save()
			case 22: // taken over from a dead home with the state that it saved last
				for i := range flying {
					now = later(now, flying[i].seen)
				}
				flying = nil
				w = window(events, period, burst)
				w.Linger(now, saved)
				w.Restore(now, now.Sub(savedAt), saved)
				w.Assume(now, unknown)
				save()
			case 0: // a long pause
				now = now.Add(time.Duration(rapid.IntRange(0, 1500).Draw(t, "pause")) * time.Millisecond)
				land()
			case 1: // handed over with its state; what is in flight ended before
				for i := range flying {
					now = later(now, flying[i].over)
				}
				land()
				clean := w.Save(now)
				w = window(events, period, burst)
				w.Linger(now, clean)
				w.Restore(now, 0, clean)
				save()
			case 2: // taken over from a dead home without its state, when its lease is over and what it sent has arrived
				for i := range flying {
					now = later(now, flying[i].seen)
				}
				flying = nil
				w = window(events, period, burst)
				w.Assume(now, time.Hour)
				save()
			default:
				at, ok := w.Next(now)
				for !ok {
					slices.SortFunc(flying, func(a, b flight) int { return a.over.Compare(b.over) })
					now = later(now, flying[0].over)
					land()
					at, ok = w.Next(now)
				}
				now = later(now, at)
				land()
				if at, ok := w.Next(now); !ok || at.After(now) {
					continue // something landed later than asked about
				}
				if !unsaved.IsZero() && now.Sub(unsaved) > unknown {
					save() // nothing begins before
				}
				if unsaved.IsZero() {
					unsaved = now
				}
				w.Begin(now)
				if rapid.IntRange(0, 9).Draw(t, "cancelled") == 0 {
					w.Cancel()
					continue
				}
				takes := time.Duration(rapid.IntRange(0, 3000).Draw(t, "takes")) * time.Millisecond
				delay := time.Duration(rapid.Float64Range(0, 1).Draw(t, "delay") * float64(takes))
				flying = append(flying, flight{now.Add(delay), now.Add(takes)})
				seen = append(seen, now.Add(delay))
			}
		}
		check(t, seen, events, period)
	})
}

// What a home begins that is not on record is bounded by IsAhead. Homes die
// one after another, also before they have saved anything; a save may fail,
// with nobody knowing whether it was done.
func TestNoWindowHoldsMoreThanTheRateThoughHomesDieInARow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		events := rapid.IntRange(1, 60).Draw(t, "events")
		period := time.Second
		burst := rapid.IntRange(0, 60).Draw(t, "burst")
		w := window(events, period, burst)
		now := start
		var record, writing []pace.Tally // what a successor finds, and what is being written
		recordAt, writingAt := now, time.Time{}
		const slow = 300 * time.Millisecond // a write takes so long at most
		var flying []flight
		var seen []time.Time
		land := func() {
			slices.SortFunc(flying, func(a, b flight) int { return a.over.Compare(b.over) })
			for len(flying) > 0 && !flying[0].over.After(now) {
				w.Over(flying[0].over)
				flying = flying[1:]
			}
		}
		write := func() {
			writing, writingAt = w.Save(now), now
			w.Saving()
		}
		written := func(done, known bool) {
			if done {
				record, recordAt = writing, earlier(now, writingAt.Add(slow))
			}
			w.Saved(known)
			writingAt = time.Time{}
		}
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			switch rapid.IntRange(0, 22).Draw(t, "step") {
			case 0:
				now = now.Add(time.Duration(rapid.IntRange(0, 1500).Draw(t, "pause")) * time.Millisecond)
				land()
			case 1, 2:
				if writingAt.IsZero() {
					write()
				} else {
					done := rapid.Bool().Draw(t, "done")
					written(done, done && rapid.Bool().Draw(t, "known"))
				}
			case 3, 4: // the home dies
				if !writingAt.IsZero() && rapid.Bool().Draw(t, "written all the same") {
					record, recordAt = writing, earlier(now, writingAt.Add(slow))
				}
				writingAt = time.Time{}
				for i := range flying {
					now = later(now, flying[i].seen)
				}
				flying = nil
				w = window(events, period, burst)
				w.Linger(now, record)
				w.Restore(now, now.Sub(recordAt), record)
				w.AssumeAhead(now, now, slow)
			default:
				at, ok := w.Next(now)
				for !ok {
					slices.SortFunc(flying, func(a, b flight) int { return a.over.Compare(b.over) })
					now = later(now, flying[0].over)
					land()
					at, ok = w.Next(now)
				}
				now = later(now, at)
				land()
				if at, ok := w.Next(now); !ok || at.After(now) {
					continue // something landed later than asked about
				}
				if w.IsAhead() {
					if writingAt.IsZero() {
						write()
					}
					written(true, true)
				}
				if w.IsAhead() {
					continue // what was begun during the save is to be saved too
				}
				w.Begin(now)
				takes := time.Duration(rapid.IntRange(0, 3000).Draw(t, "takes")) * time.Millisecond
				delay := time.Duration(rapid.Float64Range(0, 1).Draw(t, "delay") * float64(takes))
				flying = append(flying, flight{now.Add(delay), now.Add(takes)})
				seen = append(seen, now.Add(delay))
			}
		}
		check(t, seen, events, period)
	})
}

// A death costs a twentieth of the rate, and nothing where the rate was used
// up: so a home can die often before its successors have nothing left.
func TestWhatADeathCosts(t *testing.T) {
	for _, c := range []struct {
		events, counted, want int
	}{{100, 0, 5}, {100, 98, 2}, {100, 100, 0}, {1, 0, 1}, {1, 1, 0}, {19, 3, 1}} {
		w := window(c.events, time.Minute, 0)
		w.Restore(start, 0, []pace.Tally{{Age: 10 * time.Second, Events: c.counted}})
		w.AssumeAhead(start, start, time.Second)
		if got := w.Counted(start) - c.counted; got != c.want {
			t.Errorf("%d/min, %d of it used: %d are assumed, want %d", c.events, c.counted, got, c.want)
		}
		if w.IsAhead() != (c.want > 0) {
			t.Errorf("%d/min, %d of it used: to be saved before the first event: %v", c.events, c.counted, w.IsAhead())
		}
		w.Saving()
		w.Saved(true)
		if w.IsAhead() {
			t.Errorf("%d/min: nothing may begin though all is saved", c.events)
		}
	}
}

func TestASparingEventLeavesAThird(t *testing.T) {
	w := window(30, time.Minute, 30)
	for range 19 {
		w.Begin(start)
		w.Over(start)
	}
	if at, ok := w.NextSparing(start); !ok || at.After(start) {
		t.Errorf("19 of 30: got %v, %v, want at once", at, ok)
	}
	w.Begin(start)
	w.Over(start)
	if at, ok := w.NextSparing(start); !ok || at.Sub(start) <= time.Minute-1 {
		t.Errorf("20 of 30: got %v, %v, want when the first has left", at, ok)
	}
	if at, ok := w.Next(start); !ok || at.After(start) {
		t.Errorf("20 of 30: got %v, %v, want at once for who need not spare it", at, ok)
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// A source that always has mail gets nearly all of its rate.
func TestTheRateIsUsed(t *testing.T) {
	for _, c := range []struct {
		events, burst int
		takes         time.Duration
	}{{20, 0, time.Millisecond}, {100, 0, 5 * time.Millisecond}, {1, 0, 0}, {20, 20, 0}, {1000, 0, time.Millisecond}} {
		w := window(c.events, time.Second, c.burst)
		now, began := start, 0
		for now.Before(start.Add(20 * time.Second)) {
			at, ok := w.Next(now)
			if !ok {
				t.Fatal("nothing is in flight, and yet no time is given")
			}
			now = later(now, at)
			w.Begin(now)
			began++
			w.Over(now.Add(c.takes)) // overlaps with the next
		}
		if want := c.events * 20 * 95 / 100; began < want {
			t.Errorf("%d/s with replies after %v: %d events in 20 s, want %d or more", c.events, c.takes, began, want)
		}
	}
}

func TestEventsAreSpread(t *testing.T) {
	w := window(100, time.Second, 0)
	var at []time.Duration
	now := start
	for range 30 {
		next, _ := w.Next(now)
		now = later(now, next)
		w.Begin(now)
		w.Over(now)
		at = append(at, now.Sub(start))
	}
	if at[9] != 0 {
		t.Errorf("the tenth event begins at %v, want at once: a tenth of the rate is the burst", at[9])
	}
	if at[10] != 10*time.Millisecond || at[29] != 200*time.Millisecond {
		t.Errorf("the 11th and 30th event begin at %v and %v, want 10ms and 200ms", at[10], at[29])
	}
}

func TestAllInFlightGivesNoTime(t *testing.T) {
	w := window(2, time.Second, 2)
	w.Begin(start)
	w.Begin(start)
	if at, ok := w.Next(start.Add(time.Hour)); ok {
		t.Errorf("two of two are in flight for an hour, and the third may begin at %v", at)
	}
	w.Over(start.Add(time.Hour))
	if at, ok := w.Next(start.Add(time.Hour)); !ok || at.Sub(start) <= time.Hour+time.Second-time.Millisecond {
		t.Errorf("got %v, %v, want a period after the first was over", at, ok)
	}
}

func TestAssumeIsBoundedBySmoothing(t *testing.T) {
	w := window(3600, time.Hour, 1)
	w.Assume(start, 10*time.Second)
	total := 0
	for _, tally := range w.Save(start) {
		total += tally.Events
	}
	if total != 12 {
		t.Errorf("10 s unseen at one a second: %d events are assumed, want a burst of 1, 10 and 1 for the edge", total)
	}
}

func TestRestoreOfOldStateCountsNothing(t *testing.T) {
	w := window(10, time.Second, 0)
	for range 10 {
		w.Begin(start)
		w.Over(start)
	}
	saved := w.Save(start)
	fresh := window(10, time.Second, 0)
	fresh.Restore(start, time.Minute, saved)
	if !fresh.Idle(start) {
		t.Error("what was over a minute ago still counts in a window of a second")
	}
}

func TestUnlimitedRemembersNothing(t *testing.T) {
	w := window(0, 0, 0)
	for range 100000 {
		w.Begin(start)
		w.Over(start)
	}
	if at, ok := w.Next(start); !ok || at.After(start) || !w.Idle(start) {
		t.Errorf("got %v, %v, want at once", at, ok)
	}
}

func TestRateChangeKeepsTheLog(t *testing.T) {
	w := window(10, time.Second, 10)
	for range 10 {
		w.Begin(start)
		w.Over(start)
	}
	w.SetRate(shaping.Rate{Events: 5, Period: time.Second})
	if at, ok := w.Next(start); !ok || at.Sub(start) <= time.Second-1 {
		t.Errorf("got %v, %v, want a second later", at, ok)
	}
}

func TestConcurrency(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c pace.Concurrency
		limit := rapid.IntRange(1, 30).Draw(t, "limit")
		c.SetLimit(limit)
		if c.Allowed() != min(5, limit) {
			t.Fatalf("starts at %d, want %d", c.Allowed(), min(5, limit))
		}
		for range rapid.IntRange(0, 100).Draw(t, "steps") {
			before := c.Allowed()
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				c.Succeeded()
				if c.Allowed() != min(before+1, limit) {
					t.Fatalf("after a success %d of %d, was %d", c.Allowed(), limit, before)
				}
			case 1:
				c.Failed()
				if c.Allowed() != max(before-1, 1) {
					t.Fatalf("after a failure %d, was %d", c.Allowed(), before)
				}
			case 2:
				limit = rapid.IntRange(1, 30).Draw(t, "new limit")
				c.SetLimit(limit)
			}
			if c.Allowed() < 1 || c.Allowed() > limit {
				t.Fatalf("%d connections are allowed, limit %d", c.Allowed(), limit)
			}
		}
	})
}

// TestFullWindowTakesNoMore: what a predecessor saved can fill the window, so
// that nothing is left to assume of it.
func TestFullWindowTakesNoMore(t *testing.T) {
	rate := shaping.Rate{Events: 4, Period: 5 * time.Second}
	var w pace.Window
	w.SetRate(rate)
	now := time.Now()
	w.Restore(now, 0, []pace.Tally{{Age: time.Second, Events: 4}, {Age: 0, Events: 0}})
	w.Assume(now, 10*time.Second)
	if at, ok := w.Next(now); !ok || at.Sub(now) < 4*time.Second {
		t.Errorf("the next event is due %v from now, %v; want when the saved ones are out of the window", at.Sub(now), ok)
	}
}
