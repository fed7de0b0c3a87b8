package access

import (
	"context"
	"math"
	"net/netip"
	"time"

	"github.com/postrider/postrider/pkg/auth"
	"github.com/postrider/postrider/pkg/store"
)

const (
	// knownFor is how long a network from which a user was authenticated is
	// judged by itself.
	knownFor = 30 * 24 * time.Hour

	// rememberEvery is how old that memory may be before it is written anew.
	rememberEvery = 24 * time.Hour

	firstDelay = 250 * time.Millisecond
	maxDelay   = 8 * time.Second
)

// guard answers brute force. It keeps a score of failures in Postgres for
// each address (/32, or /64 of IPv6) and each user. A user whose network is
// known has a score for both together, and no other counts: neither strangers
// who guess at the user nor neighbours who guess at others shut it out.
//
// Attempts are not counted before they fail, so a client that opens many
// connections at once is not taken for an attacker. An attacker who does so
// waits for the few turns that there are, and is looked at again in each:
// nothing caps the score.
type guard struct {
	store accessStore
	max   int // failures of an address; a user has twice as many
}

// gate is what counts for one attempt.
type gate struct {
	keys        []string
	limits      []int
	client      string // key of user and network together; "" for an attempt without a user
	succeededAt time.Time
	score       float64 // of client
	known       bool    // client is judged by itself
}

// look returns the gate of an attempt, or a *TooManyError. user is "" when
// there is none, or none that can exist.
func (g *guard) look(ctx context.Context, client netip.Addr, user string) (gate, error) {
	network := network(client).String()
	keys := []string{"address " + network}
	if user != "" {
		user = auth.Fold(user)
		keys = append(keys, "user "+user, "client "+user+" "+network)
	}
	standings, err := g.store.Standings(ctx, keys)
	if err != nil {
		return gate{}, err
	}
	at := gate{keys: keys[:1], limits: []int{g.max}}
	if user != "" {
		both := standings[2]
		at = gate{keys: keys[:2], limits: []int{g.max, 2 * g.max}, client: keys[2], succeededAt: both.SucceededAt, score: both.Score}
		if time.Since(both.SucceededAt) < knownFor {
			at.keys, at.limits, at.known = keys[2:], []int{g.max}, true
			standings = standings[2:]
		}
	}
	var wait time.Duration
	for i := range at.keys {
		wait = max(wait, untilOpen(standings[i].Score, at.limits[i]))
	}
	if wait > 0 {
		return gate{}, &TooManyError{wait}
	}
	return at, nil
}

// failed counts a failure.
func (g *guard) failed(ctx context.Context, at gate) (failure, error) {
	scores, err := g.store.AuthFailed(ctx, at.keys)
	return failure{at, scores}, err
}

// failure is one that was counted.
type failure struct {
	at     gate
	scores []float64
}

// answer lets the client wait, and returns what it hears.
func (f failure) answer(ctx context.Context) error {
	worst := 0.0
	for i, score := range f.scores {
		if score > float64(f.at.limits[i]) { // others failed since we looked
			return &TooManyError{untilOpen(score, f.at.limits[i])}
		}
		worst = max(worst, score)
	}
	timer := time.NewTimer(delay(worst))
	defer timer.Stop()
	select {
	case <-timer.C:
		return ErrRefused
	case <-ctx.Done():
		return ctx.Err()
	}
}

// succeeded remembers the client, where that is news.
func (g *guard) succeeded(ctx context.Context, at gate) error {
	if time.Since(at.succeededAt) < rememberEvery && at.score < 0.5 {
		return nil
	}
	return g.store.AuthSucceeded(ctx, at.client)
}

// untilOpen returns how long it takes until a score leaves room for another
// failure below the limit; 0: it does.
func untilOpen(score float64, limit int) time.Duration {
	room := float64(limit - 1)
	if score <= room {
		return 0
	}
	return max(time.Second, time.Duration(float64(store.FailureHalfLife)*math.Log2(score/room)))
}

// delay doubles with each failure.
func delay(score float64) time.Duration {
	return min(maxDelay, time.Duration(float64(firstDelay)*math.Exp2(math.Round(min(score, 20))-1)))
}

// network is what counts as one client: who has an IPv6 address has a /64.
func network(client netip.Addr) netip.Prefix {
	client = client.Unmap().WithZone("")
	bits := 32
	if client.Is6() {
		bits = 64
	}
	p, _ := client.Prefix(bits) // an address that is none is one network too
	return p
}
