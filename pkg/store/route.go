package store

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// RoutingRule is a line of the operators' routing table: what it is for, and
// where that goes. docs/routes.md has the words.
type RoutingRule struct {
	Match   RouteMatch
	Version int32 // every change gives a new one; never 0

	Hosts      []string // in the grammar of mail.ParseSmartHosts; none: by MX records
	TLS        mail.TLSLevel
	Credential string // the name of a relay credential; "": no AUTH
	Pool       string // of source addresses
	Fallback   Fallback
	Hold       string // why recipients are held; "" does not hold
	Discard    string // why recipients are discarded; "" does not discard
	UpdatedAt  time.Time
}

// RouteMatch says which mail a rule is for. There is one rule for each.
type RouteMatch struct {
	Domain string // of the recipient: "example.com", "*.example.com" (names below it) or "*"
	Sender string // reverse-path: "a@example.com", "example.com", "*.example.com", "<>"; "" is any
	Tenant string // "" is any
}

// Fallback is where a rule sends what has been tried for long.
type Fallback struct {
	Hosts      []string // none: there is no fallback
	TLS        mail.TLSLevel
	Credential string
	Tries      int16         // attempts that ended in a delay before; 0 does not count them
	After      time.Duration // since acceptance; 0 does not look at the time
}

// Routing returns the routing table.
func (s *Store) Routing(ctx context.Context) ([]RoutingRule, error) {
	const q = `
		SELECT domain, sender, tenant, version, hosts, tls, coalesce(credential, ''), pool,
		       fallback_hosts, fallback_tls, coalesce(fallback_credential, ''), fallback_tries, fallback_after, hold, discard, updated_at
		FROM routing_rules
		ORDER BY domain, sender, tenant`
	rows, err := s.plain.Query(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("routing: %w", err)
	}
	rules, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r RoutingRule, err error) {
		return r, row.Scan(&r.Match.Domain, &r.Match.Sender, &r.Match.Tenant, &r.Version, &r.Hosts, &r.TLS, &r.Credential, &r.Pool,
			&r.Fallback.Hosts, &r.Fallback.TLS, &r.Fallback.Credential, &r.Fallback.Tries, &r.Fallback.After, &r.Hold, &r.Discard, &r.UpdatedAt)
	})
	if err != nil {
		return nil, fmt.Errorf("routing: %w", err)
	}
	return rules, nil
}

// SetRoute puts a rule into the routing table in place of the one for the
// same mail; Version and UpdatedAt do not matter. An empty TLS level is verify
// with a credential, else may with hosts, else what shaping says. It returns
// how many waiting recipients have their way looked up again.
func (s *Store) SetRoute(ctx context.Context, r RoutingRule) (again int64, err error) {
	const q = `SELECT set_route(@domain, @sender, @tenant, @hosts, nullif(@tls, ''), nullif(@credential, ''), @pool,
		@fallback_hosts, nullif(@fallback_tls, ''), nullif(@fallback_credential, ''), @fallback_tries, @fallback_after, @hold, @discard)`
	args := pgx.NamedArgs{
		"domain": r.Match.Domain, "sender": r.Match.Sender, "tenant": r.Match.Tenant,
		"hosts": orEmpty(r.Hosts), "tls": string(r.TLS), "credential": r.Credential, "pool": r.Pool,
		"fallback_hosts": orEmpty(r.Fallback.Hosts), "fallback_tls": string(r.Fallback.TLS), "fallback_credential": r.Fallback.Credential,
		"fallback_tries": r.Fallback.Tries, "fallback_after": r.Fallback.After, "hold": r.Hold, "discard": r.Discard,
	}
	err = s.plain.QueryRow(ctx, q, args).Scan(&again)
	if hasCode(err, foreignKeyViolation) {
		return 0, fmt.Errorf("route %s: relay credential %q: %w", r.Match, cmp.Or(r.Credential, r.Fallback.Credential), ErrNotFound)
	}
	if err != nil {
		return 0, fmt.Errorf("route %s: %w", r.Match, err)
	}
	return again, nil
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// DeleteRoute takes a rule out of the routing table, and returns how many
// waiting recipients have their way looked up again. ErrNotFound: there is no
// such rule.
func (s *Store) DeleteRoute(ctx context.Context, m RouteMatch) (again int64, err error) {
	const q = `SELECT remove_route($1, $2, $3)`
	var n *int64
	if err := s.plain.QueryRow(ctx, q, m.Domain, m.Sender, m.Tenant).Scan(&n); err != nil {
		return 0, fmt.Errorf("route %s: %w", m, err)
	}
	if n == nil {
		return 0, ErrNotFound
	}
	return *n, nil
}

// String returns the match in words, such as "example.com from a.test for
// tenant acme".
func (m RouteMatch) String() string {
	text := m.Domain
	if m.Sender != "" {
		text += " from " + m.Sender
	}
	if m.Tenant != "" {
		text += " for tenant " + m.Tenant
	}
	return text
}

// A recipient that an operator has released is not held again.
const holdRows = `WITH asked AS (
    SELECT * FROM unnest($1::uuid[], $2::integer[], $3::integer[]) WITH ORDINALITY AS t (queue_id, recipient_no, attempt, ord)),
held AS (
    UPDATE recipients_%[1]s r
    SET state = 'held', attempt = r.attempt + 1, slot = NULL, rung = false, next_attempt_at = r.expires_at
    FROM asked t
    WHERE r.queue_id = t.queue_id AND r.recipient_no = t.recipient_no AND r.attempt = t.attempt
      AND r.worker_id IS NULL AND r.state = 'queued' AND r.released IS NOT TRUE
    RETURNING t.ord)
SELECT h.ord, false FROM held h
UNION ALL
SELECT t.ord, true
FROM recipients_%[1]s r
JOIN asked t ON r.queue_id = t.queue_id AND r.recipient_no = t.recipient_no AND r.attempt = t.attempt
WHERE r.worker_id IS NULL AND r.state = 'queued' AND r.released`

// RecipientRef names one recipient.
type RecipientRef struct {
	ID mail.QueueID
	No int32
}

// HoldUnclaimed holds the recipients of the settlements, which nobody has
// claimed, and writes the outcomes to their history. It returns those that an
// operator has released before: they are not held again. Outcomes that lost by
// their fence leave no trace.
func (s *Store) HoldUnclaimed(ctx context.Context, settlements []mail.Settlement) (released []RecipientRef, err error) {
	rows := settledRowsOf(settlements)
	held := make(map[fence]bool, len(rows))
	err = inTx(ctx, s.durable, func(tx pgx.Tx) error {
		x := newExchange()
		for _, b := range byLeaf(rows, func(r settledRow) mail.QueueID { return r.id }, day) {
			rows := b.items
			row := func(fields [][]byte) {
				r := &rows[ordinal(fields[0])]
				if was := fields[1][0] != 0; was {
					released = append(released, RecipientRef{r.id, r.no})
				} else {
					held[fence{r.rowKey, r.outcome.Attempt}] = true
				}
			}
			x.call(hotStatement{"hold_" + b.leaf, fmt.Sprintf(holdRows, b.leaf), row}, 3, func() {
				x.ids(len(rows), func(i int) mail.QueueID { return rows[i].id })
				x.int4s(len(rows), func(i int) int32 { return rows[i].no })
				x.int4s(len(rows), func(i int) int32 { return rows[i].outcome.Attempt })
			})
		}
		if err := x.within(ctx, tx.Conn()); err != nil {
			return err
		}
		x.free()
		x = newExchange()
		defer x.free()
		x.attempts(nil, keepOutcomes(settlements, held))
		return x.within(ctx, tx.Conn())
	})
	if err != nil {
		return nil, fmt.Errorf("hold by route: %w", err)
	}
	return released, nil
}

// ForgetRoutes removes the routes of parked recipients that ended a while
// ago. A recipient whose route is gone has its way looked up again.
func (s *Store) ForgetRoutes(ctx context.Context) (forgotten int64, err error) {
	for _, q := range []string{
		`DELETE FROM parked_routes WHERE expires_at < now() - interval '1 hour'`,
		`DELETE FROM routes WHERE expires_at < now() - interval '1 hour'`,
	} {
		tag, err := s.plain.Exec(ctx, q)
		if err != nil {
			return forgotten, fmt.Errorf("forget routes: %w", err)
		}
		forgotten += tag.RowsAffected()
	}
	return forgotten, nil
}
