package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/tests/internal/proc"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

// ledger is what the clients know: the queue ids in the 250 replies that
// they saw.
type ledger struct {
	mu  sync.Mutex // guards ids
	ids []string
}

func (l *ledger) add(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ids = append(l.ids, id)
}

func (l *ledger) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.ids...)
}

func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ids)
}

// lane is a stream of messages for one domain. It is made by smtp-source,
// which ends at the first sign of trouble; then another one sends what is
// missing, through another ingress.
type lane struct {
	domain string
	n      int // messages to be accepted
}

// load is mail on its way in.
type load struct {
	ledger
	group  *errgroup.Group
	cancel context.CancelFunc
}

// startLoad sends n messages over the given domains, two sessions for each.
func startLoad(t *testing.T, w *world.World, wave string, n int, domains []string) *load {
	t.Helper()
	if _, err := exec.LookPath("smtp-source"); err != nil {
		t.Fatalf("%v: the tests need Debian's package postfix", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{cancel: cancel}
	l.group, ctx = errgroup.WithContext(ctx)
	for i, domain := range domains {
		share := n / len(domains)
		if i < n%len(domains) {
			share++
		}
		l.group.Go(func() error { return l.run(ctx, w, fmt.Sprintf("%s%d", wave, i), lane{domain, share}, i) })
	}
	t.Cleanup(func() { l.cancel(); _ = l.group.Wait() }) // after a failure; finish has asked before
	return l
}

// run sends until so many messages of the lane are accepted.
func (l *load) run(ctx context.Context, w *world.World, name string, ln lane, first int) error {
	const pause = 100 * time.Millisecond // between one that failed and the next
	for run, accepted := 0, 0; accepted < ln.n; run++ {
		if run > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(pause):
			}
		}
		replies := &replies{ledger: &l.ledger}
		p, err := proc.Start(proc.Spec{
			Name: "source-" + name, Path: "/usr/sbin/smtp-source", LogDir: w.Dir, Stdout: replies, Stderr: replies,
			Args: []string{"-v", "-d", "-N", "-s", "2", "-m", fmt.Sprint(ln.n - accepted), "-l", "1000", "-M", "client.example",
				"-f", from, "-t", fmt.Sprintf("r%s-%d@%s", name, run, ln.domain), "inet:" + w.SMTP((first+run)%2)},
		})
		if err != nil {
			return err
		}
		// How it ends says nothing that its replies do not.
		_ = p.Wait(ctx)
		accepted += replies.accepted
		if ctx.Err() != nil {
			return fmt.Errorf("lane %s: %d of %d messages accepted: %w; the last was\n%s", name, accepted, ln.n, ctx.Err(), replies.rest)
		}
	}
	return nil
}

// replies reads what smtp-source -v prints and finds the queue ids.
type replies struct {
	ledger   *ledger
	rest     []byte // an unfinished line
	accepted int
}

// Write takes output of smtp-source.
func (r *replies) Write(text []byte) (int, error) {
	r.rest = append(r.rest, text...)
	for {
		line, rest, ok := bytes.Cut(r.rest, []byte("\n"))
		if !ok {
			return len(text), nil
		}
		if _, reply, ok := bytes.Cut(line, []byte("<<< 250 ")); ok {
			if id := submit.QueueID(string(reply)); id != "" {
				r.accepted++
				r.ledger.add(id)
			}
		}
		r.rest = append(r.rest[:0], rest...)
	}
}

// waitAccepted waits until clients have seen n replies of 250.
func (l *load) waitAccepted(t *testing.T, w *world.World, n int) {
	t.Helper()
	w.Eventually(t, drained, fmt.Sprintf("%d messages accepted", n), func(context.Context) error {
		if got := l.count(); got < n {
			return fmt.Errorf("%d so far", got)
		}
		return nil
	})
}

// finish waits until all of the load is accepted.
func (l *load) finish(t *testing.T) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- l.group.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("load: %v", err)
		}
	case <-time.After(drained):
		l.cancel()
		t.Fatalf("load: not all accepted after %s: %v", drained, errors.Join(<-done))
	}
}
