package smtpd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/ingress/internal/commit"
)

// scriptConn is a connection whose client sends fixed octets, cut into blocks
// of a size, and then leaves.
type scriptConn struct {
	in  []byte
	cut int
	out bytes.Buffer
}

func (c *scriptConn) Read(p []byte) (int, error) {
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.in[:min(c.cut, len(c.in))])
	c.in = c.in[n:]
	return n, nil
}

func (c *scriptConn) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *scriptConn) Close() error                     { return nil }
func (c *scriptConn) LocalAddr() net.Addr              { return nil }
func (c *scriptConn) RemoteAddr() net.Addr             { return loopback }
func (c *scriptConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptConn) SetWriteDeadline(time.Time) error { return nil }

var loopback = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}

var times = regexp.MustCompile(`20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ`)

var ids = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`)

// Whatever a client sends: every reply is well-formed, the replies do not
// depend on how the octets are cut, there is one 250 for each message in the
// store and no other, all memory is given back, and what is in the store has
// clean line ends.
func FuzzSession(f *testing.F) {
	files, err := filepath.Glob("testdata/*.smtp")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		if client := readTranscript(f, file).client(); len(client) < 3000 {
			f.Add(client, uint16(7))
		}
	}
	cfg := testConfig()
	cfg.MaxMessageBytes = 3 << 10
	cfg.MaxRecipients = 3
	cfg.XClientNetworks = prefixes("127.0.0.0/8")
	store := &fakeStore{}
	committer := commit.New(store, silentBus{}, time.Minute)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- committer.Run(ctx) }()
	f.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			f.Error(err)
		}
	})
	server := New(cfg, Deps{Committer: committer})
	f.Cleanup(server.metrics.unregister)
	door := &Door{}

	f.Fuzz(func(t *testing.T, in []byte, cut uint16) {
		var said []string
		for _, cut := range []int{len(in) + 1, int(cut%1000) + 1} {
			store.forget()
			conn := &scriptConn{in: in, cut: cut}
			newSession(server, conn, door).serve()
			out := conn.out.String()
			said = append(said, times.ReplaceAllString(ids.ReplaceAllString(out, "id"), "time"))
			replies := bufio.NewReader(strings.NewReader(out))
			queued := 0
			for {
				reply, err := smtp.ReadReply(replies)
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatalf("%q: reply %v in %q", in, err, out)
				}
				if strings.HasPrefix(reply.String(), "250 2.0.0 queued as ") {
					queued++
				}
			}
			kept := store.submissions()
			if queued != len(kept) {
				t.Fatalf("%q: %d messages and %d times 250: %q", in, len(kept), queued, out)
			}
			for _, sub := range kept {
				if strings.ContainsAny(strings.ReplaceAll(string(sub.Content), "\r\n", ""), "\r\n") || len(sub.Recipients) == 0 {
					t.Fatalf("%q: stored %q", in, sub.Content)
				}
			}
			if used := server.memory.used.Load(); used != 0 {
				t.Fatalf("%q: %d bytes are still held", in, used)
			}
		}
		if said[0] != said[1] {
			t.Fatalf("%q: in one write %q, in blocks of %d %q", in, said[0], cut, said[1])
		}
	})
}
