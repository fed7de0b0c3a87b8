package smtpclient

import (
	"net"
	"syscall"
)

// unasked reports whether octets are there to be read on a connection, without
// reading or waiting.
func unasked(c net.Conn) bool {
	socket, is := c.(syscall.Conn)
	if !is {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	there := false
	err = raw.Control(func(fd uintptr) {
		var one [1]byte
		n, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		there = err == nil && n > 0
	})
	return err == nil && there
}
