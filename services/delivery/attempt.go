package delivery

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/postrider/postrider/pkg/inside"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/services/delivery/internal/egress"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

const (
	// maxAddresses and maxSessions bound one attempt: FEATURES.md §0.
	maxAddresses = 5
	maxSessions  = 2
)

// errInside says that a route leads only where no mail goes.
var errInside = errors.New("all addresses are of a private network, or otherwise inside: POSTRIDER_ALLOW_TARGETS does not name it")

// errNoAddress says that a route has no address at all.
var errNoAddress = errors.New("the route has no address")

// attempt is one go at a job on one connection.
type attempt struct {
	*session
	job   *job
	span  trace.Span
	began time.Time
	over  time.Time // when its outcomes were known
	luck  float64   // of the jitter: recipients that are delayed together come back together
}

func (a *attempt) jitter() float64 { return a.luck }

// connect dials the addresses of the route until a host greets. If none does
// the job is settled.
func (a *attempt) connect(ctx context.Context) bool {
	j := a.job
	targets := a.site.targets(j.request.Route)
	none := errNoAddress
	if len(targets) > 0 {
		targets = slices.DeleteFunc(targets, func(t target) bool { return inside.Refuses(t.addr.Addr(), a.config.AllowTargets) })
		if len(targets) == 0 {
			none = errInside
		}
	}
	targets = slices.DeleteFunc(targets, func(t target) bool {
		return slices.Contains(j.tried, t.addr) || a.source.reach&familyOf(t.addr.Addr()) == 0
	})
	targets = balance(targets, max(maxAddresses-len(j.tried), 1))
	a.channel = channelOf(j.request)
	credential, err := a.credential(ctx, a.channel.credential)
	if err != nil {
		a.lane.neverBegan()
		answer := smtpclient.Answer{Phase: mail.PhaseQueue, Err: err}
		a.settleAll(answer, a.ownTrouble(answer))
		return false
	}
	var retry tlsRetry
	timeouts := a.values(j.request).Timeouts
	for i := 0; i < len(targets); {
		t := targets[i]
		a.demand = demandOf(j.request, t.host)
		if a.demand.refused != nil {
			answer := smtpclient.Answer{Phase: mail.PhaseStartTLS, Err: a.demand.refused}
			v := judge(circumstances{answer: answer, tls: mail.TLSVerify, last: i == len(targets)-1})
			a.target = t
			a.reportTLS(t, smtpclient.Options{}, answer)
			if v.move == moveNextHost {
				j.tried = append(j.tried, t.addr)
				i++
				continue
			}
			a.lane.neverBegan()
			a.settleAll(answer, v)
			return false
		}
		if (i > 0 || retry.again()) && !a.waitToConnect(a.opening) {
			a.lane.probed()
			a.putBack(j)
			return false
		}
		o := a.tlsOptions(t.addr, retry)
		o.Hello, o.Dial = cmp.Or(a.source.Hello, a.config.Hostname), a.source.way(t.addr.Addr()).Dial
		o.Timeouts, o.Observe = timeouts, a.sawOpening
		o.Lockstep = a.lockstep.has(t.addr)
		if i == len(targets)-1 {
			o.Timeouts = timeouts.Last()
		}
		o.ImplicitTLS, o.LMTP, o.Auth = a.channel.implicitTLS, a.channel.lmtp, credential
		conn, answer := smtpclient.Dial(a.opening, smtpclient.Host{Name: t.host.Name, Addr: t.addr}, o)
		told := conn == nil && a.opening.Err() != nil // to end: what went wrong is no fault of the way
		if errors.Is(answer.Err, egress.ErrEgress) && !told {
			a.goElsewhere(answer)
			return false
		}
		a.lane.connectionSeen(conn != nil || answer.Phase != mail.PhaseConnect)
		if conn != nil {
			a.conn, a.target = conn, t
			a.greet(t.addr)
			a.metrics.connected(ctx, "greeted")
			a.reportTLS(t, o, answer)
			a.rememberTLS(t, retry)
			return true
		}
		if a.moves() {
			a.lane.probed()
			a.putBack(j)
			return false
		}
		a.metrics.connected(ctx, string(answer.Phase))
		a.target = t
		if a.gaveWay() {
			answer.Reply, answer.Err = mail.Reply{}, errGiveWay
			if answer.Phase == mail.PhaseStartTLS {
				answer.Phase = mail.PhaseHello // it says nothing of TLS
			}
			a.site.wasHung()
			if i < len(targets)-1 {
				// The next address has its turn when the site has.
				a.lane.blame(t.addr)
				a.lane.probed()
				j.tried = append(j.tried, t.addr)
				a.putBack(j)
				return false
			}
		}
		a.reportTLS(t, o, answer)
		a.heard(j.request.Recipients[0].Domain, answer)
		if a.isBlocked(answer.Reply) {
			// The host is well, and wants another source.
			a.site.reached(t.addr)
			a.settleAll(answer, delayed(answer, scopeSession, moveSettle))
			a.blocked(answer.Reply)
			return false
		}
		v := judge(circumstances{answer: answer, tls: o.TLS, small: o.SmallHello, mayPlain: a.mayPlain(t.addr, answer, o.SmallHello), last: i == len(targets)-1})
		switch v.move {
		case moveSmallHello:
			retry.small, retry.evidence = true, evidence(answer)
			continue
		case movePlaintext:
			retry.plain, retry.evidence = true, evidence(answer)
			continue
		case moveNextHost:
			a.lane.blame(t.addr)
			j.tried = append(j.tried, t.addr)
			retry = tlsRetry{}
			i++
			continue
		}
		if v.scope == scopeSite {
			a.lane.blame(t.addr)
		}
		a.settleAll(answer, v)
		if answer.Phase == mail.PhaseStartTLS {
			// The host is there: what fails is a policy of this domain.
			a.site.reached(t.addr)
		} else {
			a.putDownAll(outage{answer, t, a.over})
		}
		return false
	}
	// No address is left: the sessions that broke had them all.
	a.lane.neverBegan()
	if j.last.Phase == "" {
		j.last = smtpclient.Answer{Phase: mail.PhaseConnect, Err: none}
	}
	a.settleAll(j.last, judge(circumstances{answer: j.last, tls: a.demand.level, small: true, last: true}))
	return false
}

// goElsewhere leaves a source that does not work: the job is for another one,
// or waits with all that no other source can take.
func (a *attempt) goElsewhere(answer smtpclient.Answer) {
	slog.Warn("a source does not work", "worker_id", a.id, "source", a.source.Name, "site", a.site.name, "error", answer.Err)
	a.layAside(a.site.next(a.job))
	for _, waits := range a.lane.broke(answer.Err) {
		a.aside.in <- waits
	}
}

// putDownAll lays the other jobs of the site aside if this attempt was the one
// that showed that no host can be reached.
func (a *attempt) putDownAll(o outage) {
	if jobs := a.site.unreached(o); len(jobs) > 0 {
		a.aside.in <- aside{jobs, &o}
	}
}

// waitToConnect waits until the connection rate of the site allows one more.
// False means that none will be, or that ctx is done.
func (a *attempt) waitToConnect(ctx context.Context) bool {
	for ctx.Err() == nil {
		at, may := a.lane.connecting()
		if !may || at.IsZero() {
			return may
		}
		sleepUntil(ctx, at)
	}
	return false
}

// sawOpening sees the steps before a host has greeted.
func (a *attempt) sawOpening(step smtpclient.Step) {
	if step.Phase == mail.PhaseConnect && step.Err == nil {
		a.connected()
	}
	a.saw(step)
}

// waitToMail waits until the site's limits allow one more transaction for a
// message that has had one, and reports whether it counts.
func (a *attempt) waitToMail(ctx context.Context) bool {
	at := a.mailing()
	for ; !at.IsZero() && ctx.Err() == nil; at = a.mailing() {
		sleepUntil(ctx, at)
	}
	return at.IsZero()
}

// relay carries out one transaction and sees to what it said.
func (a *attempt) relay(ctx context.Context) {
	j := a.job
	l := j.load
	j.load = nil
	if l == nil {
		var err error
		if l, err = a.load(ctx, j.request); err != nil {
			a.site.mailOver(a.session, false)
			answer := smtpclient.Answer{Phase: mail.PhaseQueue, Err: err}
			a.settleAll(answer, a.ownTrouble(answer))
			return
		}
	}
	defer a.unload(l)
	if len(j.request.Recipients) == 0 {
		// Held, cancelled, expired or taken back since they were claimed.
		a.site.mailOver(a.session, false)
		return
	}
	if a.tenure.left() <= 0 {
		// To connect and to load took longer than the lease on the slot.
		a.site.mailOver(a.session, false)
		answer := smtpclient.Answer{Phase: mail.PhaseQueue, Err: errLeaseOver}
		a.settleAll(answer, a.ownTrouble(answer))
		return
	}
	reused := a.conn.Used() > 0
	mailOver := false
	t := smtpclient.Transaction{
		Message: &j.request.Message, Recipients: j.request.Recipients, Content: l.content.Bytes, BeforeDot: a.mayDot,
		Conversion:  smtpclient.Conversion(a.config.Conversion),
		BeforeAgain: func() { mailOver = !a.waitToMail(ctx) },
		Observe: func(step smtpclient.Step) {
			if step.Phase == mail.PhaseMail && !mailOver {
				mailOver = true
				a.site.mailOver(a.session, true)
			}
			a.saw(step)
		},
	}
	switch {
	case l.content.Large:
		t.Content = nil
		t.Open = func() (io.ReadCloser, error) { return a.open(ctx, l) }
	case t.Content == nil:
		t.Content = []byte{} // a message without any content
	}
	result := a.conn.Send(ctx, t)
	a.dotOver()
	if !mailOver {
		a.site.mailOver(a.session, result.MailSent)
	}
	a.conclude(result, reused)
}

// conclude has each recipient settled, or tried again at once where its
// verdict says so and the attempt may go on.
func (a *attempt) conclude(result smtpclient.Result, reused bool) {
	j := a.job
	a.over = time.Now()
	next := j.elsewhere(a.target.addr) // what an attempt that goes on has used up
	c := circumstances{tls: a.demand.level, reused: reused, accepted: result.Accepted > 0, last: !next.mayGoOn(), plain: a.conn.LeftTLSOut()}
	c.pipelined = a.conn.Pipelines()
	moves := map[move][]mail.Pending{}
	var outcomes []mail.Outcome
	var broken scope
	var block mail.Reply
	wantsTLS := false
	said := ""
	for i, p := range j.request.Recipients {
		c.answer = result.Answers[i]
		// What is said of many recipients at once counts once.
		if text := c.answer.Reply.String(); i == 0 || text != said {
			said = text
			a.heard(p.Domain, c.answer)
		}
		v := judge(c)
		wantsTLS = wantsTLS || c.wantsTLS()
		if a.isBlocked(c.answer.Reply) {
			v, block = delayed(c.answer, scopeSession, moveSettle), c.answer.Reply
		}
		if v.move == moveNewSession && next.sessions >= maxSessions {
			v.move = moveSettle
		}
		if v.scope == scopeHost || v.scope == scopeSession && v.move != moveNewSession {
			broken = v.scope
		}
		if v.move == moveSettle {
			outcomes = append(outcomes, a.outcome(p, c.answer, v))
			continue
		}
		moves[v.move] = append(moves[v.move], p)
		next.last = c.answer
	}
	a.settleOutcomes(outcomes)
	if refused := func(answer smtpclient.Answer) bool { return refusesPipelining(answer.Reply) }; c.pipelined && slices.ContainsFunc(result.Answers, refused) {
		a.walkInStep()
	}
	if wantsTLS {
		a.conn.Close() // nothing can be said on it
		a.forgetTLS()
	}
	if block.Code != 0 {
		a.blocked(block)
	}
	if broken == "" {
		a.lane.wentWell()
	} else {
		a.lane.trouble(a.target.addr, broken == scopeHost)
	}
	if rest := moves[moveSameSession]; rest != nil {
		// At the head of the queue, for this connection if it still serves.
		a.layAside(a.site.next(j.with(rest)))
	}
	if rest := moves[moveNewSession]; rest != nil {
		again := j.with(rest)
		again.sessions = next.sessions
		a.putBack(again)
	}
	if rest := moves[moveNextHost]; rest != nil {
		a.putBack(next.with(rest))
	}
}
