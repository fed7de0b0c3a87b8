package main

import (
	"context"
	"fmt"
	"net/smtp"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/tests/internal/proc"
)

const sessions = 20

// send submits n messages and returns how long that took, from before the
// first connection to the last 250.
func (w workload) send(ctx context.Context, dir, target string, n int) (time.Duration, error) {
	if err := writeContent(w.file(dir), w.sizeBytes); err != nil {
		return 0, err
	}
	started := time.Now()
	if w.recipients > 1 {
		err := w.sendToMany(ctx, w.file(dir), target, n)
		return time.Since(started), err
	}
	// With contents of several writes, smtp-source with many sessions sends
	// more messages than it was told, sometimes without end.
	processes := 1
	if w.sizeBytes > 16<<10 {
		processes = sessions
	}
	g, ctx := errgroup.WithContext(ctx)
	for i := range processes {
		share := n*(i+1)/processes - n*i/processes
		if share > 0 {
			g.Go(func() error { return w.source(ctx, dir, target, batch{i, sessions / processes, share}) })
		}
	}
	err := g.Wait()
	return time.Since(started), err
}

// batch is what one smtp-source sends.
type batch struct{ no, sessions, messages int }

func (w workload) source(ctx context.Context, dir, target string, b batch) error {
	args := []string{"-s", strconv.Itoa(b.sessions), "-m", strconv.Itoa(b.messages), "-M", "client.bench.example",
		"-f", "news@shop.example", "-t", fmt.Sprintf("customer%d@%s", b.no, domain(0)), "-N", "-F", w.file(dir)}
	if w.reuse {
		args = append(args, "-d")
	}
	p, err := proc.Start(proc.Spec{
		Name: fmt.Sprintf("source%d", b.no), Path: "/usr/sbin/smtp-source", Args: append(args, "inet:"+target), LogDir: dir,
	})
	if err != nil {
		return err
	}
	if err := p.Wait(ctx); err != nil {
		return fmt.Errorf("smtp-source: %w\n%s", err, p.Log(1<<12))
	}
	return nil
}

// file is where the content of the workload is.
func (w workload) file(dir string) string { return filepath.Join(dir, "content-"+w.name) }

// sendToMany is smtp-source for recipients in different domains, which it
// cannot make: as many sessions, no pipelining either.
func (w workload) sendToMany(ctx context.Context, file, target string, n int) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	content := []byte(strings.ReplaceAll(string(text), "\n", "\r\n"))
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range sessions {
		g.Go(func() error {
			c, err := smtp.Dial(target)
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.Hello("client.bench.example"); err != nil {
				return err
			}
			for i := next.Add(1); i <= int64(n) && ctx.Err() == nil; i = next.Add(1) {
				if err := w.sendOne(c, i, content); err != nil {
					return err
				}
			}
			return c.Quit()
		})
	}
	return g.Wait()
}

func (w workload) sendOne(c *smtp.Client, i int64, content []byte) error {
	if err := c.Mail("news@shop.example"); err != nil {
		return err
	}
	for d := range w.recipients {
		if err := c.Rcpt(fmt.Sprintf("%dcustomer@%s", i, domain(d))); err != nil {
			return err
		}
	}
	data, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := data.Write(content); err != nil {
		return err
	}
	return data.Close()
}
