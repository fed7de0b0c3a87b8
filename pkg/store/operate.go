package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

// Operation is what an operator does to recipients of the queue.
type Operation string

// The operations: the functions of the same names in schema postrider.
const (
	Hold    Operation = "hold"    // not tried until released
	Release Operation = "release" // ends Hold
	Retry   Operation = "retry"   // due now, with a fresh route
	Fail    Operation = "fail"    // final; the sender gets a DSN with the reason
	Cancel  Operation = "cancel"  // final; nobody is told
)

// operations are the statements of the operations.
var operations = map[Operation]string{
	Hold:    `SELECT hold(@id, @domain, @path, @site, @tenant, @campaign)`,
	Release: `SELECT release(@id, @domain, @path, @site, @tenant, @campaign)`,
	Retry:   `SELECT retry_now(@id, @domain, @path, @site, @tenant, @campaign)`,
	Fail:    `SELECT fail(@reason, @id, @domain, @path, @site, @tenant, @campaign)`,
	Cancel:  `SELECT cancel(@reason, @id, @domain, @path, @site, @tenant, @campaign)`,
}

// Operate does op to every recipient that the filter chooses and that is in
// no transaction with a remote host. It returns how many changed. Errors: an
// empty filter, for that is the whole queue. reason is of Fail and Cancel.
func (s *Store) Operate(ctx context.Context, op Operation, f Filter, reason string) (changed int64, err error) {
	if f == (Filter{}) {
		return 0, errors.New("choose recipients by at least one of queue id, domain, reverse-path, site, tenant, campaign")
	}
	args := f.args()
	args["reason"] = reason
	if err := s.plain.QueryRow(ctx, operations[op], args).Scan(&changed); err != nil {
		return 0, fmt.Errorf("%s: %w", op, err)
	}
	return changed, nil
}

// SuspendSite stops transactions with a site for a while and returns how many
// recipients wait for it. ResumeSite ends that and reports whether there was
// a suspension.
func (s *Store) SuspendSite(ctx context.Context, site mail.Site, d time.Duration, reason string) (waiting int64, err error) {
	const q = `SELECT suspend_site($1, $2, $3)`
	if err := s.plain.QueryRow(ctx, q, site, d, reason).Scan(&waiting); err != nil {
		return 0, fmt.Errorf("suspend %s: %w", site, err)
	}
	return waiting, nil
}

// ResumeSite is the end of SuspendSite.
func (s *Store) ResumeSite(ctx context.Context, site mail.Site) (resumed bool, err error) {
	const q = `SELECT resume_site($1) > 0`
	if err := s.plain.QueryRow(ctx, q, site).Scan(&resumed); err != nil {
		return false, fmt.Errorf("resume %s: %w", site, err)
	}
	return resumed, nil
}
