package delivery

import (
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/delivery/internal/pace"
)

// joint is a limit by name, and what this worker uses of it.
type joint struct {
	name     string
	worker   mail.WorkerID
	outlasts time.Duration // shorter periods are over when another worker counts what this one did

	soon func() // has the portions looked at soon

	mu       sync.Mutex             // guards all below
	limit    shaping.Shared         // the strictest that is known
	held     store.Holding          // on record for us, or more
	target   part                   // that is ours
	messages pace.Window            // transactions
	unsaved  time.Time              // the first transaction that is not on record; zero: there is none
	saving   time.Time              // the first in what is being recorded
	counts   map[mail.WorkerID]bool // workers that are gone, whose transactions are in messages
	turns    waitlist[claimant]     // who waits for a transaction
	turnAt   *time.Timer            // calls the first of them

	open      int                           // seats that are taken or promised
	unproven  map[*seat]bool                // those of them of which nobody knows whether a host greets
	unsure    [standings]int                // how many those are, by standing
	promises  map[claimant]*seat            // seats that are promised and not taken
	lines     [standings]waitlist[claimant] // who waits for a seat
	idle      waitlist[*seat]               // connections without work
	parting   int                           // those of them that were told to end
	restUntil [standings]time.Time          // no seat for sites of a standing before, if others wait
	clearing  *time.Timer                   // has seats given up

	wantedAt time.Time // when this worker last had mail for it; only runShares uses it
}

// part is what one worker has of a limit.
type part struct{ connections, events int }

// may returns how much may be in use: never more than what is on record.
// Caller holds mu.
func (j *joint) may() part {
	return part{min(j.held.Connections, j.target.connections), min(j.held.Events, j.target.events)}
}

// mayBegin reports whether one more transaction of a site may begin: the rate
// allows it, and it is its turn. If not it is called when it may be.
func (j *joint) mayBegin(by claimant, now time.Time) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.isTurnOf(by, now) {
		return true
	}
	if !j.known() {
		j.askPortion()
	}
	j.turns.add(by, now)
	j.callNext(now)
	return false
}

// isTurnOf is mayBegin for those that do not wait. Caller holds mu.
func (j *joint) isTurnOf(by claimant, now time.Time) bool {
	if j.limit.MessageRate.IsUnlimited() && j.known() {
		return true
	}
	at, ok := j.nextMessage(now)
	head := j.turns.head()
	return ok && !at.After(now) && (head == nil || head.by == by)
}

// callNext has the first of those that wait for a transaction look, when one
// may begin. Caller holds mu.
func (j *joint) callNext(now time.Time) {
	head := j.turns.head()
	if head == nil {
		return
	}
	switch at, ok := j.nextMessage(now); {
	case !ok: // it is called at the end of one, or when there is a portion
	case at.After(now) && j.turnAt == nil:
		j.turnAt = time.AfterFunc(at.Sub(now), func() {
			j.mu.Lock()
			defer j.mu.Unlock()
			j.callNext(time.Now())
		})
	case at.After(now):
		j.turnAt.Reset(at.Sub(now))
	case !head.called:
		head.called = true
		j.call(head.by)
	}
}

// passOn says that a site which was called has looked. If it has not begun a
// transaction although it could, the next one may.
func (j *joint) passOn(by claimant, now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if head := j.turns.head(); head != nil && head.by == by && head.called {
		head.called = false
		if j.isTurnOf(by, now) {
			j.turns.remove(by)
		}
	}
	j.callNext(now)
}

// waitsToBegin reports whether a site waits for its turn to begin a
// transaction.
func (j *joint) waitsToBegin(by claimant) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.turns.has(by)
}

// askPortion has our portion settled soon. Caller holds mu.
func (j *joint) askPortion() {
	if j.soon != nil {
		j.soon()
	}
}

// nextMessage returns when one more transaction may begin, as
// pace.Window.Next. Caller holds mu.
func (j *joint) nextMessage(now time.Time) (time.Time, bool) {
	if j.limit.MessageRate.IsUnlimited() && j.known() {
		return now, true
	}
	if j.may().events < 1 {
		return time.Time{}, false
	}
	first := j.saving
	if first.IsZero() {
		first = j.unsaved
	}
	if !first.IsZero() && now.Sub(first) > unknown(shareEvery) {
		return now.Add(saveTick), true // Postgres may answer yet
	}
	return j.messages.Next(now)
}

// known reports whether the limit itself is known yet. Caller holds mu.
func (j *joint) known() bool { return j.held.Name != "" }

// begin counts a transaction of a site as begun, if it may.
func (j *joint) begin(by claimant, now time.Time) bool {
	if !j.mayBegin(by, now) {
		return false
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.isTurnOf(by, now) {
		return false // it was, a moment ago
	}
	j.turns.remove(by)
	j.messages.Begin(now)
	if j.unsaved.IsZero() && j.limit.MessageRate.Period > j.outlasts {
		j.unsaved = now
	}
	j.callNext(now)
	return true
}

// over says that a transaction has ended, and whether the remote host can have
// seen it.
func (j *joint) over(seen bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	over(&j.messages, seen)
	j.callNext(time.Now())
}

// excess is how many connections there are more than there may be.
func (j *joint) excess() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return max(-j.free(), 0)
}

// holdings is what workers hold of one limit at a time of Postgres.
type holdings struct {
	of     []store.Holding
	at     time.Time
	voided int // how often the worker had lost all before
}

// record is what a look comes to.
type record struct {
	want     store.Holding // to be on record; without a name: nothing
	uses     store.InUse
	changed  bool // it is not on record yet
	released bool // what is on record is given up
}

// look decides about our portion: as many workers as have mail for the limit
// have equal ones. From now on no more is begun than that and what is on
// record allow.
func (j *joint) look(wish wish, hs holdings, now time.Time) record {
	if wish.wanted {
		j.wantedAt = now
	}
	holders := []mail.WorkerID{j.worker}
	limit := wish.limit
	if !wish.known {
		limit = j.last()
	}
	var mine store.Holding
	for _, h := range hs.of {
		switch {
		case h.Worker == j.worker:
			mine = h
		case !h.Gone:
			holders = append(holders, h.Worker)
			limit = strictest(limit, shaping.Shared{Connections: h.AllConnections, MessageRate: shaping.Rate{Events: h.AllEvents, Period: h.Period}})
		}
	}
	if now.Sub(j.wantedAt) > keepShare && j.letGo(now) {
		return record{released: mine.Name != ""}
	}
	slices.Sort(holders)
	limit.Name = j.name
	for _, h := range hs.of {
		// One of those that are left counts what those that are gone have done.
		if h.Gone && h.State != nil && holders[0] == j.worker {
			j.inherit(h, limit, now)
		}
	}
	return j.aim(limit, turnOf(holders, j.worker, limit, hs.at), mine, now)
}

// aim takes over what the limit is and what our portion of it should be, and
// keeps to the smaller from now on. It returns what is to be on record in
// place of what is.
func (j *joint) aim(limit shaping.Shared, p mail.Portion, is store.Holding, now time.Time) record {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.limit = limit
	j.target = part{p.Count(limit.Connections), p.Count(limit.MessageRate.Events)}
	j.setRate()
	uses := store.InUse{Counted: slices.Sorted(maps.Keys(j.counts))}
	if limit.Connections > 0 {
		uses.Connections = j.open
	}
	if !limit.MessageRate.IsUnlimited() {
		uses.Events = j.messages.Counted(now)
	}
	want := store.Holding{
		Name: j.name, Worker: j.worker, State: is.State, Connections: j.target.connections, Events: j.target.events,
		OverConnections: max(uses.Connections-j.target.connections, 0), OverEvents: max(uses.Events-j.target.events, 0),
		AllConnections: limit.Connections, AllEvents: limit.MessageRate.Events, Period: limit.MessageRate.Period,
	}
	if limit.MessageRate.Period > j.outlasts && (!j.unsaved.IsZero() || !sameHolding(is, want)) {
		want.State = j.save(now, false)
		j.saving, j.unsaved = j.unsaved, time.Time{}
	}
	return record{want: want, uses: uses, changed: !sameHolding(is, want)}
}

// jointState is the saved form of what a worker has begun.
type jointState struct {
	Clean    bool         `json:"clean,omitempty"` // the worker ended in order: nothing came after
	Messages []pace.Tally `json:"messages,omitempty"`
}

// save returns what another worker must know. Caller holds mu.
func (j *joint) save(now time.Time, clean bool) []byte {
	text, err := json.Marshal(jointState{clean, j.messages.Save(now)})
	if err != nil {
		panic(err) // a struct of numbers
	}
	return text
}

// saved says what became of the record that aim returned.
func (j *joint) saved(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil && !j.saving.IsZero() {
		j.unsaved = j.saving
	}
	j.saving = time.Time{}
}

// inherit counts what a worker that is gone has begun, once.
func (j *joint) inherit(from store.Holding, limit shaping.Shared, now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.counts[from.Worker] {
		return
	}
	j.counts[from.Worker] = true
	kept := shaping.Rate{Events: from.Events + from.OverEvents, Period: from.Period, Burst: limit.MessageRate.Burst}
	if kept.IsUnlimited() {
		return // it had nothing of it
	}
	var state jointState
	if err := json.Unmarshal(from.State, &state); err != nil {
		slog.Warn("record of a shared limit not understood", "limit", j.name, "error", err)
	}
	// What it kept to counts in full; its bursts were no larger than those of
	// the limit.
	j.messages.SetRate(kept)
	j.messages.Linger(now, state.Messages)
	j.messages.Restore(now, max(from.Age, 0), state.Messages)
	if !state.Clean {
		j.messages.Assume(now, unknown(shareEvery))
	}
	j.limit = limit // of an unknown one the window would forget all
	j.setRate()
}

// setRate has the window keep to what may be used. Caller holds mu.
func (j *joint) setRate() {
	r := j.limit.MessageRate
	if !r.IsUnlimited() {
		if r.Burst > 0 {
			r.Burst = max(r.Burst*j.may().events/r.Events, 1)
		}
		r.Events = max(j.may().events, 1) // none is seen to by nextMessage
	}
	j.messages.SetRate(r)
}

// hold takes over what is on record, and has those look whose turn it is.
func (j *joint) hold(got store.Holding) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.held = got
	j.setRate()
	now := time.Now()
	j.offer(now)
	j.callNext(now)
}

// void gives up what is held, because the lease that it is held by has ended.
func (j *joint) void() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.held = store.Holding{}
	j.setRate()
}

// last returns the limit as it was known last.
func (j *joint) last() shaping.Shared {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.limit
}

// leave returns what is to stay on record of a worker that ends.
func (j *joint) leave(now time.Time) (left store.Holding, uses store.InUse) {
	j.mu.Lock()
	defer j.mu.Unlock()
	left = j.held
	uses = store.InUse{Events: j.messages.Counted(now)}
	left.Connections, left.Events, left.State = 0, 0, j.save(now, true)
	return left, uses
}

// letGo gives up what is held of the limit if nothing counts against it.
func (j *joint) letGo(now time.Time) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.open > 0 || !j.messages.Idle(now) {
		return false
	}
	j.held = store.Holding{}
	return true
}
