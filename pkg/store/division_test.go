package store_test

import (
	"slices"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// A change of a division is in force when the home of each part has agreed,
// and what was said by a worker that is not the home any more is void.
func TestDivisionChangesWhenAllPartsAgree(t *testing.T) {
	f := setup(t)
	site := mail.Site("mx.example.org")
	first, second, third := site.Slot(), (site.Slot()+1)%mail.Slots, (site.Slot()+2)%mail.Slots
	a, b := f.worker(t), f.worker(t)
	take := func(w mail.WorkerID, slots ...int16) {
		t.Helper()
		if got, err := f.TakeSlots(t.Context(), w, time.Hour, slots); err != nil || len(got) != len(slots) {
			t.Fatalf("took %v, %v, want %v", got, err, slots)
		}
	}
	take(a, first)
	take(b, second, third)
	now := func() mail.Division {
		t.Helper()
		all, err := f.Divisions(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return all.Of(site)
	}
	divide := func(w mail.WorkerID, d mail.Division, next ...int16) bool {
		t.Helper()
		begun, err := f.Divide(t.Context(), w, d, next)
		if err != nil {
			t.Fatal(err)
		}
		return begun
	}
	agree := func(w mail.WorkerID, slot int16, d mail.Division) bool {
		t.Helper()
		inForce, err := f.Agree(t.Context(), w, slot, d)
		if err != nil {
			t.Fatal(err)
		}
		return inForce
	}
	whole := now()
	whole.Known = map[mail.Domain][]string{"": {"mx.example.org"}}
	if divide(b, whole, first, second) {
		t.Fatal("a worker that is not the home of the first part has divided the site")
	}
	if !divide(a, whole, first, second) || divide(a, whole, first, third) {
		t.Fatal("want one change to begin, and no other meanwhile")
	}
	d := now()
	if !slices.Equal(d.Slots, []int16{first}) || !slices.Equal(d.Next, []int16{first, second}) || d.Known[""][0] != "mx.example.org" {
		t.Fatalf("division %+v", d)
	}
	if agree(b, first, d) || now().Next == nil {
		t.Fatal("another than the home has agreed")
	}
	if !agree(a, first, d) {
		t.Fatal("all have agreed, and the change is not in force")
	}
	d = now()
	if !slices.Equal(d.Slots, []int16{first, second}) || d.Next != nil || len(d.Agreed) != 0 {
		t.Fatalf("division %+v", d)
	}
	d.Known = map[mail.Domain][]string{"": {"mx2.example.org"}}
	if err := f.TellParts(t.Context(), a, d); err != nil || now().Known[""][0] != "mx2.example.org" {
		t.Fatalf("%v, known %v", err, now().Known)
	}
	if divide(a, whole, first) {
		t.Fatal("a change has begun from a division that is not in force any more")
	}
	if !divide(a, d, first, third) {
		t.Fatal("no second change")
	}
	old, d := d, now()
	if agree(b, second, old) {
		t.Fatal("a part has agreed to what it does not know")
	}
	if agree(a, first, d) || now().Next == nil {
		t.Fatal("in force, and one part has not agreed")
	}
	if err := f.ReleaseSlots(t.Context(), b, []int16{second}, true); err != nil {
		t.Fatal(err)
	}
	if agree(b, second, d) {
		t.Fatal("a part has agreed for a slot that it has released")
	}
	take(a, second)
	if !agree(a, second, d) || !slices.Equal(now().Slots, []int16{first, third}) {
		t.Fatalf("division %+v, want the last change in force", now())
	}
}

func TestPartsAreSavedAndParkedByTheirSlots(t *testing.T) {
	f := setup(t)
	site := mail.Site("mx.example.org")
	first, second := site.Slot(), (site.Slot()+1)%mail.Slots
	home := f.worker(t)
	if _, err := f.TakeSlots(t.Context(), home, time.Hour, []int16{first, second}); err != nil {
		t.Fatal(err)
	}
	if begun, err := f.Divide(t.Context(), home, mail.Division{Site: site}, []int16{first, second}); err != nil || !begun {
		t.Fatal(begun, err)
	}
	states := []store.SiteState{{Site: site, Slot: first, State: []byte("one")}, {Site: site, Slot: second, State: []byte("two")}}
	if err := f.SaveSites(t.Context(), home, states); err != nil {
		t.Fatal(err)
	}
	f.exec(t, "SELECT suspend_site($1, '1 hour', 'they asked')", string(site))
	for _, want := range states {
		got, err := f.LoadSites(t.Context(), []int16{want.Slot})
		if err != nil || len(got) != 1 || string(got[0].State) != string(want.State) || got[0].Slot != want.Slot || got[0].SuspendedUntil.IsZero() {
			t.Errorf("of slot %d: %+v, %v", want.Slot, got, err)
		}
	}

	s := submission(2)
	f.accept(t, s)
	req := request(s, route(site))
	req.SetSlot(second)
	if err := f.Park(t.Context(), 0, []*mail.DeliveryRequest{req}); err != nil {
		t.Fatal(err)
	}
	in := func(slot int16) int {
		t.Helper()
		flows, err := f.ParkedFlows(t.Context(), store.ParkedSite{Site: site, Slot: slot}, nil, 10)
		if err != nil {
			t.Fatal(err)
		}
		return len(flows)
	}
	if in(first) != 0 || in(second) != 1 {
		t.Fatal("not parked in the slot of its part")
	}
	if n, err := f.MoveParked(t.Context(), store.ParkedSite{Site: site, Slot: second}, []int16{first}); err != nil || n != int64(len(req.Recipients)) {
		t.Fatal(n, err)
	}
	if in(first) != 1 || in(second) != 0 {
		t.Fatal("not moved to the slot that is left")
	}
	if got := f.pull(t, home, site, 10); len(got) != 1 || got[0].Slot() != first {
		t.Fatalf("pulled %+v", got)
	}
}
