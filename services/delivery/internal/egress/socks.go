package egress

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
)

// RFC 1928 §3, §4, §5.
const (
	version      = 5
	noAuth       = 0
	withPassword = 2 // RFC 1929
	unacceptable = 0xff
	connect      = 1
	ipv4         = 1
	domainName   = 3
	ipv6         = 4
)

// The replies of RFC 1928 §6.
const (
	succeeded          = 0
	generalFailure     = 1
	notAllowed         = 2
	networkUnreachable = 3
	hostUnreachable    = 4
	refused            = 5
	ttlExpired         = 6
	noSuchCommand      = 7
	noSuchAddress      = 8
)

// targetErrors are the replies that speak of the target, as the error that a
// direct connection would have given.
var targetErrors = map[byte]error{
	networkUnreachable: syscall.ENETUNREACH,
	hostUnreachable:    syscall.EHOSTUNREACH,
	refused:            syscall.ECONNREFUSED,
	ttlExpired:         syscall.ETIMEDOUT,
}

// errSOCKS says that the other side does not speak SOCKS5.
var errSOCKS = errors.New("not SOCKS5")

// connect asks a SOCKS5 proxy for a connection to the target and returns the
// address that it leaves from.
func (w Way) connect(c net.Conn, target netip.AddrPort) (netip.AddrPort, error) {
	code, bound, err := w.ask(c, target)
	if cause, ofTarget := targetErrors[code]; err == nil && ofTarget {
		return bound, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(target), Err: cause}
	}
	if err == nil && code != succeeded {
		err = fmt.Errorf("it answers %d to CONNECT", code)
	}
	if err != nil {
		return bound, fmt.Errorf("%w: proxy %s: %w", ErrEgress, w.Proxy, err)
	}
	return bound, nil
}

func (w Way) ask(c net.Conn, target netip.AddrPort) (code byte, bound netip.AddrPort, err error) {
	method := byte(noAuth)
	if w.User+w.Password != "" {
		method = withPassword
	}
	if _, err = c.Write([]byte{version, 1, method}); err != nil {
		return 0, bound, err
	}
	var answer [2]byte
	if _, err = io.ReadFull(c, answer[:]); err != nil {
		return 0, bound, err
	}
	if answer[0] != version || answer[1] != method {
		return 0, bound, fmt.Errorf("%w, or it does not take the way we authenticate: %v", errSOCKS, answer)
	}
	if method == withPassword {
		// RFC 1929 §2.
		hello := append([]byte{1, byte(len(w.User))}, w.User...)
		hello = append(append(hello, byte(len(w.Password))), w.Password...)
		if _, err = c.Write(hello); err != nil {
			return 0, bound, err
		}
		if _, err = io.ReadFull(c, answer[:]); err != nil {
			return 0, bound, err
		}
		if answer[1] != 0 {
			return 0, bound, errors.New("it does not take our password")
		}
	}
	if _, err = c.Write(appendAddress([]byte{version, connect, 0}, target)); err != nil {
		return 0, bound, err
	}
	return readReply(c)
}

func readReply(r io.Reader) (code byte, bound netip.AddrPort, err error) {
	var head [3]byte
	if _, err = io.ReadFull(r, head[:]); err != nil {
		return 0, bound, err
	}
	if head[0] != version {
		return 0, bound, errSOCKS
	}
	bound, err = readAddress(r)
	if err != nil && head[1] != succeeded {
		return head[1], bound, nil // some proxies leave out the address
	}
	return head[1], bound, err
}

func appendAddress(b []byte, a netip.AddrPort) []byte {
	kind := byte(ipv4)
	if !a.Addr().Is4() {
		kind = ipv6
	}
	b = append(append(b, kind), a.Addr().AsSlice()...)
	return append(b, byte(a.Port()>>8), byte(a.Port()))
}

// readAddress reads an address and port. A domain name is read and gives no
// address: nobody asks us for one, and as our end it does not help.
func readAddress(r io.Reader) (a netip.AddrPort, err error) {
	var kind [1]byte
	if _, err := io.ReadFull(r, kind[:]); err != nil {
		return a, err
	}
	length := map[byte]int{ipv4: 4, ipv6: 16}[kind[0]]
	if kind[0] == domainName {
		var n [1]byte
		if _, err := io.ReadFull(r, n[:]); err != nil {
			return a, err
		}
		length = int(n[0])
	}
	if length == 0 {
		return a, fmt.Errorf("%w: address type %d", errSOCKS, kind[0])
	}
	b := make([]byte, length+2)
	if _, err := io.ReadFull(r, b); err != nil {
		return a, err
	}
	addr := netip.Addr{}
	if kind[0] != domainName {
		addr, _ = netip.AddrFromSlice(b[:length])
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(b[length])<<8|uint16(b[length+1])), nil
}
