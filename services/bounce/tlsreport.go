package bounce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/dkim"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/roots"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/bounce/internal/tlsrpt"
)

const (
	tlsReportsEvery  = 5 * time.Second
	tlsReportsAtOnce = 20
	tlsReportLife    = 24 * time.Hour // of one that goes by mail
	tidyEvery        = time.Hour
)

// tlsReporter sends the reports on TLS of days that are over: RFC 8460.
type tlsReporter struct {
	*bounce
	poster *tlsrpt.Poster
	signer *dkim.Signer // nil: reports by mail are not signed here
	tidied time.Time
}

func newTLSReporter(b *bounce) (*tlsReporter, error) {
	pool, err := roots.Load(b.cfg.Roots)
	if err != nil {
		return nil, err
	}
	signer, err := b.cfg.TLSReports.Signer()
	if err != nil {
		return nil, err
	}
	return &tlsReporter{bounce: b, signer: signer, poster: tlsrpt.NewPoster(tlsrpt.PostConfig{
		Servers: b.cfg.DNSServers, Allow: b.cfg.AllowTargets, Roots: pool,
	})}, nil
}

// errUnsigned: RFC 8460 §3 has receivers ignore reports without a signature
// of the domain that they come from.
var errUnsigned = errors.New("reports by mail want a signature: POSTRIDER_TLSRPT_DKIM_KEY is not set")

// announce logs how reports by mail are signed.
func (r *tlsReporter) announce() {
	switch {
	case r.signer == nil && r.cfg.TLSReports.Unsigned:
		slog.Info("TLS reports by mail leave unsigned, for a smart host to sign")
	case r.signer == nil:
		slog.Warn("TLS reports go by HTTPS only: those by mail want a signature, and POSTRIDER_TLSRPT_DKIM_KEY is not set")
	case r.signer.Weakness() != "":
		slog.Warn("TLS reports by mail are signed with a key that some receivers may not take", "domain", string(r.signer.Domain), "selector", r.signer.Selector, "why", r.signer.Weakness())
	default:
		slog.Info("TLS reports by mail are signed", "domain", string(r.signer.Domain), "selector", r.signer.Selector)
	}
}

// run sends what is due until ctx is done; work is the context of what is
// being sent. Any number of processes may do so: rows are taken.
func (r *tlsReporter) run(ctx, work context.Context) error {
	r.announce()
	failing := false
	for ; ctx.Err() == nil; wait(ctx, tlsReportsEvery) {
		err := r.round(ctx, work)
		switch {
		case ctx.Err() != nil:
		case err != nil && !failing:
			slog.Warn("TLS reports cannot be sent; trying on", "error", err)
		case err == nil && failing:
			slog.Info("TLS reports can be sent again")
		}
		failing = err != nil
	}
	return nil
}

func (r *tlsReporter) round(ctx, work context.Context) error {
	if time.Since(r.tidied) > tidyEvery {
		if err := r.db.ForgetTLSReports(work); err != nil {
			return err
		}
		r.tidied = time.Now()
	}
	for ctx.Err() == nil {
		due, err := r.db.TakeTLSReports(work, tlsReportsAtOnce)
		if err != nil || len(due) == 0 {
			return err
		}
		var g errgroup.Group
		g.SetLimit(parallel)
		for _, report := range due {
			g.Go(func() error { return r.send(work, report) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// send sends one report, or notes why it could not. The error is ours.
func (r *tlsReporter) send(ctx context.Context, to store.TLSReport) error {
	counts, err := r.db.TLSCounts(ctx, to)
	if err != nil {
		return err
	}
	report := &tlsrpt.Report{
		Submitter: r.cfg.Hostname, Organization: cmp.Or(r.cfg.TLSReports.Organization, r.cfg.Hostname),
		Contact: r.cfg.TLSReports.Contact, Domain: to.Domain, Day: to.Day.UTC(), Counts: counts,
	}
	var failed error
	way := "mail"
	if scheme, _, _ := strings.Cut(to.RUA, ":"); strings.EqualFold(scheme, "https") {
		way = "https"
		failed, err = r.post(ctx, report, to)
	} else {
		failed, err = r.mail(ctx, report, to)
	}
	switch {
	case err != nil:
		return err
	case failed == nil:
		slog.Info("TLS report sent", "domain", to.Domain, "day", to.Day.Format(time.DateOnly), "to", to.RUA)
		r.metrics.tlsReport(ctx, way, "sent")
		return nil
	}
	slog.Info("TLS report not sent", "domain", to.Domain, "day", to.Day.Format(time.DateOnly), "to", to.RUA, "tries", to.Tries, "error", failed)
	r.metrics.tlsReport(ctx, way, "failed")
	to.Trouble = failed.Error()
	return r.db.FailTLSReport(ctx, to, errors.Is(failed, tlsrpt.ErrRUA))
}

// post sends a report by HTTPS. A host that took it before we could write that
// down gets it again, with the same report id.
func (r *tlsReporter) post(ctx context.Context, report *tlsrpt.Report, to store.TLSReport) (failed, err error) {
	data, err := report.JSON()
	if err != nil {
		return nil, fmt.Errorf("write a TLS report: %w", err)
	}
	if failed := r.poster.Post(ctx, to.RUA, data); failed != nil {
		return failed, nil
	}
	_, err = r.db.FinishTLSReport(ctx, to, nil)
	return nil, err
}

// mail accepts a report as new mail, which no policy keeps from the domain
// that it is about.
func (r *tlsReporter) mail(ctx context.Context, report *tlsrpt.Report, to store.TLSReport) (failed, err error) {
	path, domain, failed := tlsrpt.ParseMailto(to.RUA)
	switch {
	case failed != nil:
		return failed, nil
	case r.signer == nil && !r.cfg.TLSReports.Unsigned:
		return errUnsigned, nil
	}
	now, id := time.Now(), mail.NewQueueID()
	content, headerID, err := report.Compose(path, id, now)
	if err != nil {
		return nil, fmt.Errorf("write a TLS report: %w", err)
	}
	if r.signer != nil {
		field, err := r.signer.Sign(content)
		if err != nil {
			return nil, fmt.Errorf("write a TLS report: %w", err)
		}
		content = append([]byte(field), content...)
	}
	sub := &mail.Submission{
		Message: mail.Message{
			ID:          id,
			Envelope:    mail.Envelope{ReversePath: mail.ReversePath(r.cfg.TLSReports.Contact), Body: mail.Body7Bit},
			SizeBytes:   int64(len(content)),
			AcceptedAt:  now,
			TLSOptional: true,
		},
		Recipients: []mail.Recipient{{
			No: 1, ForwardPath: path, Domain: domain,
			Notify:    mail.NotifyNever,
			ExpiresAt: now.Add(tlsReportLife),
		}},
		Content:  content,
		Client:   mail.Client{Hello: r.cfg.Hostname},
		HeaderID: headerID,
	}
	finished, err := r.db.FinishTLSReport(ctx, to, sub)
	if err == nil && finished {
		r.publish(ctx, []*mail.Submission{sub})
	}
	return nil, err
}
