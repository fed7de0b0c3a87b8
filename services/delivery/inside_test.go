package delivery_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/smtptest"
)

// A route that leads inside is followed by nobody, whoever made it and however
// it came: the address that is outside is tried, or the mail waits and says why.
func TestNoMailGoesInside(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	inside, allowed := smtptest.Start(t, smtptest.Script{}), smtptest.Start(t, smtptest.Script{Address: "127.0.0.9:0"})
	r.route("private.test", "private.test", inside.Addr())
	r.route("both.test", "both.test", inside.Addr(), allowed.Addr())
	c := r.config("")
	c.AllowTargets = []netip.Prefix{netip.MustParsePrefix("127.0.0.9/32")}
	r.start(c)
	r.settled(1)
	waits := r.accept(1, message{domain: "private.test", recipients: 1})
	goes := r.accept(1, message{domain: "both.test", recipients: 1})
	r.ring()
	allowed.WaitMessages(t, len(goes), 20*time.Second)
	r.until("the other one is put off", 10*time.Second, func() bool { return len(r.show(waits[0]).Attempts) > 0 })
	if a := r.show(waits[0]).Attempts[0]; a.Action != "delayed" || !strings.Contains(a.Reply, "POSTRIDER_ALLOW_TARGETS") {
		t.Errorf("the attempt is %+v, want it delayed, with the reason", a)
	}
	if n := len(inside.Connections()); n > 0 {
		t.Errorf("%d connections went inside", n)
	}
}
