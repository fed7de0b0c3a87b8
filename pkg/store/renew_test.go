package store_test

import (
	"slices"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/store"
)

// TestALeaseThatHasEndedIsNotRenewed: nobody has taken the slots yet, but
// somebody may have looked, and counts what their home did as over.
func TestALeaseThatHasEndedIsNotRenewed(t *testing.T) {
	f := setup(t)
	const lease = time.Minute
	w, err := f.RegisterWorker(t.Context(), "w", lease)
	if err != nil {
		t.Fatal(err)
	}
	if taken, err := f.TakeSlots(t.Context(), w, lease, []int16{1, 2, 3}); err != nil || len(taken) != 3 {
		t.Fatalf("took %v, %v", taken, err)
	}
	f.exec(t, "UPDATE slots SET lease_until = now() - interval '1 millisecond' WHERE slot = 2")
	for range 2 { // the first must not have made the second succeed
		l, err := f.Renew(t.Context(), w, store.Terms{Claims: lease, Slots: lease})
		if err != nil || l.Gone || !slices.Equal(l.Slots, []int16{1, 3}) {
			t.Errorf("renewed %+v, %v; want slots 1 and 3, which it still had", l, err)
		}
	}
	homes, err := f.SlotHomes(t.Context())
	if err != nil || homes[2].Live || homes[2].Left || !homes[1].Live {
		t.Errorf("homes %+v, %v; want slot 2 free, and not left in order", homes[:4], err)
	}
}
