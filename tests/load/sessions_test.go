package load

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

// slowness is a way to hold a session: a piece in each second, and no end
// before the test has one.
type slowness struct{ begin, piece, end string }

var (
	typing   = slowness{"NOOP ", "x", "\r\n"}
	crawling = slowness{"Subject: slow\r\n\r\n", "a line of a slow client\r\n", ".\r\n"}
)

// crowd is clients that do little, and hold their sessions.
type crowd struct {
	sessions []*submit.Session // the slow ones first
	slow     int
}

// way is how a session is slow: every other one in its content.
func (c *crowd) way(i int) slowness {
	if i%2 == 0 {
		return typing
	}
	return crawling
}

// gather makes a crowd of so many idle and slow sessions.
func gather(t *testing.T, w *world.World, idle, slow int) *crowd {
	t.Helper()
	c := &crowd{sessions: make([]*submit.Session, slow+idle), slow: slow}
	t.Cleanup(func() {
		for _, s := range c.sessions {
			if s != nil {
				_ = s.Close() // whatever state it is in
			}
		}
	})
	each(t, c.sessions, func(i int, _ *submit.Session) error {
		s, err := dial(t.Context(), w, i)
		c.sessions[i] = s
		if err != nil || i >= slow {
			return err
		}
		if c.way(i) == crawling {
			if reply, err := toData(s, ""); err != nil || reply.Code != 354 {
				return fmt.Errorf("DATA: %s (%w)", reply, err)
			}
		}
		return s.Send([]byte(c.way(i).begin))
	})
	return c
}

// toData begins a message and returns the reply to DATA.
func toData(s *submit.Session, params string) (submit.Reply, error) {
	for _, line := range []string{"MAIL FROM:<" + from + ">" + params, "RCPT TO:<" + to + ">"} {
		if err := s.Expect(250, "%s", line); err != nil {
			return submit.Reply{}, err
		}
	}
	return s.Command("DATA")
}

// creep makes the slow ones send a piece in each second until ctx is done.
func (c *crowd) creep(ctx context.Context) error {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for {
		select {
		case <-second.C:
		case <-ctx.Done():
			return nil
		}
		for i := range c.slow {
			if err := c.sessions[i].Send([]byte(c.way(i).piece)); err != nil {
				return err
			}
		}
	}
}

// leave ends what each session is in, and wants all of them to be served.
func (c *crowd) leave(t *testing.T) {
	t.Helper()
	each(t, c.sessions, func(i int, s *submit.Session) error {
		last := "NOOP\r\n"
		if i < c.slow {
			last = c.way(i).end
		}
		reply, err := s.Raw([]byte(last))
		if err == nil && reply.Code != 250 {
			err = fmt.Errorf("session %d: %s", i, reply)
		}
		return err
	})
}

// latency is how long a client waits for the 250 to each of its messages at
// the two copies of ingress, which it uses by turns: so that whatever else the
// machine does is in both.
type latency [2][]time.Duration

func measure(t *testing.T, w *world.World, messages int) latency {
	t.Helper()
	var sessions [2]*submit.Session
	for copy := range sessions {
		s, err := submit.Dial(t.Context(), w.SMTP(copy), "")
		if err == nil {
			err = s.Expect(250, "EHLO normal.example")
		}
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		sessions[copy] = s
	}
	var l latency
	for n := range 2 * messages {
		began := time.Now()
		if _, err := sessions[n%2].Submit(submit.Message{From: from, To: []string{to}, Content: []byte("Subject: normal\r\n\r\nhello\r\n")}); err != nil {
			t.Fatal(err)
		}
		l[n%2] = append(l[n%2], time.Since(began))
	}
	for _, all := range l {
		slices.Sort(all)
	}
	return l
}

func (l latency) at(copy, percent int) time.Duration { return l[copy][len(l[copy])*percent/100] }

func (l latency) String() string {
	return fmt.Sprintf("in the crowd p50 %v, p90 %v; at the other copy p50 %v, p90 %v",
		l.at(0, 50), l.at(0, 90), l.at(1, 50), l.at(1, 90))
}

// TestManySessions: 10,000 idle sessions and 2,000 slow ones cost less than
// 400 MiB, a client beside them waits no longer than one at an ingress that is
// empty, and all of them are still served at the end.
func TestManySessions(t *testing.T) {
	idle, slow, messages := 1000, 200, 300
	limit := int64(120 << 20)
	if full() {
		idle, slow, messages = 10_000, 2000, 1000
		limit = 400 << 20
	}
	w := start(t, map[string]string{})
	empty := measure(t, w, messages)
	alone := resident(t, w)

	c := gather(t, w, idle, slow)
	w.Eventually(t, time.Minute, "all sessions are there", func(ctx context.Context) error {
		n, err := w.Service("ingress", 0).Metric(ctx, "postrider_ingress_sessions")
		if err == nil && int(n) < idle+slow {
			err = fmt.Errorf("%v sessions", n)
		}
		return err
	})
	creeping, stop := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error { return c.creep(creeping) })
	crowded := measure(t, w, messages)
	within := resident(t, w)
	stop()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	c.leave(t)

	t.Logf("%d idle sessions and %d slow ones: ingress has %s resident, %s at most; before them %s", idle, slow, mib(within.Now), mib(within.Peak), mib(alone.Now))
	t.Logf("before: %s", empty)
	t.Logf("with:   %s", crowded)
	if within.Peak > limit {
		t.Errorf("ingress had %s, want at most %s", mib(within.Peak), mib(limit))
	}
	if ratio := float64(crowded.at(0, 50)) / float64(crowded.at(1, 50)); ratio > 2 {
		t.Errorf("a client in the crowd waits %.1f times as long", ratio)
	}
}
