package delivery

import (
	"container/heap"
	"time"
)

// waitlist is who waits for something, by the time that each has been given, then
// by order of arrival. Every operation costs a logarithm of its length at
// most. The zero value is empty; not safe for concurrent use.
type waitlist[T comparable] struct {
	order order[T]
	of    map[T]*waiting[T]
	count uint64
}

// waiting is one of a line.
type waiting[T comparable] struct {
	by     T
	at     time.Time
	no     uint64
	index  int
	called bool // it has been told that it may be its turn
}

func (l *waitlist[T]) len() int { return len(l.order) }

func (l *waitlist[T]) has(by T) bool { return l.of[by] != nil }

// head returns the first; nil if there is none.
func (l *waitlist[T]) head() *waiting[T] {
	if len(l.order) == 0 {
		return nil
	}
	return l.order[0]
}

// add puts one in the line, unless it is there: then it keeps its place.
func (l *waitlist[T]) add(by T, at time.Time) {
	if l.has(by) {
		return
	}
	if l.of == nil {
		l.of = map[T]*waiting[T]{}
	}
	l.count++
	w := &waiting[T]{by: by, at: at, no: l.count}
	l.of[by] = w
	heap.Push(&l.order, w)
}

// remove takes one out of the line, if it is there.
func (l *waitlist[T]) remove(by T) {
	w := l.of[by]
	if w == nil {
		return
	}
	delete(l.of, by)
	heap.Remove(&l.order, w.index)
}

// order implements heap.Interface.
type order[T comparable] []*waiting[T]

func (o order[T]) Len() int { return len(o) }

func (o order[T]) Less(i, j int) bool {
	if c := o[i].at.Compare(o[j].at); c != 0 {
		return c < 0
	}
	return o[i].no < o[j].no
}

func (o order[T]) Swap(i, j int) {
	o[i], o[j] = o[j], o[i]
	o[i].index, o[j].index = i, j
}

func (o *order[T]) Push(w any) {
	waits := w.(*waiting[T]) //nolint:forcetypeassert // only add pushes
	waits.index = len(*o)
	*o = append(*o, waits)
}

func (o *order[T]) Pop() any {
	last := len(*o) - 1
	w := (*o)[last]
	(*o)[last] = nil
	*o = (*o)[:last]
	return w
}
