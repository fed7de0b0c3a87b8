package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postrider/postrider/pkg/mail"
)

// Content is the content of one dispatched message. Bytes is nil when Large:
// then OpenContent streams it.
type Content struct {
	Bytes []byte
	Large bool
}

// fencedRow is one recipient of a batch with the fence under which the
// caller knows it.
type fencedRow struct {
	rowKey
	attempt int32
	site    mail.Site
	req     *mail.DeliveryRequest
}

func rowsOf(reqs []*mail.DeliveryRequest) []fencedRow {
	var rows []fencedRow
	for _, req := range reqs {
		for _, r := range req.Recipients {
			rows = append(rows, fencedRow{rowKey{req.Message.ID, r.No}, r.Attempt, req.Route.Site, req})
		}
	}
	return rows
}

// fence names one recipient at one point of its life.
type fence struct {
	rowKey
	attempt int32
}

// keep leaves in each request the recipients that are in won, with added to
// their fence. A recipient that stands in several requests, because its hint
// was repeated, stays in one of them.
func keep(reqs []*mail.DeliveryRequest, won map[fence]bool, added int32) {
	for _, req := range reqs {
		kept := req.Recipients[:0]
		for _, r := range req.Recipients {
			f := fence{rowKey{req.Message.ID, r.No}, r.Attempt}
			if won[f] {
				delete(won, f)
				r.Attempt += added
				kept = append(kept, r)
			}
		}
		req.Recipients = kept
	}
}

const claimRows = `UPDATE recipients_%s r
SET attempt = r.attempt + 1, worker_id = $1, slot = NULL, rung = false, site = t.site,
    dispatched = t.now, next_attempt_at = r.expires_at
FROM unnest($2::uuid[], $3::integer[], $4::integer[], $5::text[], $6::boolean[]) WITH ORDINALITY
    AS t (queue_id, recipient_no, attempt, site, now, ord)
WHERE r.queue_id = t.queue_id AND r.recipient_no = t.recipient_no
  AND r.attempt = t.attempt AND r.worker_id IS NULL AND r.state = 'queued' AND r.expires_at > now()
RETURNING t.ord`

// Claim makes the worker the one that may try these recipients. Each request
// keeps only the recipients that were won, which may be none; their Attempt
// is the new fence. Losing the commit in a crash of Postgres is safe: the
// recipient is then claimed again.
func (s *Store) Claim(ctx context.Context, worker mail.WorkerID, reqs []*mail.DeliveryRequest) error {
	_, err := s.ClaimAndDispatch(ctx, worker, reqs, make([]bool, len(reqs)))
	return err
}

// ClaimAndDispatch is Claim, and for those requests of which now is true also
// Dispatch, in one round trip: for a request that a connection takes next.
// contents[i] belongs to reqs[i]; it is zero if now[i] is false or the content
// is large or cannot be read, and then Dispatch says more.
func (s *Store) ClaimAndDispatch(ctx context.Context, worker mail.WorkerID, reqs []*mail.DeliveryRequest, now []bool) ([]Content, error) {
	atOnce := map[*mail.DeliveryRequest]bool{}
	var ready []*mail.DeliveryRequest
	for i, req := range reqs {
		if now[i] {
			atOnce[req] = true
			ready = append(ready, req)
		}
	}
	read := newContentBatch()
	defer s.held.begin()()
	won, err := s.fenced(ctx, s.relaxed, reqs, fencedStatement{"claim", claimRows, 6, func(x *exchange, rows []fencedRow) {
		x.fences(&worker, rows)
		x.texts(len(rows), func(i int) string { return string(rows[i].site) })
		x.array(pgtype.BoolOID, len(rows), func(i int) { x.bool(atOnce[rows[i].req]) })
	}}, read.of(ready))
	if err != nil {
		return nil, fmt.Errorf("claim: %w", err)
	}
	keep(reqs, won, 1)
	s.held.add(worker, reqs)
	contents := make([]Content, len(reqs))
	for i, req := range reqs {
		if now[i] {
			contents[i].Bytes, _ = read.take(req.Message.ID)
		}
	}
	return contents, nil
}

// contentBatch is the contents that were read together, each once.
type contentBatch struct {
	read  map[mail.QueueID][]byte
	taken map[mail.QueueID]bool
}

func newContentBatch() *contentBatch {
	return &contentBatch{map[mail.QueueID][]byte{}, map[mail.QueueID]bool{}}
}

// take returns a content for one request. Requests of one message, for several
// sites, have a copy each: each frees its own.
func (c *contentBatch) take(id mail.QueueID) (content []byte, ok bool) {
	if content, ok = c.read[id]; ok && c.taken[id] {
		content = keepContent(content)
	}
	c.taken[id] = true
	return content, ok
}

// of returns what adds the reading of the requests' contents to a batch.
// Large contents are left out.
func (c *contentBatch) of(reqs []*mail.DeliveryRequest) func(*exchange) {
	row := func(fields [][]byte) { c.read[mail.QueueID(fields[0])] = keepContent(fields[1]) }
	return func(x *exchange) {
		var hot, aged []mail.QueueID
		asked := make(map[mail.QueueID]bool, len(reqs))
		for _, req := range reqs {
			m := &req.Message
			if asked[m.ID] {
				continue
			}
			asked[m.ID] = true
			switch {
			case m.SizeBytes > ChunkBytes:
			case time.Since(m.ID.Time()) < hotContents:
				hot = append(hot, m.ID)
			default:
				aged = append(aged, m.ID)
			}
		}
		read := func(name, sql string, ids []mail.QueueID) {
			x.call(hotStatement{name, sql, row}, 1, func() {
				x.ids(len(ids), func(i int) mail.QueueID { return ids[i] })
			})
		}
		for _, b := range byLeaf(hot, func(id mail.QueueID) mail.QueueID { return id }, hour) {
			read("read_"+b.leaf, fmt.Sprintf(readHot, b.leaf), b.items)
		}
		if len(aged) > 0 {
			read("read_aged", readAged, aged)
		}
	}
}

// fencedStatement is a statement that changes recipients of one leaf if they
// stand as the caller knows them, and returns the ordinals of those.
type fencedStatement struct {
	name, sql string // sql with the leaf to be filled in
	params    int
	bind      func(x *exchange, rows []fencedRow)
}

// fences appends the worker and the arrays that name the rows and their fences.
func (x *exchange) fences(worker *mail.WorkerID, rows []fencedRow) {
	x.worker(worker)
	x.ids(len(rows), func(i int) mail.QueueID { return rows[i].id })
	x.int4s(len(rows), func(i int) int32 { return rows[i].no })
	x.int4s(len(rows), func(i int) int32 { return rows[i].attempt })
}

// fenced runs one statement per leaf over the recipients of the requests, and
// what more adds, in one round trip. It returns the recipients that the
// statement returned.
func (s *Store) fenced(ctx context.Context, pool *pgxpool.Pool, reqs []*mail.DeliveryRequest, st fencedStatement, more func(*exchange)) (map[fence]bool, error) {
	rows := rowsOf(reqs)
	won := make(map[fence]bool, len(rows))
	if len(rows) == 0 {
		return won, nil
	}
	x := newExchange()
	defer x.free()
	for _, b := range byLeaf(rows, func(r fencedRow) mail.QueueID { return r.id }, day) {
		wins := func(fields [][]byte) {
			r := &b.items[ordinal(fields[0])]
			won[fence{r.rowKey, r.attempt}] = true
		}
		x.call(hotStatement{st.name + "_" + b.leaf, fmt.Sprintf(st.sql, b.leaf), wins}, st.params, func() { st.bind(x, b.items) })
	}
	more(x)
	err := x.run(ctx, pool)
	if hasCode(err, undefinedTable) {
		// A partition was dropped. If it is that of the recipients all of them
		// are final, and nothing is left to win. It may be that of another
		// request, or of contents: then each request is tried alone, without.
		if len(reqs) == 1 && len(x.statements) == 1 {
			return won, nil
		}
		return s.fencedEach(ctx, pool, reqs, st)
	}
	return won, err
}

// fencedEach runs the requests one by one and reads no contents, so that a
// dropped partition costs only the requests that name it.
func (s *Store) fencedEach(ctx context.Context, pool *pgxpool.Pool, reqs []*mail.DeliveryRequest, st fencedStatement) (map[fence]bool, error) {
	all := map[fence]bool{}
	for i := range reqs {
		won, err := s.fenced(ctx, pool, reqs[i:i+1], st, nothing)
		if err != nil {
			return nil, err
		}
		for k := range won {
			all[k] = true
		}
	}
	return all, nil
}

func nothing(*exchange) {}

// IS NOT DISTINCT FROM keeps the planner from the index of claimed rows, which
// has many for one worker.
const dispatchRows = `UPDATE recipients_%s r
SET dispatched = true
FROM unnest($2::uuid[], $3::integer[], $4::integer[]) WITH ORDINALITY AS t (queue_id, recipient_no, attempt, ord)
WHERE r.queue_id = t.queue_id AND r.recipient_no = t.recipient_no
  AND r.attempt = t.attempt AND r.worker_id IS NOT DISTINCT FROM $1 AND r.expires_at > now()
RETURNING t.ord`

// LIMIT keeps the planner from reading all first chunks and joining them.
const readHot = `SELECT t.queue_id, c.content
FROM unnest($1::uuid[]) AS t (queue_id)
CROSS JOIN LATERAL (SELECT c.content FROM contents_%s c WHERE c.queue_id = t.queue_id AND c.chunk_no = 0 LIMIT 1) c`

// readAged reads content whose hour may have been retired already.
const readAged = `SELECT c.queue_id, c.content FROM contents c WHERE c.queue_id = ANY ($1) AND c.chunk_no = 0
UNION ALL
SELECT c.queue_id, c.content FROM contents_kept c WHERE c.queue_id = ANY ($1) AND c.chunk_no = 0`

// Dispatch marks the recipients as being in a transaction with the remote
// host from now on, and reads the content: contents[i] belongs to reqs[i].
// It looks at each row once more: recipients that are no longer the worker's
// (held, cancelled, expired, taken back) are dropped from their request.
func (s *Store) Dispatch(ctx context.Context, worker mail.WorkerID, reqs []*mail.DeliveryRequest) ([]Content, error) {
	read := newContentBatch()
	asked := 0
	for _, req := range reqs {
		asked += len(req.Recipients)
	}
	won, err := s.fenced(ctx, s.relaxed, reqs, fencedStatement{"dispatch", dispatchRows, 4, func(x *exchange, rows []fencedRow) {
		x.fences(&worker, rows)
	}}, read.of(reqs))
	if err != nil {
		return nil, fmt.Errorf("dispatch: %w", err)
	}
	if len(won) < asked {
		gone := slices.DeleteFunc(rowsOf(reqs), func(r fencedRow) bool { return won[fence{r.rowKey, r.attempt}] })
		s.held.drop(worker, len(gone), func(i int) fence { return fence{gone[i].rowKey, gone[i].attempt} })
	}
	keep(reqs, won, 0)
	contents := make([]Content, len(reqs))
	for i, req := range reqs {
		content, ok := read.take(req.Message.ID)
		contents[i] = Content{Bytes: content, Large: req.Message.SizeBytes > ChunkBytes}
		if !ok && !contents[i].Large && req.Message.SizeBytes > 0 && len(req.Recipients) > 0 {
			return nil, fmt.Errorf("dispatch %s: its content is missing", req.Message.ID)
		}
	}
	return contents, nil
}

// readWithin bounds the wait for one chunk.
const readWithin = 10 * time.Second

// OpenContent streams the content of a message. Memory: one chunk. The first
// Read fails with ErrNotFound if no content is kept. After another error the
// next Read goes on where this one failed.
func (s *Store) OpenContent(ctx context.Context, id mail.QueueID) (io.ReadCloser, error) {
	return &contentReader{ctx: ctx, store: s, id: id}, nil
}

// contentReader reads chunk after chunk. Used by one goroutine.
type contentReader struct {
	ctx   context.Context
	store *Store
	id    mail.QueueID
	next  int32
	chunk []byte
	err   error
}

const readChunk = `SELECT content FROM contents WHERE queue_id = $1 AND chunk_no = $2
UNION ALL
SELECT content FROM contents_kept WHERE queue_id = $1 AND chunk_no = $2`

func (r *contentReader) Read(p []byte) (int, error) {
	for len(r.chunk) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		ctx, cancel := context.WithTimeout(r.ctx, readWithin)
		err := r.store.plain.QueryRow(ctx, readChunk, r.id, r.next).Scan(&r.chunk)
		cancel()
		switch {
		case errors.Is(err, pgx.ErrNoRows) && r.next == 0:
			r.err = fmt.Errorf("content of %s: %w", r.id, ErrNotFound)
		case errors.Is(err, pgx.ErrNoRows):
			r.err = io.EOF
		case err != nil:
			return 0, fmt.Errorf("content of %s: %w", r.id, err)
		}
		r.next++
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

func (r *contentReader) Close() error {
	r.err = io.ErrClosedPipe
	r.chunk = nil
	return nil
}

const giveBackRows = `UPDATE recipients_%s r
SET worker_id = NULL, dispatched = false, rung = false, next_attempt_at = now()
FROM unnest($2::uuid[], $3::integer[], $4::integer[]) WITH ORDINALITY AS t (queue_id, recipient_no, attempt, ord)
WHERE r.queue_id = t.queue_id AND r.recipient_no = t.recipient_no AND r.attempt = t.attempt
  AND r.worker_id IS NOT DISTINCT FROM $1
RETURNING t.ord`

// GiveBack makes claims that were not tried wait and be due at once, for
// whoever is home next. It waits for the disk: if a crash brought the claims
// back, their worker would live and know nothing of them.
func (s *Store) GiveBack(ctx context.Context, worker mail.WorkerID, reqs []*mail.DeliveryRequest) error {
	_, err := s.fenced(ctx, s.durable, reqs, fencedStatement{"give_back", giveBackRows, 4, func(x *exchange, rows []fencedRow) {
		x.fences(&worker, rows)
	}}, nothing)
	if err != nil {
		return fmt.Errorf("give back: %w", err)
	}
	s.held.dropAll(worker, reqs)
	return nil
}
