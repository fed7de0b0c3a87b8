package adapt

import (
	"math"
	"regexp"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
)

const (
	// decrease is what each request for patience leaves of the pace, and
	// floor what always stays of it.
	decrease = 0.5
	floor    = 1.0 / 64
	// pause is how long after a decrease further requests change nothing:
	// they are answers to what was sent at the pace before.
	pause = 10 * time.Second
	// step is what each quiet interval gives back.
	step     = 0.1
	interval = time.Minute
)

// Slowdown is how much slower than its limits a source goes to a site: by
// half with each request for patience, faster again in steps, one for each
// interval without one (AIMD). The zero value goes at full pace.
type Slowdown struct {
	share float64   // of the limits, floor to 1; 0 is 1
	since time.Time // of the last change
}

// Share returns what is left of the limits.
func (s *Slowdown) Share() float64 {
	if s.share == 0 {
		return 1
	}
	return s.share
}

// Asked says that the remote host has asked for patience, and reports whether
// that changes the pace.
func (s *Slowdown) Asked(now time.Time) bool {
	if s.share != 0 && now.Sub(s.since) < pause {
		return false
	}
	s.share, s.since = max(s.Share()*decrease, floor), now
	return true
}

// Recover gives back what the time since the last change has earned, and
// reports whether that changes the pace.
func (s *Slowdown) Recover(now time.Time) bool {
	if s.share == 0 {
		return false
	}
	steps := int(now.Sub(s.since) / interval)
	if steps < 1 {
		return false
	}
	s.since = s.since.Add(time.Duration(steps) * interval)
	s.share += float64(steps) * step
	if s.share >= 1 {
		*s = Slowdown{}
	}
	return true
}

// Saved is the form in which a successor gets a Slowdown.
type Saved struct {
	Share float64       `json:"share"`
	Age   time.Duration `json:"age"`
}

// Save returns what a successor should know; nil at full pace.
func (s *Slowdown) Save(now time.Time) *Saved {
	if s.share == 0 {
		return nil
	}
	return &Saved{s.share, now.Sub(s.since)}
}

// Restore takes over what a predecessor saved.
func (s *Slowdown) Restore(now time.Time, saved *Saved) {
	if saved == nil || !(saved.Share >= floor && saved.Share < 1) {
		return
	}
	s.share, s.since = saved.Share, now.Add(-min(max(saved.Age, 0), interval))
}

// Apply returns the limits that the pace allows: connections and rates by
// their share, and never none.
func (s *Slowdown) Apply(l shaping.Limits) shaping.Limits {
	share := s.Share()
	l.Connections = max(int(math.Ceil(float64(l.Connections)*share)), 1)
	l.ConnectionRate = slower(l.ConnectionRate, share)
	l.MessageRate = slower(l.MessageRate, share)
	return l
}

// slower returns a share of a rate: fewer events, or where one is left, one in
// a longer period.
func slower(r shaping.Rate, share float64) shaping.Rate {
	if r.IsUnlimited() || share == 1 {
		return r
	}
	events := float64(r.Events) * share
	if events >= 1 {
		r.Events = int(events)
	} else {
		r.Events, r.Period = 1, time.Duration(float64(r.Period)/events)
	}
	r.Burst = min(r.Burst, r.Events)
	return r
}

// patience is how hosts ask to be sent less. Greylisting (RFC 6647) is not
// among it: it is about one message, and passes by waiting.
var patience = regexp.MustCompile(`(?i)` + plain + `|rate.?limit|limit.{0,20}rate|too (many|much|fast)|temporarily deferred|` +
	`unusual(ly high)? rate|exceed(s|ed|ing)? .{0,40}(rate|limit|connection|quota|messages per)|maximum .{0,20}connections|concurren(t|cy)`)

// plain is how they say it of the host, whatever the code, and never of one
// mailbox.
const plain = `throttl|too many (\w+ )?(connections|sessions|e?mails)\b|slow(ing)? ?down|server (is )?(too )?busy`

var (
	plainly    = regexp.MustCompile(`(?i)` + plain)
	ofOne      = regexp.MustCompile(`(?i)\b(user|recipient|mailbox|account)\b`)
	greylisted = regexp.MustCompile(`(?i)gr[ae]y.?list`)
)

// AsksForPatience reports whether a reply asks us to send less for a while,
// rather than to try one message again later.
func AsksForPatience(reply mail.Reply) bool {
	if !reply.Transient() {
		return false
	}
	text, _ := shaping.MatchedText(reply)
	switch e := reply.Enhanced; {
	case greylisted.MatchString(text):
		return false
	case e.Subject == 4 && e.Detail == 5: // RFC 3463 §3.5: mail system congestion
		return true
	case e.Subject == 7 && e.Detail == 28: // Google's: an unusual rate
		return true
	case plainly.MatchString(text) && !ofOne.MatchString(text):
		return true // Comcast says 4.2.0, Cox 4.1.0
	case e.Subject == 2, e.Subject == 5 && e.Detail == 3, e.Subject == 1:
		return false // of one mailbox, or RCPT's bound on recipients
	}
	return patience.MatchString(text)
}
