package retry

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Jitter is the part of an interval by which a delay may be shorter or
// longer, so that recipients that were delayed together do not come back
// together.
const Jitter = 0.15

// maxSteps bounds the length of a schedule after repetitions are written out.
const maxSteps = 1000

// Schedule is the list of intervals between attempts. The last one repeats.
// The zero value has no intervals and must not be asked for one; Parse never
// returns it without an error.
type Schedule struct{ steps []time.Duration }

// Parse reads intervals separated by commas, such as "5m,10m,20m,1h*4,4h".
// "1h*4" stands for four intervals of an hour; a bare "*" behind the last one
// says aloud that it repeats. Errors name every interval that is wrong.
func Parse(text string) (Schedule, error) {
	var s Schedule
	var errs []error
	words := strings.Split(text, ",")
	for i, word := range words {
		interval, count, repeated := strings.Cut(strings.TrimSpace(word), "*")
		n := 1
		if repeated && (count != "" || i < len(words)-1) {
			var err error
			if n, err = strconv.Atoi(count); err != nil || n < 1 {
				errs = append(errs, fmt.Errorf("retry schedule: %q: want a count of 1 or more behind the *", word))
				continue
			}
		}
		d, err := ParseDuration(interval)
		if err != nil {
			errs = append(errs, fmt.Errorf("retry schedule: %w", err))
			continue
		}
		if n > maxSteps-len(s.steps) {
			return Schedule{}, fmt.Errorf("retry schedule: more than %d intervals", maxSteps)
		}
		for range n {
			s.steps = append(s.steps, d)
		}
	}
	if len(errs) > 0 {
		return Schedule{}, errors.Join(errs...)
	}
	return s, nil
}

// Next returns how long to wait after an attempt that ended in a delay when
// tries attempts had ended so before it: the interval of that place in the
// schedule, or the last one, within Jitter. random returns numbers in [0,1).
func (s Schedule) Next(tries int16, random func() float64) time.Duration {
	step := s.steps[min(max(int(tries), 0), len(s.steps)-1)]
	return time.Duration(float64(step) * (1 - Jitter + 2*Jitter*random()))
}

// NextAttempt returns the time of the next attempt after one that ended at
// now. It is never later than expiresAt: a recipient expires on time, however
// long its interval.
func (s Schedule) NextAttempt(now, expiresAt time.Time, tries int16, random func() float64) time.Time {
	next := now.Add(s.Next(tries, random))
	if next.After(expiresAt) {
		return expiresAt
	}
	return next
}

// IsZero reports whether the schedule was never set.
func (s Schedule) IsZero() bool { return len(s.steps) == 0 }

// UnmarshalText reads the text form of a configuration value.
func (s *Schedule) UnmarshalText(text []byte) error {
	parsed, err := Parse(string(text))
	if err != nil {
		return err
	}
	*s = parsed
	return nil
}

// MarshalText returns the text form that Parse reads back.
func (s Schedule) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String returns the text form, with equal neighbours written as "1h*4".
func (s Schedule) String() string {
	var words []string
	for i := 0; i < len(s.steps); {
		n := 1
		for i+n < len(s.steps) && s.steps[i+n] == s.steps[i] {
			n++
		}
		word := Duration(s.steps[i]).String()
		if n > 1 {
			word += "*" + strconv.Itoa(n)
		}
		words = append(words, word)
		i += n
	}
	return strings.Join(words, ",")
}
