package shaping

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
)

// Rate allows so many events in any window of the length of Period. The zero
// value sets no bound.
type Rate struct {
	Events int
	Period time.Duration
	Burst  int // max_burst: how many may follow each other at once; 0 leaves it to the pacer
}

// maxEvents bounds the memory that a window of events costs.
const maxEvents = 1_000_000

// parseCount reads a number in which digits may be grouped: 1_000 or 1,000.
func parseCount(text string) (int64, error) {
	return strconv.ParseInt(strings.NewReplacer("_", "", ",", "").Replace(strings.TrimSpace(text)), 10, 64)
}

// ParseRate reads a rate as KumoMTA writes it: "100/s", "1,000/30min",
// "500/hour,max_burst=1", or "unlimited".
func ParseRate(text string) (Rate, error) {
	if strings.TrimSpace(text) == "unlimited" {
		return Rate{}, nil
	}
	number, rest, ok := strings.Cut(text, "/")
	period, option, hasOption := strings.Cut(rest, ",")
	events, err := parseCount(number)
	if !ok || err != nil || events < 1 || events > maxEvents {
		return Rate{}, fmt.Errorf("rate %q: want N/period with N from 1 to %d, such as 100/min", text, maxEvents)
	}
	period = strings.TrimSpace(period)
	if period != "" && (period[0] < '0' || period[0] > '9') {
		period = "1" + period
	}
	length, err := retry.ParseDuration(period)
	if err != nil {
		return Rate{}, fmt.Errorf("rate %q: %w", text, err)
	}
	r := Rate{Events: int(events), Period: length}
	if hasOption {
		name, value, _ := strings.Cut(option, "=")
		r.Burst, err = strconv.Atoi(strings.TrimSpace(value))
		if strings.TrimSpace(name) != "max_burst" || err != nil || r.Burst < 1 {
			return Rate{}, fmt.Errorf("rate %q: want max_burst=N with N of 1 or more behind the comma", text)
		}
	}
	return r, nil
}

// IsUnlimited reports whether the rate sets no bound.
func (r Rate) IsUnlimited() bool { return r.Events == 0 }

// AtOnce is how many events may follow each other at once after a pause.
func (r Rate) AtOnce() int {
	if r.Burst > 0 {
		return min(r.Burst, r.Events)
	}
	return max(1, r.Events/10)
}

// Slower returns the rate that allows fewer events over time, with as small a
// burst as the other one needs to hold too: 3000/h must not send in one second
// what 100/s forbids.
func (r Rate) Slower(other Rate) Rate {
	slow, fast := r, other
	if r.IsUnlimited() || !other.IsUnlimited() && other.perSecond() < r.perSecond() {
		slow, fast = other, r
	}
	if fast.IsUnlimited() {
		return slow
	}
	// Whole periods of the slow rate that a period of the fast one touches.
	periods := (fast.Period + slow.Period - 1) / slow.Period
	if int64(periods)*int64(slow.Events) <= int64(fast.Events) {
		return slow
	}
	even := int(fast.Period / max(slow.Period/time.Duration(slow.Events), 1))
	if burst := max(fast.Events-even, 1); burst < slow.AtOnce() {
		slow.Burst = burst
	}
	return slow
}

// Portion returns the rate of one part of a site; see Limits.Portion. The
// period stays.
func (r Rate) Portion(p mail.Portion) Rate {
	if r.IsUnlimited() {
		return r
	}
	r.Events = max(p.Count(r.Events), 1)
	if r.Burst > 0 {
		r.Burst = max(p.Count(r.Burst), 1)
	}
	return r
}

// MostParts returns into how many parts the rate can be divided with something
// for all.
func (r Rate) MostParts() int {
	if r.IsUnlimited() {
		return mail.Slots
	}
	return r.Events
}

func (r Rate) perSecond() float64 { return float64(r.Events) / r.Period.Seconds() }

// String returns the text form that ParseRate reads back.
func (r Rate) String() string {
	if r.IsUnlimited() {
		return "unlimited"
	}
	text := fmt.Sprintf("%d/%s", r.Events, retry.Duration(r.Period))
	if r.Burst > 0 {
		text += fmt.Sprintf(",max_burst=%d", r.Burst)
	}
	return text
}
