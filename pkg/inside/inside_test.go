package inside

import (
	"net/netip"
	"testing"
)

func TestRefuses(t *testing.T) {
	allow := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/32")}
	for _, c := range []struct {
		address string
		refused bool
	}{
		{"8.8.8.8", false}, {"192.0.2.1", false}, {"198.51.100.1", false}, {"203.0.113.1", false}, // the last three: documentation
		{"2001:4860:4860::8888", false}, {"2001:db8::1", false}, {"2a00::1", false}, {"2620:0:2d0::1", false}, {"2001:200::1", false},

		// The IANA IPv4 Special-Purpose Address Registry.
		{"0.0.0.0", true}, {"0.1.2.3", true}, {"10.0.0.1", true}, {"100.64.0.1", true}, {"100.100.100.200", true}, {"127.0.0.1", true}, {"127.255.255.255", true},
		{"169.254.169.254", true}, {"172.16.0.1", true}, {"172.31.255.255", true}, {"192.0.0.8", true}, {"192.88.99.1", true}, {"192.168.0.1", true},
		{"198.18.0.1", true}, {"198.19.255.255", true}, {"224.0.0.1", true}, {"240.0.0.1", true}, {"255.255.255.255", true},
		{"100.128.0.1", false}, {"172.32.0.1", false}, {"169.253.0.1", false}, {"198.20.0.1", false}, {"192.0.1.1", false},

		// The IANA IPv6 Special-Purpose Address Registry, and the space that is
		// not assigned.
		{"::", true}, {"::1", true}, {"::127.0.0.1", true}, {"::8.8.8.8", true},
		{"64:ff9b:1::1", true}, {"64:ff9b:1::808:808", true}, {"100::1", true}, {"100:0:0:1::1", true}, {"2001::1", true}, {"2001:0:4136:e378:8000:63bf:3fff:fdd2", true},
		{"2001:2::1", true}, {"2001:10::1", true}, {"2001:20::1", true}, {"5f00::1", true}, {"fc00::1", true}, {"fd00:ec2::254", true}, {"fe80::1", true}, {"fe80::1%eth0", true},
		{"fec0::1", true}, {"ff02::1", true}, {"4000::1", true}, {"c000::1", true}, {"1::1", true},

		// An IPv4 address inside an IPv6 one is what counts.
		{"::ffff:127.0.0.1", true}, {"::ffff:8.8.8.8", false}, {"::ffff:0:127.0.0.1", true}, {"::ffff:0:8.8.8.8", true},
		{"64:ff9b::127.0.0.1", true}, {"64:ff9b::10.0.0.1", true}, {"64:ff9b::169.254.169.254", true}, {"64:ff9b::8.8.8.8", false},
		{"2002:7f00:1::1", true}, {"2002:a00:1::1", true}, {"2002:a9fe:a9fe::", true}, {"2002:808:808::1", false},
		{"2a00::5efe:10.0.0.1", true}, {"2a00::200:5efe:127.0.0.1", true}, {"2a00::5efe:8.8.8.8", false},

		// What is allowed.
		{"10.1.2.3", false}, {"::ffff:10.1.2.3", false}, {"64:ff9b::10.1.2.3", false}, {"2002:a01:203::1", false}, {"fd00:1::1", false}, {"fd00:2::1", true}, {"10.2.0.1", true},
	} {
		if got := Refuses(netip.MustParseAddr(c.address), allow); got != c.refused {
			t.Errorf("%s: refused %v, want %v", c.address, got, c.refused)
		}
	}
}
