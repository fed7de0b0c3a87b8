package bus

// Cut ends the connection as a crash would: nothing is flushed, given back or
// acked any more.
func (b *Bus) Cut() { b.nc.Close() }
