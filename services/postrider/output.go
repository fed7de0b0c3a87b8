package postrider

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/retry"
)

// table prints rows in columns.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, head ...string) table {
	t := table{tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)}
	t.row(head...)
	return t
}

// row adds a line; an error shows at flush.
func (t table) row(cells ...string) {
	fmt.Fprintln(t.w, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
}

func (t table) flush() error { return t.w.Flush() }

// outputFlag adds -o to a command that prints data.
func outputFlag(c *cobra.Command, format *string) {
	c.Flags().StringVarP(format, "output", "o", "text", "format: text or json")
}

// forFlag adds --for to a command that does something for a while.
func forFlag(c *cobra.Command, wait *time.Duration) {
	c.Flags().TextVar((*retry.Duration)(wait), "for", retry.Duration(time.Hour), "for this `time`, such as 30m or 2d")
}

// printAs prints v as JSON, or calls text.
func printAs(format string, w io.Writer, v any, text func() error) error {
	switch format {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "text":
		return text()
	}
	return usageError{fmt.Errorf("output format %q, want text or json", format)}
}

// clock prints a moment in UTC, to the millisecond.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000Z") }

// moment is a time in JSON; nothing when zero.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// span prints a duration for people: two units at most.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + span(-d)
	case d < time.Millisecond:
		return fmt.Sprintf("%dµs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%.1fms", float64(d.Microseconds())/1000)
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour:
		return round(d.Round(time.Second))
	case d < 24*time.Hour:
		return round(d.Round(time.Minute))
	}
	days := fmt.Sprintf("%dd", d/(24*time.Hour))
	if hours := d % (24 * time.Hour) / time.Hour; hours > 0 {
		return fmt.Sprintf("%s%dh", days, hours)
	}
	return days
}

// round prints a duration without the units that are zero at its end.
func round(d time.Duration) string {
	s := d.String()
	for _, zero := range []string{"0s", "0m"} {
		if strings.HasSuffix(s, "m"+zero) || strings.HasSuffix(s, "h"+zero) {
			s = strings.TrimSuffix(s, zero)
		}
	}
	return s
}

// clean makes text from outside safe for a terminal: no control characters.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
