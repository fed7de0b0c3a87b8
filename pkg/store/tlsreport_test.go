package store_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// TestTLSReports: counts of workers add up, a report is due when its day is
// over, one process has it at a time, and by mail it leaves exactly once.
func TestTLSReports(t *testing.T) {
	f := setup(t)
	today := time.Now().UTC().Truncate(24 * time.Hour)
	good := store.TLSResult{Day: today, Domain: "a.test", PolicyType: "sts", PolicyDomain: "a.test", Policy: "version: STSv1\nmx: mx.a.test"}
	bad := good
	bad.Type, bad.ReceivingHost, bad.ReceivingIP, bad.Reason = "certificate-expired", "mx.a.test", netip.MustParseAddr("192.0.2.1"), "bad \x00\xff"
	rua := map[mail.Domain][]string{"a.test": {"mailto:r@b.test", "https://c.test/", "mailto:r@b.test"}}
	for range 2 {
		if err := f.CountTLS(t.Context(), []store.TLSCount{{TLSResult: good, Sessions: 3}, {TLSResult: bad, Sessions: 1}}, rua); err != nil {
			t.Fatal(err)
		}
	}
	if due, err := f.TakeTLSReports(t.Context(), 10); err != nil || len(due) != 0 {
		t.Fatalf("before the day is over: %+v, %v", due, err)
	}
	all, err := f.TLSReports(t.Context(), 10)
	if err != nil || len(all) != 2 || all[0].RUA != "https://c.test/" {
		t.Fatalf("planned: %+v, %v", all, err)
	}
	for _, r := range all {
		if wait := r.NextAt.Sub(today.Add(24 * time.Hour)); wait < 10*time.Minute || wait > 4*time.Hour {
			t.Errorf("%s is due %v after its day, want 10 min to 4 h", r.RUA, wait)
		}
	}
	const passDay = `UPDATE postrider.%s SET day = day - 1`
	f.exec(t, fmt.Sprintf(passDay, "tls_results"))
	f.exec(t, fmt.Sprintf(passDay, "tls_reports")+`, next_at = now()`)
	due, err := f.TakeTLSReports(t.Context(), 10)
	if err != nil || len(due) != 2 || due[0].Tries != 1 {
		t.Fatalf("due: %+v, %v", due, err)
	}
	if again, err := f.TakeTLSReports(t.Context(), 10); err != nil || len(again) != 0 {
		t.Errorf("taken by two: %+v, %v", again, err)
	}
	counts, err := f.TLSCounts(t.Context(), due[0])
	if err != nil || len(counts) != 2 || counts[0].Sessions != 6 || counts[1].Sessions != 2 || counts[1].Reason != "bad ??" || counts[1].ReceivingIP != bad.ReceivingIP {
		t.Fatalf("counts: %+v, %v", counts, err)
	}

	sub := submission(1)
	for i, want := range []bool{true, false} {
		if finished, err := f.FinishTLSReport(t.Context(), due[0], sub); err != nil || finished != want {
			t.Errorf("finish %d: %v, %v", i, finished, err)
		}
	}
	failed := due[1]
	failed.Trouble = "connection refused"
	if err := f.FailTLSReport(t.Context(), failed, false); err != nil {
		t.Fatal(err)
	}
	f.exec(t, `UPDATE postrider.tls_reports SET next_at = now() WHERE next_at IS NOT NULL`)
	due, err = f.TakeTLSReports(t.Context(), 10)
	if err != nil || len(due) != 1 || due[0].Tries != 2 || due[0].Trouble != "connection refused" {
		t.Fatalf("the second try: %+v, %v", due, err)
	}
	if finished, err := f.FinishTLSReport(t.Context(), failed, nil); err != nil || finished {
		t.Errorf("who had it before may not finish it: %v, %v", finished, err)
	}
	// RFC 8460 §3: tried for a day.
	f.exec(t, `UPDATE postrider.tls_reports SET next_at = now(), day = day - 2 WHERE next_at IS NOT NULL`)
	if due, err := f.TakeTLSReports(t.Context(), 10); err != nil || len(due) != 0 {
		t.Errorf("after a day: %+v, %v", due, err)
	}
	f.exec(t, `UPDATE postrider.tls_reports SET day = day - 8`)
	if err := f.ForgetTLSReports(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all, err := f.TLSReports(t.Context(), 10); err != nil || len(all) != 0 {
		t.Errorf("a week later: %+v, %v", all, err)
	}
}
