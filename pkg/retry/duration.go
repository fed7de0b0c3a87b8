package retry

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration whose text form knows days, as operators write
// it: "90s", "5m", "1d12h", "5 days". It must be positive.
type Duration time.Duration

// units are the spellings that KumoMTA's configuration knows too.
var units = map[string]time.Duration{
	"ms": time.Millisecond,
	"s":  time.Second, "sec": time.Second, "secs": time.Second, "second": time.Second, "seconds": time.Second,
	"m": time.Minute, "min": time.Minute, "mins": time.Minute, "minute": time.Minute, "minutes": time.Minute,
	"h": time.Hour, "hr": time.Hour, "hrs": time.Hour, "hour": time.Hour, "hours": time.Hour,
	"d": 24 * time.Hour, "day": 24 * time.Hour, "days": 24 * time.Hour,
}

// longest bounds one duration: no setting of a mail queue is longer, and sums
// of durations cannot overflow.
const longest = 10 * 365 * 24 * time.Hour

// ParseUnit returns the length of a unit of time such as "s", "min" or "day".
func ParseUnit(text string) (time.Duration, error) {
	unit, ok := units[strings.TrimSpace(text)]
	if !ok {
		return 0, fmt.Errorf("unit of time %q: want ms, s, m, h or d", text)
	}
	return unit, nil
}

// ParseDuration reads a sequence of decimal numbers with units, with or
// without spaces. Errors: anything else, zero, or more than ten years.
func ParseDuration(text string) (time.Duration, error) {
	var sum time.Duration
	rest := strings.TrimSpace(text)
	if rest == "" {
		return 0, fmt.Errorf("duration is empty: want a number and a unit, such as 5m")
	}
	for rest != "" {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := strconv.ParseInt(rest[:digits], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("duration %q: want numbers and units, such as 1h30m", text)
		}
		rest = strings.TrimLeft(rest[digits:], " ")
		letters := len(rest) - len(strings.TrimLeft(rest, "abcdefghijklmnopqrstuvwxyz"))
		unit, err := ParseUnit(rest[:letters])
		if err != nil {
			return 0, fmt.Errorf("duration %q: %w", text, err)
		}
		rest = strings.TrimLeft(rest[letters:], " ")
		if n > int64(longest/unit) || sum+time.Duration(n)*unit > longest {
			return 0, fmt.Errorf("duration %q: longer than ten years", text)
		}
		sum += time.Duration(n) * unit
	}
	if sum == 0 {
		return 0, fmt.Errorf("duration %q: must be longer than zero", text)
	}
	return sum, nil
}

// UnmarshalText reads the text form of a configuration value.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := ParseDuration(string(text))
	if err != nil {
		return err
	}
	*d = Duration(parsed)
	return nil
}

// MarshalText returns the text form, such as "4h" or "1d12h".
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String returns the shortest text form that ParseDuration reads back.
func (d Duration) String() string {
	rest := time.Duration(d)
	if rest <= 0 {
		return "0s"
	}
	var b strings.Builder
	for _, u := range []struct {
		name string
		unit time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}, {"ms", time.Millisecond}} {
		if n := rest / u.unit; n > 0 {
			b.WriteString(strconv.FormatInt(int64(n), 10))
			b.WriteString(u.name)
			rest -= n * u.unit
		}
	}
	return b.String()
}
