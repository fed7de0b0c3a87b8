package postrider

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
)

// terminal is the log handler of postrider dev for the person in front of it:
// one short line for each mail event, and every warning. All log lines go to
// the log file too.
type terminal struct {
	mu *sync.Mutex // guards w
	w  io.Writer
}

func newTerminal(w io.Writer) terminal { return terminal{&sync.Mutex{}, w} }

func (t terminal) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (t terminal) Handle(_ context.Context, r slog.Record) error {
	line, ok := eventLine(r)
	if !ok && r.Level >= slog.LevelWarn {
		line = warningLine(r)
	}
	if line == "" {
		return nil
	}
	return t.println(r.Time.Format("15:04:05.000"), line)
}

func (t terminal) println(words ...string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := fmt.Fprintln(t.w, strings.Join(words, " "))
	return err
}

// The attributes of a logger's With are the same on every line: not for
// here.
func (t terminal) WithAttrs([]slog.Attr) slog.Handler { return t }
func (t terminal) WithGroup(string) slog.Handler      { return t }

// eventLine prints a mail event (telemetry/log.go); ok is false for all other
// lines.
func eventLine(r slog.Record) (line string, ok bool) {
	f := map[string]string{}
	r.Attrs(func(a slog.Attr) bool {
		f[a.Key] = clean(a.Value.String())
		return true
	})
	switch r.Message {
	case "accepted":
		line = fmt.Sprintf("accepted  %s from %s, recipients: %s", f["queue_id"], f["reverse_path"], f["recipients"])
	case "settled":
		line = fmt.Sprintf("%-9s %s recipient %s", f["action"], f["queue_id"], f["recipient_no"])
		if f["host"] != "" {
			line += " by " + f["host"]
		}
		line += " (" + f["phase"] + "): " + f["reply"]
		if f["uncertain"] == "true" {
			line += " (uncertain)"
		}
	case "reported":
		line = fmt.Sprintf("reported  %s to its sender by message %s", f["queue_id"], f["report_id"])
	case "unreported":
		line = fmt.Sprintf("no report %s: %s", f["queue_id"], f["why"])
	case "refused":
		line = fmt.Sprintf("refused   %s %s %s: %s", f["client"], f["command"], f["forward_path"], f["reply"])
	default:
		return "", false
	}
	return line, true
}

func warningLine(r slog.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", strings.ToLower(r.Level.String()), clean(r.Message))
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, ", %s %s", a.Key, clean(a.Value.String()))
		return true
	})
	return b.String()
}
