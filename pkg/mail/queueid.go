package mail

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// QueueID names one accepted message. It is a UUIDv7, so ids sort by the
// time of acceptance and the time in the id is the partition key of every
// table that grows with traffic.
type QueueID [16]byte

// NewQueueID returns a fresh id. Ids of one process are strictly increasing.
func NewQueueID() QueueID { return QueueID(uuid.Must(uuid.NewV7())) }

// ParseQueueID reads the canonical text form, as it stands in the 250 reply
// and in logs.
func ParseQueueID(s string) (QueueID, error) {
	id, err := uuid.Parse(s)
	if err != nil {
		return QueueID{}, fmt.Errorf("queue id %q: %w", s, err)
	}
	if id.Version() != 7 {
		return QueueID{}, fmt.Errorf("queue id %q: UUID version %d, want 7", s, id.Version())
	}
	return QueueID(id), nil
}

// String returns the canonical 36-character text form.
func (id QueueID) String() string { return uuid.UUID(id).String() }

// IsZero reports whether id names no message.
func (id QueueID) IsZero() bool { return id == QueueID{} }

// Time returns the moment of acceptance that is part of the id, in UTC, to
// the millisecond.
func (id QueueID) Time() time.Time {
	ms := binary.BigEndian.Uint64(id[:8]) >> 16
	return time.UnixMilli(int64(ms)).UTC()
}

// FirstQueueID returns the smallest id of the given millisecond: the lower
// bound of a range of ids.
func FirstQueueID(t time.Time) QueueID {
	var id QueueID
	binary.BigEndian.PutUint64(id[:8], uint64(t.UnixMilli())<<16)
	return id
}
