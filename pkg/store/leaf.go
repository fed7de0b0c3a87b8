package store

import (
	"slices"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

// day and hour name the leaf partitions of an id, as ensure_partitions made
// them.
func day(id mail.QueueID) string  { return id.Time().Format("20060102") }
func hour(id mail.QueueID) string { return id.Time().Format("2006010215") }

// hotContents is the age up to which the content of a message surely stands
// in the partition of its hour: retire_contents leaves a partition alone for
// an hour, and clocks may differ by minutes.
const hotContents = 50 * time.Minute

// byLeaf splits items into runs of the same leaf, in the order of their ids.
// Statements that lock rows lock them in this order, so that two batches
// cannot wait for each other.
func byLeaf[T any](items []T, id func(T) mail.QueueID, leaf func(mail.QueueID) string) []leafBatch[T] {
	items = slices.Clone(items)
	slices.SortStableFunc(items, func(a, b T) int {
		x, y := id(a), id(b)
		return slices.Compare(x[:], y[:])
	})
	var batches []leafBatch[T]
	for _, item := range items {
		l := leaf(id(item))
		if n := len(batches); n == 0 || batches[n-1].leaf != l {
			batches = append(batches, leafBatch[T]{leaf: l})
		}
		last := &batches[len(batches)-1]
		last.items = append(last.items, item)
	}
	return batches
}

type leafBatch[T any] struct {
	leaf  string
	items []T
}

// rowKey names one recipient.
type rowKey struct {
	id mail.QueueID
	no int32
}
