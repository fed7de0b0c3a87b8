package mx

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/services/resolver/internal/mtasts"
	"github.com/postrider/postrider/services/resolver/internal/tlsrpt"
)

// Policies finds the MTA-STS policy that holds for a domain. id is that of
// the domain's _mta-sts record, "" if it has none that counts: then a policy
// from before holds until it ends (RFC 8461 §3.3). The error is our own
// trouble, and says nothing of the domain.
type Policies interface {
	Policy(ctx context.Context, domain, id string) (mtasts.Finding, error)
}

// policy is what a domain publishes of TLS beside its MX records. Its fields
// may be read when asking is over.
type policy struct {
	asking sync.WaitGroup

	sts      mtasts.Finding
	report   *mail.TLSReport // nil: the domain wants none
	trouble  string          // why the policy is not known; "" if it is
	secureMX bool
	expires  time.Time // when to look again
}

// beginPolicy asks for the policy of a domain while its hosts are looked up.
func (r *Resolver) beginPolicy(ctx context.Context, name string) *policy {
	p := &policy{expires: time.Now().Add(r.ttl.max)}
	if r.cfg.STS != nil {
		p.asking.Go(func() {
			// Without an answer there is no id, and a policy from before holds:
			// who never had one of the domain cannot know of it (RFC 8461 §10.2).
			sts := r.ask(ctx, "_mta-sts."+name, dns.TypeTXT)
			id, _ := mtasts.ParseRecord(sts.texts)
			var err error
			if p.sts, err = r.cfg.STS.Policy(ctx, name, id); err != nil {
				p.trouble = fmt.Sprintf("the TLS policy of %s is not known: %v", name, err)
			}
			p.expires = earlier(p.expires, p.sts.LookAgain)
			p.expires = earlier(p.expires, sts.expires)
		})
	}
	if r.cfg.TLSReports {
		p.asking.Go(func() { p.report = r.reportOf(ctx, name) })
	}
	return p
}

// reportPatience is how long mail waits to know whether anybody wants to hear
// how its TLS goes.
const reportPatience = time.Second

// reportOf returns what a domain wants that asks for reports: RFC 8460 §3. A
// record that cannot be looked up is no record: the mail is worth more.
func (r *Resolver) reportOf(ctx context.Context, name string) *mail.TLSReport {
	ctx, cancel := context.WithTimeout(ctx, reportPatience)
	defer cancel()
	rua, ok := tlsrpt.ParseRecord(r.ask(ctx, "_smtp._tls."+name, dns.TypeTXT).texts)
	if !ok {
		return nil
	}
	return &mail.TLSReport{Domain: mail.Domain(name), RUA: rua}
}

// appendKey adds what keeps routes of domains apart.
func (p *policy) appendKey(key *strings.Builder) {
	fmt.Fprintf(key, " %t", p.secureMX)
	if m := p.sts.Policy.Mode; m == mtasts.ModeTesting || m == mtasts.ModeEnforce {
		fmt.Fprintf(key, " %s %q", m, p.sts.Policy.MX)
	}
	if p.report != nil {
		fmt.Fprintf(key, " reports to %s", p.report.Domain)
	}
}

// maxReportText bounds the policy that travels with a route for reports.
const maxReportText = 4 << 10

// reportOn has delivery report on a route.
func (p *policy) reportOn(r *mail.Route, d Demands) {
	if p.report == nil {
		return
	}
	report := *p.report
	if !d.IgnoreSTS {
		report.Fault = p.sts.Fault
		if r.STS != mail.STSNone {
			left := maxReportText
			for _, line := range p.sts.Policy.Text {
				if left -= len(line); left < 0 {
					break
				}
				report.STSPolicy = append(report.STSPolicy, line)
			}
		}
	}
	r.Report = &report
}

// apply writes the MTA-STS policy into a route.
func (p *policy) apply(r *mail.Route) {
	switch p.sts.Policy.Mode {
	case mtasts.ModeTesting:
		r.STS = mail.STSTesting
	case mtasts.ModeEnforce:
		r.STS = mail.STSEnforce
	default:
		return
	}
	for i := range r.Hosts {
		r.Hosts[i].OutsideSTS = !p.sts.Policy.Matches(r.Hosts[i].Name)
	}
}
