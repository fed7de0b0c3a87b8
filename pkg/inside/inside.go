// Package inside knows the networks that what comes from outside, such as a
// domain's DNS records or a URL in them, must not make us connect to.
package inside

import "net/netip"

// networks are those that mail from outside must not make us connect
// to: the host itself, its neighbours, and the metadata services of clouds
// (169.254.169.254, fd00:ec2::254, 100.100.100.200).
var networks = func() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range []string{
		"0.0.0.0/8",      // this network, RFC 1122 §3.2.1.3
		"10.0.0.0/8",     // private, RFC 1918
		"100.64.0.0/10",  // shared, RFC 6598
		"127.0.0.0/8",    // loopback
		"169.254.0.0/16", // link-local, RFC 3927
		"172.16.0.0/12",  // private, RFC 1918
		"192.0.0.0/24",   // protocol assignments, RFC 6890
		"192.88.99.0/24", // relays of 6to4, RFC 7526
		"192.168.0.0/16", // private, RFC 1918
		"198.18.0.0/15",  // benchmarks, RFC 2544
		"224.0.0.0/4",    // multicast
		"240.0.0.0/4",    // reserved and broadcast
		"2001::/23",      // protocol assignments, RFC 2928: Teredo, benchmarks, ORCHID
		// IPv6 has global addresses in 2000::/3 alone (RFC 4291 §2.4). So these
		// are all the others: loopback, IPv4-compatible and -translated
		// (::ffff:0:0:0/96, RFC 2765), local NAT64 (RFC 8215), discard, segment
		// identifiers (RFC 9602), unique local, link- and site-local, multicast,
		// and what is not assigned yet.
		"::/3",
		"4000::/2",
		"8000::/1",
	} {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}()

// Prefixes of IPv6 that carry an IPv4 address, which is what counts.
var (
	nat64     = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052: last 4 octets
	sixToFour = netip.MustParsePrefix("2002::/16")    // RFC 3056: octets 2 to 5
)

// Refuses reports whether addr may not be connected to: it is inside, and in
// no network of allow. Networks for documentation are no danger, and are as
// all others.
func Refuses(addr netip.Addr, allow []netip.Prefix) bool {
	addr = addr.Unmap().WithZone("") // RFC 4291 §2.5.5.2: ::ffff:127.0.0.1 is 127.0.0.1
	if v4, ok := embedded(addr); ok && Refuses(v4, allow) {
		return true
	}
	return within(addr, networks) && !nat64.Contains(addr) && !within(addr, allow)
}

// embedded returns the IPv4 address that addr leads to.
func embedded(addr netip.Addr) (netip.Addr, bool) {
	b := addr.As16()
	switch {
	case addr.Is4():
		return addr, false
	case nat64.Contains(addr):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case sixToFour.Contains(addr):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	case b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe: // ISATAP, RFC 5214 §6.1
		return netip.AddrFrom4([4]byte(b[12:16])), true
	}
	return addr, false
}

func within(addr netip.Addr, nets []netip.Prefix) bool {
	for _, n := range nets {
		if n.Contains(addr) {
			return true
		}
	}
	return false
}
