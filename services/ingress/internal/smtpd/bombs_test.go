package smtpd

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/smtp"
)

// One client opens as many connections as it may and does on all of them what
// costs memory: what the process holds stays within the budget and 64 MiB, and
// a client from elsewhere is served. POSTRIDER_TEST_BOMBS is the number of
// connections; 50 without it.
func TestBombs(t *testing.T) {
	connections := 50
	if text := os.Getenv("POSTRIDER_TEST_BOMBS"); text != "" {
		var err error
		if connections, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("d", 60) + "." + strings.Repeat("e", 60) + ".example"
	recipients := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "RCPT TO:<%d@%s> ORCPT=rfc822;%s\r\n", i, long, strings.Repeat("o", 480))
		}
		return b.String()
	}
	const transaction = "MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\n"
	for _, bomb := range []struct{ name, says string }{
		{"recipients", "MAIL FROM:<a@example.com>\r\n" + recipients(1000)},
		{"content that stops below a megabyte", transaction + "DATA\r\n" + strings.Repeat(strings.Repeat("x", 98)+"\r\n", 10_000)},
		{"content that stops beyond it", transaction + "DATA\r\n" + strings.Repeat(strings.Repeat("x", 98)+"\r\n", 30_000)},
		{"one line without an end", transaction + "DATA\r\n" + strings.Repeat("x", 3<<20)},
		{"a header section without an end", transaction + "DATA\r\n" + strings.Repeat("X: y\r\n", 200_000)},
		{"a size that never comes", "MAIL FROM:<a@example.com> SIZE=20000000\r\nRCPT TO:<b@example.net>\r\nBDAT 20000000\r\n"},
		{"chunks of one octet", transaction + strings.Repeat("BDAT 1\r\nx", 20_000)},
		{"a command line without an end", strings.Repeat("x", 1<<20)},
		{"commands", strings.Repeat("NOOP "+strings.Repeat("x", 490)+"\r\n", 2000)},
	} {
		t.Run(bomb.name, func(t *testing.T) {
			cfg := testConfig()
			cfg.MemoryBytes, cfg.MaxConnections, cfg.MaxConnectionsPerIP, cfg.IdleTimeout = 16<<20, connections+10, connections, time.Minute
			server := startServer(t, cfg, &fakeStore{})
			before := held()
			var wg sync.WaitGroup
			for range connections {
				conn := server.dial(t)
				wg.Go(func() {
					in := bufio.NewReader(conn)
					if _, err := smtp.ReadReply(in); err != nil {
						t.Error(err)
						return
					}
					go func() { _, _ = io.Copy(io.Discard, in) }() // ends with the connection
					// A session that is ended breaks it off.
					_, _ = io.WriteString(conn, "EHLO client.example\r\n"+bomb.says)
				})
			}
			wg.Wait()
			other := server.from(t, "127.0.0.2")
			other.envelope()
			other.send(strings.Repeat("a line of text\r\n", 100_000) + ".\r\n")
			other.expect("250 2.0.0 queued")
			if grown := held() - before; grown > cfg.MemoryBytes+64<<20 {
				t.Errorf("the process has %d MiB more", grown>>20)
			} else {
				t.Logf("the process has %d MiB more; budget in use: %d KiB, disk: %d MiB", grown>>20, server.memory.Used()>>10, server.spool.Used()>>20)
			}
		})
	}
}

// held is the memory that the process uses.
func held() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// from is a client with another address of this machine.
func (r *running) from(t *testing.T, ip string) *client {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	conn, err := d.DialContext(t.Context(), "tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &client{t: t, conn: conn, in: bufio.NewReader(conn)}
}
