package smtpd

import (
	"net/netip"
	"testing"
	"time"
)

func TestCrowd(t *testing.T) {
	cfg := testConfig()
	cfg.MaxConnectionsPerIP, cfg.MaxConnectionsPerNetwork, cfg.ConnectionRate, cfg.MessageRate = 2, 3, 4, 2
	c := newCrowd()
	now := time.Unix(1_800_000_000, 0)
	enter := func(address string, want int, reply string) {
		t.Helper()
		if got := c.enter(netip.MustParseAddr(address), &cfg, now); got.Code != want || reply != "" && got.Text() != reply {
			t.Errorf("%s: %s, want %d %s", address, got, want, reply)
		}
	}
	leave := func(address string) { c.leave(netip.MustParseAddr(address), now) }

	enter("192.0.2.1", 0, "")
	enter("192.0.2.1", 0, "")
	enter("192.0.2.1", 421, replyConnectionIP.Text())
	enter("192.0.2.2", 0, "")
	enter("192.0.2.3", 421, replyConnectionNetwork.Text())
	enter("192.0.3.1", 0, "")
	enter("2001:db8::1", 0, "")
	enter("2001:db8::2", 0, "")
	enter("2001:db8::3", 421, replyConnectionIP.Text()) // a /64 is one client
	enter("2001:db8:0:1::1", 0, "")
	enter("2001:db8:0:2::1", 421, replyConnectionNetwork.Text())

	leave("192.0.2.1")
	leave("192.0.2.1")
	for range 2 {
		enter("192.0.2.1", 0, "")
		leave("192.0.2.1")
	}
	enter("192.0.2.1", 421, replyConnectionRate.Text()) // the fifth of a minute
	now = now.Add(15 * time.Second)
	enter("192.0.2.1", 0, "")
	leave("192.0.2.1")

	a := netip.MustParseAddr("192.0.2.9")
	for i, m := range []struct {
		after time.Duration
		ok    bool
	}{{0, true}, {0, true}, {0, false}, {30 * time.Second, true}} {
		if c.message(a, &cfg, now.Add(m.after)) != m.ok {
			t.Errorf("message %d of two a minute: want %v", i+1, m.ok)
		}
	}
}

// What is known of clients that are gone does not stay.
func TestCrowdForgets(t *testing.T) {
	cfg := testConfig()
	cfg.ConnectionRate = 1
	c := newCrowd()
	now := time.Unix(1_800_000_000, 0)
	for i := range 100_000 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		if got := c.enter(a, &cfg, now); got.Code != 0 {
			t.Fatal(got)
		}
		c.leave(a, now)
		now = now.Add(100 * time.Millisecond)
	}
	if len(c.known) > 4*leastSweep {
		t.Errorf("%d entries, want those of a minute and as many again", len(c.known))
	}
}
