package delivery

import (
	"net/netip"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

// job is a claimed delivery request on its way through this process, with
// what its current attempt has met so far. It has one owner at a time: the
// ready queue of its site, or a session.
type job struct {
	request *mail.DeliveryRequest // at most so many recipients as fit in one transaction
	since   time.Time             // when it was claimed
	passed  int                   // how often another job was taken before it for fitting better

	tried    []netip.AddrPort  // addresses that this attempt need not try again
	sessions int               // greeted sessions that this attempt has used up
	last     smtpclient.Answer // of the session that broke last
}

// split returns one job for each transaction that the request needs.
func split(request *mail.DeliveryRequest, perTransaction int) []*job {
	var jobs []*job
	now := time.Now()
	for rest := request.Recipients; len(rest) > 0; {
		n := min(len(rest), max(perTransaction, 1))
		part := *request
		part.Recipients = rest[:n:n]
		rest = rest[n:]
		jobs = append(jobs, &job{request: &part, since: now})
	}
	return jobs
}

// rest returns a job for those recipients of j that still have no outcome.
func (j *job) rest(without map[int32]bool) *job {
	part := *j.request
	part.Recipients = nil
	for _, r := range j.request.Recipients {
		if !without[r.No] {
			part.Recipients = append(part.Recipients, r)
		}
	}
	again := *j
	again.request = &part
	return &again
}

func requestsOf(jobs []*job) []*mail.DeliveryRequest {
	requests := make([]*mail.DeliveryRequest, len(jobs))
	for i, j := range jobs {
		requests[i] = j.request
	}
	return requests
}
