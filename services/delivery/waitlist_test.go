package delivery

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A waitlist is a sorted list that says who is first, whoever comes and goes.
func TestWaitlistIsInOrder(t *testing.T) {
	type one struct {
		name string
		at   time.Time
	}
	start := time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		var l waitlist[string]
		var want []one
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			name := rapid.StringMatching("[a-h]").Draw(t, "who")
			i := slices.IndexFunc(want, func(o one) bool { return o.name == name })
			if i >= 0 != l.has(name) {
				t.Fatalf("%s waits: %v", name, l.has(name))
			}
			if rapid.Bool().Draw(t, "comes") {
				at := start.Add(time.Duration(rapid.IntRange(0, 5).Draw(t, "at")) * time.Second)
				l.add(name, at)
				if i < 0 {
					want = append(want, one{name, at})
					slices.SortStableFunc(want, func(a, b one) int { return a.at.Compare(b.at) })
				}
			} else {
				l.remove(name)
				if i >= 0 {
					want = slices.Delete(want, i, i+1)
				}
			}
			head := l.head()
			if l.len() != len(want) || (head == nil) != (len(want) == 0) || head != nil && head.by != want[0].name {
				t.Fatalf("%d wait, the first is %+v; want %v", l.len(), head, want)
			}
		}
	})
}
