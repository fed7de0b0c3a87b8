package smtptest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"
)

// Unanswered occupies an address so that no SYN to it is answered, as behind a
// firewall that drops: it listens, never accepts, and its queue is full. It
// returns a function that frees the address, which the end of the test calls
// too.
func Unanswered(tb testing.TB, address string) (free func()) {
	tb.Helper()
	fd, full, err := fullListener(address)
	if err != nil {
		tb.Fatalf("smtptest: %v", err)
	}
	done := false
	free = func() {
		if done {
			return
		}
		done = true
		for _, c := range full {
			c.Close()
		}
		if err := syscall.Close(fd); err != nil {
			tb.Errorf("smtptest: close the listener that accepts nothing: %v", err)
		}
	}
	tb.Cleanup(free)
	return free
}

// fullListener returns a listening socket and the connections that fill its
// queue.
func fullListener(address string) (fd int, full []net.Conn, err error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return 0, nil, err
	}
	fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, syscall.Close(fd))
		}
	}()
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return 0, nil, os.NewSyscallError("setsockopt", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err != nil {
		return 0, nil, os.NewSyscallError("bind", err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		return 0, nil, os.NewSyscallError("listen", err)
	}
	for range 16 {
		c, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if err != nil {
			return fd, full, nil // the queue is full
		}
		full = append(full, c)
	}
	return fd, full, fmt.Errorf("%s still answers after %d connections", address, len(full))
}
