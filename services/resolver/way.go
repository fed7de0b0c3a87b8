package resolver

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/resolver/internal/mx"
)

// aim is what a way is looked up by: recipients with equal aims go the same
// way.
type aim struct {
	domain   mail.Domain
	rule     *store.RoutingRule // nil: MX records decide alone
	fallback bool               // it has been tried for so long that the rule's fallback is due
}

// aimOf returns the aim of a recipient for which a rule counts.
func aimOf(m *mail.Message, p *mail.Pending, rule *store.RoutingRule) aim {
	a := aim{domain: p.Domain, rule: rule}
	if rule != nil && len(rule.Fallback.Hosts) > 0 {
		f := rule.Fallback
		a.fallback = f.Tries > 0 && p.Tries >= f.Tries || f.After > 0 && time.Since(m.AcceptedAt) >= f.After
	}
	return a
}

// demands is what a rule says of a way.
type demands struct {
	hosts      []string // none: by MX records
	tls        mail.TLSLevel
	credential string
}

func (a aim) demands() demands {
	switch {
	case a.rule == nil:
		return demands{}
	case a.fallback:
		return demands{a.rule.Fallback.Hosts, a.rule.Fallback.TLS, a.rule.Fallback.Credential}
	}
	return demands{a.rule.Hosts, a.rule.TLS, a.rule.Credential}
}

// way is where the mail of one aim goes: a plan and what is said of the
// domain, or the trouble with it.
type way struct {
	plan       *mx.Plan
	site       mail.Site
	tls        mx.Demands
	credential string
	rule       int32
	pool       string
	trouble    *mx.Trouble
}

// key is equal for domains that can share a route. The TLS level is part of
// it: policy stays per domain, whatever hosts domains share. So is the rule,
// for what it demands belongs to its mail alone.
func (w way) key() string {
	return fmt.Sprintf("%v %d %s %s %s", w.tls, w.rule, w.pool, w.site, w.plan.Key)
}

// route draws a route for one batch.
func (w way) route() *mail.Route {
	r := w.plan.Route(w.tls)
	r.Site, r.Credential, r.Rule, r.Pool = w.site, w.credential, w.rule, w.pool
	return r
}

// known returns the way of an aim if it can be told without DNS.
func (r *resolver) known(a aim) (way, bool) {
	var res mx.Result
	var ok bool
	if d := a.demands(); len(d.hosts) > 0 {
		res, ok = r.mx.KnownSmartHosts(d.hosts)
	} else {
		res, ok = r.mx.Known(a.domain)
	}
	if !ok {
		return way{}, false
	}
	return r.wayOf(a, res), true
}

// lookup finds the way of an aim. The error is that of ctx.
func (r *resolver) lookup(ctx context.Context, a aim) (way, error) {
	var res mx.Result
	var err error
	if d := a.demands(); len(d.hosts) > 0 {
		res, err = r.mx.SmartHosts(ctx, d.hosts)
	} else {
		res, err = r.mx.Lookup(ctx, a.domain)
	}
	if err != nil {
		return way{}, err
	}
	return r.wayOf(a, res), nil
}

// siteBy is the site of smart hosts where we authenticate by a credential:
// providers count by account.
func siteBy(credential string, site mail.Site) mail.Site {
	if credential == "" {
		return site
	}
	return mail.Site(credential + "@" + string(site))
}

// wayOf adds to a result what the routing table and shaping say of the aim.
func (r *resolver) wayOf(a aim, res mx.Result) way {
	if res.Trouble != nil {
		return way{trouble: res.Trouble}
	}
	d := a.demands()
	w := way{plan: res.Plan, site: res.Plan.Site, credential: d.credential}
	if a.rule != nil {
		w.rule, w.pool = a.rule.Version, a.rule.Pool
	}
	switch {
	case len(d.hosts) == 0:
		w.site = r.shaping.Site(a.domain, w.plan.Hosts, w.site)
	default:
		w.site = siteBy(d.credential, w.site)
	}
	v := r.shaping.For(shaping.Query{Domain: a.domain, Site: w.site, Hosts: w.plan.Hosts})
	w.tls = mx.Demands{TLS: cmp.Or(d.tls, v.TLS), IgnoreDANE: !v.DANE, IgnoreSTS: !v.MTASTS}
	return w
}
