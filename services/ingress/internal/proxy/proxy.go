// Package proxy reads the PROXY protocol, versions 1 and 2, by which a load
// balancer tells for which client it has opened a connection. The text of the
// protocol is doc/proxy-protocol.txt of HAProxy.
//
// A header is to be read only from peers that are known to send one: it says
// who the client is, and the client's address decides what it may do.
package proxy

import (
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

const (
	signature = "\r\n\r\n\x00\r\nQUIT\n" // of version 2

	maxLine = 107 // octets of a version 1 header, with its CRLF
	// maxBody bounds a version 2 header behind its first 16 octets. Addresses
	// and all the standard extensions need less.
	maxBody = 4096
)

// ErrHeader says that what came is no PROXY header.
var ErrHeader = errors.New("no PROXY header")

// Header is what a proxy says of its connection.
type Header struct {
	// Client is the client's address. It is not valid when the connection is
	// the proxy's own, as for a health check, or when the proxy does not know:
	// the client is the proxy itself then.
	Client netip.Addr
}

// Read reads the header, and not one octet behind it. Errors: ErrHeader, or
// that of r.
func Read(r io.Reader) (Header, error) {
	var start [len(signature)]byte
	if _, err := io.ReadFull(r, start[:]); err != nil {
		return Header{}, err
	}
	if string(start[:]) == signature {
		return readBinary(r)
	}
	if !strings.HasPrefix(string(start[:]), "PROXY ") {
		return Header{}, ErrHeader
	}
	return readText(r, start[:])
}

// readText reads the rest of a version 1 header, octet by octet, for where it
// ends is not known.
func readText(r io.Reader, line []byte) (Header, error) {
	for !strings.HasSuffix(string(line), "\r\n") {
		if len(line) == maxLine {
			return Header{}, ErrHeader
		}
		var octet [1]byte
		if _, err := io.ReadFull(r, octet[:]); err != nil {
			return Header{}, err
		}
		line = append(line, octet[0])
	}
	fields := strings.Split(string(line[:len(line)-2]), " ")
	if fields[1] == "UNKNOWN" {
		return Header{}, nil
	}
	if len(fields) != 6 || !isPort(fields[4]) || !isPort(fields[5]) {
		return Header{}, ErrHeader
	}
	source, err1 := netip.ParseAddr(fields[2])
	destination, err2 := netip.ParseAddr(fields[3])
	if err1 != nil || err2 != nil || source.Zone() != "" || destination.Zone() != "" {
		return Header{}, ErrHeader
	}
	switch fields[1] {
	case "TCP4":
		if source.Is4() && destination.Is4() {
			return Header{source}, nil
		}
	case "TCP6":
		if source.Is6() && destination.Is6() {
			return Header{source.Unmap()}, nil
		}
	}
	return Header{}, ErrHeader
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && strconv.FormatUint(n, 10) == s
}

// readBinary reads a version 2 header behind its signature.
func readBinary(r io.Reader) (Header, error) {
	const (
		local, proxied = 0x20, 0x21 // version 2 and the command
		tcp4, tcp6     = 0x11, 0x21 // family and transport
	)
	var fixed [4]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return Header{}, err
	}
	size := int(binary.BigEndian.Uint16(fixed[2:]))
	if size > maxBody {
		return Header{}, ErrHeader
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return Header{}, err
	}
	switch {
	case fixed[0] == local:
		return Header{}, nil
	case fixed[0] != proxied:
		return Header{}, ErrHeader
	}
	switch fixed[1] {
	case tcp4:
		if len(body) >= 12 {
			return Header{netip.AddrFrom4([4]byte(body))}, nil
		}
	case tcp6:
		if len(body) >= 36 {
			return Header{netip.AddrFrom16([16]byte(body)).Unmap()}, nil
		}
	case 0x00: // the proxy does not say
		return Header{}, nil
	}
	return Header{}, ErrHeader
}
