package store_test

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// dsn is a report about the input, as bounce would write it.
func dsn(in store.ReportInput) (*mail.Submission, error) {
	sub := submission(1)
	sub.Envelope.ReversePath = ""
	sub.ReportOf = in.Message.ID
	sub.Recipients[0].ForwardPath = mail.ForwardPath(in.Message.Envelope.ReversePath)
	return sub, nil
}

func TestReportExactlyOnce(t *testing.T) {
	f := setup(t)
	sub := submission(3)
	f.accept(t, sub)
	w := f.worker(t)
	req := f.claim(t, w, sub)
	st := settlement(req, failed)
	st.Outcomes[2] = settlement(req, relayed).Outcomes[2]
	f.settle(t, w, st)
	ids, err := f.DueReports(t.Context(), 10)
	if err != nil || len(ids) != 1 || ids[0] != sub.ID {
		t.Fatalf("due %v, %v", ids, err)
	}
	if _, err := f.Report(t.Context(), sub.ID, func(store.ReportInput) (*mail.Submission, error) {
		return nil, errors.New("the process died here")
	}); err == nil {
		t.Fatal("the error of write was lost")
	}
	var mu sync.Mutex
	var inputs []store.ReportInput
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := f.Report(t.Context(), sub.ID, func(in store.ReportInput) (*mail.Submission, error) {
				mu.Lock()
				inputs = append(inputs, in)
				mu.Unlock()
				return dsn(in)
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(inputs) != 1 {
		t.Fatalf("%d reports were written, want 1", len(inputs))
	}
	in := inputs[0]
	if in.Kind != store.ReportFailure || len(in.Recipients) != 2 || in.Recipients[0].Reply.Code != 550 || in.Recipients[0].Host != "mx.example.org" {
		t.Errorf("input %+v", in)
	}
	if !strings.HasSuffix(string(in.Header), "Subject: x\r\n\r\n") || in.Content != nil {
		t.Errorf("header %q", in.Header)
	}
	if n := one[int](t, f, "SELECT count(*) FROM messages WHERE report_of = $1", sub.ID); n != 1 {
		t.Errorf("%d DSNs were accepted, want 1", n)
	}
	if n := one[int](t, f, "SELECT count(*) FROM reports"); n != 0 {
		t.Errorf("%d reports are left to do", n)
	}
	f.balanced(t)
}

func TestReportOfDelay(t *testing.T) {
	f := setup(t)
	sub := submission(1)
	sub.AcceptedAt = time.Now().Add(-5 * time.Hour)
	f.accept(t, sub)
	w := f.worker(t)
	f.settle(t, w, settlement(f.claim(t, w, sub), delayed(time.Now().Add(time.Hour))))
	for want := 1; want >= 0; want-- {
		sent, err := f.Report(t.Context(), sub.ID, func(in store.ReportInput) (*mail.Submission, error) {
			if in.Kind != store.ReportDelay || in.Recipients[0].State != "queued" {
				t.Errorf("input %+v", in)
			}
			return dsn(in)
		})
		if err != nil || len(sent) != want {
			t.Errorf("sent %d, %v; want %d", len(sent), err, want)
		}
	}
}

// Each recipient is reported on once for each kind, whatever is reported on the
// others of its message before and after.
func TestReportOfOneAfterTheOther(t *testing.T) {
	f := setup(t)
	sub := submission(3)
	f.accept(t, sub)
	w := f.worker(t)
	report := func(what string, want ...int32) {
		t.Helper()
		// A hint too many does no harm, of either kind.
		f.exec(t, `INSERT INTO reports (queue_id, kind, due_at) VALUES ($1, 'final', now()), ($1, 'delay', now())`, sub.ID)
		got := map[store.ReportKind][]int32{}
		_, err := f.Report(t.Context(), sub.ID, func(in store.ReportInput) (*mail.Submission, error) {
			for _, r := range in.Recipients {
				got[in.Kind] = append(got[in.Kind], r.No)
			}
			return nil, nil
		})
		must(t, err)
		kind := store.ReportFailure
		if what == "delay" {
			kind = store.ReportDelay
		}
		if !slices.Equal(got[kind], want) || len(got) > 1 || len(got) == 1 && got[kind] == nil {
			t.Errorf("%s: reported %v, want %s of %v", what, got, kind, want)
		}
	}
	fail := func(no int32) {
		t.Helper()
		req := request(sub, route("example.org"))
		req.Recipients = req.Recipients[no-1 : no]
		must(t, f.Claim(t.Context(), w, []*mail.DeliveryRequest{req}))
		if lost := f.settle(t, w, settlement(req, failed)); lost != 0 {
			t.Fatalf("recipient %d was not settled", no)
		}
	}
	fail(1)
	f.exec(t, `UPDATE recipients SET delay_reported = true WHERE queue_id = $1`, sub.ID) // its delay is old news
	report("the first fails", 1)
	f.exec(t, `UPDATE recipients SET delay_reported = false WHERE queue_id = $1`, sub.ID)
	report("delay", 2, 3)
	fail(2)
	report("the second fails", 2)
	fail(3)
	report("the third fails", 3)
}

func TestNothingToReport(t *testing.T) {
	f := setup(t)
	null, never := submission(1), submission(1)
	null.Envelope.ReversePath = ""
	never.Recipients[0].Notify = mail.NotifyNever
	f.accept(t, null, never)
	w := f.worker(t)
	f.settle(t, w, settlement(f.claim(t, w, null), failed), settlement(f.claim(t, w, never), failed))
	if ids, err := f.DueReports(t.Context(), 10); err != nil || len(ids) != 0 {
		t.Errorf("due %v, %v", ids, err)
	}
}

func TestFailByOperatorIsReported(t *testing.T) {
	f := setup(t)
	sub := submission(2)
	f.accept(t, sub)
	if n := one[int](t, f, "SELECT fail('the customer left', queue_id => $1)", sub.ID); n != 2 {
		t.Errorf("fail changed %d", n)
	}
	sent, err := f.Report(t.Context(), sub.ID, func(in store.ReportInput) (*mail.Submission, error) {
		if in.Recipients[1].Reply.Text() != "the customer left" {
			t.Errorf("input %+v", in.Recipients)
		}
		return dsn(in)
	})
	if err != nil || len(sent) != 1 {
		t.Errorf("sent %d, %v", len(sent), err)
	}
}

func TestRetire(t *testing.T) {
	f := setup(t)
	done, waiting := submission(1), submission(1)
	old := time.Now().Add(-3 * time.Hour)
	done.ID, waiting.ID = mail.FirstQueueID(old), mail.FirstQueueID(old.Add(time.Millisecond))
	f.accept(t, done, waiting)
	w := f.worker(t)
	f.settle(t, w, settlement(f.claim(t, w, done), relayed))
	n, err := f.RetireContents(t.Context(), time.Now())
	if err != nil || n != 1 {
		t.Fatalf("retired %d, %v; want the hour of the two messages", n, err)
	}
	if n := one[int](t, f, "SELECT count(*) FROM contents_kept"); n != 1 {
		t.Errorf("%d contents were kept, want 1", n)
	}
	req := f.claim(t, w, waiting)
	out, err := f.Dispatch(t.Context(), w, []*mail.DeliveryRequest{req})
	if err != nil || string(out[0].Bytes) != string(waiting.Content) {
		t.Fatalf("dispatched %v, %v", out, err)
	}
	if n, err := f.RetireHistory(t.Context(), time.Now().Add(48*time.Hour)); err != nil || one[int](t, f, "SELECT count(*) FROM recipients") == 0 {
		t.Fatalf("retired %d days with a recipient that is not final, %v", n, err)
	}
	f.settle(t, w, settlement(req, failed))
	if n, err := f.RetireHistory(t.Context(), time.Now().Add(48*time.Hour)); err != nil || one[int](t, f, "SELECT count(*) FROM recipients") == 0 {
		t.Fatalf("retired %d days with a failure that nobody has been told of, %v", n, err)
	}
	if _, err := f.Report(t.Context(), waiting.ID, func(store.ReportInput) (*mail.Submission, error) { return nil, nil }); err != nil {
		t.Fatal(err)
	}
	if n, err := f.RetireHistory(t.Context(), time.Now().Add(48*time.Hour)); err != nil || n == 0 {
		t.Errorf("retired %d days, %v", n, err)
	}
	f.accept(t, submission(1)) // and the day is made again
	f.balanced(t)
}
