package smtptest

import (
	"net"
	"syscall"
)

// tcpEstablished is TCP_ESTABLISHED of <netinet/tcp.h>: neither side has closed.
const (
	tcpEstablished = 1
	stateMask      = 0xff
)

// peerClosed reports whether the client has closed its side of a connection.
// A client that closes one connection and then opens another has never two;
// the second must not be counted while the first one's FIN is still unread.
func peerClosed(c net.Conn) bool {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return true
	}
	state := 0
	// The first octet of struct tcp_info is tcpi_state.
	controlErr := raw.Control(func(fd uintptr) {
		state, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_INFO)
	})
	return controlErr != nil || err != nil || state&stateMask != tcpEstablished
}
