package bus

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// clockSkew is how far the clocks of two processes may be apart, by what
	// each thinks that the clock of Postgres shows.
	clockSkew = 15 * time.Second
	// noticeAge is how old a notice may be: what it tells is looked up again,
	// or valid for a moment.
	noticeAge = 10 * time.Second
	// trailLength is how many frames of a publisher are remembered one by one.
	trailLength = 256
)

// refusal is why a frame is not let in: a label of the metric.
type refusal string

// The refusals. A frame that was refused is gone; its rows are rung again when
// they are due.
const (
	unsigned    refusal = "unsigned"    // no seal, or cut off
	unknownKey  refusal = "unknown key" // or one that is valid no more
	forged      refusal = "forged"      // the MAC does not match
	tooOld      refusal = "old"
	fromFuture  refusal = "future"
	replayed    refusal = "replayed"  // the publisher sent it once, it came twice
	undecodable refusal = "malformed" // sealed by one of us, and wrong all the same
)

func (r refusal) Error() string { return "refused: " + string(r) }

// gate lets in what one of us has published, of one stream or notice. Its
// methods may be called at the same time.
type gate struct {
	keys   *keyring
	maxAge time.Duration

	mu     sync.Mutex // guards trails
	trails map[uint64]*trail
}

func newGate(keys *keyring, maxAge time.Duration) *gate {
	return &gate{keys: keys, maxAge: maxAge, trails: map[uint64]*trail{}}
}

// open returns what is in a frame that came at a position of the stream, and
// how old it is. Errors: a refusal; or the keys cannot be read, so that nobody
// knows.
func (g *gate) open(ctx context.Context, subject string, frame []byte, position uint64) (body []byte, age time.Duration, err error) {
	s, signed, mac, ok := readSeal(frame)
	if !ok {
		return nil, 0, unsigned
	}
	set, k, err := g.keys.find(ctx, s.key)
	switch {
	case err != nil:
		return nil, 0, err
	case k == nil:
		return nil, 0, unknownKey
	case !k.verifies(subject, signed, mac):
		return nil, 0, forged
	}
	now := set.time()
	switch age = now.Sub(s.at); {
	case age > g.maxAge+clockSkew:
		return nil, 0, tooOld
	case age < -clockSkew:
		return nil, 0, fromFuture
	case !g.follows(s, position, now):
		return nil, 0, replayed
	}
	return frame[:len(frame)-sealSize], max(age, 0), nil
}

// follows reports whether the frame is where its publisher put it: a stream
// keeps the order of each publisher, so that a frame which comes behind one
// with a higher number was published again by somebody else. One that the
// server gives again stands where it stood.
func (g *gate) follows(s seal, position uint64, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.trails[s.publisher]
	if t == nil {
		// Nothing of these could come in any more.
		for publisher, old := range g.trails {
			if now.Sub(old.latest) > g.maxAge+2*clockSkew {
				delete(g.trails, publisher)
			}
		}
		t = &trail{}
		g.trails[s.publisher] = t
	}
	if s.at.After(t.latest) {
		t.latest = s.at
	}
	return t.follows(s.number, position)
}

// trail is the last frames of one publisher, by number.
type trail struct {
	seen   []footstep
	latest time.Time // of the publisher's frames
}

type footstep struct{ number, position uint64 }

func (t *trail) follows(number, position uint64) bool {
	i, same := slices.BinarySearchFunc(t.seen, number, func(f footstep, n uint64) int {
		switch {
		case f.number < n:
			return -1
		case f.number > n:
			return 1
		}
		return 0
	})
	if slices.ContainsFunc(t.seen[i:], func(f footstep) bool { return f.position < position }) {
		return false
	}
	if same {
		t.seen[i].position = position
		return true
	}
	t.seen = slices.Insert(t.seen, i, footstep{number, position})
	if len(t.seen) > trailLength {
		t.seen = slices.Delete(t.seen, 0, 1)
	}
	return true
}
