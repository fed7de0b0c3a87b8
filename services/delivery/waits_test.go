package delivery_test

import (
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/pkg/store"
)

// TestWhatClaimedMailWaitsForIsSaid: the limit, who set it and until when; and
// no longer than it waits.
func TestWhatClaimedMailWaitsForIsSaid(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{})
	r.route("example.test", "mx.example.test", mx.Addr())
	c := r.config("[\"example.test\"]\nmax_message_rate = \"4/min,max_burst=1\"\n")
	r.start(c)
	r.settled(1)
	ids := r.accept(2, message{domain: "example.test"})
	r.ring()
	said := func() (all []string) {
		rows, err := r.db.Queue(t.Context(), store.Filter{Domain: "example.test"}, 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			all = append(all, row.Suspended)
		}
		return all
	}
	is := func(text string) bool {
		return strings.HasPrefix(text, `waits for max_message_rate 4/1m,max_burst=1, set by "example.test" of shaping`) && strings.Contains(text, ", until 20")
	}
	r.until("the queue says what the second message waits for", 20*time.Second, func() bool {
		all := said()
		return len(all) == 1 && is(all[0])
	})
	for _, id := range ids {
		if got := r.show(id).Recipients[0]; got.State == "queued" && !is(got.Waits) {
			t.Errorf("the story says %q", got.Waits)
		}
	}
	mx.WaitMessages(t, 2, 30*time.Second)
	r.drained(20 * time.Second)
	r.accept(1, message{domain: "example.test"})
	if all := said(); len(all) != 1 || all[0] != "" {
		t.Errorf("the queue says %q of mail that nobody has claimed", all)
	}
}
