package store

import (
	"net"
	"time"
)

// deadAfter is how long a connection to Postgres may be silent when it should
// not be: what was sent is not acknowledged, or nobody is there to ask. After a
// failover or in a cut network that is all that tells of it, and statements
// without a deadline of their own would wait for a quarter of an hour.
const deadAfter = 10 * time.Second

// dialer makes the connections of all pools.
func dialer() *net.Dialer {
	return &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: deadAfter / 2, Interval: deadAfter / 5, Count: 3},
		Control:         endUnacknowledged,
	}
}
