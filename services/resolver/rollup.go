package resolver

import (
	"context"
	"log/slog"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

const (
	// rollUpEvery is how often new domains of the shaping file are looked for,
	// rollUpAgain how long the site of one is taken for known.
	rollUpEvery = time.Second
	rollUpAgain = 15 * time.Minute
)

// rollUp finds the sites of the domains that the shaping file names, for all
// processes: the block of a domain holds for every domain that shares its
// mail exchangers, as with KumoMTA.
func (r *resolver) rollUp(ctx context.Context) error {
	found := map[mail.Domain]time.Time{}
	for sleep(ctx, rollUpEvery) {
		for _, domain := range r.shaping.Now().Rollups() {
			if ctx.Err() != nil {
				return nil
			}
			if time.Since(found[domain]) < rollUpAgain {
				continue
			}
			found[domain] = time.Now()
			res, err := r.mx.Lookup(ctx, domain)
			if err != nil || res.Trouble != nil {
				continue // the block holds for the domain itself, at whatever site
			}
			site := r.shaping.Site(domain, res.Plan.Hosts, res.Plan.Site)
			if err := r.db.SetShapingSite(ctx, domain, site); err != nil && ctx.Err() == nil {
				slog.WarnContext(ctx, "the site of a domain in the shaping file cannot be written", "domain", domain, "error", err)
				delete(found, domain)
			}
		}
	}
	return nil
}
