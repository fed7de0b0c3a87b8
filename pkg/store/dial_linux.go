package store

import (
	"errors"
	"strings"
	"syscall"
)

// userTimeout is TCP_USER_TIMEOUT of tcp(7), in milliseconds.
const userTimeout = 18

// endUnacknowledged ends a connection whose data nobody acknowledges.
func endUnacknowledged(network, _ string, c syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	var set error
	err := c.Control(func(fd uintptr) {
		set = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, userTimeout, int(deadAfter.Milliseconds()))
	})
	return errors.Join(err, set)
}
