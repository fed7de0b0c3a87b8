package delivery

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/telemetry"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

// session is one connection to one host of a site and the goroutine that
// works on it: connect for a job, relay it, take the next one, until there is
// none or the connection has served long enough.
type session struct {
	*worker
	site   *site
	lane   *lane
	source *source   // of the lane when the connection was begun
	work   chan *job // the next job, or nil to end; the site puts in one at most

	ctx    context.Context
	cancel context.CancelCauseFunc

	conn    *smtpclient.Session // nil before it is greeted
	target  target
	demand  demand  // on TLS, of the job that the connection was opened for
	channel channel // of all that is served here

	seats   []*seat  // at the limits by name that the connection counts against; guarded by the site
	begun   []*joint // and those that its transaction in flight does
	greeted bool     // guarded by the site

	opening context.Context         // ends with ctx, or when the session is to give up its seats before it is greeted
	giveWay context.CancelCauseFunc // ends it

	mu      sync.Mutex
	dotSent bool // guarded by mu: to cut now may make a duplicate
	cut     bool // guarded by mu: the lease is over
}

func newSession(w *worker, l *lane) *session {
	ctx, cancel := context.WithCancelCause(w.work)
	ss := &session{worker: w, site: l.site, lane: l, source: l.source, begun: l.joints, work: make(chan *job, 1), ctx: ctx, cancel: cancel}
	ss.opening, ss.giveWay = context.WithCancelCause(ctx)
	return ss
}

// run serves until the session ends.
func (ss *session) run(j *job) {
	defer ss.site.ended(ss)
	defer ss.cancel(nil)
	if !ss.takePlace() {
		ss.lane.neverBegan()
		ss.site.mailOver(ss, false)
		ss.site.letGo(j)
		ss.putBack(j)
		return
	}
	defer ss.connections.Release(1)
	for ; j != nil; j = ss.next() {
		if !ss.serve(j) {
			break
		}
	}
	switch {
	case ss.conn == nil:
	case ss.isSeated():
		ss.conn.Part()
	default:
		ss.conn.Close()
	}
}

// next returns the next job for this connection, or nil when it must end.
func (ss *session) next() *job {
	idle, mayGoOn := ss.site.rest(ss)
	if !mayGoOn {
		return nil
	}
	select {
	case j := <-ss.work:
		return j
	default:
	}
	timer := time.NewTimer(idle)
	defer timer.Stop()
	wanted := false
	select {
	case j := <-ss.work:
		return j
	case <-timer.C:
	case <-ss.wanted:
		wanted = true
	case <-ss.ctx.Done():
	}
	if ss.site.leave(ss) {
		return nil
	}
	if wanted {
		ss.want() // of another one: this one was given work meanwhile
	}
	return <-ss.work
}

// serve makes one attempt at a job, or a part of one: what the verdicts want
// tried again at once goes back to the site. It reports whether the
// connection can serve on.
func (ss *session) serve(j *job) bool {
	defer ss.site.letGo(j)
	ctx, span := telemetry.Start(ss.ctx, ss.tracer, "delivery.attempt", &j.request.Message)
	defer span.End()
	a := &attempt{session: ss, job: j, span: span, began: time.Now(), luck: rand.Float64()}
	if span.IsRecording() {
		span.SetAttributes(attribute.String("site", string(ss.site.name)), attribute.Int("recipients", len(j.request.Recipients)),
			attribute.Int64("waited_ms", a.began.Sub(j.since).Milliseconds()))
	}
	if m := ss.measureOf(j.request, ss.source); m != nil {
		a.obey(m)
		if ss.conn == nil {
			ss.lane.neverBegan()
		}
		ss.site.mailOver(ss, false)
		return ss.conn != nil
	}
	if ss.conn == nil && !a.connect(ctx) {
		ss.site.mailOver(ss, false)
		return false
	}
	a.relay(ctx)
	return ss.conn.Usable() && ss.servesOn(ss.conn.Used())
}

// serves reports whether a job may take this connection: it leaves from one of
// the job's sources and goes to one of the hosts of its route, under the same
// demands on TLS, and the job has not been here in vain.
func (ss *session) serves(j *job) bool {
	return ss.site.turn(j.flow.pool).may(ss.lane, j) && ss.channel == channelOf(j.request) && !slices.Contains(j.tried, ss.target.addr) &&
		slices.ContainsFunc(j.request.Route.Hosts, func(h mail.Host) bool {
			return h.Name == ss.target.host.Name && h.Port == ss.target.host.Port && ss.demand.equals(demandOf(j.request, h))
		})
}

// errGiveWay is why a session is given up that no host has greeted: others wait
// for its seat at a limit that they share.
var errGiveWay = errors.New("no answer in the time that there is while others wait for a connection under the same limit")

// errMoves is why it is given up when the site is to have another home.
var errMoves = errors.New("the site is to have another home")

// giveUp ends the session if no host has greeted, or if it has no work:
// others wait for its seat.
func (ss *session) giveUp() {
	ss.giveWay(errGiveWay)
	if ss.site.leave(ss) {
		ss.work <- nil
		return
	}
	ss.site.mu.Lock()
	defer ss.site.mu.Unlock()
	if ss.greeted {
		ss.works()
	}
}

// works says that the session has work again. Caller holds the site's mu.
func (ss *session) works() {
	for _, st := range ss.seats {
		st.works()
	}
}

// moves reports whether it has been told to end because the site moves.
func (ss *session) moves() bool { return errors.Is(context.Cause(ss.opening), errMoves) }

// gaveWay reports whether the session has been told to end before any host
// had greeted.
func (ss *session) gaveWay() bool { return errors.Is(context.Cause(ss.opening), errGiveWay) }

// abandon ends the session because the lease is over: at once, unless a final
// dot has been sent.
func (ss *session) abandon() {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.cut = true
	if !ss.dotSent {
		ss.cancel(errLeaseOver)
	}
}

// mayDot is the last look before the final dot: a worker that was stopped or
// cut off for longer than its lease gives up the transaction instead of
// sending a duplicate.
func (ss *session) mayDot() error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.cut || ss.lease.left() <= 0 {
		return errLeaseOver
	}
	ss.dotSent = true
	return nil
}

// dotOver says that the final dot was answered, or never left.
func (ss *session) dotOver() {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.dotSent = false
	if ss.cut {
		ss.cancel(errLeaseOver)
	}
}

// putBack returns a job to its site to be tried again at once.
func (ss *session) putBack(j *job) { ss.layAside(ss.site.again(j)) }
