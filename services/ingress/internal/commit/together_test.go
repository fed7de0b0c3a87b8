package commit

import (
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// What is accepted together is rung for, each message by itself; what is held
// until later, or was not accepted, is not.
func TestRungFor(t *testing.T) {
	plain, head, held, repeated := submission(), submission(), submission(), submission()
	head.With = []*mail.Submission{submission(), submission()}
	head.With[1].ReleaseAt = head.With[1].AcceptedAt.Add(time.Hour)
	held.ReleaseAt = held.AcceptedAt.Add(time.Second)
	repeated.With = []*mail.Submission{submission()}
	rung := accepted([]*mail.Submission{plain, head, held, repeated}, []error{nil, nil, nil, &store.RepeatError{First: plain.ID}})
	want := []mail.QueueID{plain.ID, head.ID, head.With[0].ID}
	if len(rung) != len(want) {
		t.Fatalf("%d are rung for, want %d", len(rung), len(want))
	}
	for i, id := range want {
		if rung[i].ID != id || len(rung[i].Recipients) != 1 {
			t.Errorf("%d: %s with %d recipients, want %s with 1", i, rung[i].ID, len(rung[i].Recipients), id)
		}
	}
}
