package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/postrider/postrider/tests/internal/proc"
)

// sinkPort is the port of every sink; the sink of destination i has an
// address of its own.
const sinkPort = 12625

func sinkAddress(i int) string { return fmt.Sprintf("127.0.77.%d", 10+i) }

// sink is a running smtp-sink with its counter of messages.
type sink struct {
	process *proc.Process
	counter *counter
}

// counter reads what smtp-sink -c prints after each message:
// "sess=1 quit=0 mesg=42" and a carriage return.
type counter struct {
	mu       sync.Mutex // guards all below, held
	rest     []byte     // an unfinished row
	messages int
	want     int
	reached  chan struct{} // closed when messages gets to want
	at       time.Time     // when it did
}

// Write takes output of smtp-sink.
func (c *counter) Write(text []byte) (int, error) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rest = append(c.rest, text...)
	end := bytes.LastIndexByte(c.rest, '\r')
	if end < 0 {
		return len(text), nil
	}
	last := c.rest[:end]
	if i := bytes.LastIndex(last, []byte("mesg=")); i >= 0 {
		digits, _, _ := bytes.Cut(last[i+len("mesg="):], []byte(" "))
		n, err := strconv.Atoi(string(bytes.TrimSpace(digits)))
		if err != nil {
			return 0, fmt.Errorf("smtp-sink -c: %w", err)
		}
		c.messages = n
	}
	c.rest = append(c.rest[:0], c.rest[end+1:]...)
	if c.reached != nil && c.messages >= c.want {
		c.at = now
		close(c.reached)
		c.reached = nil
	}
	return len(text), nil
}

// expect returns a channel that is closed when n more messages have come.
func (c *counter) expect(n int) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.want = c.messages + n
	c.reached = make(chan struct{})
	return c.reached
}

func (c *counter) count() (messages int, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.messages, c.at
}

// startSinks starts n sinks.
func startSinks(ctx context.Context, dir string, n int) ([]*sink, error) {
	var sinks []*sink
	for i := range n {
		s := &sink{counter: &counter{}}
		args := []string{"-c"}
		if os.Getuid() == 0 {
			args = append(args, "-u", "nobody") // it refuses to run as root
		}
		addr := net.JoinHostPort(sinkAddress(i), strconv.Itoa(sinkPort))
		// smtp-sink shares its port with any other, and then each gets a part.
		if c, err := net.Dial("tcp", addr); err == nil {
			return sinks, errors.Join(fmt.Errorf("another sink listens on %s already", addr), c.Close())
		}
		p, err := proc.Start(proc.Spec{
			Name: fmt.Sprintf("sink%d", i), Path: "/usr/sbin/smtp-sink", LogDir: dir, Stdout: s.counter,
			Args: append(args, "inet:"+addr, "256"),
		})
		if err != nil {
			return sinks, err
		}
		s.process = p
		sinks = append(sinks, s)
		if err := accepts(ctx, addr); err != nil {
			return sinks, fmt.Errorf("%w\n%s", err, p.Log(1<<12))
		}
	}
	return sinks, nil
}

func stopSinks(sinks []*sink) {
	for _, s := range sinks {
		s.process.Kill()
	}
}

// accepts waits until addr takes connections and greets as an SMTP server.
func accepts(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return proc.Poll(ctx, func(ctx context.Context) error {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		greeting := make([]byte, 3)
		if _, err := c.Read(greeting); err != nil {
			return err
		}
		if string(greeting) != "220" {
			return fmt.Errorf("%s greets with %q", addr, greeting)
		}
		return nil
	})
}
