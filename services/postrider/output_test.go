package postrider

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/telemetry"
)

func TestSpan(t *testing.T) {
	for in, want := range map[time.Duration]string{
		340 * time.Microsecond:                     "340µs",
		12345 * time.Microsecond:                   "12.3ms",
		1500 * time.Millisecond:                    "1.5s",
		90 * time.Second:                           "1m30s",
		10 * time.Minute:                           "10m",
		100 * time.Minute:                          "1h40m",
		20 * time.Hour:                             "20h",
		5*24*time.Hour + 3*time.Hour + time.Minute: "5d3h",
		48*time.Hour + time.Minute:                 "2d",
		-2 * time.Second:                           "-2.0s",
		0:                                          "0µs",
	} {
		if got := span(in); got != want {
			t.Errorf("span(%d) = %q, want %q", in, got, want)
		}
	}
}

func TestCleanKeepsTheTerminalSafe(t *testing.T) {
	if got := clean("a\x1b[2J\r\n\u009bü"); got != "a?[2J???ü" {
		t.Errorf("clean = %q", got)
	}
}

func TestNumbers(t *testing.T) {
	for want, in := range map[string][]int32{
		"1": {1}, "1-3,7": {3, 1, 2, 7}, "": nil, "2,4": {4, 2},
	} {
		if got := numbers(in); got != want {
			t.Errorf("numbers(%v) = %q, want %q", in, got, want)
		}
	}
}

func TestStoryIsInOrderAndSafe(t *testing.T) {
	at := time.Date(2026, 11, 22, 3, 4, 5, 0, time.UTC)
	after := func(d time.Duration) *time.Time { t := at.Add(d); return &t }
	line := storyLine{
		QueueID: "019aa8d2-6c1e-7b4f-8a3e-1f2d3c4b5a69", TraceID: "abc", ReversePath: "<a@example.com>", Client: "192.0.2.1",
		Protocol: "ESMTP", Hello: "x\x1b[2J", SizeBytes: 7, AcceptedAt: &at, Reports: []string{"019aa8d2-7c1e-7b4f-8a3e-1f2d3c4b5a69"},
		Recipients: []recipientLine{
			{No: 1, ForwardPath: "<b@example.org>", State: "relayed", FinalAt: after(40 * time.Millisecond), ExpiresAt: after(time.Hour)},
			{No: 2, ForwardPath: "<c@example.org>", State: "queued", Place: "waiting", NextAttemptAt: after(time.Minute), ExpiresAt: after(time.Hour)},
		},
		Attempts: []attemptLine{
			{StartedAt: after(10 * time.Millisecond), DurationMS: 30, Recipients: []int32{1}, Attempt: 1, Action: "relayed", Phase: "dot",
				Reply: "250 ok\x1b", Host: "mx.example.org", Remote: "198.51.100.1:25", Site: "example.org"},
			{StartedAt: after(10 * time.Millisecond), Recipients: []int32{2}, Attempt: 1, Action: "delayed", Phase: "rcpt",
				Reply: "451 later", NextAttemptAt: after(time.Minute), Uncertain: true},
		},
		Spans: []telemetry.Span{
			{SpanID: "1", Name: "ingress.accept", Start: at, End: at.Add(time.Millisecond)},
			{SpanID: "2", ParentID: "1", Name: "delivery.attempt", Start: at, End: at.Add(time.Second), Error: "gone",
				Events: []telemetry.SpanEvent{{Name: "rcpt", Time: at, Attributes: map[string]any{"b": 2, "a": "1"}}}},
			{SpanID: "3", ParentID: "elsewhere", Name: "late", Start: at, End: at},
		},
	}
	var buf bytes.Buffer
	if err := printStory(&buf, line); err != nil {
		t.Fatal(err)
	}
	text := buf.String()
	if strings.Contains(text, "\x1b") {
		t.Error("an escape character reaches the terminal")
	}
	rest := text
	for _, want := range []string{
		"accepted 2026-11-22 03:04:05.000Z", "<a@example.com> by 192.0.2.1 (ESMTP x?[2J), 7 bytes", "trace    abc",
		"to 1     <b@example.org>: relayed after 40.0ms", "to 2     <c@example.org>: queued, waiting, next attempt 2026-11-22 03:05:05.000Z",
		"what happened", "attempt 1, to 1: relayed at dot: 250 ok?", "mx.example.org [198.51.100.1:25], no TLS, site example.org, took 30.0ms",
		"delayed at rcpt: 451 later", "uncertain", "reported to the sender by message 019aa8d2-7c1e",
		"ingress.accept", "    delivery.attempt", "gone", "- rcpt a=1 b=2", "late",
	} {
		_, after, found := strings.Cut(rest, want)
		if !found {
			t.Errorf("no %q, in this order, in\n%s", want, text)
			continue
		}
		rest = after
	}
}

func TestTerminalShowsEventsAndWarnings(t *testing.T) {
	var buf bytes.Buffer
	log := slog.New(newTerminal(&buf)).With("service", "x")
	log.Info("accepted", "queue_id", "q1", "reverse_path", "<a@b>", "recipients", 2)
	log.Info("settled", "queue_id", "q1", "recipient_no", 1, "action", "delayed", "host", "mx", "phase", "rcpt", "reply", "451 \x1blater", "uncertain", true)
	log.Info("reported", "queue_id", "q1", "report_id", "q2")
	log.Info("some detail")
	log.Debug("settled")
	log.Warn("bus: down", "error", "no route")
	want := []string{
		"accepted  q1 from <a@b>, recipients: 2",
		"delayed   q1 recipient 1 by mx (rcpt): 451 ?later (uncertain)",
		"reported  q1 to its sender by message q2",
		"warn: bus: down, error no route",
	}
	lines := strings.Split(strings.TrimSpace(buf.String()), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d lines, want %d:\n%s", len(lines), len(want), buf.String())
	}
	for i, line := range lines {
		if !strings.HasSuffix(line, want[i]) {
			t.Errorf("line %q, want it to end with %q", line, want[i])
		}
	}
}
