package telemetry

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// An outage is two lines, however much fails in it, and whatever works in
// between; a success without one is none.
func TestOutage(t *testing.T) {
	var out bytes.Buffer
	before := slog.Default()
	defer slog.SetDefault(before)
	slog.SetDefault(slog.New(slog.NewTextHandler(&out, nil)))
	synctest.Test(t, func(t *testing.T) {
		var o Outage
		o.Worked("works again")
		for range 3 {
			for i := range 1000 {
				o.Failed("does not work", errors.New("down"), "message", i)
				<-time.After(10 * time.Millisecond)
				if i%10 == 0 {
					o.Worked("works again")
				}
			}
			<-time.After(2 * calm)
			o.Worked("works again")
			o.Worked("works again")
		}
	})
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 6 {
		t.Fatalf("%d lines for three outages, want 6:\n%.2000s", len(lines), out.String())
	}
	if !strings.Contains(lines[0], "level=ERROR") || !strings.Contains(lines[0], "message=0") || !strings.Contains(lines[0], "error=down") {
		t.Errorf("the beginning: %s", lines[0])
	}
	if !strings.Contains(lines[1], `msg="works again" failures=1000 outage=9.99s`) {
		t.Errorf("the end: %s", lines[1])
	}
}
