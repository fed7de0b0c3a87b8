package store_test

import (
	"context"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// slowWay is a way to Postgres, such as a pooler or a network, that may keep
// what it was given until whoever gave it has gone.
type slowWay struct {
	url  string // of Postgres, on this way
	keep atomic.Bool
	late chan struct{} // has a value for each that was kept, when Postgres has it
	end  chan struct{} // closed at the end of the test
}

func newSlowWay(t *testing.T, to string) *slowWay {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	const socket = ".s.PGSQL.5432"
	from, dir := filepath.Join(u.Query().Get("host"), socket), t.TempDir()
	listener, err := net.Listen("unix", filepath.Join(dir, socket))
	if err != nil {
		t.Fatal(err)
	}
	u.RawQuery = url.Values{"host": {dir}}.Encode()
	w := &slowWay{url: u.String(), late: make(chan struct{}, 16), end: make(chan struct{})}
	var g errgroup.Group
	t.Cleanup(func() {
		close(w.end)
		listener.Close()
		g.Wait()
	})
	g.Go(func() error {
		for {
			client, err := listener.Accept()
			if err != nil {
				return nil
			}
			server, err := net.Dial("unix", from)
			if err != nil {
				client.Close()
				continue
			}
			g.Go(func() error { w.carry(server, client); return nil })
			g.Go(func() error {
				io.Copy(client, server)     // either may hang up
				io.Copy(io.Discard, server) // what is said to nobody
				return nil
			})
		}
	})
	return w
}

// carry takes what the client says to Postgres.
func (w *slowWay) carry(server, client net.Conn) {
	defer client.Close()
	defer server.Close()
	block := make([]byte, 64<<10)
	for {
		n, err := client.Read(block)
		if err == nil && w.keep.Load() {
			rest, _ := io.ReadAll(client) // until it hangs up
			if _, err := server.Write(append(append([]byte{}, block[:n]...), rest...)); err == nil {
				w.late <- struct{}{}
			}
			<-w.end // it stays connected, so that Postgres does all of it
			return
		}
		if err != nil {
			return
		}
		if _, err := server.Write(block[:n]); err != nil {
			return
		}
	}
}

// A client that has heard 451 sends again: what Postgres comes to only then
// must not be committed.
func TestAcceptThatPostgresComesToTooLate(t *testing.T) {
	f := setup(t)
	way := newSlowWay(t, f.url)
	s, err := store.Open(t.Context(), store.Config{URL: way.url, MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	accept := func(d time.Duration, sub *mail.Submission) error {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		return s.Accept(ctx, []*mail.Submission{sub})
	}
	must(t, accept(time.Minute, submission(1)))
	const backend = `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'SELECT t, 1 / %' AND `
	began := one[time.Time](t, f, `SELECT clock_timestamp()`)
	way.keep.Store(true)
	late := submission(1)
	if err := accept(300*time.Millisecond, late); err == nil {
		t.Fatal("accepted without an answer")
	}
	way.keep.Store(false)
	<-way.late
	for end := time.Now().Add(30 * time.Second); one[int](t, f, backend+`query_start > $1 AND state <> 'active'`, began) == 0; {
		if time.Now().After(end) {
			t.Fatal("Postgres does not come to an end")
		}
	}
	if one[int](t, f, `SELECT count(*) FROM messages WHERE queue_id = $1`, late.ID) != 0 {
		t.Error("committed after the client had heard that it was not")
	}
	must(t, accept(time.Minute, submission(1)))
}

// The clock of Postgres may be set while we run: the next accept hears of it.
func TestAcceptWhenTheClockOfPostgresIsSet(t *testing.T) {
	f := setup(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f.SawClock(time.Now().Add(-time.Hour)) // it was an hour behind, and is not any more
	if err := f.Accept(ctx, []*mail.Submission{submission(1)}); err != nil {
		t.Fatal(err)
	}
}
