package pace

import (
	"slices"
	"time"

	"github.com/postrider/postrider/pkg/shaping"
)

// Window lets events begin at a rate that holds at the remote host, not only
// here: in no window of the length of the rate's period does the remote host
// see more than the rate's number of events begin.
//
// We know only that the remote host sees an event some time between our
// sending it and our reading its reply. So an event in flight counts as one
// of now, and one that is over counts as one of the moment its reply was
// read. Let E be the last of our events in any window at the remote host. At
// the time we began E, each other event of that window was in flight or was
// over less than a period ago, so it was counted, and E was within the rate.
//
// Inside that bound events are spread: a burst begins at once, those after it
// at even distances (GCRA).
//
// The zero value sets no bound.
type Window struct {
	rate     shaping.Rate
	interval time.Duration // between events at the even rate
	even     time.Time     // when the next event is due at the even rate
	inFlight int
	over     []time.Time // when events were over, oldest first; none older than a period once asked

	fresh  int // events begun since Save was last called for the record
	kept   int // events begun before, of which it is not known that they are on record
	saving int // those of kept that are being put on record
}

// SetRate changes the rate. What was counted so far still counts.
func (w *Window) SetRate(r shaping.Rate) {
	w.rate = r
	w.interval = 0
	if r.IsUnlimited() {
		w.over = nil
		return
	}
	w.interval = r.Period / time.Duration(r.Events)
}

// Period returns the length of the window; zero without a bound.
func (w *Window) Period() time.Duration { return w.rate.Period }

// Next returns when the next event may begin: not after now if at once. False
// says that no time can be given, because as many as the rate allows are in
// flight; ask again when one of them is over.
func (w *Window) Next(now time.Time) (time.Time, bool) { return w.next(now, w.rate.Events) }

// NextSparing is Next for an event that is to leave a third of the rate, or
// one event, to others.
func (w *Window) NextSparing(now time.Time) (time.Time, bool) {
	return w.next(now, w.rate.Events-max(w.rate.Events/3, 1))
}

// next returns when the next event may begin if no more than n are to count
// in any period.
func (w *Window) next(now time.Time, n int) (time.Time, bool) {
	if w.rate.IsUnlimited() {
		return now, true
	}
	w.forget(now)
	if w.inFlight >= n {
		return time.Time{}, false
	}
	at := w.even.Add(-time.Duration(w.rate.AtOnce()-1) * w.interval)
	if excess := w.inFlight + len(w.over) - n; excess >= 0 {
		// Strictly after the period: a remote clock may not see the
		// difference between a period and a nanosecond less.
		if free := w.over[excess].Add(w.rate.Period + time.Nanosecond); free.After(at) {
			at = free
		}
	}
	return at, true
}

// Begin counts an event as in flight from now on.
func (w *Window) Begin(now time.Time) {
	w.inFlight++
	w.fresh++
	if w.even.Before(now) {
		w.even = now
	}
	w.even = w.even.Add(w.interval)
}

// Over says that the reply to an event was read now, or that it ended in
// another way after the remote host may have seen it.
func (w *Window) Over(now time.Time) {
	w.inFlight--
	w.count(now, 1)
}

// Cancel says that the remote host never saw an event that had begun.
func (w *Window) Cancel() { w.inFlight-- }

// count logs n events that were over at a time.
func (w *Window) count(at time.Time, n int) {
	if w.rate.IsUnlimited() || n < 1 {
		return
	}
	w.forget(at)
	for range n {
		w.over = append(w.over, at)
	}
	// Times of restored events may be later than those of fresh ones.
	if k := len(w.over) - n; k > 0 && w.over[k].Before(w.over[k-1]) {
		slices.SortFunc(w.over, time.Time.Compare)
	}
}

// forget drops what is older than a period.
func (w *Window) forget(now time.Time) {
	n := 0
	for n < len(w.over) && now.Sub(w.over[n]) > w.rate.Period {
		n++
	}
	w.over = w.over[n:]
	if len(w.over) == 0 {
		w.over = nil
	}
}

// Counted returns how many events count against the rate now, those in flight
// too.
func (w *Window) Counted(now time.Time) int {
	w.forget(now)
	return w.inFlight + len(w.over)
}

// Idle reports whether the window remembers nothing that could hold back an
// event.
func (w *Window) Idle(now time.Time) bool {
	w.forget(now)
	return w.inFlight == 0 && len(w.over) == 0 && !w.even.After(now)
}

// Assume counts as many events as an unknown predecessor can have begun
// unseen during the given time, all at now: a burst and the even rate.
func (w *Window) Assume(now time.Time, unseen time.Duration) {
	if w.rate.IsUnlimited() {
		return
	}
	n := w.rate.AtOnce() + int(unseen/max(w.interval, 1)) + 1
	w.count(now, min(n, w.rate.Events))
}

// unseenParts says how many events may begin that are not on record: one, or
// so small a part of the rate.
const unseenParts = 20

func (w *Window) unseen() int { return max(w.rate.Events/unseenParts, 1) }

// IsAhead reports whether as many events have begun since the state was saved
// as a successor would assume: none may begin before it is saved again.
func (w *Window) IsAhead() bool { return !w.rate.IsUnlimited() && w.fresh+w.kept >= w.unseen() }

// AssumeAhead counts as many events as a predecessor can have begun that kept
// to IsAhead, all at a time, after those that it saved. It could not begin more
// than these left of the rate; they left its own window up to so much earlier
// than ours. What is counted is to be saved before the first event here.
func (w *Window) AssumeAhead(at, now time.Time, earlier time.Duration) {
	if w.rate.IsUnlimited() {
		return
	}
	earlier += w.rate.Period / parts
	left := w.rate.Events
	for _, t := range w.over {
		if at.Sub(t)+earlier <= w.rate.Period {
			left--
		}
	}
	n := min(w.unseen(), left)
	w.count(at, n)
	if n > 0 && now.Sub(at) <= w.rate.Period {
		w.Owe()
	}
}

// Owe has nothing begin before the state, as it is now or later, is saved.
func (w *Window) Owe() { w.kept = w.saving + w.unseen() }

// Saving says that what Save returns now is being put on record.
func (w *Window) Saving() {
	w.kept, w.fresh = w.kept+w.fresh, 0
	w.saving = w.kept
}

// Saved says whether it is on record for certain.
func (w *Window) Saved(certain bool) {
	if certain {
		w.kept -= w.saving
	}
	w.saving = 0
}

// parts is the resolution of a saved window: times are rounded up to a part
// of the period.
const parts = 100

// Tally is a number of events and how long ago they were over, at most.
type Tally struct {
	Age    time.Duration `json:"age"`
	Events int           `json:"events"`
	// Flying of the events were in flight: they were over later.
	Flying int `json:"flying,omitempty"`
}

// Save returns what the window remembers, at most a hundred entries. Events
// in flight count as of now.
func (w *Window) Save(now time.Time) []Tally {
	if w.rate.IsUnlimited() {
		return nil
	}
	w.forget(now)
	part := max(w.rate.Period/parts, 1)
	var all []Tally
	add := func(age time.Duration, n int) {
		age = age.Truncate(part) // younger than it is, never older
		if k := len(all); k > 0 && all[k-1].Age == age {
			all[k-1].Events += n
		} else {
			all = append(all, Tally{Age: age, Events: n})
		}
	}
	for _, t := range w.over {
		add(max(now.Sub(t), 0), 1)
	}
	if w.inFlight > 0 {
		add(0, w.inFlight)
		all[len(all)-1].Flying = w.inFlight
	}
	return all
}

// Restore counts what a predecessor saved at least passed ago, but for what
// was in flight then.
func (w *Window) Restore(now time.Time, passed time.Duration, saved []Tally) {
	for _, t := range saved {
		at := now.Add(-max(t.Age+passed, 0))
		w.count(at, min(max(t.Events-t.Flying, 0), w.rate.Events))
	}
	w.forget(now)
}

// Linger counts what was in flight when a predecessor saved as over at a
// time.
func (w *Window) Linger(at time.Time, saved []Tally) {
	n := 0
	for _, t := range saved {
		n += max(t.Flying, 0)
	}
	w.count(at, min(n, w.rate.Events))
}
