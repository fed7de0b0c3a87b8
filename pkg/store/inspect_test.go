package store_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

func TestShowTellsTheWholeStory(t *testing.T) {
	f := setup(t)
	sub := submission(2)
	sub.Client = mail.Client{Address: netip.MustParseAddr("192.0.2.7"), Hello: "client.example", Protocol: "ESMTP"}
	f.accept(t, sub)
	w := f.worker(t)
	st := settlement(f.claim(t, w, sub), mail.Outcome{Action: mail.Relayed, Phase: mail.PhaseDot,
		Status: mail.EnhancedCode{Class: 2}, Reply: mail.Reply{Code: 250, Lines: []string{"taken"}}})
	next := time.Now().Add(5 * time.Minute).Truncate(time.Microsecond)
	st.Outcomes[1].Action, st.Outcomes[1].NextAttemptAt = mail.Delayed, next
	st.Outcomes[1].Reply = mail.Reply{Code: 452, Lines: []string{"later"}}
	st.Transaction.Remote = netip.MustParseAddrPort("198.51.100.1:25")
	f.settle(t, w, st)
	report := submission(1)
	report.ReportOf = sub.ID
	f.accept(t, report)

	story, err := f.Show(t.Context(), sub.ID)
	if err != nil {
		t.Fatal(err)
	}
	if story.Message.Traceparent != sub.Traceparent || story.Client != sub.Client || story.HeaderID != sub.HeaderID {
		t.Errorf("message %+v from %+v", story.Message, story.Client)
	}
	if len(story.Reports) != 1 || story.Reports[0] != report.ID {
		t.Errorf("reports %v, want %s", story.Reports, report.ID)
	}
	r := story.Recipients
	if len(r) != 2 || r[0].State != "relayed" || r[0].FinalAt.IsZero() || r[1].State != "queued" || !r[1].NextAttemptAt.Equal(next) {
		t.Errorf("recipients %+v", r)
	}
	if len(story.Attempts) != 2 {
		t.Fatalf("attempts %+v, want one for each reply", story.Attempts)
	}
	for _, a := range story.Attempts {
		if a.Host != "mx.example.org" || a.Remote != st.Transaction.Remote || a.Worker != w || len(a.RecipientNos) != 1 {
			t.Errorf("attempt %+v", a)
		}
		if want := map[int32]string{1: "250 taken", 2: "452 later"}[a.RecipientNos[0]]; a.Reply != want {
			t.Errorf("reply %q, want %q", a.Reply, want)
		}
	}
	back, err := f.Show(t.Context(), report.ID)
	if err != nil || back.ReportOf != sub.ID {
		t.Errorf("the report is of %s (%v), want %s", back.ReportOf, err, sub.ID)
	}
	if _, err := f.Show(t.Context(), mail.NewQueueID()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a message that never was: %v", err)
	}
}

func TestQueueFilters(t *testing.T) {
	f := setup(t)
	one, two := submission(2), submission(1)
	two.Recipients[0].Domain, two.Recipients[0].ForwardPath = "example.net", "x@example.net"
	two.Tenant, two.Campaign = "acme", "spring"
	f.accept(t, one, two)
	for name, tc := range map[string]struct {
		filter store.Filter
		limit  int
		want   int
	}{
		"all":             {store.Filter{}, 10, 3},
		"limit":           {store.Filter{}, 2, 2},
		"id":              {store.Filter{ID: two.ID}, 10, 1},
		"domain":          {store.Filter{Domain: "Example.ORG"}, 10, 2},
		"tenant":          {store.Filter{Tenant: "acme"}, 10, 1},
		"campaign":        {store.Filter{Campaign: "spring"}, 10, 1},
		"site":            {store.Filter{Site: "nowhere"}, 10, 0},
		"both must match": {store.Filter{ID: two.ID, Domain: "example.org"}, 10, 0},
		"reverse-path":    {store.Filter{ReversePath: "sender@example.com"}, 10, 3},
		"another case":    {store.Filter{ReversePath: "Sender@EXAMPLE.com"}, 10, 3},
		"any text":        {store.Filter{ReversePath: "s*@example.*"}, 10, 3},
		"no other signs":  {store.Filter{ReversePath: "s_nder@example%"}, 10, 0},
		"forward-path":    {store.Filter{ForwardPath: "X@*"}, 10, 1},
		"reports":         {store.Filter{NullReversePath: true}, 10, 0},
		"young":           {store.Filter{OlderThan: time.Hour}, 10, 0},
		"never tried":     {store.Filter{LastReply: "4"}, 10, 0},
		"place":           {store.Filter{Place: "held"}, 10, 0},
		"no limit":        {store.Filter{}, 0, 3},
	} {
		rows, err := f.Queue(t.Context(), tc.filter, tc.limit)
		if err != nil {
			t.Fatal(name, err)
		}
		if len(rows) != tc.want {
			t.Errorf("%s: %d rows, want %d", name, len(rows), tc.want)
		}
	}
	rows, err := f.Queue(t.Context(), store.Filter{ID: two.ID}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if r := rows[0]; r.State != "queued" || r.Place != "waiting" || r.ForwardPath != "x@example.net" || r.NextAttemptAt.IsZero() {
		t.Errorf("row %+v", r)
	}
	sites, err := f.QueueBySite(t.Context())
	if err != nil || len(sites) != 1 || sites[0].Recipients != 3 || sites[0].Waiting != 3 {
		t.Errorf("by site %+v, %v", sites, err)
	}
}

func TestOperate(t *testing.T) {
	f := setup(t)
	sub := submission(3)
	f.accept(t, sub)
	all := store.Filter{ID: sub.ID}
	for _, step := range []struct {
		op    store.Operation
		want  int64
		state string
	}{
		{store.Hold, 3, "held"},
		{store.Hold, 0, "held"},
		{store.Retry, 0, "held"},
		{store.Release, 3, "queued"},
		{store.Retry, 3, "queued"},
		{store.Fail, 3, "failed"},
		{store.Cancel, 0, "failed"},
	} {
		got, err := f.Operate(t.Context(), step.op, all, "because")
		if err != nil || got != step.want {
			t.Errorf("%s: %d, %v, want %d", step.op, got, err, step.want)
		}
		if state := one[string](t, f, "SELECT DISTINCT state::text FROM recipients"); state != step.state {
			t.Errorf("after %s: %s, want %s", step.op, state, step.state)
		}
	}
	for _, op := range []store.Operation{store.Hold, store.Release, store.Retry, store.Fail} {
		campaign := submission(1)
		campaign.Campaign = "spring " + string(op)
		f.accept(t, campaign)
		if op == store.Release {
			f.exec(t, "SELECT hold(queue_id => $1)", campaign.ID)
		}
		if got, err := f.Operate(t.Context(), op, store.Filter{Campaign: campaign.Campaign}, "because"); err != nil || got != 1 {
			t.Errorf("%s by campaign: %d, %v", op, got, err)
		}
	}
	f.exec(t, "SELECT cancel('over', campaign => m.campaign) FROM messages m WHERE m.campaign <> ''")
	other := submission(1)
	f.accept(t, other)
	if got, err := f.Operate(t.Context(), store.Cancel, store.Filter{Domain: "example.org"}, "because"); err != nil || got != 1 {
		t.Errorf("cancel: %d, %v", got, err)
	}
	if _, err := f.Operate(t.Context(), store.Cancel, store.Filter{}, "because"); err == nil {
		t.Error("an empty filter cancels the whole queue")
	}
	f.accept(t, submission(2))
	if got, err := f.WouldOperate(t.Context(), store.Hold, store.Filter{Everything: true}); err != nil || got != 2 {
		t.Errorf("hold of everything, tried only: %d, %v, want 2", got, err)
	}
	if held := one[int64](t, f, "SELECT count(*) FROM recipients WHERE state = 'held'"); held != 0 {
		t.Errorf("%d recipients are held after a dry run", held)
	}
	if got, err := f.Operate(t.Context(), store.Hold, store.Filter{Everything: true}, ""); err != nil || got != 2 {
		t.Errorf("hold of everything: %d, %v, want 2", got, err)
	}
	f.balanced(t)
}

func TestRoutingTable(t *testing.T) {
	f := setup(t)
	f.accept(t, submission(2))
	rule := store.RoutingRule{Match: store.RouteMatch{Domain: "Example.org"}, Hosts: []string{"a.example:25", "b.example:587"}, TLS: mail.TLSVerify}
	if n, err := f.SetRoute(t.Context(), rule); err != nil || n != 2 {
		t.Errorf("set: %d retried, %v, want 2", n, err)
	}
	rules, err := f.Routing(t.Context())
	if err != nil || len(rules) != 1 || rules[0].Match.Domain != "example.org" || len(rules[0].Hosts) != 2 || rules[0].TLS != mail.TLSVerify {
		t.Errorf("routing %+v, %v", rules, err)
	}
	if n, err := f.DeleteRoute(t.Context(), store.RouteMatch{Domain: "EXAMPLE.org"}); err != nil || n != 2 {
		t.Errorf("delete: %d retried, %v, want 2", n, err)
	}
	if _, err := f.DeleteRoute(t.Context(), store.RouteMatch{Domain: "example.org"}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("second delete: %v", err)
	}
}

func TestSuspendAndResumeSite(t *testing.T) {
	f := setup(t)
	sub := submission(1)
	f.accept(t, sub)
	w := f.worker(t)
	f.settle(t, w, settlement(f.claim(t, w, sub), delayed(time.Now().Add(time.Hour))))
	if n, err := f.SuspendSite(t.Context(), "example.org", time.Hour, "blocked"); err != nil || n != 1 {
		t.Errorf("suspend: %d waiting, %v, want 1", n, err)
	}
	sites, err := f.QueueBySite(t.Context())
	if err != nil || len(sites) != 1 || sites[0].SuspendedUntil.IsZero() || sites[0].SuspendReason != "blocked" {
		t.Errorf("by site %+v, %v", sites, err)
	}
	for _, want := range []bool{true, false} {
		if got, err := f.ResumeSite(t.Context(), "example.org"); err != nil || got != want {
			t.Errorf("resume: %v, %v, want %v", got, err, want)
		}
	}
}
