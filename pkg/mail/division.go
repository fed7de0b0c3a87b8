package mail

import (
	"encoding/binary"
	"slices"
)

// Division says over which slots the mail of a site is spread. Each of them
// is the home of one part of the site, with its portion of every limit. A
// site without one lives in its own slot alone.
//
// A change goes in two steps, so that the portions never sum to more than a
// limit, whoever knows of it when: while Next is set each part keeps to the
// smaller of its two portions, and Next is in force only when all parts of
// Slots have said that they do.
type Division struct {
	Site   Site
	Slots  []int16 // in force; the site's own slot comes first
	Next   []int16 // being changed to; nil: no change is under way
	Agreed []int16 // of Slots: those that keep to the smaller portion already
	Epoch  int64   // grows with each step

	// Known is what one part has learned of the site and all must know: the
	// names of the hosts of each domain whose own block has limits for the
	// site; under "" those of the site.
	Known map[Domain][]string
}

// Takers returns the slots that mail is handed to: those with a portion that
// stays.
func (d *Division) Takers() []int16 {
	if d.Next == nil {
		return d.Slots
	}
	return slices.DeleteFunc(slices.Clone(d.Slots), func(slot int16) bool { return !slices.Contains(d.Next, slot) })
}

// Takes reports whether mail is handed to the slot.
func (d *Division) Takes(slot int16) bool {
	return slices.Contains(d.Slots, slot) && (d.Next == nil || slices.Contains(d.Next, slot))
}

// SlotOf returns the slot of a message. The random bits of its id spread all
// mail evenly, whatever its tenant, so that all parts are alike.
func (d *Division) SlotOf(id QueueID) int16 {
	takers := d.Takers()
	return takers[binary.BigEndian.Uint32(id[12:])%uint32(len(takers))]
}

// Portion returns what a slot may have of each limit.
func (d *Division) Portion(slot int16) Portion {
	p := Portion{of: fractionOf(d.Slots, slot)}
	if d.Next != nil {
		p.next = fractionOf(d.Next, slot)
	}
	return p
}

// Before returns what a slot had of each limit before the change that is under
// way.
func (d *Division) Before(slot int16) Portion { return Portion{of: fractionOf(d.Slots, slot)} }

// Portion is what one part of a site may have of each limit. The zero value
// is all of it.
type Portion struct {
	of   fraction
	next fraction // during a change; the smaller one counts
}

// fraction is the part with a number of so many; the zero value is the whole.
type fraction struct{ no, parts int }

func fractionOf(slots []int16, slot int16) fraction {
	return fraction{slices.Index(slots, slot), len(slots)}
}

// PortionOf returns the part with a number, from 0, of so many equal ones.
func PortionOf(no, parts int) Portion { return Portion{of: fraction{no, parts}} }

func (f fraction) count(n int) int {
	switch {
	case f.parts == 0:
		return n
	case f.no < 0:
		return 0
	}
	got := n / f.parts
	if f.no < n%f.parts {
		got++
	}
	return got
}

// Count returns the portion of a number. Those of all slots of a division sum
// to that number exactly; what cannot be divided goes to the first ones.
func (p Portion) Count(n int) int { return min(p.of.count(n), p.next.count(n)) }

// Divisions are the divisions of all sites that have one.
type Divisions map[Site]Division

// Of returns the division of a site.
func (all Divisions) Of(site Site) Division {
	if d, divided := all[site]; divided {
		return d
	}
	return Division{Site: site, Slots: []int16{site.Slot()}}
}

// SlotOf returns the slot of a message at a site.
func (all Divisions) SlotOf(site Site, id QueueID) int16 {
	d, divided := all[site]
	if !divided {
		return site.Slot()
	}
	return d.SlotOf(id)
}
