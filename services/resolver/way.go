package resolver

import (
	"context"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/resolver/internal/mx"
)

// way is where the mail of one domain goes: a plan and what is said of the
// domain, or the trouble with it.
type way struct {
	plan    *mx.Plan
	site    mail.Site
	tls     mail.TLSLevel
	trouble *mx.Trouble
}

// key is equal for domains that can share a route. The TLS level is part of
// it: policy stays per domain, whatever hosts domains share.
func (w way) key() string { return string(w.tls) + " " + string(w.site) + " " + w.plan.Key }

// route draws a route for one batch.
func (w way) route() *mail.Route {
	r := w.plan.Route(w.tls)
	r.Site = w.site
	return r
}

// known returns the way of a domain if it can be told without DNS.
func (r *resolver) known(domain mail.Domain) (way, bool) {
	rule := r.routing.Load().find(domain)
	var res mx.Result
	var ok bool
	if rule != nil {
		res, ok = r.mx.KnownSmartHosts(rule.Hosts)
	} else {
		res, ok = r.mx.Known(domain)
	}
	if !ok {
		return way{}, false
	}
	return r.wayOf(domain, rule, res), true
}

// lookup finds the way of a domain. The error is that of ctx.
func (r *resolver) lookup(ctx context.Context, domain mail.Domain) (way, error) {
	rule := r.routing.Load().find(domain)
	var res mx.Result
	var err error
	if rule != nil {
		res, err = r.mx.SmartHosts(ctx, rule.Hosts)
	} else {
		res, err = r.mx.Lookup(ctx, domain)
	}
	if err != nil {
		return way{}, err
	}
	return r.wayOf(domain, rule, res), nil
}

// wayOf adds to a result what the routing table and shaping say of the domain.
func (r *resolver) wayOf(domain mail.Domain, rule *store.RoutingRule, res mx.Result) way {
	if res.Trouble != nil {
		return way{trouble: res.Trouble}
	}
	w := way{plan: res.Plan, site: res.Plan.Site}
	if rule != nil {
		w.tls = rule.TLS
	} else if site := r.shaping.Site(domain, w.plan.Hosts); site != "" {
		w.site = site
	}
	if w.tls == "" {
		w.tls = r.shaping.For(shaping.Query{Domain: domain, Site: w.site, Hosts: w.plan.Hosts}).TLS
	}
	return w
}
