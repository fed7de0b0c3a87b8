package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/postrider/postrider/pkg/mail"
)

const parkRows = `UPDATE recipients_%s r
SET attempt = r.attempt + 1, worker_id = NULL, dispatched = false, rung = false,
    slot = t.slot, site = t.site, rule = nullif(t.rule, 0), next_attempt_at = r.expires_at,
    pool = t.pool, tenant = t.tenant, campaign = t.campaign
FROM unnest($2::uuid[], $3::integer[], $4::integer[], $5::text[], $6::smallint[], $7::integer[], $8::text[], $9::text[], $10::text[]) WITH ORDINALITY
    AS t (queue_id, recipient_no, attempt, site, slot, rule, pool, tenant, campaign, ord)
WHERE r.queue_id = t.queue_id AND r.recipient_no = t.recipient_no
  AND r.attempt = t.attempt AND r.worker_id IS NOT DISTINCT FROM $1 AND r.state = 'queued'
RETURNING t.ord`

// The rule is part of the key: two recipients of one domain and site may go
// under different demands.
const saveRoute = `INSERT INTO parked_routes (domain, site, rule, route, expires_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::integer[], $4::jsonb[], $5::timestamptz[])
ON CONFLICT (domain, site, rule) DO UPDATE SET route = excluded.route, expires_at = excluded.expires_at
WHERE parked_routes.expires_at <= excluded.expires_at`

// Park lays recipients aside by their site, with their route, until the home
// of that part of the site pulls them. Worker 0 parks recipients that nobody claimed;
// another worker parks its own claims, and that waits for the disk: if a crash
// brought the claims back, their worker would live and know nothing of them.
// Each request keeps only the recipients that were parked.
func (s *Store) Park(ctx context.Context, worker mail.WorkerID, reqs []*mail.DeliveryRequest) error {
	if err := s.saveRoutes(ctx, reqs); err != nil {
		return fmt.Errorf("park: %w", err)
	}
	var owner *mail.WorkerID
	pool := s.relaxed
	if worker != 0 {
		owner, pool = &worker, s.durable
	}
	parked, err := s.fenced(ctx, pool, reqs, fencedStatement{"park", parkRows, 10, func(x *exchange, rows []fencedRow) {
		x.fences(owner, rows)
		x.texts(len(rows), func(i int) string { return string(rows[i].site) })
		x.array(pgtype.Int2OID, len(rows), func(i int) { x.int2(rows[i].req.Slot()) })
		x.int4s(len(rows), func(i int) int32 { return rows[i].req.Route.Rule })
		x.texts(len(rows), func(i int) string { return rows[i].req.Route.Pool })
		x.texts(len(rows), func(i int) string { return rows[i].req.Message.Tenant })
		x.texts(len(rows), func(i int) string { return rows[i].req.Message.Campaign })
	}}, nothing)
	if err != nil {
		return fmt.Errorf("park: %w", err)
	}
	s.held.dropAll(worker, reqs)
	keep(reqs, parked, 1)
	return nil
}

// saveRoutes comes before the rows are parked: a parked row always finds a
// route.
func (s *Store) saveRoutes(ctx context.Context, reqs []*mail.DeliveryRequest) error {
	type key struct {
		domain mail.Domain
		site   mail.Site
		rule   int32
	}
	seen := map[key]bool{}
	var domains, sites, routes []string
	var rules []int32
	var expires []time.Time
	for _, req := range reqs {
		var text []byte
		for _, r := range req.Recipients {
			k := key{r.Domain, req.Route.Site, req.Route.Rule}
			if seen[k] {
				continue
			}
			seen[k] = true
			if text == nil {
				var err error
				if text, err = json.Marshal(req.Route); err != nil {
					return err
				}
			}
			domains = append(domains, string(r.Domain))
			sites = append(sites, string(req.Route.Site))
			rules = append(rules, req.Route.Rule)
			routes = append(routes, string(text))
			expires = append(expires, req.Route.ExpiresAt)
		}
	}
	if len(domains) == 0 {
		return nil
	}
	_, err := s.relaxed.Exec(ctx, saveRoute, domains, sites, rules, routes, expires)
	return err
}

// ParkedSite is a site with recipients that wait to be pulled.
type ParkedSite struct {
	Site mail.Site
	Slot int16
}

// A loose index scan: its cost grows with the number of sites, not with the
// number of recipients.
const (
	parkedIn = `WITH RECURSIVE found AS (
    (SELECT wanted.slot, first.site
     FROM unnest($1::smallint[]) AS wanted (slot)
     CROSS JOIN LATERAL (SELECT min(r.site) AS site FROM recipients r WHERE r.slot = wanted.slot) first
     WHERE first.site IS NOT NULL)
    UNION ALL
    SELECT f.slot, next.site
    FROM found f
    CROSS JOIN LATERAL (SELECT min(r.site) AS site FROM recipients r WHERE r.slot = f.slot AND r.site > f.site) next
    WHERE next.site IS NOT NULL)
`
	parkedSites = parkedIn + `SELECT f.slot, f.site FROM found f`
)

// ParkedSites returns the sites of the given slots that have parked
// recipients.
func (s *Store) ParkedSites(ctx context.Context, slots []int16) ([]ParkedSite, error) {
	rows, err := s.plain.Query(ctx, parkedSites, slots)
	if err != nil {
		return nil, fmt.Errorf("parked sites: %w", err)
	}
	sites, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p ParkedSite, err error) {
		return p, row.Scan(&p.Slot, &p.Site)
	})
	if err != nil {
		return nil, fmt.Errorf("parked sites: %w", err)
	}
	return sites, nil
}

// pendingColumns are the columns of a mail.Pending of table c, in the order
// of pendingFields; messageColumns those of a mail.Message of table m.
const (
	pendingColumns = `c.recipient_no, c.forward_path, c.domain, c.notify, c.orcpt, c.expires_at, c.attempt, c.tries`
	messageColumns = `m.queue_id, m.reverse_path, m.body_type, m.smtputf8, m.ret, m.envid, m.tenant, m.priority, m.size_bytes, m.accepted_at, m.traceparent,
		m.campaign, m.require_tls, m.tls_optional, m.deliver_by, m.deliver_by_mode`
)

func pendingFields(p *mail.Pending) []any {
	return []any{&p.No, &p.ForwardPath, &p.Domain, &p.Notify, &p.ORCPT, &p.ExpiresAt, &p.Attempt, &p.Tries}
}

func messageFields(m *mail.Message) []any {
	return []any{&m.ID, &m.Envelope.ReversePath, &m.Envelope.Body, &m.Envelope.SMTPUTF8, &m.Envelope.Ret, &m.Envelope.EnvID,
		&m.Tenant, &m.Priority, &m.SizeBytes, &m.AcceptedAt, &m.Traceparent,
		&m.Campaign, &m.Envelope.RequireTLS, &m.TLSOptional, deliverByTime{&m.Envelope.DeliverBy}, deliverByWords{&m.Envelope.DeliverBy}}
}

// deliverByTime scans the column deliver_by, which is null if BY was not
// given.
type deliverByTime struct{ by *mail.DeliverBy }

// ScanTimestamptz implements pgtype.TimestamptzScanner.
func (d deliverByTime) ScanTimestamptz(v pgtype.Timestamptz) error {
	d.by.At = v.Time // zero if null
	return nil
}

// deliverByWords scans the column deliver_by_mode.
type deliverByWords struct{ by *mail.DeliverBy }

// ScanText implements pgtype.TextScanner.
func (d deliverByWords) ScanText(v pgtype.Text) error {
	d.by.Return = strings.HasPrefix(v.String, "R")
	d.by.Trace = strings.HasSuffix(v.String, "T")
	return nil
}
