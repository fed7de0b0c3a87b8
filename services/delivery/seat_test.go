package delivery

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
)

// modelSite is a site of a model of a provider: each of its connections takes
// some time, or is never answered.
type modelSite struct {
	t        *model
	name     string
	dead     bool
	standing standing
	cost     time.Duration

	jobs    int
	since   time.Time // it has waited for a connection
	longest time.Duration
	served  int
	dialing int
}

// model is a provider with a limit, as one worker sees it. Everything runs on
// one goroutine at a time: see lock.
type model struct {
	lock chan struct{}
	j    *joint
	open int // that the provider sees, or may see
	most int
	dead int // places of dead sites at the moment
	// how long they had places while living sites waited, and the latter waited
	deadTime, pressed time.Duration
	at                time.Time
	over              bool
}

func newModel(connections int) *model {
	j := &joint{name: "all", counts: map[mail.WorkerID]bool{}, held: store.Holding{Name: "all", Connections: connections}}
	j.limit = shaping.Shared{Name: "all", Connections: connections}
	j.target = part{connections: connections}
	m := &model{lock: make(chan struct{}, 1), j: j, at: time.Now()}
	m.lock <- struct{}{}
	return m
}

// deadShare returns the part of the seats that the dead had while others
// waited.
func (m *model) deadShare(limit int) float64 {
	return m.deadTime.Seconds() / max(m.pressed.Seconds(), 1) / float64(limit)
}

// offered implements claimant.
func (s *modelSite) offered(j *joint) {
	<-s.t.lock
	s.connect()
	j.decline(s, time.Now())
	j.passOn(s, time.Now())
	s.t.lock <- struct{}{}
}

// connect opens connections as dispatch does.
func (s *modelSite) connect() {
	for s.jobs > 0 && !s.t.over && (s.standing == living || s.dialing == 0) {
		now := time.Now()
		if s.since.IsZero() {
			s.since = now
		}
		var st *seat
		gone := make(chan struct{}, 1)
		st = s.t.j.take(bid{s, s.standing, s.cost}, now, func() { gone <- struct{}{} })
		if st == nil {
			return
		}
		s.longest = max(s.longest, now.Sub(s.since))
		s.since = time.Time{}
		s.jobs--
		s.dialing++
		s.t.count(1, s.dead)
		go s.connection(st, gone)
	}
}

// count keeps what the provider may see.
func (m *model) count(n int, dead bool) {
	now := time.Now()
	m.j.mu.Lock()
	pressed := m.j.isPressed()
	m.j.mu.Unlock()
	if pressed {
		m.pressed += now.Sub(m.at)
		m.deadTime += time.Duration(m.dead) * now.Sub(m.at)
	}
	m.at = now
	m.open += n
	m.most = max(m.most, m.open)
	if dead {
		m.dead += n
	}
}

func (s *modelSite) connection(st *seat, gone chan struct{}) {
	began := time.Now()
	if s.dead {
		select {
		case <-gone:
		case <-time.After(30 * time.Second):
		}
		<-s.t.lock
		s.standing, s.cost = silent, time.Since(began)
		s.jobs++ // it is tried again
	} else {
		<-time.After(50 * time.Millisecond)
		<-s.t.lock
		st.greet(time.Now())
		s.standing = living
		s.dialing--
		s.connect()
		s.t.lock <- struct{}{}
		<-time.After(200 * time.Millisecond)
		<-s.t.lock
		s.dialing++
		s.served++
	}
	s.dialing--
	s.t.count(-1, s.dead)
	st.leave(time.Now())
	s.connect()
	s.t.lock <- struct{}{}
}

// TestTheDeadLeaveTheSeatsToTheLiving: of the sites of a provider some live
// and some answer nothing. The provider never sees more connections than the
// limit; the living wait for as long as their number says, however many are
// dead; the dead are tried, too; and where nobody else waits they have what
// there is for them.
func TestTheDeadLeaveTheSeatsToTheLiving(t *testing.T) {
	for _, c := range []struct{ limit, living, dead int }{
		{1, 3, 1}, {1, 3, 40}, {2, 6, 40}, {3, 6, 40}, {5, 20, 1}, {5, 20, 200}, {10, 30, 100}, {5, 0, 50},
	} {
		t.Run(fmt.Sprintf("%d connections, %d living, %d dead", c.limit, c.living, c.dead), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { deadAndLiving(t, c.limit, c.living, c.dead) })
		})
	}
}

func deadAndLiving(t *testing.T, limit, alive, dead int) {
	const storm, length = 4 * time.Minute, 6 * time.Minute
	m := newModel(limit)
	var all []*modelSite
	for i := range alive {
		all = append(all, &modelSite{t: m, name: fmt.Sprint("living", i), standing: living, jobs: 1 << 30})
	}
	for i := range dead {
		all = append(all, &modelSite{t: m, name: fmt.Sprint("dead", i), dead: true, standing: untried, jobs: 1})
	}
	<-m.lock
	for i := len(all) - 1; i >= 0; i-- { // the dead come first
		all[i].connect()
	}
	m.lock <- struct{}{}
	<-time.After(storm)
	<-m.lock
	m.count(0, false)
	if share := m.deadShare(limit); alive > 0 && share > 0.5 {
		t.Errorf("when all are new the dead had %.0f%% of the seats while others waited, want half at most", 100*share)
	}
	m.deadTime, m.pressed = 0, 0
	for _, s := range all {
		s.served = 0
	}
	m.lock <- struct{}{}
	<-time.After(length)
	<-m.lock
	served, tried := 0, 0
	var longest time.Duration
	for _, s := range all {
		served += s.served
		if s.dead && s.standing == silent {
			tried++
		}
		if !s.dead {
			longest = max(longest, s.longest)
			if s.served == 0 {
				t.Errorf("%s was never served", s.name)
			}
		}
	}
	m.over = true
	m.count(0, false)
	share := m.deadShare(limit)
	full := float64(limit) * length.Seconds() / 0.25
	t.Logf("%d connections served, %.0f%% of what there is room for; the longest wait was %v; the dead had %.0f%% of the seats while others waited; %d of %d dead were tried",
		served, 100*float64(served)/full, longest, 100*share, tried, dead)
	if m.most > limit {
		t.Errorf("%d connections at once, the limit is %d", m.most, limit)
	}
	if alive > 0 && float64(served) < 0.8*full {
		t.Errorf("the living had %.0f%% of the limit, want four fifths at least", 100*float64(served)/full)
	}
	if alive > 0 && share > 0.2 {
		t.Errorf("the dead had %.0f%% of the seats while others waited, want an eighth", 100*share)
	}
	// A turn takes as long as all others before it, and what the dead hold up.
	if bound := time.Duration(alive)*250*time.Millisecond/time.Duration(limit) + patientSilent + patient; longest > bound {
		t.Errorf("a living site waited %v, want %v at most", longest, bound)
	}
	if tried < min(dead, 10) {
		t.Errorf("%d of %d dead sites were tried in %v", tried, dead, length)
	}
	m.lock <- struct{}{}
	<-time.After(time.Minute) // what is under way ends
}

// TestSeatsAtRandom: whatever sites do, in whatever order, no more seats are
// taken than there are, those that may be dead have no more than their part,
// and every site that wants a seat has one in the end.
func TestSeatsAtRandom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { rapid.Check(struct{ rapid.TB }{t}, seatsAtRandom) })
}

// randomSite takes what it is offered if it still wants it.
type randomSite struct {
	standing standing
	wants    bool
	seats    []*seat
	toLeave  map[*seat]bool // told to give up
	world    *randomWorld
}

type randomWorld struct {
	lock chan struct{}
	j    *joint
}

func (s *randomSite) try() {
	for s.wants {
		var st *seat
		st = s.world.j.take(bid{by: s, standing: s.standing}, time.Now(), func() {
			<-s.world.lock
			s.toLeave[st] = true
			s.world.lock <- struct{}{}
		})
		if st == nil {
			return
		}
		s.seats, s.wants = append(s.seats, st), false
	}
}

func (s *randomSite) offered(j *joint) {
	<-s.world.lock
	s.try()
	j.decline(s, time.Now())
	j.passOn(s, time.Now())
	s.world.lock <- struct{}{}
}

func seatsAtRandom(t *rapid.T) {
	limit := rapid.IntRange(1, 9).Draw(t, "limit")
	w := &randomWorld{lock: make(chan struct{}, 1), j: newModel(limit).j}
	w.lock <- struct{}{}
	var sites []*randomSite
	for range rapid.IntRange(1, 12).Draw(t, "sites") {
		sites = append(sites, &randomSite{world: w, standing: rapid.SampledFrom([]standing{living, untried, silent}).Draw(t, "standing"), toLeave: map[*seat]bool{}})
	}
	leave := func(s *randomSite, i int) {
		st := s.seats[i]
		s.seats = append(s.seats[:i:i], s.seats[i+1:]...)
		delete(s.toLeave, st)
		st.leave(time.Now())
	}
	check := func() {
		seats := 0
		for _, s := range sites {
			seats += len(s.seats)
		}
		w.j.mu.Lock()
		defer w.j.mu.Unlock()
		if seats > limit || w.j.open > limit || w.j.open < seats {
			t.Fatalf("%d seats taken, %d counted, the limit is %d", seats, w.j.open, limit)
		}
		if unsure := w.j.unsure[untried] + w.j.unsure[silent]; unsure > w.j.half() || w.j.unsure[silent] > w.j.quarter() {
			t.Fatalf("%v seats of those that may be dead, limit %d", w.j.unsure, limit)
		}
	}
	for range rapid.IntRange(1, 150).Draw(t, "steps") {
		s := sites[rapid.IntRange(0, len(sites)-1).Draw(t, "site")]
		synctest.Wait()
		<-w.lock
		switch step := rapid.IntRange(0, 9).Draw(t, "step"); {
		case step <= 3:
			s.wants = true
			s.try()
		case step == 4:
			s.wants = false // its mail has gone elsewhere
		case step == 5 && len(s.seats) > 0:
			s.seats[len(s.seats)-1].greet(time.Now())
			s.standing = living
		case step <= 7 && len(s.seats) > 0:
			leave(s, rapid.IntRange(0, len(s.seats)-1).Draw(t, "seat"))
		case step == 8:
			s.standing = rapid.SampledFrom([]standing{living, untried, silent}).Draw(t, "standing")
		}
		check()
		w.lock <- struct{}{}
		<-time.After(time.Duration(rapid.IntRange(0, 3000).Draw(t, "pause")) * time.Millisecond)
	}
	// Those that were told give up, the others keep what they have for a while.
	for range 200 {
		<-time.After(time.Second)
		<-w.lock
		waits := false
		for _, s := range sites {
			for i := len(s.seats) - 1; i >= 0; i-- {
				if st := s.seats[i]; s.toLeave[st] || rapid.IntRange(0, 9).Draw(t, "ends") == 0 {
					leave(s, i)
				}
			}
			s.try()
			waits = waits || s.wants
		}
		check()
		w.lock <- struct{}{}
		if !waits {
			return
		}
	}
	t.Fatal("somebody waits for a seat for ever")
}

// A site that has had its turn, and has no more mail, keeps no connection from
// idling and nobody else from having its turn.
func TestASiteWithoutMailLeavesTheLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newModel(1).j
		a, b := &passer{}, &passer{}
		now := time.Now()
		st := j.take(bid{by: a}, now, func() { t.Error("the connection is to end, and nobody waits for it") })
		if st == nil || j.maySeat(bid{by: a}, now) {
			t.Fatal("one seat is not had once")
		}
		j.withdraw(a, now)
		st.greet(now)
		st.rests(now)
		synctest.Wait()
		st.works()
		st.giveUp = func() { st.leave(time.Now()) }
		if j.maySeat(bid{by: b}, now) {
			t.Error("two seats of one")
		}
		st.rests(now)
		synctest.Wait()
		if j.open != 0 || j.lines[living].len() > 0 {
			t.Errorf("%d seats are taken, %d wait", j.open, j.lines[living].len())
		}
	})
}
