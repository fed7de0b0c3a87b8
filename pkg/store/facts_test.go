package store_test

import (
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// What a client said of its message comes back with every read of it.
func TestFactsOfAMessageAreKept(t *testing.T) {
	for _, by := range []mail.DeliverBy{
		{},
		{At: time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)},
		{At: time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond), Return: true, Trace: true},
	} {
		f := setup(t)
		sub := submission(1)
		sub.Campaign, sub.TLSOptional = "spring", true
		sub.Envelope.RequireTLS, sub.Envelope.DeliverBy = true, by
		sub.ReleaseAt = sub.AcceptedAt.Add(time.Nanosecond) // held until now: due without a hint
		f.accept(t, sub)
		rung, _, err := f.Ring(t.Context(), store.RingOptions{Limit: 10})
		if err != nil || len(rung) != 1 {
			t.Fatalf("rung %v (%v), want the message", rung, err)
		}
		story, err := f.Show(t.Context(), sub.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, got := range []mail.Message{rung[0].Message, story.Message} {
			got.Envelope.DeliverBy.At = got.Envelope.DeliverBy.At.UTC()
			if got.Campaign != "spring" || !got.TLSOptional || !got.Envelope.RequireTLS || got.Envelope.DeliverBy != by {
				t.Errorf("got %+v, want campaign, REQUIRETLS, TLS-Required: No and BY %+v", got, by)
			}
		}
	}
}
