package delivery

import (
	"net/netip"
	"slices"
	"time"

	"github.com/postrider/postrider/pkg/mail"
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

// split returns one job for each transaction that the request needs.
func (w *worker) split(request *mail.DeliveryRequest, perTransaction int) []*job {
	jobs := split(request, perTransaction)
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

func split(request *mail.DeliveryRequest, perTransaction int) []*job {
	var jobs []*job
	now := time.Now()
	families := familiesOf(request.Route)
	for rest := request.Recipients; len(rest) > 0; {
		n := min(len(rest), max(perTransaction, 1))
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
	again.load = nil
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
