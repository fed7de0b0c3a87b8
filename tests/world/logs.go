package world

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postrider/postrider/tests/internal/proc"
)

// keepLogs has Close copy the logs to a directory of their own in parent, the
// one for temporary files if that is "".
func (w *World) keepLogs(tb testing.TB, parent string) {
	tb.Helper()
	if w.logs != "" {
		return
	}
	var err error
	if parent != "" {
		if err = os.MkdirAll(parent, 0o755); err != nil {
			tb.Errorf("keep the logs: %v", err)
			return
		}
	}
	if w.logs, err = os.MkdirTemp(parent, "postrider-logs-"); err != nil {
		tb.Errorf("keep the logs: %v", err)
		return
	}
	tb.Logf("the logs are kept in %s", w.logs)
}

// alarms returns what must not be in the log of any process of ours, however
// well the mail went.
func (w *World) alarms() error {
	var errs []error
	for _, s := range w.services {
		if s.Process() == nil {
			continue // never started
		}
		text, err := os.ReadFile(filepath.Join(w.Dir, s.String()+".log"))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, word := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: "} {
			if at := strings.Index(string(text), word); at >= 0 {
				errs = append(errs, fmt.Errorf("log of %s: %.4000s", s, text[at:]))
			}
		}
	}
	return errors.Join(errs...)
}

// logFiles returns the logs of all processes.
func (w *World) logFiles() ([]string, error) {
	files, err := filepath.Glob(filepath.Join(w.Dir, "*.log"))
	return append(files, filepath.Join(w.Dir, "postgres", "postgres.log")), err
}

// copyLogs copies the logs to where they are to be kept.
func (w *World) copyLogs() error {
	if w.logs == "" {
		return nil
	}
	files, err := w.logFiles()
	for _, f := range files {
		text, errRead := os.ReadFile(f)
		if errors.Is(errRead, fs.ErrNotExist) {
			continue // it never started
		}
		err = errors.Join(err, errRead, os.WriteFile(filepath.Join(w.logs, filepath.Base(f)), text, 0o644))
	}
	return err
}

// Logs returns the end of the logs of all processes. Where a log is long,
// the lines about single messages are left out.
func (w *World) Logs() string {
	const each, far = 6 << 10, 4 << 20
	files, err := w.logFiles()
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, f := range files {
		text := proc.Tail(f, far)
		if len(text) > each {
			var lines []string
			for line := range strings.Lines(text) {
				if !strings.Contains(line, `"queue_id":`) {
					lines = append(lines, line)
				}
			}
			text = strings.Join(lines, "")
			text = text[max(0, len(text)-each):]
		}
		fmt.Fprintf(&b, "=== %s\n%s\n", filepath.Base(f), text)
	}
	return b.String()
}
