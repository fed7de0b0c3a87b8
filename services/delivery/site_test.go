package delivery

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

// newTestWorker is a worker that has all slots and mail of no source, without
// a store.
func newTestWorker(t *testing.T, from store.Sources) *worker {
	t.Helper()
	schedule, err := retry.Parse("5m")
	if err != nil {
		t.Fatal(err)
	}
	shape, err := shaping.Open(shaping.Config{RetrySchedule: schedule})
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{
		shaping: shape, sites: map[sitePart]*site{}, memories: memories{}, contents: semaphore.NewWeighted(store.ChunkBytes),
		config: Config{HomeLease: time.Second, ReadyLimit: 100, Connections: 10, ContentBytes: 1 << 20},
	}
	w.settles = newBatcher(10, func([]mail.Settlement) {})
	w.sources.Store(makeSources(reading{Sources: from}, 0, nil))
	w.tenure.extend(time.Now().Add(time.Hour))
	for i := range w.slots {
		w.slots[i].tenure = ours
	}
	return w
}

// TestAForgottenSiteTakesNoMail: whoever got hold of a site right before it was
// forgotten must not count beside its next value.
func TestAForgottenSiteTakesNoMail(t *testing.T) {
	w := newTestWorker(t, store.Sources{})
	held := w.siteOf("a.test", mail.Site("a.test").Slot())
	w.forgetQuiet()
	if w.siteOf("a.test", mail.Site("a.test").Slot()) == held {
		t.Fatal("a site that has nothing to do is not forgotten")
	}
	request := &mail.DeliveryRequest{Route: &mail.Route{Site: "a.test"}, Recipients: []mail.Pending{{Recipient: mail.Recipient{Domain: "a.test"}}}}
	if place, why := held.admit(request, w.flowOf(request), w.values(request)); place != none || why != nil {
		t.Errorf("a forgotten site takes mail: %v, %v", place, why)
	}
}

// TestFailedHostsAreRemembered: a site that has nothing to do for a while does
// not begin with the host again that does not answer.
func TestFailedHostsAreRemembered(t *testing.T) {
	w := newTestWorker(t, store.Sources{})
	s := w.siteOf("a.test", mail.Site("a.test").Slot())
	down, up := netip.MustParseAddrPort("192.0.2.1:25"), netip.MustParseAddrPort("192.0.2.2:25")
	route := &mail.Route{Hosts: []mail.Host{{Name: "a", Port: 25, Addresses: []netip.Addr{down.Addr()}}, {Name: "b", Port: 25, Preference: 10, Addresses: []netip.Addr{up.Addr()}}}}
	s.failures.failed(down, time.Now())
	w.forgetQuiet()
	if first := w.siteOf("a.test", mail.Site("a.test").Slot()).targets(route)[0].addr; first != up {
		t.Errorf("%s is tried first, want %s", first, up)
	}
	s.failures.failed(down, time.Now().Add(-2*maxPause))
	w.forgetQuiet()
	if w.siteOf("a.test", mail.Site("a.test").Slot()) == s {
		t.Error("a pause that is over keeps the site for ever")
	}
}

// TestWhatNoSourceCanServeFreesItsContent: the memory of contents would be
// used up for good.
func TestWhatNoSourceCanServeFreesItsContent(t *testing.T) {
	w := newTestWorker(t, store.Sources{
		Sources: []store.Source{{Name: "four", IPv4: netip.MustParseAddr("192.0.2.1")}},
		Members: []store.Member{{Pool: defaultPool, Source: "four", Weight: 1}},
	})
	request := &mail.DeliveryRequest{
		Message:    mail.Message{SizeBytes: store.ChunkBytes},
		Route:      &mail.Route{Site: "a.test", Hosts: []mail.Host{{Name: "mx.a.test", Addresses: []netip.Addr{netip.MustParseAddr("2001:db8::1")}}}},
		Recipients: []mail.Pending{{Recipient: mail.Recipient{Domain: "a.test"}}},
	}
	j := w.split(request, bounds{recipients: 1})[0]
	if j.load = w.tryReserve(request); j.load == nil {
		t.Fatal("no room for the content")
	}
	w.add(w.siteOf("a.test", mail.Site("a.test").Slot()), []*job{j})
	if st := <-w.settles.in; st.Outcomes[0].Action != mail.Delayed {
		t.Errorf("outcome %+v", st.Outcomes[0])
	}
	if w.tryReserve(request) == nil {
		t.Error("the content of mail that no source can serve is kept")
	}
}

// TestWhatAHomeGaveUpIsTriedAtOnce: when the lease on the slots is over and
// that on the claims is not, the next home does not wait for our own trouble.
func TestWhatAHomeGaveUpIsTriedAtOnce(t *testing.T) {
	w := newTestWorker(t, store.Sources{})
	w.taking = t.Context()
	w.lease.extend(time.Now().Add(time.Hour))
	p := mail.Pending{Recipient: mail.Recipient{Domain: "a.test", ExpiresAt: time.Now().Add(time.Hour)}}
	a := &attempt{session: &session{worker: w, site: w.siteOf("a.test", mail.Site("a.test").Slot()), source: here}, over: time.Now()}
	a.job = &job{request: &mail.DeliveryRequest{Route: &mail.Route{Site: "a.test"}, Recipients: []mail.Pending{p}}}
	for _, tt := range []struct {
		cause error
		pause time.Duration
	}{{errLeaseOver, 0}, {errors.New("no room"), untriedPause}} {
		answer := smtpclient.Answer{Phase: mail.PhaseMail, Err: fmt.Errorf("%w: %w", smtpclient.ErrStopped, tt.cause)}
		if o := a.outcome(p, answer, judge(circumstances{answer: answer})); o.NextAttemptAt.Sub(a.over) != tt.pause || !o.Untried {
			t.Errorf("%v: %+v, want the next attempt after %v", tt.cause, o, tt.pause)
		}
	}
}
