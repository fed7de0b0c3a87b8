package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/tests/internal/proc"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

const (
	largest = 25 << 20 // POSTRIDER_MAX_MESSAGE_BYTES by default
	// beyond is what ingress may have beside the budget: itself, and what the
	// garbage collector has not taken yet.
	beyond = 120 << 20
)

// large is a message of the largest size.
func large() []byte {
	content := append(make([]byte, 0, largest), "Subject: large\r\n\r\n"...)
	for n := 0; len(content) < largest-100; n++ {
		content = fmt.Appendf(content, ".%d: text that is a little different in each line, %x\r\n", n, n*n)
	}
	return append(content, append(bytes.Repeat([]byte("e"), largest-len(content)-2), "\r\n"...)...)
}

// sender has one large message, and sends it until it is accepted.
type sender struct {
	wire    []byte // what is sent after 354
	params  string // of MAIL
	refused *atomic.Int64
}

func (l *sender) send(ctx context.Context, s *submit.Session) (id string, err error) {
	pause := 200 * time.Millisecond
	for {
		reply, err := l.try(s)
		switch {
		case err != nil:
			return "", err
		case reply.Code == 250:
			return submit.QueueID(reply.Text), nil
		case reply.Code != 452 || !bytes.HasPrefix([]byte(reply.Text), []byte("4.3.1 ")):
			return "", errors.New(reply.String())
		}
		l.refused.Add(1)
		select { // as a client waits before it tries again
		case <-time.After(pause):
			pause = min(2*pause, 10*time.Second)
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// try returns the reply to DATA if it is a refusal, or that to the message.
func (l *sender) try(s *submit.Session) (submit.Reply, error) {
	if err := s.Expect(250, "RSET"); err != nil {
		return submit.Reply{}, err
	}
	if reply, err := toData(s, l.params); err != nil || reply.Code != 354 {
		return reply, err
	}
	return s.Raw(l.wire)
}

// use is the most that was used of the two budgets, in bytes.
type use struct{ held, spooled float64 }

// watch looks at the budgets until ctx is done.
func watch(ctx context.Context, w *world.World) (most use, err error) {
	err = proc.Poll(ctx, func(ctx context.Context) error {
		held, err := w.Service("ingress", 0).Metric(ctx, "postrider_ingress_content_held_bytes")
		if err != nil {
			return err
		}
		spooled, err := w.Service("ingress", 0).Metric(ctx, "postrider_ingress_content_spooled_bytes")
		if err != nil {
			return err
		}
		most = use{max(most.held, held), max(most.spooled, spooled)}
		return errors.New("until the end")
	})
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return most, err
}

// TestLargeMessages: a message of 25 MiB on each of 200 sessions at once. What
// ingress holds in memory and in files stays within the budgets, who is over
// them hears 452 4.3.1 and has the message accepted later, and all that were
// accepted are stored whole.
func TestLargeMessages(t *testing.T) {
	clients, budget, files := 20, int64(16<<20), int64(128<<20)
	if full() {
		clients, budget, files = 200, 64<<20, 1<<30 // the default for memory, a quarter of it for files
	}
	w := start(t, map[string]string{
		"POSTRIDER_SMTP_MEMORY_BYTES":   fmt.Sprint(budget),
		"POSTRIDER_SPOOL_BYTES":         fmt.Sprint(files),
		"POSTRIDER_SMTP_COMMIT_TIMEOUT": "2m", // no turn is to end for want of a fast disk
	})
	alone := resident(t, w)
	watching, stop := context.WithCancel(t.Context())
	var watcher errgroup.Group
	var most use
	watcher.Go(func() (err error) { most, err = watch(watching, w); return err })

	var refused atomic.Int64
	ids := make([]string, clients)
	wire := submit.Wire(large())
	g, ctx := errgroup.WithContext(t.Context())
	for i := range clients {
		s, err := dial(t.Context(), w, i)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		l := &sender{wire: wire, refused: &refused}
		if i%2 == 0 { // a client that says the size hears at once that there is no room
			l.params = fmt.Sprintf(" SIZE=%d", largest)
		}
		g.Go(func() (err error) { ids[i], err = l.send(ctx, s); return err })
	}
	err := g.Wait()
	stop()
	if err := errors.Join(err, watcher.Wait()); err != nil {
		t.Fatal(err)
	}
	used := resident(t, w)
	t.Logf("%d messages of %s at once: %s resident at most, before them %s; %s of %s of memory and %s of %s of files at most; %d times 452",
		clients, mib(largest), mib(used.Peak), mib(alone.Now), mib(int64(most.held)), mib(budget), mib(int64(most.spooled)), mib(files), refused.Load())
	if int64(most.held) > budget || int64(most.spooled) > files {
		t.Errorf("%s held and %s in files, the budgets are %s and %s", mib(int64(most.held)), mib(int64(most.spooled)), mib(budget), mib(files))
	}
	if most.spooled == 0 {
		t.Error("nothing was in files: what waits there is not measured")
	}
	if used.Peak > budget+beyond {
		t.Errorf("ingress had %s, want at most %s", mib(used.Peak), mib(budget+beyond))
	}
	if refused.Load() == 0 {
		t.Error("nobody was over the budget: the test is too weak")
	}
	stored(t, w, ids)
}

// stored wants each message there once, and whole.
func stored(t *testing.T, w *world.World, ids []string) {
	t.Helper()
	var messages, whole int
	if err := w.DB.QueryRow(t.Context(), `SELECT count(*), count(*) FILTER (WHERE c.size = m.size_bytes AND c.size BETWEEN $2 + 1 AND $2 + 2048)
		FROM postrider.messages m
		JOIN (SELECT queue_id, sum(octet_length(content)) AS size FROM postrider.contents GROUP BY 1) c USING (queue_id)
		WHERE m.queue_id = ANY ($1::uuid[])`, ids, largest).Scan(&messages, &whole); err != nil {
		t.Fatal(err)
	}
	var all int
	if err := w.DB.QueryRow(t.Context(), `SELECT count(*) FROM postrider.messages`).Scan(&all); err != nil {
		t.Fatal(err)
	}
	if messages != len(ids) || whole != len(ids) || all != len(ids) {
		t.Errorf("%d were accepted; of these %d are stored, %d whole; %d are stored in all", len(ids), messages, whole, all)
	}
}
