package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// RelayCredential is what we authenticate by at a smart host.
type RelayCredential struct {
	Name      string
	Username  string
	Secret    string // never in a list
	UpdatedAt time.Time
}

// RelayCredential returns a credential with its secret. ErrNotFound: there is
// none of the name. Only delivery may ask.
func (s *Store) RelayCredential(ctx context.Context, name string) (RelayCredential, error) {
	const q = `SELECT name, username, secret, updated_at FROM relay_credentials WHERE name = $1`
	var c RelayCredential
	err := s.plain.QueryRow(ctx, q, name).Scan(&c.Name, &c.Username, &c.Secret, &c.UpdatedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return RelayCredential{}, fmt.Errorf("relay credential %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return RelayCredential{}, fmt.Errorf("relay credential %s: %w", name, err)
	}
	return c, nil
}

// RelayCredentials lists the credentials, without their secrets.
func (s *Store) RelayCredentials(ctx context.Context) ([]RelayCredential, error) {
	const q = `SELECT name, username, updated_at FROM relay_credentials ORDER BY name`
	rows, err := s.plain.Query(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("relay credentials: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c RelayCredential, err error) {
		return c, row.Scan(&c.Name, &c.Username, &c.UpdatedAt)
	})
	if err != nil {
		return nil, fmt.Errorf("relay credentials: %w", err)
	}
	return list, nil
}

// SetRelayCredential adds a credential, or gives it another user name and
// secret. Not by ON CONFLICT, which operators could not do: it reads the
// secret.
func (s *Store) SetRelayCredential(ctx context.Context, c RelayCredential) error {
	const change = `UPDATE relay_credentials SET username = $2, secret = $3, updated_at = now() WHERE name = $1`
	const add = `INSERT INTO relay_credentials (name, username, secret) VALUES ($1, $2, $3)`
	err := inTx(ctx, s.plain, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, change, c.Name, c.Username, c.Secret)
		if err == nil && tag.RowsAffected() == 0 {
			_, err = tx.Exec(ctx, add, c.Name, c.Username, c.Secret)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("relay credential %s: %w", c.Name, err)
	}
	return nil
}

// DeleteRelayCredential removes a credential. ErrInUse: a rule names it.
// ErrNotFound: there is none.
func (s *Store) DeleteRelayCredential(ctx context.Context, name string) error {
	return s.removed(ctx, "relay credential "+name, `DELETE FROM relay_credentials WHERE name = $1`, name)
}
