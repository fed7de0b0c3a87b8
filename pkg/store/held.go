package store

import (
	"context"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// held is what the workers of this process have claimed, as far as Postgres
// has answered: from a claim or a pull that won to the settle, park or return
// that ended it. Postgres may come to remember otherwise, when a crash or a
// failover takes back what it had committed.
type held struct {
	mu    sync.Mutex
	of    map[mail.WorkerID]map[rowKey]int32 // the fence of each; guarded by mu
	under *sync.WaitGroup                    // claims under way since the last pass; guarded by mu
}

func newHeld() *held {
	return &held{of: map[mail.WorkerID]map[rowKey]int32{}, under: new(sync.WaitGroup)}
}

// begin says that a claim is under way until the returned function is called.
func (h *held) begin() (done func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.under.Add(1)
	return h.under.Done
}

// pass waits for the claims that are under way now.
func (h *held) pass() {
	h.mu.Lock()
	under := h.under
	h.under = new(sync.WaitGroup)
	h.mu.Unlock()
	under.Wait()
}

// add notes the recipients of requests, whose fences are those of the claim.
func (h *held) add(worker mail.WorkerID, reqs []*mail.DeliveryRequest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	of := h.of[worker]
	if of == nil {
		of = map[rowKey]int32{}
		h.of[worker] = of
	}
	for _, req := range reqs {
		for i := range req.Recipients {
			r := &req.Recipients[i]
			of[rowKey{req.Message.ID, r.No}] = r.Attempt
		}
	}
}

// drop forgets n claims, unless they have another fence meanwhile.
func (h *held) drop(worker mail.WorkerID, n int, claim func(i int) fence) {
	h.mu.Lock()
	defer h.mu.Unlock()
	of := h.of[worker]
	for i := range n {
		f := claim(i)
		if attempt, ok := of[f.rowKey]; ok && attempt == f.attempt {
			delete(of, f.rowKey)
		}
	}
}

// dropAll forgets the claims that requests name.
func (h *held) dropAll(worker mail.WorkerID, reqs []*mail.DeliveryRequest) {
	for _, req := range reqs {
		h.drop(worker, len(req.Recipients), func(i int) fence {
			return fence{rowKey{req.Message.ID, req.Recipients[i].No}, req.Recipients[i].Attempt}
		})
	}
}

// end forgets all claims of a worker.
func (h *held) end(worker mail.WorkerID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.of, worker)
}

// strangers returns the claims that are not held.
func (h *held) strangers(worker mail.WorkerID, claims []fence) (found []fence) {
	h.mu.Lock()
	defer h.mu.Unlock()
	of := h.of[worker]
	for _, f := range claims {
		if attempt, ok := of[f.rowKey]; !ok || attempt != f.attempt {
			found = append(found, f)
		}
	}
	return found
}

const claimsOf = `SELECT queue_id, recipient_no, attempt FROM recipients WHERE worker_id = $1`

const someClaims = `SELECT r.queue_id, r.recipient_no, r.dispatched
    FROM recipients r
    WHERE r.worker_id = $1
      AND (r.queue_id, r.recipient_no, r.attempt) IN (SELECT * FROM unnest($3::uuid[], $4::integer[], $5::integer[]))
    ORDER BY r.queue_id, r.recipient_no
    FOR UPDATE`

// Reconcile gives back what Postgres takes for claimed by the worker and the
// worker does not know of: a crash or a failover has brought it back, or
// the answer to a claim was lost. Nobody else would ever touch it, because the
// worker lives. Such recipients wait again, due at once; one that was in a
// transaction may have been relayed: its history says so. Reconcile returns how
// many there were, and for how many of them that is so. It is to be called
// whenever a renewal comes from another session than the one before.
func (s *Store) Reconcile(ctx context.Context, worker mail.WorkerID) (r Reclaimed, err error) {
	rows, err := s.plain.Query(ctx, claimsOf, worker)
	if err != nil {
		return r, fmt.Errorf("reconcile: %w", err)
	}
	claims, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f fence, err error) {
		return f, row.Scan(&f.id, &f.no, &f.attempt)
	})
	if err != nil {
		return r, fmt.Errorf("reconcile: %w", err)
	}
	// Whatever of that was won by a claim whose answer is still on its way is
	// known when that claim is over.
	s.held.pass()
	unknown := s.held.strangers(worker, claims)
	if len(unknown) == 0 {
		return r, nil
	}
	ids := make([]mail.QueueID, len(unknown))
	nos, attempts := make([]int32, len(unknown)), make([]int32, len(unknown))
	for i, f := range unknown {
		ids[i], nos[i], attempts[i] = f.id, f.no, f.attempt
	}
	const why = "Postgres came back without what had become of the transaction"
	if err := s.plain.QueryRow(ctx, takeBack(someClaims), worker, why, ids, nos, attempts).Scan(&r.Recipients, &r.Uncertain); err != nil {
		return Reclaimed{}, fmt.Errorf("reconcile: %w", err)
	}
	return r, nil
}
