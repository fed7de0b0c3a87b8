package store

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// TLSResult is one kind of result of TLS sessions, as RFC 8460 §4.3 and §4.4
// tell them apart.
type TLSResult struct {
	Day    time.Time // midnight in UTC
	Domain mail.Domain

	PolicyType   string // tlsa, sts, no-policy-found
	PolicyDomain string
	Policy       string // its lines

	Type          string // "" is success; of that the rest is not known
	SendingIP     netip.Addr
	ReceivingHost string
	ReceivingIP   netip.Addr
	Reason        string
}

// digest tells results of one day and domain apart.
func (r TLSResult) digest() []byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q %s %q %s %q", r.PolicyType, r.PolicyDomain, r.Policy,
		r.Type, r.SendingIP, r.ReceivingHost, r.ReceivingIP, r.Reason))
	return sum[:16]
}

// TLSCount is how many sessions had a result.
type TLSCount struct {
	TLSResult
	Sessions int64
}

// TLSReport is a report that is to be sent, or was.
type TLSReport struct {
	Day     time.Time
	Domain  mail.Domain
	RUA     string
	Tries   int       // the fence: those that were begun
	NextAt  time.Time // zero: sent, or given up
	SentAt  time.Time // zero: not sent
	Trouble string    // with the last try; "" if there was none
}

// CountTLS adds counts to those of their days. Reports to all of rua, by
// domain, become due when the day is over: RFC 8460 §4.2 wants them spread
// over four hours.
func (s *Store) CountTLS(ctx context.Context, counts []TLSCount, rua map[mail.Domain][]string) error {
	const (
		add = `INSERT INTO tls_results AS t (day, domain, digest, policy_type, policy_domain, policy, result, sending_ip, receiving_host, receiving_ip, reason, sessions)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
ON CONFLICT (day, domain, digest) DO UPDATE SET sessions = t.sessions + excluded.sessions`
		plan = `INSERT INTO tls_reports (day, domain, rua, next_at)
SELECT $1, $2, uri, ($1::date + 1)::timestamp AT TIME ZONE 'UTC' + interval '10 minutes' + random() * interval '230 minutes'
FROM unnest($3::text[]) uri
ON CONFLICT DO NOTHING`
	)
	type dayOf struct {
		day    time.Time
		domain mail.Domain
	}
	// In one order, so that two workers never wait for each other.
	counts = slices.SortedFunc(slices.Values(counts), func(a, b TLSCount) int {
		if c := a.Day.Compare(b.Day); c != 0 {
			return c
		}
		if c := strings.Compare(string(a.Domain), string(b.Domain)); c != 0 {
			return c
		}
		return strings.Compare(string(a.digest()), string(b.digest()))
	})
	planned := map[dayOf]bool{}
	batch := &pgx.Batch{}
	for _, c := range counts {
		batch.Queue(add, c.Day, c.Domain, c.digest(), c.PolicyType, c.PolicyDomain, clean(c.Policy), c.Type, nullAddress(c.SendingIP),
			c.ReceivingHost, nullAddress(c.ReceivingIP), clean(c.Reason), c.Sessions)
	}
	for _, c := range counts {
		if of := (dayOf{c.Day, c.Domain}); !planned[of] {
			planned[of] = true
			uris := slices.Sorted(slices.Values(rua[c.Domain]))
			batch.Queue(plan, c.Day, c.Domain, slices.Compact(uris))
		}
	}
	err := inTx(ctx, s.plain, func(tx pgx.Tx) error { return tx.SendBatch(ctx, batch).Close() })
	if err != nil {
		return fmt.Errorf("count TLS results: %w", err)
	}
	return nil
}

// clean makes a text of others one that Postgres takes.
func clean(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "?"), "\x00", "?")
}

const tlsReportColumns = `day, domain, rua, tries, coalesce(next_at, '0001-01-01Z'), coalesce(sent_at, '0001-01-01Z'), trouble`

func scanTLSReport(row pgx.CollectableRow) (r TLSReport, err error) {
	return r, row.Scan(&r.Day, &r.Domain, &r.RUA, &r.Tries, &r.NextAt, &r.SentAt, &r.Trouble)
}

// TakeTLSReports takes up to limit reports that are due, each for as long as
// it is put off by: 5 minutes, then twice as long each time. What could not be
// sent for a day is given up (RFC 8460 §3).
func (s *Store) TakeTLSReports(ctx context.Context, limit int) ([]TLSReport, error) {
	const (
		giveUp = `UPDATE tls_reports SET next_at = NULL
WHERE next_at <= now() AND (day + 1)::timestamp AT TIME ZONE 'UTC' + interval '28 hours' < now()`
		take = `UPDATE tls_reports t SET tries = t.tries + 1, next_at = now() + interval '5 minutes' * 2 ^ least(t.tries, 6)
FROM (SELECT day, domain, rua FROM tls_reports WHERE next_at <= now() ORDER BY next_at LIMIT $1 FOR UPDATE SKIP LOCKED) due (on_day, of, at)
WHERE t.day = due.on_day AND t.domain = due.of AND t.rua = due.at
RETURNING ` + tlsReportColumns
	)
	if _, err := s.plain.Exec(ctx, giveUp); err != nil {
		return nil, fmt.Errorf("take TLS reports: %w", err)
	}
	rows, err := s.plain.Query(ctx, take, limit)
	if err != nil {
		return nil, fmt.Errorf("take TLS reports: %w", err)
	}
	due, err := pgx.CollectRows(rows, scanTLSReport)
	if err != nil {
		return nil, fmt.Errorf("take TLS reports: %w", err)
	}
	return due, nil
}

// TLSReports returns the reports of the last days, latest first.
func (s *Store) TLSReports(ctx context.Context, limit int) ([]TLSReport, error) {
	const q = `SELECT ` + tlsReportColumns + ` FROM tls_reports ORDER BY day DESC, domain, rua LIMIT $1`
	rows, err := s.plain.Query(ctx, q, limit)
	if err != nil {
		return nil, fmt.Errorf("TLS reports: %w", err)
	}
	all, err := pgx.CollectRows(rows, scanTLSReport)
	if err != nil {
		return nil, fmt.Errorf("TLS reports: %w", err)
	}
	return all, nil
}

// TLSCounts returns what a report is about, in an order that does not change.
func (s *Store) TLSCounts(ctx context.Context, r TLSReport) ([]TLSCount, error) {
	const q = `SELECT day, domain, policy_type, policy_domain, policy, result, sending_ip, receiving_host, receiving_ip, reason, sessions
FROM tls_results WHERE day = $1 AND domain = $2
ORDER BY policy_type, policy_domain, policy, result, digest`
	rows, err := s.plain.Query(ctx, q, r.Day, r.Domain)
	if err != nil {
		return nil, fmt.Errorf("TLS results of %s: %w", r.Domain, err)
	}
	counts, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c TLSCount, err error) {
		var from, to *netip.Addr
		err = row.Scan(&c.Day, &c.Domain, &c.PolicyType, &c.PolicyDomain, &c.Policy, &c.Type, &from, &c.ReceivingHost, &to, &c.Reason, &c.Sessions)
		if from != nil {
			c.SendingIP = *from
		}
		if to != nil {
			c.ReceivingIP = *to
		}
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("TLS results of %s: %w", r.Domain, err)
	}
	return counts, nil
}

// FinishTLSReport says that a report was sent. One that goes by mail is
// accepted in the same transaction: exactly once, whoever repeats it. It
// reports whether the report was still ours to send.
func (s *Store) FinishTLSReport(ctx context.Context, r TLSReport, mailed *mail.Submission) (finished bool, err error) {
	const q = `UPDATE tls_reports SET next_at = NULL, sent_at = now(), trouble = ''
WHERE day = $1 AND domain = $2 AND rua = $3 AND tries = $4 AND next_at IS NOT NULL`
	err = inTx(ctx, s.durable, func(tx pgx.Tx) error {
		done, err := tx.Exec(ctx, q, r.Day, r.Domain, r.RUA, r.Tries)
		finished = err == nil && done.RowsAffected() == 1
		if !finished || mailed == nil {
			return err
		}
		return acceptInTx(ctx, tx, mailed)
	})
	if err != nil {
		return false, fmt.Errorf("finish the TLS report to %s: %w", r.RUA, err)
	}
	return finished, nil
}

// FailTLSReport notes why a report was not sent, and that nobody tries again
// if it never can be.
func (s *Store) FailTLSReport(ctx context.Context, r TLSReport, never bool) error {
	const q = `UPDATE tls_reports SET trouble = $5, next_at = CASE WHEN $6 THEN NULL ELSE next_at END
WHERE day = $1 AND domain = $2 AND rua = $3 AND tries = $4 AND sent_at IS NULL`
	if _, err := s.plain.Exec(ctx, q, r.Day, r.Domain, r.RUA, r.Tries, clean(r.Trouble), never); err != nil {
		return fmt.Errorf("note the trouble with a TLS report: %w", err)
	}
	return nil
}

// ForgetTLSReports deletes what is older than a week.
func (s *Store) ForgetTLSReports(ctx context.Context) error {
	const q = `WITH reports AS (DELETE FROM tls_reports WHERE day < current_date - 7)
DELETE FROM tls_results WHERE day < current_date - 7`
	if _, err := s.plain.Exec(ctx, q); err != nil {
		return fmt.Errorf("forget TLS reports: %w", err)
	}
	return nil
}
