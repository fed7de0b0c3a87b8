package delivery

import (
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
)

// ledger is shared_limits without Postgres.
type ledger struct {
	began time.Time // of a clock that shows the same in each run
	rows  map[mail.WorkerID]*store.Holding
	at    map[mail.WorkerID]time.Time // of the state
	gone  map[mail.WorkerID]time.Time // when the leases ended
}

func (l *ledger) read(now time.Time) (hs holdings) {
	hs.at = time.Unix(0, 0).Add(now.Sub(l.began))
	for _, id := range slices.Sorted(maps.Keys(l.rows)) {
		seen := *l.rows[id]
		end, gone := l.gone[id]
		seen.Gone = gone && !now.Before(end)
		seen.Age = now.Sub(l.at[id])
		if !seen.Gone || now.Before(end.Add(seen.Period)) {
			hs.of = append(hs.of, seen)
		}
	}
	return hs
}

// hold is Store.Hold.
func (l *ledger) hold(want store.Holding, uses store.InUse, now time.Time) store.Holding {
	connections, events := 0, 0
	for id, h := range l.rows {
		end, gone := l.gone[id]
		over := gone && !now.Before(end)
		if over && (slices.Contains(uses.Counted, id) || !now.Before(end.Add(h.Period))) {
			delete(l.rows, id)
			continue
		}
		if over {
			h.Connections, h.OverConnections, h.Events, h.OverEvents = 0, 0, 0, h.OverEvents+h.Events
		}
		if id == want.Worker {
			continue
		}
		if !over {
			connections += h.Connections + h.OverConnections
		}
		events += h.Events + h.OverEvents
	}
	got := want
	got.Connections = max(0, min(want.Connections, want.AllConnections-connections))
	got.Events = max(0, min(want.Events, want.AllEvents-events))
	if is := l.rows[want.Worker]; is != nil {
		got.Connections = max(got.Connections, min(want.Connections, is.Connections))
		got.Events = max(got.Events, min(want.Events, is.Events))
	}
	got.OverConnections, got.OverEvents = max(0, uses.Connections-got.Connections), max(0, uses.Events-got.Events)
	kept := got
	l.rows[want.Worker], l.at[want.Worker] = &kept, now
	return got
}

// flight is a transaction on its way.
type flight struct{ seen, over time.Time }

// modelWorker is a worker that does nothing but count.
type modelWorker struct {
	j      *joint
	seats  []*seat
	flying []flight
	record *record // looked, and not on record yet
	got    *store.Holding
}

func newModelWorker(id mail.WorkerID, lease time.Duration) *modelWorker {
	return &modelWorker{j: &joint{name: "all", worker: id, outlasts: lease, counts: map[mail.WorkerID]bool{}}}
}

// vacate closes all connections.
func (m *modelWorker) vacate() {
	for _, st := range m.seats {
		st.leave(time.Now())
	}
	m.seats = nil
}

// passer is a site that makes use of nothing that it is offered later.
type passer struct{ _ int }

func (p *passer) offered(j *joint) {
	j.decline(p, time.Now())
	j.passOn(p, time.Now())
}

// land ends what is over.
func (m *modelWorker) land(now time.Time) {
	m.flying = slices.DeleteFunc(m.flying, func(f flight) bool {
		if !f.over.After(now) {
			m.j.over(true)
			return true
		}
		return false
	})
}

// TestSharedLimitsHoldWhileWorkersComeAndGo: workers join, want less and more,
// end in order and die, between any two steps of taking over a portion. At no
// time are more connections open than the limit, and in no window of the
// remote host, which sees a transaction some time before its reply, have more
// begun.
func TestSharedLimitsHoldWhileWorkersComeAndGo(t *testing.T) {
	// rapid must not ask for the deadline of the test: it is on another clock.
	synctest.Test(t, func(t *testing.T) {
		for range 20 { // the mistakes that it has found needed a thousand tries
			rapid.Check(struct{ rapid.TB }{t}, shareAtRandom)
		}
	})
}

func shareAtRandom(t *rapid.T) {
	const lease = 2 * time.Second
	sites := []*passer{{}, {}, {}}
	of := wish{known: true, wanted: true, limit: shaping.Shared{Name: "all",
		Connections: rapid.IntRange(1, 9).Draw(t, "connections"),
		MessageRate: shaping.Rate{Events: rapid.IntRange(1, 30).Draw(t, "events"), Period: time.Duration(rapid.IntRange(1, 8).Draw(t, "period")) * time.Second,
			Burst: rapid.IntRange(0, 30).Draw(t, "burst")},
	}}
	l := &ledger{time.Now(), map[mail.WorkerID]*store.Holding{}, map[mail.WorkerID]time.Time{}, map[mail.WorkerID]time.Time{}}
	ids := mail.WorkerID(1) // never used again
	all := []*modelWorker{newModelWorker(ids, lease)}
	dying := map[*modelWorker]time.Time{} // their connections are open so long
	var seen []time.Time
	var away []*modelWorker
	for range rapid.IntRange(1, 400).Draw(t, "steps") {
		now := time.Now()
		for _, m := range all {
			m.land(now)
		}
		m := all[rapid.IntRange(0, len(all)-1).Draw(t, "worker")]
		switch step := rapid.IntRange(0, 20).Draw(t, "step"); {
		case step == 0 && len(all) < 4:
			ids++
			all = append(all, newModelWorker(ids, lease))
		case step == 1 && len(all) > 1 && m.j.held.Name != "": // dies: what is in flight ends with its lease
			end := now.Add(time.Duration(rapid.Int64Range(0, int64(lease)).Draw(t, "lease")))
			for _, f := range m.flying {
				if f.seen.After(end) {
					end = f.seen // what it sent has arrived by then
				}
			}
			l.gone[m.j.worker], dying[m] = end, end
			all = slices.DeleteFunc(all, func(other *modelWorker) bool { return other == m })
		case step == 2 && len(all) > 1 && m.j.held.Name != "" && m.record == nil: // ends in order
			for len(m.flying) > 0 {
				<-time.After(time.Until(slices.MinFunc(m.flying, func(a, b flight) int { return a.over.Compare(b.over) }).over))
				m.land(time.Now())
			}
			now = time.Now()
			m.vacate()
			left, uses := m.j.leave(now)
			if left.Period > lease {
				l.hold(left, uses, now)
			}
			l.gone[m.j.worker] = now
			all = slices.DeleteFunc(all, func(other *modelWorker) bool { return other == m })
		case step == 3 && m.j.held.Name != "" && m.record == nil: // loses its lease for a while
			m.vacate()
			for _, f := range m.flying {
				if f.seen.After(time.Now()) {
					<-time.After(time.Until(f.seen))
				}
			}
			for range m.flying {
				m.j.over(true)
			}
			m.flying = nil
			l.gone[m.j.worker] = time.Now()
			away = append(away, m)
			all = slices.DeleteFunc(all, func(other *modelWorker) bool { return other == m })
			if len(all) == 0 {
				ids++
				all = append(all, newModelWorker(ids, lease))
			}
		case step == 4 && len(away) > 0: // and has a new one
			m, away = away[0], away[1:]
			m.j.void()
			delete(l.gone, m.j.worker)
			all = append(all, m)
		case step <= 5:
			<-time.After(time.Duration(rapid.IntRange(0, 2000).Draw(t, "pause")) * time.Millisecond)
		case step <= 10: // the three steps of a look
			switch {
			case m.got != nil:
				m.j.saved(nil)
				m.j.hold(*m.got)
				m.record, m.got = nil, nil
			case m.record != nil:
				got := m.record.want
				if m.record.changed {
					got = l.hold(m.record.want, m.record.uses, now)
				}
				m.got = &got
			default:
				r := m.j.look(of, l.read(now), now)
				if r.want.Name == "" {
					t.Fatal("a worker that has mail wants nothing")
				}
				m.record = &r
			}
		case step == 11 && len(m.seats) > 0:
			last := len(m.seats) - 1
			m.seats[last].leave(now)
			m.seats = m.seats[:last]
		case step == 12 && len(m.seats) > 0:
			m.seats[rapid.IntRange(0, len(m.seats)-1).Draw(t, "seat")].greet(now)
		case step <= 15:
			by := bid{by: rapid.SampledFrom(sites).Draw(t, "site"), standing: rapid.SampledFrom([]standing{living, untried, silent}).Draw(t, "standing")}
			if st := m.j.take(by, now, func() {}); st != nil {
				m.seats = append(m.seats, st)
			}
		default:
			if !m.j.begin(rapid.SampledFrom(sites).Draw(t, "site"), now) {
				continue
			}
			takes := time.Duration(rapid.IntRange(0, 3000).Draw(t, "takes")) * time.Millisecond
			f := flight{now.Add(time.Duration(rapid.Float64Range(0, 1).Draw(t, "seen") * float64(takes))), now.Add(takes)}
			m.flying, seen = append(m.flying, f), append(seen, f.seen)
		}
		open := 0
		for _, m := range all {
			open += len(m.seats)
		}
		for m, end := range dying {
			if time.Now().Before(end) {
				open += len(m.seats)
			}
		}
		if open > of.limit.Connections {
			t.Fatalf("%d connections open, the limit is %d", open, of.limit.Connections)
		}
	}
	slices.SortFunc(seen, time.Time.Compare)
	r := of.limit.MessageRate
	for i := r.Events; i < len(seen); i++ {
		if gap := seen[i].Sub(seen[i-r.Events]); gap <= r.Period {
			t.Fatalf("the remote host saw %d transactions begin within %v, more than %s", r.Events+1, gap, r)
		}
	}
}
