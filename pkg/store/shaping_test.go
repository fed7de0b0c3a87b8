package store_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

func TestVersionsOfShaping(t *testing.T) {
	f := setup(t)
	if version, _, err := f.ShapingHead(t.Context()); err != nil || version != 0 {
		t.Fatalf("head %d, %v", version, err)
	}
	if _, err := f.Shaping(t.Context(), 0); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("no version: %v", err)
	}
	var last int64
	for _, text := range []string{"one", "two"} {
		var err error
		if last, err = f.ApplyShaping(t.Context(), text, "note "+text, "me"); err != nil {
			t.Fatal(err)
		}
	}
	if version, _, err := f.ShapingHead(t.Context()); err != nil || version != last {
		t.Errorf("head %d, %v, want %d", version, err, last)
	}
	if v, err := f.Shaping(t.Context(), 0); err != nil || v.Text != "two" || v.Note != "note two" || v.By != "me" {
		t.Errorf("%+v, %v", v, err)
	}
	if text, err := f.ShapingText(t.Context(), last-1); err != nil || text != "one" {
		t.Errorf("%q, %v", text, err)
	}
	history, err := f.ShapingHistory(t.Context(), 10)
	if err != nil || len(history) != 2 || history[0].Version != last || history[0].Bytes != 3 || history[0].Text != "" {
		t.Errorf("%+v, %v", history, err)
	}
}

func TestSitesOfShaping(t *testing.T) {
	f := setup(t)
	for _, site := range []mail.Site{"mx.one.test", "mx.two.test", "mx.two.test"} {
		if err := f.SetShapingSite(t.Context(), "d.example", site); err != nil {
			t.Fatal(err)
		}
	}
	_, at, err := f.ShapingHead(t.Context())
	if err != nil || at.Before(time.Now().Add(-time.Minute)) {
		t.Errorf("changed at %v, %v", at, err)
	}
	sites, err := f.ShapingSites(t.Context())
	if diff := cmp.Diff(map[mail.Domain]mail.Site{"d.example": "mx.two.test"}, sites); err != nil || diff != "" {
		t.Error(diff, err)
	}
}

func TestMeasures(t *testing.T) {
	f := setup(t)
	hour := time.Now().Add(time.Hour)
	order := func(all ...mail.Measure) {
		t.Helper()
		for i := range all {
			all[i].Reason, all[i].By = "421 later", `provider."p"`
		}
		if err := f.Order(t.Context(), all); err != nil {
			t.Fatal(err)
		}
	}
	order(mail.Measure{Kind: mail.MeasureSuspend, Site: "mx.test", Source: "one", Until: hour},
		mail.Measure{Kind: mail.MeasureSet, Site: "mx.test", Key: "connection_limit", Value: "1", Until: hour},
		mail.Measure{Kind: mail.MeasureSuspend, Tenant: "acme", Until: hour})
	order(mail.Measure{Kind: mail.MeasureSuspend, Site: "mx.test", Source: "one", Until: hour.Add(-30 * time.Minute)},
		mail.Measure{Kind: mail.MeasureSet, Site: "mx.test", Key: "connection_limit", Value: "2", Until: hour.Add(time.Hour)})
	all, err := f.Measures(t.Context())
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	if all[0].Until.Before(hour.Add(-time.Minute)) || all[1].Until.Before(hour.Add(time.Hour-time.Minute)) || all[1].Value != "2" || all[2].Tenant != "acme" {
		t.Errorf("%+v: want the longer one of each pair, the later value", all)
	}
	if err := f.Order(t.Context(), []mail.Measure{{Kind: mail.MeasureSuspend, Until: hour}}); err == nil {
		t.Error("a measure that covers everything was taken")
	}

	// The mail of the tenant waits for the end of its suspension.
	sub := submission(1)
	sub.Tenant = "acme"
	f.accept(t, sub)
	w := f.worker(t)
	st := settlement(f.claim(t, w, sub), mail.Outcome{Action: mail.Delayed, Phase: mail.PhaseQueue, Untried: true, NextAttemptAt: hour})
	f.settle(t, w, st)
	for i, want := range []bool{true, false} {
		if ended, err := f.CancelMeasure(t.Context(), all[2].ID, "me"); err != nil || ended != want {
			t.Errorf("cancelled for the %d. time: %v, %v", i+1, ended, err)
		}
	}
	story, err := f.Show(t.Context(), sub.ID)
	if err != nil || story.Recipients[0].NextAttemptAt.After(time.Now().Add(5*time.Second)) {
		t.Errorf("next attempt at %v after the suspension, %v", story.Recipients[0].NextAttemptAt, err)
	}
	if n, err := f.WakeSuspended(t.Context(), all[2].ID); err != nil || n != 0 {
		t.Errorf("%d more were to wake, %v", n, err)
	}
	if all, err = f.Measures(t.Context()); err != nil || len(all) != 2 {
		t.Errorf("%+v, %v", all, err)
	}
}

// TestSuspensionsAreAll: what operators look at has the sites that were
// suspended by name too, and each recipient that waits for one says so.
func TestSuspensionsAreAll(t *testing.T) {
	f := setup(t)
	sub := submission(1)
	sub.Tenant = "acme"
	f.accept(t, sub)
	f.exec(t, "UPDATE recipients SET site = 'mx.test'")
	suspended := func() string {
		rows, err := f.Queue(t.Context(), store.Filter{}, 1)
		if err != nil {
			t.Fatal(err)
		}
		return rows[0].Suspended
	}
	if got := suspended(); got != "" {
		t.Errorf("nothing is suspended: %q", got)
	}
	if _, err := f.SuspendSite(t.Context(), "mx.test", time.Hour, "moves"); err != nil {
		t.Fatal(err)
	}
	if got := suspended(); !strings.HasPrefix(got, "site suspended until ") || !strings.HasSuffix(got, " by suspend_site: moves") {
		t.Errorf("site: %q", got)
	}
	f.exec(t, "UPDATE recipients SET site = 'provider:big/mx.test'")
	if got := suspended(); got != "" {
		t.Errorf("another site: %q", got)
	}
	if _, err := f.SuspendSite(t.Context(), "provider:big", time.Hour, "all of it"); err != nil {
		t.Fatal(err)
	}
	if got := suspended(); !strings.HasSuffix(got, ": all of it") {
		t.Errorf("all sites of a provider: %q", got)
	}
	if rows, err := f.Queue(t.Context(), store.Filter{Site: "provider:big"}, 10); err != nil || len(rows) != 1 {
		t.Errorf("the queue of a provider: %+v, %v", rows, err)
	}
	if n, err := f.Operate(t.Context(), store.Hold, store.Filter{Site: "provider:big"}, ""); err != nil || n != 1 {
		t.Errorf("hold of a provider: %d, %v", n, err)
	}
	f.exec(t, "SELECT release(site => 'provider:big')")
	m := mail.Measure{Kind: mail.MeasureSuspend, Tenant: "acme", Until: time.Now().Add(2 * time.Hour), By: "ann", Reason: "complaints"}
	if err := f.Order(t.Context(), []mail.Measure{m}); err != nil {
		t.Fatal(err)
	}
	if got := suspended(); !strings.HasPrefix(got, "tenant acme suspended until ") || !strings.HasSuffix(got, " by ann: complaints") {
		t.Errorf("tenant: %q", got)
	}
	all, err := f.Suspensions(t.Context())
	if err != nil || len(all) != 3 || all[0].Tenant != "acme" || all[0].ID == 0 || all[1].Site != "mx.test" || all[1].ID != 0 {
		t.Errorf("suspensions %+v, %v", all, err)
	}
}
