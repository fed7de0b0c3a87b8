package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Usage is what was taken from a credential on a day.
type Usage struct {
	Day        time.Time // a date, UTC
	Tenant     string
	Credential string
	Messages   int64
	Recipients int64
	Bytes      int64
}

// AddUsage adds to the usage of credentials, and returns, for each element,
// the sum so far of its credential and that of its whole tenant. An element
// that adds nothing only reads. Each credential may be there once. When the
// connection breaks in the commit, the caller does not know whether it was
// added: a repetition counts some mail twice.
func (s *Store) AddUsage(ctx context.Context, add []Usage) (credentials, tenants []Usage, err error) {
	// Rows are locked in one order by all processes.
	const write = `
		INSERT INTO usage AS u (day, tenant, credential, messages, recipients, bytes)
		SELECT a.day, a.tenant, a.credential, a.messages, a.recipients, a.bytes
		FROM unnest(@days::date[], @tenants::text[], @credentials::text[], @messages::bigint[], @recipients::bigint[], @bytes::bigint[])
		     AS a (day, tenant, credential, messages, recipients, bytes)
		WHERE (a.messages, a.recipients, a.bytes) <> (0, 0, 0)
		ORDER BY 1, 2, 3
		ON CONFLICT (day, tenant, credential) DO UPDATE
		SET messages = u.messages + excluded.messages,
		    recipients = u.recipients + excluded.recipients,
		    bytes = u.bytes + excluded.bytes`
	const read = `
		WITH a AS (
			SELECT day, tenant, credential, no
			FROM unnest(@days::date[], @tenants::text[], @credentials::text[]) WITH ORDINALITY AS a (day, tenant, credential, no)),
		t AS (
			SELECT u.day, u.tenant, sum(u.messages)::bigint AS messages, sum(u.recipients)::bigint AS recipients, sum(u.bytes)::bigint AS bytes
			FROM usage u
			JOIN (SELECT DISTINCT day, tenant FROM a) d USING (day, tenant)
			GROUP BY u.day, u.tenant)
		SELECT a.day, a.tenant, a.credential,
		       coalesce(c.messages, 0), coalesce(c.recipients, 0), coalesce(c.bytes, 0),
		       coalesce(t.messages, 0), coalesce(t.recipients, 0), coalesce(t.bytes, 0)
		FROM a
		LEFT JOIN usage c USING (day, tenant, credential)
		LEFT JOIN t USING (day, tenant)
		ORDER BY a.no`
	args := usageArgs(add)
	err = inTx(ctx, s.plain, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, write, args); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, read, args)
		if err != nil {
			return err
		}
		var c, t Usage
		_, err = pgx.ForEachRow(rows, []any{&c.Day, &c.Tenant, &c.Credential, &c.Messages, &c.Recipients, &c.Bytes,
			&t.Messages, &t.Recipients, &t.Bytes}, func() error {
			t.Day, t.Tenant = c.Day, c.Tenant
			credentials, tenants = append(credentials, c), append(tenants, t)
			return nil
		})
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("add usage: %w", err)
	}
	return credentials, tenants, nil
}

func usageArgs(add []Usage) pgx.NamedArgs {
	n := len(add)
	days, tenants, credentials := make([]time.Time, n), make([]string, n), make([]string, n)
	messages, recipients, bytes := make([]int64, n), make([]int64, n), make([]int64, n)
	for i, u := range add {
		days[i], tenants[i], credentials[i] = u.Day, u.Tenant, u.Credential
		messages[i], recipients[i], bytes[i] = u.Messages, u.Recipients, u.Bytes
	}
	return pgx.NamedArgs{"days": days, "tenants": tenants, "credentials": credentials,
		"messages": messages, "recipients": recipients, "bytes": bytes}
}

// UsageOf returns what was taken on a day (UTC), by tenant and credential.
func (s *Store) UsageOf(ctx context.Context, day time.Time) ([]Usage, error) {
	const q = `
		SELECT day, tenant, credential, messages, recipients, bytes
		FROM usage
		WHERE day = $1
		ORDER BY tenant, credential`
	rows, err := s.plain.Query(ctx, q, day.UTC())
	if err != nil {
		return nil, fmt.Errorf("usage: %w", err)
	}
	used, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Usage])
	if err != nil {
		return nil, fmt.Errorf("usage: %w", err)
	}
	return used, nil
}
