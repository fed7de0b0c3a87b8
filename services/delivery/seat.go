package delivery

import (
	"math"
	"time"
)

// This file hands out the connections that a shared limit allows, to sites
// that live and to sites that may be dead.
//
// A connection takes a seat before it is dialed, because from then on the
// remote host may see it, and has it until it is closed: so there are never
// more than the limit. A dial that nobody answers has its seat for nothing.
// Therefore sites of which nobody knows that they live have at most half of
// the seats until their hosts greet, those that are known not to answer a
// quarter, and an eighth on average while others wait; and whoever does not
// greet soon gives its seat up when others wait.

// standing is what is known of a site that wants a seat.
type standing int

const (
	living    standing = iota // a host of it has greeted
	untried                   // nothing is known
	silent                    // the last that is known is that no host answered
	standings                 // how many there are
)

const (
	// patient is how long a dial may go without an answer while others wait for
	// its seat: one lost packet is sent again after a second. A site that is
	// silent has longer, for it has not often its turn.
	patient       = 2 * time.Second
	patientSilent = 5 * time.Second
	// patientGreeting and patientGreetingSilent are the same for hosts that took
	// the connection and do not greet: some wait on purpose.
	patientGreeting       = 15 * time.Second
	patientGreetingSilent = 30 * time.Second
	// silentShare is the part of all seats, on average, that silent sites have
	// while others wait, and penalty how many times what its last dial took a
	// silent site waits behind others, up to maxPenalty.
	silentShare = 8
	penalty     = 8
	maxPenalty  = 5 * time.Minute
)

// claimant is one that wants seats or messages of a shared limit.
type claimant interface {
	// offered is called on a goroutine of its own when there may be something
	// for it. What it does not use it must decline, and pass on its turn.
	offered(j *joint)
}

// seat is one connection that counts against a shared limit.
type seat struct {
	joint    *joint
	standing standing // of its site, when it was taken
	since    time.Time
	answered bool   // the host has taken the connection
	promised bool   // the site has not taken it yet
	leaving  bool   // it was told to give the seat up
	giveUp   func() // tells it
}

// quarter and half return how many seats silent sites, and all that may be
// dead, may have at most: never none, and of several not all. Caller holds mu.
func (j *joint) quarter() int { return max(j.may().connections/4, 1) }
func (j *joint) half() int    { return max(j.may().connections/2, 1) }

// free returns how many seats are left. Caller holds mu.
func (j *joint) free() int {
	if j.limit.Connections == 0 {
		return math.MaxInt
	}
	return j.may().connections - j.open
}

// isFair reports whether sites of a standing may have one more seat, if there
// is one. Caller holds mu.
func (j *joint) isFair(of standing, now time.Time) bool {
	switch {
	case of == living || j.limit.Connections == 0:
		return true
	case j.unsure[untried]+j.unsure[silent] >= j.half():
		return false
	case of == untried:
		return !now.Before(j.restUntil[untried]) || j.lines[living].len() == 0
	}
	return j.unsure[silent] < j.quarter() && (!now.Before(j.restUntil[silent]) || !j.isPressed())
}

// isPressed reports whether others than silent sites wait. Caller holds mu.
func (j *joint) isPressed() bool { return j.lines[living].len()+j.lines[untried].len() > 0 }

// nextSite returns the site whose turn it is to have a seat, if there were
// one; nil if there is none. Caller holds mu.
func (j *joint) nextSite(now time.Time) *waiting[claimant] {
	var next *waiting[claimant]
	for of := range standings {
		head := j.lines[of].head()
		if head != nil && j.isFair(of, now) && (next == nil || head.at.Before(next.at)) {
			next = head
		}
	}
	return next
}

// bid is what a site says of itself that wants a seat.
type bid struct {
	by       claimant
	standing standing
	cost     time.Duration // how long its last dial took, if nobody greeted
}

// maySeat reports whether a site may have one more seat: there is one, and it
// is its turn. If not it is called when there may be one for it.
func (j *joint) maySeat(c bid, now time.Time) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.promises[c.by] != nil {
		return true
	}
	if j.known() && j.free() > 0 && j.isFair(c.standing, now) {
		next := j.nextSite(now)
		if next == nil || next.by == c.by {
			return true
		}
	}
	j.wait(c, now)
	return false
}

// take returns a seat; nil if there is none for the site now. giveUp is called
// when others wait for the seat and no host has greeted.
func (j *joint) take(c bid, now time.Time, giveUp func()) *seat {
	if !j.maySeat(c, now) {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	st := j.promises[c.by]
	if st == nil {
		if !j.known() || j.free() < 1 {
			return nil // gone meanwhile
		}
		st = j.sit(c.standing, now)
	}
	delete(j.promises, c.by)
	j.leaveLines(c.by)
	st.promised, st.giveUp, st.since = false, giveUp, now
	j.offer(now)
	return st
}

// sit counts one more seat. Caller holds mu.
func (j *joint) sit(of standing, now time.Time) *seat {
	st := &seat{joint: j, standing: of, since: now}
	j.open++
	j.unsure[of]++
	if j.unproven == nil {
		j.unproven = map[*seat]bool{}
	}
	j.unproven[st] = true
	return st
}

// opened counts a connection that is open already.
func (j *joint) opened(now time.Time, giveUp func()) *seat {
	j.mu.Lock()
	defer j.mu.Unlock()
	st := j.sit(living, now)
	st.giveUp = giveUp
	j.prove(st)
	return st
}

// prove says that nobody wonders any more whether somebody answers. Caller
// holds mu.
func (j *joint) prove(st *seat) {
	if j.unproven[st] {
		delete(j.unproven, st)
		j.unsure[st.standing]--
	}
}

// connected says that a host has taken the connection.
func (st *seat) connected() {
	st.joint.mu.Lock()
	defer st.joint.mu.Unlock()
	st.answered = true
}

// greet says that the host has greeted.
func (st *seat) greet(now time.Time) {
	j := st.joint
	j.mu.Lock()
	defer j.mu.Unlock()
	j.prove(st)
	st.leaving = false
	j.offer(now)
}

// leave says that the connection has been closed, or was not made after all.
func (st *seat) leave(now time.Time) {
	j := st.joint
	j.mu.Lock()
	defer j.mu.Unlock()
	j.vacate(st, now)
	j.offer(now)
}

// vacate is leave without an offer. Caller holds mu.
func (j *joint) vacate(st *seat, now time.Time) {
	j.open--
	j.idle.remove(st)
	if st.leaving && !j.unproven[st] {
		j.parting--
	}
	if j.unproven[st] && !st.promised {
		j.rest(st, now)
	}
	j.prove(st)
}

// rest has others go first after a dial in vain, for as long as it takes to
// make up for it: where there are few seats, one is more than the part that
// those have who may be dead. Caller holds mu.
func (j *joint) rest(st *seat, now time.Time) {
	all := max(j.may().connections, 1)
	most := map[standing]int{untried: 2 * j.half(), silent: silentShare * j.quarter()}[st.standing]
	if most > all {
		j.restUntil[st.standing] = now.Add(now.Sub(st.since) * time.Duration(most-all) / time.Duration(all))
	}
}

// wait has a site called when there may be a seat for it. Caller holds mu.
func (j *joint) wait(c bid, now time.Time) {
	if !j.known() {
		j.askPortion()
	}
	if !j.lines[c.standing].has(c.by) {
		j.leaveLines(c.by)
		at := now
		if c.standing == silent {
			at = at.Add(min(penalty*c.cost, maxPenalty))
		}
		j.lines[c.standing].add(c.by, at)
	}
	j.makeRoom(now)
	j.clear(now)
}

func (j *joint) leaveLines(by claimant) {
	for of := range j.lines {
		j.lines[of].remove(by)
	}
}

// offer promises what seats there are to those whose turn it is. Caller holds
// mu.
func (j *joint) offer(now time.Time) {
	for j.known() && j.free() > 0 {
		next := j.nextSite(now)
		if next == nil {
			break
		}
		of := living
		for !j.lines[of].has(next.by) {
			of++
		}
		st := j.sit(of, now)
		st.promised = true
		if j.promises == nil {
			j.promises = map[claimant]*seat{}
		}
		j.promises[next.by] = st
		j.leaveLines(next.by)
		j.call(next.by)
	}
	j.makeRoom(now)
	j.clear(now)
}

// call has one look. It must not be done by a caller that holds the mutex of a
// site.
func (j *joint) call(by claimant) { time.AfterFunc(0, func() { by.offered(j) }) }

// withdraw takes a site out of all lines.
func (j *joint) withdraw(by claimant, now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.leaveLines(by)
	j.turns.remove(by)
	j.offer(now)
	j.callNext(now)
}

// decline gives back a seat that was promised, if one was.
func (j *joint) decline(by claimant, now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if st := j.promises[by]; st != nil {
		delete(j.promises, by)
		j.vacate(st, now)
		j.offer(now)
	}
}

// mustGiveUp returns when a connection that nobody has greeted gives up its
// seat, as things are; false: not. Caller holds mu.
func (j *joint) mustGiveUp(st *seat) (at time.Time, must bool) {
	wait, greeting := patient, patientGreeting
	if st.standing == silent {
		wait, greeting = patientSilent, patientGreetingSilent
		alone := j.may().connections > 1 || !j.isPressed() // it does not have the only seat that others wait for
		if alone && j.lines[silent].len() == 0 {
			return at, false
		}
	} else if !j.isPressed() {
		return at, false
	}
	if st.answered {
		wait = greeting
	}
	return st.since.Add(wait), true
}

// clear has those give up their seats who have not been greeted for too long
// while others wait. Caller holds mu.
func (j *joint) clear(now time.Time) {
	if j.limit.Connections == 0 || !j.isPressed() && j.lines[silent].len() == 0 {
		return
	}
	var next time.Time
	for st := range j.unproven {
		at, must := j.mustGiveUp(st)
		switch {
		case !must || st.leaving || st.promised:
		case !at.After(now):
			st.leaving = true
			time.AfterFunc(0, st.giveUp)
		case next.IsZero() || at.Before(next):
			next = at
		}
	}
	switch {
	case next.IsZero():
	case j.clearing == nil:
		j.clearing = time.AfterFunc(next.Sub(now), func() {
			j.mu.Lock()
			defer j.mu.Unlock()
			j.clear(time.Now())
		})
	default:
		j.clearing.Reset(next.Sub(now))
	}
}

// makeRoom ends connections that idle, those first that have done so for the
// longest, if others wait for their seats. Caller holds mu.
func (j *joint) makeRoom(now time.Time) {
	if j.idle.len() == 0 || j.free() > 0 || j.nextSite(now) == nil {
		return
	}
	for wanted := j.waiting(); j.idle.len() > 0 && j.parting < wanted; {
		j.part()
	}
}

// waiting returns how many sites wait for a seat; of silent ones one at most
// has its turn. Caller holds mu.
func (j *joint) waiting() int {
	return j.lines[living].len() + j.lines[untried].len() + min(j.lines[silent].len(), 1)
}

// part ends the connection that has idled for the longest. Caller holds mu.
func (j *joint) part() {
	st := j.idle.head().by
	j.idle.remove(st)
	st.leaving = true
	j.parting++
	time.AfterFunc(0, st.giveUp)
}

// shed ends up to n connections that idle.
func (j *joint) shed(n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for n -= j.parting; n > 0 && j.idle.len() > 0; n-- {
		j.part()
	}
}

// rests says that the connection has no work.
func (st *seat) rests(now time.Time) {
	st.joint.mu.Lock()
	defer st.joint.mu.Unlock()
	if !st.leaving {
		st.joint.idle.add(st, now)
		st.joint.makeRoom(now)
	}
}

// works says that it has some again, whoever has just told it to end.
func (st *seat) works() {
	j := st.joint
	j.mu.Lock()
	defer j.mu.Unlock()
	j.idle.remove(st)
	if st.leaving {
		st.leaving = false
		j.parting--
	}
}

// isMissed reports whether another site waits for the seat of a connection
// without work.
func (st *seat) isMissed(by claimant, now time.Time) bool {
	j := st.joint
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.free() > 0 {
		return false
	}
	next := j.nextSite(now)
	return next != nil && next.by != by
}

// isCrowded reports whether a connection must end after its transaction.
func (st *seat) isCrowded() bool {
	j := st.joint
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.free() < 0
}
