package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

// TestMailOfABusyDomainGoesStraight: ingress hands it to the home of its site,
// past the resolver, and each message arrives once; a rule of the routing
// table is followed all the same.
func TestMailOfABusyDomainGoesStraight(t *testing.T) {
	w := shared.Get(t)
	old := w.Host(t, "mx.busy.test", smtptest.Script{Discard: true})
	next := w.Host(t, "smart.busy.test", smtptest.Script{Discard: true})
	w.MX(t, "busy.test", "10 mx.busy.test")
	sent := 0
	w.Eventually(t, deadline, "mail goes straight", func(ctx context.Context) error {
		crowd(t, w, "busy.test")
		sent += crowdSize
		straight, err := w.Service("ingress", 0).Metric(ctx, "postrider_ingress_straight_total")
		if err == nil && straight < crowdSize {
			err = fmt.Errorf("%.0f messages went straight", straight)
		}
		return err
	})
	old.WaitMessages(t, sent, deadline)

	if _, err := w.Output(t.Context(), "route", "set", "busy.test", next.Addr().String()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := w.Output(context.WithoutCancel(t.Context()), "route", "delete", "busy.test"); err != nil {
			t.Error(err)
		}
	}()
	w.Eventually(t, deadline, "mail goes by the rule", func(context.Context) error {
		crowd(t, w, "busy.test")
		sent += crowdSize
		if next.Count() == 0 {
			return errors.New("none came to the smart host")
		}
		return nil
	})
	w.Eventually(t, deadline, "all mail has arrived", func(ctx context.Context) error {
		if got := old.Count() + next.Count(); got != sent {
			return fmt.Errorf("%d of %d messages", got, sent)
		}
		var queued int
		err := w.DB.QueryRow(ctx, `SELECT count(*) FROM postrider.recipients WHERE domain = 'busy.test' AND state <> 'relayed'`).Scan(&queued)
		if err == nil && queued > 0 {
			err = fmt.Errorf("%d recipients are not settled", queued)
		}
		return err
	})
}

const crowdSize = 40

// crowd sends that many messages to a domain, twenty at a time.
func crowd(t *testing.T, w *world.World, domain string) {
	t.Helper()
	var g errgroup.Group
	g.SetLimit(20)
	for i := range crowdSize {
		g.Go(func() error {
			_, err := submit.Send(t.Context(), w.SMTP(0), submit.Message{From: "me@sender.test", To: []string{fmt.Sprintf("u%d@%s", i, domain)}, Content: content("busy")})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}
