package store_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/devpg"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
)

// BenchmarkWalk takes batches of 20 messages of 4 KiB through the store, as
// far as each step, and reports the CPU time of Postgres for a message.
func BenchmarkWalk(b *testing.B) {
	steps := []string{"accept", "claim", "dispatch", "settle", "settle what was dispatched with the claim"}
	for last, name := range steps {
		b.Run(name, func(b *testing.B) { walk(b, last) })
	}
}

func walk(b *testing.B, last int) {
	const batch = 20
	server := storetest.NewServer(b, devpg.Options{Durable: true})
	s, err := store.Open(context.Background(), store.Config{URL: server.URL(), MaxConns: 4})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	w, err := s.RegisterWorker(b.Context(), "bench", lease)
	if err != nil {
		b.Fatal(err)
	}
	half := make([]byte, 1500)
	rand.Read(half)
	content := []byte("Subject: x\r\n\r\n" + base64.StdEncoding.EncodeToString(half) + string(make([]byte, 2000)) + "\r\n")
	r := route("mx.example.org")
	var cpu time.Duration
	n := -20 // operations that warm up connections and statements
	op := func() {
		if n == 0 {
			cpu = processCPU(b, server.PID())
		}
		n++
		var subs []*mail.Submission
		var reqs []*mail.DeliveryRequest
		for range batch {
			sub := submission(1)
			sub.Content, sub.SizeBytes = content, int64(len(content))
			subs = append(subs, sub)
			reqs = append(reqs, request(sub, r))
		}
		if err := s.Accept(b.Context(), subs); err != nil {
			b.Fatal(err)
		}
		switch {
		case last == 4:
			now := slices.Repeat([]bool{true}, batch)
			if _, err := s.ClaimAndDispatch(b.Context(), w, reqs, now); err != nil {
				b.Fatal(err)
			}
		case last >= 1:
			if err := s.Claim(b.Context(), w, reqs); err != nil {
				b.Fatal(err)
			}
		}
		if last == 2 || last == 3 {
			if _, err := s.Dispatch(b.Context(), w, reqs); err != nil {
				b.Fatal(err)
			}
		}
		if last >= 3 {
			var sts []mail.Settlement
			for _, req := range reqs {
				sts = append(sts, settlement(req, relayed))
			}
			if lost, err := s.Settle(b.Context(), w, sts); err != nil || lost != 0 {
				b.Fatal(lost, err)
			}
		}
	}
	for n < 0 {
		op()
	}
	for b.Loop() {
		op()
	}
	b.ReportMetric(float64((processCPU(b, server.PID())-cpu).Microseconds())/float64(n*batch), "pg-µs/message")
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(n*batch), "µs/message")
}

// processCPU returns the CPU time of a Postgres: of its postmaster and all
// processes that it has, or had, as children.
func processCPU(b *testing.B, postmaster int) time.Duration {
	b.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		b.Fatal(err)
	}
	var ticks int64
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue // the process ended
		}
		// Behind the name: state, parent, ... user, system, user and system of
		// children.
		f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+2:]))
		pid := strings.TrimSuffix(strings.TrimPrefix(stat, "/proc/"), "/stat")
		if pid != strconv.Itoa(postmaster) && f[1] != strconv.Itoa(postmaster) {
			continue
		}
		for _, i := range []int{11, 12, 13, 14} {
			v, err := strconv.ParseInt(f[i], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			ticks += v
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// BenchmarkDeepQueue is the cost of the scheduler's statements while so many
// recipients wait for a retry. One operation rings 500.
func BenchmarkDeepQueue(b *testing.B) {
	for _, waiting := range []int{10_000, 1_000_000} {
		b.Run(strconv.Itoa(waiting), func(b *testing.B) {
			f := setup(b)
			f.deepen(b, waiting)
			for b.Loop() {
				f.exec(b, `UPDATE recipients SET next_attempt_at = now() WHERE (queue_id, recipient_no) IN
                    (SELECT queue_id, recipient_no FROM recipients ORDER BY queue_id LIMIT 500)`)
				start := time.Now()
				if _, n, err := f.Ring(b.Context(), store.RingOptions{Limit: 500}); err != nil || n != 500 {
					b.Fatal(n, err)
				}
				b.ReportMetric(float64(time.Since(start).Microseconds()), "µs/ring")
				start = time.Now()
				if n, _, err := f.Expire(b.Context(), 500); err != nil || n != 0 {
					b.Fatal(n, err)
				}
				b.ReportMetric(float64(time.Since(start).Microseconds()), "µs/expire")
				start = time.Now()
				if _, err := f.Lag(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(time.Since(start).Microseconds()), "µs/lag")
			}
		})
	}
}

// deepen fills the queue with messages that wait for a retry in an hour or
// later, spread over the partitions of four days.
func (f *fixture) deepen(tb testing.TB, n int) {
	tb.Helper()
	f.exec(tb, "SELECT ensure_partitions(now() - interval '3 days', now())")
	f.exec(tb, `CREATE TEMP TABLE made AS SELECT overlay(overlay(gen_random_uuid()::text
            PLACING left(first_id(now() - g * interval '3 days' / $1)::text, 13) FROM 1 FOR 13) PLACING '7' FROM 15 FOR 1)::uuid AS queue_id, g
        FROM generate_series(1, $1::bigint) g`, n)
	f.exec(tb, `INSERT INTO messages (queue_id, accepted_at, recipient_count, size_bytes, reverse_path) SELECT queue_id, now(), 1, 1000, 'a@example.com' FROM made`)
	f.exec(tb, `INSERT INTO recipients (queue_id, recipient_no, next_attempt_at, expires_at, domain, forward_path, tries)
        SELECT queue_id, 1, now() + interval '1 hour' + g * interval '1 second', now() + interval '5 days', 'example.org', 'b@example.org', 3 FROM made`)
	f.exec(tb, "DROP TABLE made")
	f.exec(tb, "ANALYZE messages, recipients")
}
