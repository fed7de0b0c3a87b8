package resolver

import (
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/services/resolver/internal/mx"
)

// TestTransientTroubleStaysTransient: DNS may be broken for days. However often
// it was tried, only the lifetime of the mail ends that.
func TestTransientTroubleStaysTransient(t *testing.T) {
	schedule, err := retry.Parse("1m,5m,1h")
	if err != nil {
		t.Fatal(err)
	}
	shape, err := shaping.Open(shaping.Config{RetrySchedule: schedule})
	if err != nil {
		t.Fatal(err)
	}
	r := &resolver{shaping: shape}
	m := mail.Message{ID: mail.NewQueueID(), AcceptedAt: time.Now()}
	p := mail.Pending{Recipient: mail.Recipient{No: 1, Domain: "broken.test", ExpiresAt: time.Now().Add(30 * time.Minute)}}
	trouble := mx.Trouble{Status: mail.EnhancedCode{Class: 4, Subject: 4, Detail: 3}, Text: "SERVFAIL"}
	for p.Tries = range int16(200) {
		o := r.outcome(m, p, trouble)
		if o.Action != mail.Delayed || o.NextAttemptAt.After(p.ExpiresAt) || o.NextAttemptAt.Before(m.AcceptedAt) {
			t.Fatalf("after %d tries: %s until %v; want a delay that ends with the lifetime, at %v", p.Tries, o.Action, o.NextAttemptAt, p.ExpiresAt)
		}
	}
	trouble.Permanent = true
	if p.Tries = 0; r.outcome(m, p, trouble).Action != mail.Failed {
		t.Error("permanent trouble is tried again")
	}
}
