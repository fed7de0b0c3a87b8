package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// Flow is mail that waits for a site and takes turns with other mail: of one
// priority, pool of the route, tenant and campaign.
type Flow struct {
	Priority int16
	Pool     string
	Tenant   string
	Campaign string
}

// A loose index scan from the highest flow down: its cost grows with the
// number of flows, not with the number of recipients.
const parkedFlows = `WITH RECURSIVE flow AS (
    (SELECT r.priority, r.pool, r.tenant, r.campaign
     FROM recipients r
     WHERE r.slot = $1 AND r.site = $2 AND (NOT $3 OR (r.priority, r.pool, r.tenant, r.campaign) < ($4, $5, $6, $7))
     ORDER BY r.priority DESC, r.pool DESC, r.tenant DESC, r.campaign DESC
     LIMIT 1)
    UNION ALL
    SELECT next.*
    FROM flow f
    CROSS JOIN LATERAL (
        SELECT r.priority, r.pool, r.tenant, r.campaign
        FROM recipients r
        WHERE r.slot = $1 AND r.site = $2 AND (r.priority, r.pool, r.tenant, r.campaign) < (f.priority, f.pool, f.tenant, f.campaign)
        ORDER BY r.priority DESC, r.pool DESC, r.tenant DESC, r.campaign DESC
        LIMIT 1) next)
SELECT f.priority, f.pool, f.tenant, f.campaign FROM flow f LIMIT $8`

// ParkedFlows returns up to limit of the flows that are parked for a part of a
// site, the highest priority first, those after a given one if that is not nil.
func (s *Store) ParkedFlows(ctx context.Context, of ParkedSite, after *Flow, limit int) ([]Flow, error) {
	from := Flow{}
	if after != nil {
		from = *after
	}
	rows, err := s.plain.Query(ctx, parkedFlows, of.Slot, of.Site, after != nil, from.Priority, from.Pool, from.Tenant, from.Campaign, limit)
	if err != nil {
		return nil, fmt.Errorf("parked flows of %s: %w", of.Site, err)
	}
	flows, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Flow])
	if err != nil {
		return nil, fmt.Errorf("parked flows of %s: %w", of.Site, err)
	}
	return flows, nil
}

// Share is how many recipients of a flow to pull.
type Share struct {
	Flow
	Recipients int
}

// maxPull bounds one pull: a constant, so that the planner knows that it is
// not the whole queue.
const maxPull = "1000"

// Recipients whose stored route has expired wait for the resolver instead,
// due at once. The flow is compared as a row and the order names its columns,
// which only the index of parked recipients can serve: by equality the planner
// believes that the primary key, read until enough is found, is as good.
const pullRows = `WITH picked AS (
    SELECT p.queue_id, p.recipient_no, ro.route
    FROM unnest($3::smallint[], $4::text[], $5::text[], $6::text[], $7::integer[]) AS w (priority, pool, tenant, campaign, n)
    CROSS JOIN LATERAL (
        SELECT r.queue_id, r.recipient_no, r.domain, r.rule
        FROM recipients r
        WHERE r.slot = $8 AND r.site = $2
          AND (r.priority, r.pool, r.tenant, r.campaign) >= (w.priority, w.pool, w.tenant, w.campaign)
          AND (r.priority, r.pool, r.tenant, r.campaign) <= (w.priority, w.pool, w.tenant, w.campaign)
        ORDER BY r.priority, r.pool, r.tenant, r.campaign, r.queue_id
        LIMIT w.n
        FOR UPDATE SKIP LOCKED) p
    LEFT JOIN parked_routes ro ON ro.domain = p.domain AND ro.site = $2 AND ro.rule = coalesce(p.rule, 0) AND ro.expires_at > now()
    LIMIT ` + maxPull + `),
claimed AS (
    UPDATE recipients r
    SET attempt         = r.attempt + 1,
        slot            = NULL,
        rung            = false,
        worker_id       = CASE WHEN p.route IS NOT NULL THEN $1::integer END,
        next_attempt_at = CASE WHEN p.route IS NOT NULL THEN r.expires_at ELSE now() END
    FROM picked p
    WHERE r.queue_id = p.queue_id AND r.recipient_no = p.recipient_no
    RETURNING p.route, r.*)
SELECT c.route, ` + pendingColumns + `, ` + messageColumns + `
FROM claimed c
JOIN messages m ON m.queue_id = c.queue_id
WHERE c.route IS NOT NULL
ORDER BY m.priority DESC, m.queue_id, c.recipient_no`

// Pull claims parked recipients of a part of a site: of each flow its share,
// the oldest first. As with Claim, losing the commit in a crash of Postgres is
// safe.
func (s *Store) Pull(ctx context.Context, worker mail.WorkerID, of ParkedSite, shares []Share) ([]*mail.DeliveryRequest, error) {
	var priorities []int16
	var pools, tenants, campaigns []string
	var counts []int
	for _, sh := range shares {
		priorities = append(priorities, sh.Priority)
		pools, tenants, campaigns = append(pools, sh.Pool), append(tenants, sh.Tenant), append(campaigns, sh.Campaign)
		counts = append(counts, sh.Recipients)
	}
	defer s.held.begin()()
	rows, err := s.relaxed.Query(ctx, pullRows, worker, of.Site, priorities, pools, tenants, campaigns, counts, of.Slot)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", of.Site, err)
	}
	routes := map[string]*mail.Route{}
	var reqs []*mail.DeliveryRequest
	var text string
	var p mail.Pending
	var m mail.Message
	fields := append([]any{&text}, append(pendingFields(&p), messageFields(&m)...)...)
	_, err = pgx.ForEachRow(rows, fields, func() error {
		route := routes[text]
		if route == nil {
			route = &mail.Route{}
			if err := json.Unmarshal([]byte(text), route); err != nil {
				return err
			}
			routes[text] = route
		}
		if n := len(reqs); n > 0 && reqs[n-1].Message.ID == m.ID && reqs[n-1].Route == route {
			reqs[n-1].Recipients = append(reqs[n-1].Recipients, p)
			return nil
		}
		req := &mail.DeliveryRequest{Message: m, Route: route, Recipients: []mail.Pending{p}}
		req.SetSlot(of.Slot)
		reqs = append(reqs, req)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", of.Site, err)
	}
	s.held.add(worker, reqs)
	return reqs, nil
}
