package delivery

import (
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
)

func TestSharesAreFairAndComplete(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		live := rapid.SliceOfNDistinct(rapid.Map(rapid.Int32Range(1, 1000), func(n int32) mail.WorkerID { return mail.WorkerID(n) }),
			1, 100, rapid.ID[mail.WorkerID]).Draw(t, "live")
		slices.Sort(live)
		sum := 0
		for _, id := range live {
			n := share(live, id)
			if n < mail.Slots/len(live) || n > mail.Slots/len(live)+1 {
				t.Fatalf("worker %d of %d has %d slots", id, len(live), n)
			}
			sum += n
		}
		if sum != mail.Slots {
			t.Fatalf("the shares sum to %d, want %d", sum, mail.Slots)
		}
		if share(live, 2000) != 0 {
			t.Fatal("a worker that is not live has a share")
		}
	})
}

func TestBatcherTreatsWhatComesMeanwhileTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var batches [][]int
		b := newBatcher(10, func(batch []int) {
			batches = append(batches, slices.Clone(batch))
			<-time.After(time.Second)
		})
		var g errgroup.Group
		g.Go(b.run)
		b.in <- 0
		synctest.Wait()
		for i := 1; i <= 15; i++ {
			b.in <- i
		}
		b.stop()
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if len(batches) != 3 || len(batches[0]) != 1 || len(batches[1]) != 10 || len(batches[2]) != 5 {
			t.Errorf("batches %v, want 1, then 10, then 5", batches)
		}
		if got := slices.Concat(batches...); !slices.IsSorted(got) || len(got) != 16 {
			t.Errorf("got %v, want 0 to 15 in order", got)
		}
	})
}

func TestBatcherLingersOnlySoLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var sizes []int
		var at []time.Duration
		b := newBatcher(3, func(batch []int) {
			sizes = append(sizes, len(batch))
			at = append(at, time.Since(began))
		}).lingers(5*time.Millisecond, always)
		var g errgroup.Group
		g.Go(b.run)
		b.in <- 1
		<-time.After(2 * time.Millisecond)
		b.in <- 2
		<-time.After(10 * time.Millisecond)
		for i := range 3 { // a full batch does not wait
			b.in <- i
		}
		b.stop()
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(sizes, []int{2, 3}) || at[0] != 5*time.Millisecond || at[1] != 12*time.Millisecond {
			t.Errorf("batches of %v at %v, want 2 at 5ms and 3 at 12ms", sizes, at)
		}
	})
}

// The last one of those that were on their way ends the linger.
func TestBatcherWaitsOnlyForWhatMayCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var sizes []int
		var at []time.Duration
		var coming atomic.Int64
		b := newBatcher(10, func(batch []int) {
			sizes = append(sizes, len(batch))
			at = append(at, time.Since(began))
		}).lingers(5*time.Millisecond, func() bool { return coming.Load() > 0 })
		var g errgroup.Group
		g.Go(b.run)
		b.in <- 1 // alone
		<-time.After(time.Millisecond)
		coming.Store(1)
		b.in <- 2
		<-time.After(2 * time.Millisecond)
		coming.Store(0)
		b.in <- 3
		b.stop()
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(sizes, []int{1, 2}) || at[0] != 0 || at[1] != 3*time.Millisecond {
			t.Errorf("batches of %v at %v, want 1 at once and 2 at 3ms", sizes, at)
		}
	})
}

func TestLeaseEndsBeforeItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l lease
		if l.left() > 0 {
			t.Error("a worker without a lease may open transactions")
		}
		l.extend(time.Now().Add(5 * time.Second))
		<-time.After(5*time.Second - leaseMargin - time.Millisecond)
		if l.left() <= 0 {
			t.Error("the lease is over too early")
		}
		<-time.After(time.Millisecond)
		if l.left() > 0 {
			t.Error("transactions may be opened within the margin")
		}
	})
}

func TestSplit(t *testing.T) {
	r := &mail.DeliveryRequest{Route: &mail.Route{}, Recipients: make([]mail.Pending, 250)}
	for i := range r.Recipients {
		r.Recipients[i].No = int32(i)
	}
	jobs := split(r, bounds{recipients: 100})
	var seen []int32
	for _, j := range jobs {
		for _, p := range j.request.Recipients {
			seen = append(seen, p.No)
		}
	}
	if len(jobs) != 3 || len(seen) != 250 || !slices.IsSorted(seen) {
		t.Errorf("%d jobs with %d recipients, want 3 with 250 in order", len(jobs), len(seen))
	}
	part := jobs[2].with(jobs[2].request.Recipients[:2])
	if n := len(part.request.Recipients); n != 2 || len(jobs[2].request.Recipients) != 50 {
		t.Errorf("%d recipients in a part of 2, and %d in the job itself", n, len(jobs[2].request.Recipients))
	}
	if len(split(&mail.DeliveryRequest{Route: &mail.Route{}}, bounds{recipients: 100})) != 0 {
		t.Error("a request without recipients makes a job")
	}
}

// Where the same hosts serve several domains, a transaction has recipients of
// one, as with KumoMTA and Postfix; at a smart host of all.
func TestSplitByDomain(t *testing.T) {
	of := func(domains string) (all []mail.Pending) {
		for i, d := range domains {
			all = append(all, mail.Pending{Recipient: mail.Recipient{No: int32(i), Domain: mail.Domain(d)}})
		}
		return all
	}
	for _, c := range []struct {
		domains   string
		smartHost bool
		v         shaping.Values
		want      string
	}{
		{"aaa", false, shaping.Values{}, "aaa"},
		{"abab", false, shaping.Values{}, "aa bb"},
		{"abab", true, shaping.Values{}, "abab"},
		{"abab", true, shaping.Values{DomainsPerTransaction: 1}, "aa bb"},
		{"abcab", false, shaping.Values{DomainsPerTransaction: 2}, "aabb c"},
		{"abc", false, shaping.Values{DomainsPerTransaction: 3}, "abc"},
		{"aabaa", false, shaping.Values{RecipientsPerTransaction: 3}, "aaa a b"},
		{"abab", true, shaping.Values{RecipientsPerTransaction: 3}, "aba b"},
		{"", false, shaping.Values{}, ""},
	} {
		if c.v.RecipientsPerTransaction == 0 {
			c.v.RecipientsPerTransaction = 100
		}
		r := &mail.DeliveryRequest{Route: &mail.Route{SmartHost: c.smartHost}, Recipients: of(c.domains)}
		b := boundsOf(r, c.v)
		var got []string
		for _, j := range split(r, b) {
			one := ""
			for _, p := range j.request.Recipients {
				one += string(p.Domain)
			}
			got = append(got, one)
		}
		if s := strings.Join(got, " "); s != c.want || b.holds(r.Recipients) != (len(got) < 2) {
			t.Errorf("%s, %+v: transactions %q, want %q; one holds all: %v", c.domains, b, s, c.want, b.holds(r.Recipients))
		}
		if !slices.EqualFunc(r.Recipients, of(c.domains), func(a, b mail.Pending) bool { return a.No == b.No }) {
			t.Errorf("%s: the request itself has changed", c.domains)
		}
	}
}

func TestAttemptIsBounded(t *testing.T) {
	route := &mail.Route{Hosts: []mail.Host{{Name: "mx", Port: 25}}}
	for i := range byte(10) {
		route.Hosts[0].Addresses = append(route.Hosts[0].Addresses, netip.AddrFrom4([4]byte{192, 0, 2, i}))
	}
	j := newJob(0, "", route)
	addr := func(i int) netip.AddrPort { return netip.AddrPortFrom(route.Hosts[0].Addresses[i], 25) }
	once := j.elsewhere(addr(0))
	if !once.mayGoOn() {
		t.Error("an attempt ends after one session though there are other addresses")
	}
	if once.elsewhere(addr(1)).mayGoOn() {
		t.Errorf("an attempt goes on after %d sessions", maxSessions)
	}
	for i := range maxAddresses {
		j.tried = append(j.tried, addr(i))
	}
	if j.mayGoOn() {
		t.Errorf("an attempt goes on after %d addresses", maxAddresses)
	}
	single := newJob(0, "", twoMX)
	single.tried = []netip.AddrPort{first}
	if single.elsewhere(second).mayGoOn() {
		t.Error("an attempt goes on without an address that was not tried")
	}
	if len(single.tried) != 1 {
		t.Error("going elsewhere changes the job that it came from")
	}
}
