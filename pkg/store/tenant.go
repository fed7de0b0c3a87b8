package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// The reasons for which a change to tenants, credentials or domains is not
// made. A tenant that is not there is ErrNotFound.
var (
	ErrExists = errors.New("it exists already")
	ErrInUse  = errors.New("it is still in use")
)

// SQLSTATEs: unique_violation, foreign_key_violation.
const (
	uniqueViolation     = "23505"
	foreignKeyViolation = "23503"
)

// Limits bound what a tenant or a credential may send. Zero is no bound.
type Limits struct {
	MessagesPerSecond float64 // at one ingress process
	RecipientsPerDay  int64   // UTC days
	BytesPerDay       int64   // of content
}

// Tenant is a customer of the installation.
type Tenant struct {
	Name           string // lower-case letters, digits, "._-", at most 63
	Priority       int16  // of its messages; higher goes first
	Limits         Limits
	SuspendedUntil time.Time // zero, or past: not suspended
	SuspendReason  string
	CreatedAt      time.Time
}

// Suspended reports whether the tenant may not send at the moment.
func (t Tenant) Suspended(now time.Time) bool { return now.Before(t.SuspendedUntil) }

const tenantColumns = `t.tenant, t.priority, t.messages_per_second, t.recipients_per_day, t.bytes_per_day,
	t.suspended_until, t.suspend_reason, t.created_at`

// tenantRow is where tenantColumns are scanned to.
type tenantRow struct {
	Tenant
	until *time.Time
}

func (r *tenantRow) targets() []any {
	return []any{&r.Name, &r.Priority, &r.Limits.MessagesPerSecond, &r.Limits.RecipientsPerDay, &r.Limits.BytesPerDay,
		&r.until, &r.SuspendReason, &r.CreatedAt}
}

func (r *tenantRow) tenant() Tenant {
	r.SuspendedUntil = timeOf(r.until)
	return r.Tenant
}

// CreateTenant adds a tenant. Its CreatedAt does not count. ErrExists: there
// is one of this name.
func (s *Store) CreateTenant(ctx context.Context, t Tenant) error {
	const q = `
		INSERT INTO tenants (tenant, priority, messages_per_second, recipients_per_day, bytes_per_day)
		VALUES (@tenant, @priority, @rate, @recipients, @bytes)`
	if _, err := s.plain.Exec(ctx, q, tenantArgs(t)); err != nil {
		return refused("create tenant "+t.Name, err)
	}
	return nil
}

func tenantArgs(t Tenant) pgx.NamedArgs {
	return pgx.NamedArgs{
		"tenant": t.Name, "priority": t.Priority, "rate": t.Limits.MessagesPerSecond, "recipients": t.Limits.RecipientsPerDay,
		"bytes": t.Limits.BytesPerDay, "until": nullTime(t.SuspendedUntil), "reason": t.SuspendReason,
	}
}

// Tenants returns all tenants by name.
func (s *Store) Tenants(ctx context.Context) ([]Tenant, error) {
	const q = `
		SELECT ` + tenantColumns + `
		FROM tenants t
		ORDER BY t.tenant`
	rows, err := s.plain.Query(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("tenants: %w", err)
	}
	tenants, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Tenant, error) {
		var r tenantRow
		err := row.Scan(r.targets()...)
		return r.tenant(), err
	})
	if err != nil {
		return nil, fmt.Errorf("tenants: %w", err)
	}
	return tenants, nil
}

// ChangeTenant lets change alter a tenant, but for its name, while nobody
// else does. An error of change is returned and alters nothing. ErrNotFound:
// there is no such tenant.
func (s *Store) ChangeTenant(ctx context.Context, name string, change func(*Tenant) error) error {
	const read = `
		SELECT ` + tenantColumns + `
		FROM tenants t
		WHERE t.tenant = $1
		FOR UPDATE`
	const write = `
		UPDATE tenants
		SET priority = @priority,
		    messages_per_second = @rate,
		    recipients_per_day = @recipients,
		    bytes_per_day = @bytes,
		    suspended_until = @until,
		    suspend_reason = @reason
		WHERE tenant = @tenant`
	err := inTx(ctx, s.plain, func(tx pgx.Tx) error {
		var r tenantRow
		if err := tx.QueryRow(ctx, read, name).Scan(r.targets()...); err != nil {
			return err
		}
		t := r.tenant()
		if err := change(&t); err != nil {
			return err
		}
		t.Name = name
		_, err := tx.Exec(ctx, write, tenantArgs(t))
		return err
	})
	return refused("change tenant "+name, err)
}

// DeleteTenant removes a tenant. Mail that was accepted from it is relayed
// all the same. all removes its credentials and domains with it; otherwise
// ErrInUse says that it has some. ErrNotFound: there is no such tenant.
func (s *Store) DeleteTenant(ctx context.Context, name string, all bool) error {
	const (
		credentials = `DELETE FROM credentials WHERE tenant = $1`
		domains     = `DELETE FROM domains WHERE tenant = $1`
		tenant      = `DELETE FROM tenants WHERE tenant = $1`
	)
	err := inTx(ctx, s.plain, func(tx pgx.Tx) error {
		if all {
			for _, q := range []string{credentials, domains} {
				if _, err := tx.Exec(ctx, q, name); err != nil {
					return err
				}
			}
		}
		tag, err := tx.Exec(ctx, tenant, name)
		if hasCode(err, foreignKeyViolation) {
			return ErrInUse
		}
		if err == nil && tag.RowsAffected() == 0 {
			return ErrNotFound
		}
		return err
	})
	return refused("delete tenant "+name, err)
}

// TenantDomain is a domain in whose name a tenant may send: "example.com", or
// "*.example.com" for the names below it.
type TenantDomain struct {
	Domain    string // as package auth returns a pattern
	Tenant    string
	CreatedAt time.Time
}

// AddDomain gives a domain to a tenant. ErrExists: some tenant has it.
// ErrNotFound: there is no such tenant.
func (s *Store) AddDomain(ctx context.Context, d TenantDomain) error {
	const q = `INSERT INTO domains (domain, tenant) VALUES ($1, $2)`
	_, err := s.plain.Exec(ctx, q, d.Domain, d.Tenant)
	return refused("add domain "+d.Domain, err)
}

// Domains returns the domains of a tenant, or of all for "".
func (s *Store) Domains(ctx context.Context, tenant string) ([]TenantDomain, error) {
	const q = `
		SELECT domain, tenant, created_at
		FROM domains
		WHERE $1 IN ('', tenant)
		ORDER BY tenant, domain`
	rows, err := s.plain.Query(ctx, q, tenant)
	if err != nil {
		return nil, fmt.Errorf("domains: %w", err)
	}
	domains, err := pgx.CollectRows(rows, pgx.RowToStructByPos[TenantDomain])
	if err != nil {
		return nil, fmt.Errorf("domains: %w", err)
	}
	return domains, nil
}

// DeleteDomain takes a domain from its tenant. ErrNotFound: none has it.
func (s *Store) DeleteDomain(ctx context.Context, domain string) error {
	const q = `DELETE FROM domains WHERE domain = $1`
	tag, err := s.plain.Exec(ctx, q, domain)
	if err == nil && tag.RowsAffected() == 0 {
		return ErrNotFound
	}
	return refused("delete domain "+domain, err)
}

// refused names what failed. What a caller branches on becomes a sentinel.
func refused(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pgx.ErrNoRows), hasCode(err, foreignKeyViolation):
		err = ErrNotFound
	case hasCode(err, uniqueViolation):
		err = ErrExists
	}
	return fmt.Errorf("%s: %w", what, err)
}

// timeOf is the time of a column that may be null.
func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// nullTime is null for the zero time.
func nullTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
