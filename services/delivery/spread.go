package delivery

import (
	"slices"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// This file spreads the parts of divided sites over the workers.

// chooseSlots returns the slots for so many parts: those that there are, where
// no home has more than its share of them, and others whose homes have the
// fewest. The first one stays.
func chooseSlots(are []int16, parts int, homes *[mail.Slots]store.Home) []int16 {
	of := map[mail.WorkerID]int{}
	for _, h := range homes {
		if h.Live {
			of[h.Worker] = 0
		}
	}
	fair := (parts + len(of) - 1) / max(len(of), 1)
	var next []int16
	take := func(slot int16) {
		next = append(next, slot)
		of[homes[slot].Worker]++
	}
	for i, slot := range are {
		if len(next) < parts && (i == 0 || !homes[slot].Live || of[homes[slot].Worker] < fair) {
			take(slot)
		}
	}
	for len(next) < parts {
		best := int16(-1)
		for i := range int16(mail.Slots) {
			slot := (are[0] + i) % mail.Slots
			if slices.Contains(next, slot) {
				continue
			}
			if best < 0 || homes[slot].Live && (!homes[best].Live || of[homes[slot].Worker] < of[homes[best].Worker]) {
				best = slot
			}
		}
		take(best)
	}
	return next
}

// crowded returns those of our slots whose parts of divided sites other homes
// should have, where there are so many workers.
func (w *worker) crowded(slots []int16, workers int) (found []int16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.divisions {
		here := 0
		for _, slot := range d.Slots {
			if !slices.Contains(slots, slot) {
				continue
			}
			if here++; here > (len(d.Slots)+workers-1)/max(workers, 1) {
				found = append(found, slot)
			}
		}
	}
	return found
}
