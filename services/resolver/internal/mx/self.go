package mx

import (
	"net"
	"net/netip"
	"slices"
	"strings"
)

// self is what tells us that a mail exchanger is this mail system: RFC 5321
// §5.1 wants loops seen before they turn.
type self struct {
	names []string
	nets  []netip.Prefix
}

func newSelf(names []string, nets []netip.Prefix) self {
	s := self{nets: nets}
	for _, n := range names {
		s.names = append(s.names, strings.ToLower(strings.TrimSuffix(n, ".")))
	}
	return s
}

// LocalAddresses returns the addresses of this machine but for loopback ones:
// those are refused as targets, and who allows them has another server there.
func LocalAddresses() (nets []netip.Prefix) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil // names must do
	}
	for _, a := range all {
		if n, is := a.(*net.IPNet); is && !n.IP.IsLoopback() {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				addr = addr.Unmap()
				nets = append(nets, netip.PrefixFrom(addr, addr.BitLen()))
			}
		}
	}
	return nets
}

// is reports whether a host with these addresses is this mail system.
func (s self) is(name string, a addresses) bool { return a.own || slices.Contains(s.names, name) }

// has reports whether an address is one of this mail system.
func (s self) has(addr netip.Addr) bool {
	return slices.ContainsFunc(s.nets, func(n netip.Prefix) bool { return n.Contains(addr.Unmap()) })
}
