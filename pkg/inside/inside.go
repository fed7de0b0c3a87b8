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
		"192.168.0.0/16", // private, RFC 1918
		"198.18.0.0/15",  // benchmarks, RFC 2544
		"224.0.0.0/4",    // multicast
		"240.0.0.0/4",    // reserved and broadcast
		"::/96",          // unspecified, loopback, IPv4-compatible
		"64:ff9b:1::/48", // local NAT64, RFC 8215
		"100::/64",       // discard, RFC 6666
		"2001::/32",      // Teredo, RFC 4380
		"fc00::/7",       // unique local, RFC 4193
		"fe80::/10",      // link-local
		"fec0::/10",      // site-local, RFC 3879
		"ff00::/8",       // multicast
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
// no network of allow.
func Refuses(addr netip.Addr, allow []netip.Prefix) bool {
	addr = addr.Unmap().WithZone("") // RFC 4291 §2.5.5.2: ::ffff:127.0.0.1 is 127.0.0.1
	return within(addr, networks) && !within(addr, allow) || embedded(addr) != addr && Refuses(embedded(addr), allow)
}

// embedded returns the IPv4 address that addr is translated to, else addr.
func embedded(addr netip.Addr) netip.Addr {
	b := addr.As16()
	switch {
	case nat64.Contains(addr):
		return netip.AddrFrom4([4]byte(b[12:16]))
	case sixToFour.Contains(addr):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return addr
}

func within(addr netip.Addr, nets []netip.Prefix) bool {
	for _, n := range nets {
		if n.Contains(addr) {
			return true
		}
	}
	return false
}
