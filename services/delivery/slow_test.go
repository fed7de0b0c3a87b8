package delivery_test

import (
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/smtptest"
)

// TestASlowPostgresGivesHomes: where each answer of Postgres takes long,
// workers have their homes all the same, share them with who joins, and take
// over from who dies. It must be later, not never.
func TestASlowPostgresGivesHomes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	near := r.url
	r.url = slowly(t, near, 350*time.Millisecond)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	first := r.start(r.config(unlimited))
	r.settled(1)
	second := r.start(r.config(unlimited))
	r.settled(2)
	ids := r.accept(20, message{domain: "example.test"})
	r.conduct()
	first.cut()
	r.settled(1)
	r.drained(30 * time.Second)
	second.stop()
	r.mustArrive(mx, ids)
}

// slowly returns the URL of the same Postgres behind a link that holds up each
// answer for so long.
func slowly(t *testing.T, near string, by time.Duration) string {
	t.Helper()
	const socket = ".s.PGSQL.5432"
	u, err := url.Parse(near)
	if err != nil {
		t.Fatal(err)
	}
	options := u.Query()
	server := filepath.Join(options.Get("host"), socket)
	dir, err := os.MkdirTemp("", "slow-") // the path of a socket must be short
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
			c, err := l.Accept()
			if err != nil {
				return nil //nolint:nilerr // closed at the end of the test
			}
			links.Go(func() error {
				link(c, server, by)
				return nil
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

// link carries one connection until either end closes it.
func link(client net.Conn, to string, by time.Duration) {
	defer client.Close()
	server, err := net.Dial("unix", to)
	if err != nil {
		return
	}
	type answer struct {
		due  time.Time
		text []byte
	}
	answers := make(chan answer, 1024)
	var ends errgroup.Group
	ends.Go(func() error {
		defer server.Close()
		_, err := io.Copy(server, client)
		return err
	})
	ends.Go(func() error {
		defer close(answers)
		for {
			text := make([]byte, 32<<10)
			n, err := server.Read(text)
			if n > 0 {
				answers <- answer{time.Now().Add(by), text[:n]}
			}
			if err != nil {
				return err
			}
		}
	})
	for a := range answers {
		timer := time.NewTimer(time.Until(a.due))
		<-timer.C
		_, _ = client.Write(a.text)
	}
	_ = client.Close()
	_ = ends.Wait() // one of them has ended the other
}
