package store_test

import (
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/store"
)

// TestDeadConnectionsEnd: the kernel of this machine gives up a Postgres that
// is silent, whatever the statement; a quarter of an hour is its own way.
func TestDeadConnectionsEnd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := store.Dialer().DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const keepIdle, keepInterval, keepCount, userTimeout = 4, 5, 6, 18 // tcp(7)
	option := map[int]int{}
	err = raw.Control(func(fd uintptr) {
		for _, o := range []int{keepIdle, keepInterval, keepCount, userTimeout} {
			if option[o], err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, o); err != nil {
				t.Errorf("option %d: %v", o, err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	idle := time.Duration(option[keepIdle]+option[keepInterval]*option[keepCount]) * time.Second
	unacknowledged := time.Duration(option[userTimeout]) * time.Millisecond
	for what, after := range map[string]time.Duration{"idle": idle, "unacknowledged": unacknowledged} {
		if after < 5*time.Second || after > 15*time.Second {
			t.Errorf("%s: given up after %v, want about 10 s", what, after)
		}
	}
}
