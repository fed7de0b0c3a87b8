package access

import "time"

// rate is a GCRA (ITU-T I.371) over messages: n a second on average, and up
// to a second's worth at once, but at least one.
type rate struct{ due time.Time }

// wait returns how long until the next message conforms; 0: now.
func (r *rate) wait(now time.Time, perSecond float64) time.Duration {
	if perSecond <= 0 {
		return 0
	}
	tolerance := max(0, time.Second-interval(perSecond))
	return max(0, r.due.Add(-tolerance).Sub(now))
}

// take counts one message.
func (r *rate) take(now time.Time, perSecond float64) {
	if perSecond <= 0 {
		return
	}
	if r.due.Before(now) {
		r.due = now
	}
	r.due = r.due.Add(interval(perSecond))
}

func interval(perSecond float64) time.Duration {
	return time.Duration(min(float64(time.Second)/perSecond, float64(24*time.Hour)))
}
