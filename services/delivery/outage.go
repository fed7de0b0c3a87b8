package delivery

import (
	"cmp"
	"errors"
	"net/netip"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

// outage is why the mail of a site waits: the last attempt reached no host.
type outage struct {
	answer smtpclient.Answer
	target target
	at     time.Time
}

// savedOutage is the saved form of a breaker that is open, and why it is. Times
// are counted from when it was saved.
type savedOutage struct {
	ProbeIn time.Duration  `json:"probe_in"`
	Pause   time.Duration  `json:"pause"`
	Since   time.Duration  `json:"since"`
	Host    string         `json:"host,omitempty"`
	Address netip.AddrPort `json:"address"`
	Phase   mail.Phase     `json:"phase"`
	Reply   mail.Reply     `json:"reply"`
	Fault   string         `json:"fault,omitempty"`
}

// savedFailure is the saved form of an address that failed lately.
type savedFailure struct {
	Address netip.AddrPort `json:"address"`
	For     time.Duration  `json:"for"` // it is tried last; less than zero: its pause is over
	Pause   time.Duration  `json:"pause"`
	Age     time.Duration  `json:"age"`
}

// saveOutage returns what the next home should know of hosts that do not
// answer. Caller holds mu.
func (s *site) saveOutage(now time.Time) (o *savedOutage, failed []savedFailure) {
	if b := &s.breaker; b.isOpen() {
		a, t := s.outage.answer, s.outage.target
		o = &savedOutage{
			ProbeIn: b.probeAt.Sub(now), Pause: b.pause, Since: now.Sub(s.outage.at),
			Host: t.host.Name, Address: t.addr, Phase: a.Phase, Reply: a.Reply,
		}
		if a.Err != nil {
			o.Fault = a.Err.Error()
		}
	}
	for addr, f := range s.failures {
		if now.Sub(f.at) < failedFor {
			failed = append(failed, savedFailure{addr, f.until.Sub(now), f.pause, now.Sub(f.at)})
		}
	}
	return o, failed
}

// restoreOutage has a site leave hosts alone that did not answer its last home:
// one connection finds out whether they are back, when it was due there.
func (p *predecessor) restoreOutage(s *site) {
	now := time.Now()
	for _, f := range p.state.Failed {
		if at := p.savedAt.Add(-f.Age); now.Sub(at) < failedFor {
			s.failures[f.Address] = failure{at: at, until: p.savedAt.Add(f.For), pause: f.Pause}
		}
	}
	o := p.state.Outage
	if o == nil || now.After(p.savedAt.Add(o.ProbeIn+maxPause)) {
		return // nobody has looked for long: it is found out anew
	}
	s.breaker = breaker{inRow: failuresToOpen, probeAt: p.savedAt.Add(o.ProbeIn), pause: o.Pause}
	s.outage = outage{
		answer: smtpclient.Answer{Phase: o.Phase, Reply: o.Reply},
		target: target{mail.Host{Name: o.Host, Port: o.Address.Port()}, o.Address},
		at:     p.savedAt.Add(-o.Since),
	}
	if o.Reply.Code == 0 || o.Fault != "" {
		s.outage.answer.Err = errors.New(cmp.Or(o.Fault, "no answer"))
	}
}
