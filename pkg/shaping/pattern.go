package shaping

import (
	"log/slog"
	"regexp"
	"sync/atomic"
	"time"

	"github.com/dlclark/regexp2/v2"
)

const (
	// patternWithin bounds one look at a reply for an expression with
	// look-around, which backtracks. The clock that it is counted on ticks
	// every 100 ms.
	patternWithin = 50 * time.Millisecond
	// patternStack bounds the memory of one look, in steps that it can go back.
	patternStack = 100_000
	// patternRest is how long an expression rests that has taken too long.
	patternRest = time.Minute
)

// Pattern is a regular expression of a rule. Most are RE2, which takes time
// that is linear in the length of the reply. Those that RE2 cannot read, for
// their look-around or back-references, backtrack, within a bound; published
// files of KumoMTA have some.
type Pattern struct {
	text       string
	linear     *regexp.Regexp
	backtracks *regexp2.Regexp
	rests      atomic.Int64 // until then, in Unix seconds
}

// compile reads an expression. The error is that of RE2 if nobody can read it.
func compile(text string) (*Pattern, error) {
	linear, err := regexp.Compile(text)
	if err == nil {
		return &Pattern{text: text, linear: linear}, nil
	}
	backtracks, other := regexp2.Compile(text, regexp2.OptionMaxBacktrackingStackSize(patternStack))
	if other != nil {
		return nil, err
	}
	backtracks.MatchTimeout = patternWithin
	return &Pattern{text: text, backtracks: backtracks}, nil
}

func (p *Pattern) String() string { return p.text }

// matches reports whether the text has a match. An expression that takes too
// long has none, and is not tried for a minute.
func (p *Pattern) matches(text string) bool {
	if p.linear != nil {
		return p.linear.MatchString(text)
	}
	now := time.Now()
	if now.Unix() < p.rests.Load() {
		return false
	}
	yes, err := p.backtracks.MatchString(text)
	if err != nil {
		p.rests.Store(now.Add(patternRest).Unix())
		slog.Warn("expression of a shaping rule takes too long, not tried for a minute", "regex", p.text, "error", err)
	}
	return yes && err == nil
}
