package delivery

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

// job is a claimed delivery request on its way through this process, with
// what its current attempt has met so far. It has one owner at a time: the
// ready queue of its site, or a session.
type job struct {
	request  *mail.DeliveryRequest // at most so many recipients as fit in one transaction
	flow     flow                  // that it belongs to
	families families              // of the addresses of its hosts
	since    time.Time             // when it was claimed
	load     *load                 // its content, if that came with the claim
	passed   int                   // how often another job was taken before it for fitting better

	tried    []netip.AddrPort  // addresses that this attempt need not try again
	sessions int               // greeted sessions that this attempt has used up
	last     smtpclient.Answer // of the session that broke last
}

// bounds is how much goes into one transaction.
type bounds struct {
	recipients int
	domains    int // 0: any number
}

// boundsOf returns how much of a request goes into one transaction. Hosts that
// serve many domains may want one at a time; a smart host takes what comes, as
// with Postfix, unless it is said otherwise.
func boundsOf(r *mail.DeliveryRequest, v shaping.Values) bounds {
	b := bounds{v.RecipientsPerTransaction, v.DomainsPerTransaction}
	if b.domains == 0 && !r.Route.SmartHost {
		b.domains = 1
	}
	return b
}

// holds reports whether one transaction holds all recipients.
func (b bounds) holds(all []mail.Pending) bool {
	return len(all) <= max(b.recipients, 1) && b.ofDomains(all) == len(all)
}

// ofDomains returns how many of the first recipients one transaction may have
// for their domains, when those of a domain stand together.
func (b bounds) ofDomains(all []mail.Pending) int {
	domains := 0
	for i := range all {
		if i == 0 || all[i].Domain != all[i-1].Domain {
			if domains++; domains > b.domains && b.domains > 0 {
				return i
			}
		}
	}
	return len(all)
}

// split returns one job for each transaction that the request needs.
func (w *worker) split(request *mail.DeliveryRequest, b bounds) []*job {
	jobs := split(request, b)
	f := w.flowOf(request)
	for _, j := range jobs {
		j.flow = f
	}
	return jobs
}

// flowOf returns what a request takes turns with.
func (w *worker) flowOf(r *mail.DeliveryRequest) flow {
	return w.flow(store.Flow{Priority: r.Message.Priority, Pool: r.Route.Pool, Tenant: r.Message.Tenant, Campaign: r.Message.Campaign})
}

// flow is that of parked mail as it is here: with the pool that it leaves from
// now.
func (w *worker) flow(f store.Flow) flow {
	return flow{f.Priority, w.poolOf(f.Pool, f.Tenant), f.Tenant, f.Campaign}
}

func split(request *mail.DeliveryRequest, b bounds) []*job {
	var jobs []*job
	now := time.Now()
	families := familiesOf(request.Route)
	rest := request.Recipients
	if b.domains > 0 && !b.holds(rest) {
		rest = slices.Clone(rest)
		slices.SortStableFunc(rest, func(a, b mail.Pending) int { return cmp.Compare(a.Domain, b.Domain) })
	}
	for len(rest) > 0 {
		n := min(b.ofDomains(rest), max(b.recipients, 1))
		part := *request
		part.Recipients = rest[:n:n]
		rest = rest[n:]
		jobs = append(jobs, &job{request: &part, families: families, since: now})
	}
	return jobs
}

// with returns a job like j for some of its recipients, without its content.
func (j *job) with(recipients []mail.Pending) *job {
	part, again := *j.request, *j
	again.load, again.tried = nil, slices.Clone(j.tried)
	part.Recipients = recipients
	again.request = &part
	return &again
}

// elsewhere returns j as it goes on when one greeted session, at an address,
// has come to nothing.
func (j *job) elsewhere(than netip.AddrPort) *job {
	next := *j
	next.sessions++
	next.tried = append(slices.Clone(j.tried), than)
	return &next
}

// mayGoOn reports whether the attempt has an address left to try, and a
// session to try it with.
func (j *job) mayGoOn() bool {
	if j.sessions >= maxSessions || len(j.tried) >= maxAddresses {
		return false
	}
	for _, h := range j.request.Route.Hosts {
		for _, a := range h.Addresses {
			if !slices.Contains(j.tried, netip.AddrPortFrom(a, h.Port)) {
				return true
			}
		}
	}
	return false
}

func requestsOf(jobs []*job) []*mail.DeliveryRequest {
	requests := make([]*mail.DeliveryRequest, len(jobs))
	for i, j := range jobs {
		requests[i] = j.request
	}
	return requests
}
