package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

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

// chosen are the arguments of Filter.args in the order of the functions.
const chosen = `@id, @domain, @from, @site, @tenant, @campaign, @to, @older, @reply, @everything`

// operations are the statements of the operations.
var operations = map[Operation]string{
	Hold:    `SELECT hold(` + chosen + `)`,
	Release: `SELECT release(` + chosen + `)`,
	Retry:   `SELECT retry_now(` + chosen + `)`,
	Fail:    `SELECT fail(@reason, ` + chosen + `)`,
	Cancel:  `SELECT cancel(@reason, ` + chosen + `)`,
}

// Operate does op to every recipient that the filter chooses and that is in
// no transaction with a remote host. It returns how many changed. Errors: an
// empty filter, for that is the whole queue. reason is of Fail and Cancel.
func (s *Store) Operate(ctx context.Context, op Operation, f Filter, reason string) (changed int64, err error) {
	return changed, s.operate(ctx, op, f, reason, &changed, nil)
}

// errDryRun takes back what was only tried.
var errDryRun = errors.New("dry run")

// WouldOperate returns how many recipients Operate would change now. It does
// so, counts, and takes it back: no transaction with one of them begins
// meanwhile.
func (s *Store) WouldOperate(ctx context.Context, op Operation, f Filter) (changed int64, err error) {
	if err := s.operate(ctx, op, f, "", &changed, errDryRun); !errors.Is(err, errDryRun) {
		return 0, err
	}
	return changed, nil
}

// operate returns then from inside the transaction: an error takes all back.
func (s *Store) operate(ctx context.Context, op Operation, f Filter, reason string, changed *int64, then error) error {
	if f == (Filter{}) {
		return errors.New("choose recipients by at least one of queue id, domain, reverse-path, forward-path, site, tenant, campaign, age, last reply; or say that all are meant")
	}
	if f.Place != "" {
		return errors.New("recipients change their place by themselves: it is no way to choose them")
	}
	args := f.args()
	args["reason"] = reason
	err := pgx.BeginFunc(ctx, s.plain, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, operations[op], args).Scan(changed); err != nil {
			return err
		}
		return then
	})
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
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
