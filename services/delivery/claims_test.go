package delivery

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
)

// newStoreWorker is a registered worker on a real Postgres, which has all slots
// as far as it knows; lossy is set where its answers get lost.
func newStoreWorker(t *testing.T) (w *worker, near string, lossy *atomic.Bool) {
	t.Helper()
	near, lossy = storetest.New(t), &atomic.Bool{}
	db, err := store.Open(t.Context(), store.Config{URL: lossyLink(t, near, lossy), MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	w = newRelayWorker(t)
	w.aside = newBatcher(10, func([]aside) {})
	w.store, w.config.Lease, w.config.HomeLease = db, time.Minute, time.Minute
	if w.id, err = db.RegisterWorker(t.Context(), "test", time.Minute); err != nil {
		t.Fatal(err)
	}
	return w, near, lossy
}

// lossyLink returns the URL of the same Postgres behind a link that breaks when
// the next answer comes, as long as lossy is set. It ends with the test.
func lossyLink(t *testing.T, near string, lossy *atomic.Bool) string {
	t.Helper()
	const socket = ".s.PGSQL.5432"
	u, err := url.Parse(near)
	if err != nil {
		t.Fatal(err)
	}
	options := u.Query()
	to := filepath.Join(options.Get("host"), socket)
	dir, err := os.MkdirTemp("", "lossy-") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, socket))
	if err != nil {
		t.Fatal(err)
	}
	var links errgroup.Group
	links.Go(func() error {
		for {
			client, err := l.Accept()
			if err != nil {
				return nil //nolint:nilerr // closed at the end of the test
			}
			links.Go(func() error {
				defer client.Close()
				server, err := net.Dial("unix", to)
				if err != nil {
					return err
				}
				links.Go(func() error {
					defer server.Close()
					_, err := io.Copy(server, client)
					return err
				})
				answer := make([]byte, 64<<10)
				for {
					n, err := server.Read(answer)
					if err != nil || lossy.CompareAndSwap(true, false) {
						return nil //nolint:nilerr // either end has closed the link
					}
					if _, err := client.Write(answer[:n]); err != nil {
						return nil //nolint:nilerr // likewise
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		_ = links.Wait()
		_ = os.RemoveAll(dir)
	})
	options.Set("host", dir)
	u.RawQuery = options.Encode()
	return u.String()
}

var small = []byte("Subject: test\r\n\r\ntext\r\n")

// due accepts a message and returns its request as the resolver would send it.
func due(t *testing.T, w *worker, content []byte) *mail.DeliveryRequest {
	t.Helper()
	s := &mail.Submission{Content: content}
	s.ID, s.AcceptedAt, s.SizeBytes = mail.NewQueueID(), time.Now(), int64(len(s.Content))
	s.Envelope.ReversePath = "y@origin.test"
	s.Recipients = []mail.Recipient{{No: 1, Domain: "a.test", ForwardPath: "x@a.test", ExpiresAt: s.AcceptedAt.Add(time.Hour)}}
	if err := w.store.Accept(t.Context(), []*mail.Submission{s}); err != nil {
		t.Fatal(err)
	}
	return &mail.DeliveryRequest{
		Message: mail.Message{ID: s.ID, SizeBytes: s.SizeBytes, Envelope: s.Envelope, AcceptedAt: s.AcceptedAt},
		Route:   &mail.Route{Site: "mx.a.test", Hosts: []mail.Host{{Name: "mx.a.test", Port: 25}}}, Recipients: []mail.Pending{{Recipient: s.Recipients[0]}},
	}
}

// claimOf is the claim of a request that a connection takes next.
func (w *worker) claimOf(r *mail.DeliveryRequest) *claim {
	s := w.siteOf(r.Route.Site, r.Route.Site.Slot())
	f := w.flowOf(r)
	s.mu.Lock()
	s.stopped = true // it lays aside what is claimed: nothing leaves in this test
	s.reserve(places{f, 1}, 1)
	s.mu.Unlock()
	return &claim{admitted: []admitted{{site: s, flow: f, request: r, bounds: bounds{recipients: 1}, load: w.tryReserve(r)}}, done: make(chan error, 1)}
}

// claimByAnother has another worker claim a request.
func claimByAnother(t *testing.T, w *worker, r mail.DeliveryRequest) {
	t.Helper()
	other, err := w.store.RegisterWorker(t.Context(), "other", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.ClaimAndDispatch(t.Context(), other, []*mail.DeliveryRequest{&r}, []bool{true}); err != nil || len(r.Recipients) != 1 {
		t.Fatalf("the other worker has %d recipients: %v", len(r.Recipients), err)
	}
}

// TestALostClaimFreesItsContent: another worker was faster. The memory of
// contents would be used up for good.
func TestALostClaimFreesItsContent(t *testing.T) {
	t.Parallel()
	w, _, _ := newStoreWorker(t)
	r := due(t, w, small)
	claimByAnother(t, w, *r)
	c := w.claimOf(r)
	if c.admitted[0].load == nil {
		t.Fatal("no room for the content")
	}
	w.claim([]*claim{c})
	if err := <-c.done; err != nil || len(r.Recipients) != 0 {
		t.Fatalf("%d recipients are claimed twice: %v", len(r.Recipients), err)
	}
	if !w.contents.TryAcquire(store.ChunkBytes) {
		t.Error("the content of a claim that was lost is kept")
	}
}

// TestAClaimOfWhichNothingIsHeardIsGivenBack: Postgres has committed it and the
// answer is lost. The next try finds it claimed, by us.
func TestAClaimOfWhichNothingIsHeardIsGivenBack(t *testing.T) {
	t.Parallel()
	w, near, lossy := newStoreWorker(t)
	claimByAnother(t, w, *due(t, w, small)) // from now on the statement is known to Postgres, and the first answer is that to the claim
	r := due(t, w, small)
	c := w.claimOf(r)
	lossy.Store(true)
	w.claim([]*claim{c})
	if err := <-c.done; err != nil || lossy.Load() {
		t.Fatalf("the answer was not lost: %v", err)
	}
	db, err := pgx.Connect(t.Context(), near)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close(context.Background()) }()
	var attempt int
	var claimed bool
	const q = `SELECT attempt, worker_id IS NOT NULL FROM postrider.recipients WHERE queue_id = $1`
	if err := db.QueryRow(t.Context(), q, r.Message.ID).Scan(&attempt, &claimed); err != nil {
		t.Fatal(err)
	}
	if attempt != 1 || claimed {
		t.Errorf("attempt %d, claimed %v; want that it was claimed once and waits again", attempt, claimed)
	}
	if !w.contents.TryAcquire(store.ChunkBytes) {
		t.Error("its content is kept")
	}
}

// TestTheLeaseIsCountedFromTheQuestion: Postgres answers late, and its own
// clock has gone on.
func TestTheLeaseIsCountedFromTheQuestion(t *testing.T) {
	t.Parallel()
	const late = 700 * time.Millisecond
	w, near, _ := newStoreWorker(t)
	w.config.Lease, w.config.HomeLease = 5*time.Second, 5*time.Second
	db, err := pgx.Connect(t.Context(), near)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close(context.Background()) }()
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM postrider.workers FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	var g errgroup.Group
	g.Go(func() error {
		timer := time.NewTimer(late)
		<-timer.C
		return tx.Rollback(context.Background())
	})
	h := &homes{worker: w, moved: make(chan func(), 1)}
	if err := h.renew(); err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if h.renewedAt.IsZero() {
		t.Fatal("not renewed")
	}
	for name, l := range map[string]*lease{"claims": &w.lease, "slots": &w.tenure} {
		if over := l.until.Sub(before) - 5*time.Second; over >= late {
			t.Errorf("the lease on the %s is counted from %v after the question, by when Postgres had answered", name, over)
		}
	}
}

// TestSlotsAreEnteredUnlessALaterRenewalLacksThem: they were taken, and lost
// again before the worker got round to serve them.
func TestSlotsAreEnteredUnlessALaterRenewalLacksThem(t *testing.T) {
	w := newRelayWorker(t)
	all := w.slotsIn(ours)
	w.setTenure(all, away)
	at := time.Now()
	h := &homes{worker: w, renewed: []int16{4}, renewedAt: at.Add(time.Millisecond)}
	h.enter(takeover{slots: []int16{3}, at: at})
	if got := w.slotsIn(ours); got != nil {
		t.Errorf("slots %v are served that the last renewal did not have", got)
	}
}

// TestAChunkThatCannotBeReadIsAskedForAgain: the answer of Postgres is lost
// while the host takes the content. The host hears nothing of it.
func TestAChunkThatCannotBeReadIsAskedForAgain(t *testing.T) {
	t.Parallel()
	w, _, lossy := newStoreWorker(t)
	mx := smtptest.Start(t, smtptest.Script{Rules: []smtptest.Rule{
		{At: smtptest.Body, Times: 1, Do: smtptest.Signal(func() { lossy.Store(true) })},
	}})
	content := append([]byte("Subject: large\r\n\r\n"), bytes.Repeat([]byte("0123456789abcdef.\r\n"), 4*store.ChunkBytes/19)...)
	r := due(t, w, content)
	host := mx.Addr()
	r.Route.TLS, r.Route.Hosts[0].Port, r.Route.Hosts[0].Addresses = mail.TLSNone, host.Port(), []netip.Addr{host.Addr()}
	j := w.split(r, bounds{recipients: 1})[0]
	j.load = &load{request: r, content: store.Content{Large: true}}
	w.add(w.siteOf("mx.a.test", mail.Site("mx.a.test").Slot()), []*job{j})
	if o := settledOne(t, w); o.Action != mail.Relayed {
		t.Errorf("outcome %+v", o)
	}
	if m := mx.Messages(); len(m) != 1 || m[0].SHA256 != sha256.Sum256(content) || len(mx.Connections()) != 1 || lossy.Load() {
		t.Errorf("%d messages over %d connections; want the content as it was, at the first attempt (no answer was lost: %v)", len(m), len(mx.Connections()), lossy.Load())
	}
}
