package mail_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/postrider/postrider/pkg/mail"
)

func drawSlots(t *rapid.T, name string) []int16 {
	slots := rapid.SliceOfNDistinct(rapid.Int16Range(1, mail.Slots-1), 0, mail.Slots-1, rapid.ID[int16]).Draw(t, name)
	return append([]int16{0}, slots...) // the first part stays
}

// Of any change: whoever still knows only the old division, and whoever knows
// of the change, have no more than the limit together; so have those who know
// of the change and those who have heard that it is in force. Each of them has
// some of it, if the limit is large enough.
func TestPortionsNeverSumToMoreThanTheLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old := mail.Division{Site: "a.test", Slots: drawSlots(t, "old"), Epoch: 1}
		change := mail.Division{Site: "a.test", Slots: old.Slots, Next: drawSlots(t, "next"), Epoch: 2}
		after := mail.Division{Site: "a.test", Slots: change.Next, Epoch: 3}
		limit := rapid.IntRange(1, 500).Draw(t, "limit")
		sum := func(views ...mail.Division) (sum int) {
			for slot := range int16(mail.Slots) {
				d := views[rapid.IntRange(0, len(views)-1).Draw(t, "view")]
				p := d.Portion(slot)
				n := p.Count(limit)
				if limit >= len(d.Slots) && d.Takes(slot) && limit >= len(d.Next) && n == 0 {
					t.Fatalf("slot %d takes mail and has nothing of %d: %+v", slot, limit, d)
				}
				sum += n
			}
			return sum
		}
		for _, d := range []mail.Division{old, after} {
			if got := sum(d); got != limit {
				t.Fatalf("portions of %d sum to %d: %+v", limit, got, d)
			}
		}
		if got := sum(old, change); got > limit {
			t.Fatalf("%d of %d while a change becomes known", got, limit)
		}
		if got := sum(change, after); got > limit {
			t.Fatalf("%d of %d while it becomes known that a change is in force", got, limit)
		}
		id := mail.NewQueueID()
		if slot := change.SlotOf(id); !slices.Contains(change.Slots, slot) || !slices.Contains(change.Next, slot) {
			t.Fatalf("mail is handed to slot %d, which does not stay: %+v", slot, change)
		}
	})
}

// The messages of one second are spread evenly.
func TestMailIsSpreadOverTheParts(t *testing.T) {
	d := mail.Division{Site: "a.test", Slots: []int16{3, 40, 17, 60}}
	got := map[int16]int{}
	for range 4000 {
		got[d.SlotOf(mail.NewQueueID())]++
	}
	for _, slot := range d.Slots {
		if got[slot] < 800 || got[slot] > 1200 {
			t.Errorf("slot %d has %d of 4000 messages", slot, got[slot])
		}
	}
}
