package mail

import "time"

// BusKey is a key that services sign what they put on the bus with.
type BusKey struct {
	ID     int32
	Secret []byte // 32 octets; never in a log
}

// String hides the secret.
func (BusKey) String() string { return "key of the bus" }

// GoString hides the secret.
func (k BusKey) GoString() string { return k.String() }

// BusKeys are the keys that are valid, as Postgres says.
type BusKeys struct {
	Keys []BusKey  // the first one signs
	At   time.Time // when they were, by the clock of Postgres
}
