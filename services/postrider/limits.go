package postrider

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/auth"
	"github.com/postrider/postrider/pkg/retry"
	"github.com/postrider/postrider/pkg/store"
)

// limitFlags are the flags that bound what a tenant or a credential may send.
type limitFlags struct {
	rate       float64
	recipients int64
	bytes      size
}

func (f *limitFlags) add(c *cobra.Command) {
	c.Flags().Float64Var(&f.rate, "messages-per-second", 0, "`messages` a second, at each ingress process; 0 is no bound")
	c.Flags().Int64Var(&f.recipients, "recipients-per-day", 0, "`recipients` a day (UTC); 0 is no bound")
	c.Flags().Var(&f.bytes, "bytes-per-day", "content a day (UTC), such as 500MB or 2GiB; 0 is no bound")
}

// apply changes those limits whose flags were given.
func (f *limitFlags) apply(c *cobra.Command, limits *store.Limits) error {
	if f.rate < 0 || math.IsNaN(f.rate) || math.IsInf(f.rate, 0) || f.recipients < 0 {
		return usageError{errors.New("a limit is 0 (no bound) or more")}
	}
	if c.Flags().Changed("messages-per-second") {
		limits.MessagesPerSecond = f.rate
	}
	if c.Flags().Changed("recipients-per-day") {
		limits.RecipientsPerDay = f.recipients
	}
	if c.Flags().Changed("bytes-per-day") {
		limits.BytesPerDay = int64(f.bytes)
	}
	return nil
}

// limitsLine is store.Limits in JSON; what is 0 is no bound.
type limitsLine struct {
	MessagesPerSecond float64 `json:"messages_per_second"`
	RecipientsPerDay  int64   `json:"recipients_per_day"`
	BytesPerDay       int64   `json:"bytes_per_day"`
}

// describeLimits tells limits to people.
func describeLimits(l store.Limits) string {
	var parts []string
	if l.MessagesPerSecond > 0 {
		parts = append(parts, fmt.Sprintf("%g messages/s", l.MessagesPerSecond))
	}
	if l.RecipientsPerDay > 0 {
		parts = append(parts, fmt.Sprintf("%d recipients/day", l.RecipientsPerDay))
	}
	if l.BytesPerDay > 0 {
		parts = append(parts, size(l.BytesPerDay).String()+"/day")
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// size is a number of bytes, as a flag and for people.
type size int64

var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

// Set reads "1000", "500MB" or "1.5 GiB".
func (s *size) Set(text string) error {
	number, unit := strings.TrimSpace(text), int64(1)
	for _, u := range sizeUnits {
		if rest, found := strings.CutSuffix(strings.ToLower(number), strings.ToLower(u.name)); found {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || n < 0 || n*float64(unit) >= math.MaxInt64 || math.IsNaN(n) {
		return fmt.Errorf("size %q, want bytes such as 1000, 500MB or 2GiB", text)
	}
	*s = size(n * float64(unit))
	return nil
}

// String is the size in the largest unit that it fills.
func (s size) String() string {
	for _, u := range sizeUnits[:4] {
		if int64(s) >= u.bytes {
			return strings.TrimSuffix(strconv.FormatFloat(float64(s)/float64(u.bytes), 'f', 1, 64), ".0") + " " + u.name
		}
	}
	return fmt.Sprintf("%d B", int64(s))
}

// Type names the value in help texts.
func (s *size) Type() string { return "size" }

// parseExpiry reads a date, a moment, a time from now ("90d") or "never".
func parseExpiry(text string, now time.Time) (time.Time, error) {
	if text == "never" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	d, err := retry.ParseDuration(text)
	if err != nil {
		return time.Time{}, usageError{fmt.Errorf("expiry %q, want 2027-01-31, 2027-01-31T12:00:00Z, 90d, or never", text)}
	}
	return now.Add(d), nil
}

// parsePatterns reads patterns of addresses; a single "" is none.
func parsePatterns(texts []string) ([]string, error) {
	if len(texts) == 1 && texts[0] == "" {
		return nil, nil
	}
	patterns := make([]string, len(texts))
	for i, text := range texts {
		var err error
		if patterns[i], err = auth.ParsePattern(text); err != nil {
			return nil, usageError{err}
		}
	}
	return patterns, nil
}

// checkFormat reports a format that printAs does not know: for commands that
// print what cannot be shown again.
func checkFormat(format string) error {
	return printAs(format, io.Discard, nil, func() error { return nil })
}

// explain says what went wrong with a tenant, a credential or a domain, in
// words.
func explain(err error, what, name string) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return fmt.Errorf("there is no %s %s", what, name)
	case errors.Is(err, store.ErrExists):
		return fmt.Errorf("%s %s exists already", what, name)
	case errors.Is(err, store.ErrInUse):
		return fmt.Errorf("%s %s still has credentials or domains: delete them first, or all at once with --all", what, name)
	}
	return err
}
