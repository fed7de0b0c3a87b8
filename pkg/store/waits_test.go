package store_test

import (
	"testing"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// TestWaitsAreSaidOfWhatIsClaimed: while they are fresh, and not of mail that
// nobody has claimed.
func TestWaitsAreSaidOfWhatIsClaimed(t *testing.T) {
	f := setup(t)
	const site = mail.Site("mx.example.com")
	sub := submission(1)
	f.accept(t, sub)
	said := func() string {
		t.Helper()
		rows, err := f.Queue(t.Context(), store.Filter{ID: sub.ID}, 10)
		if err != nil || len(rows) != 1 {
			t.Fatalf("%+v, %v", rows, err)
		}
		story, err := f.Show(t.Context(), sub.ID)
		if err != nil || story.Recipients[0].Waits != rows[0].Suspended {
			t.Errorf("the story says %+v, the queue %q, %v", story.Recipients, rows[0].Suspended, err)
		}
		return rows[0].Suspended
	}
	note := func(reason string) {
		t.Helper()
		if err := f.NoteWaits(t.Context(), []store.Wait{{Site: site, Slot: site.Slot(), Reason: reason}, {Site: "other", Slot: 3}}); err != nil {
			t.Fatal(err)
		}
	}
	note("a limit")
	if got := said(); got != "" {
		t.Errorf("%q is said of mail that nobody has claimed", got)
	}
	f.exec(t, "UPDATE recipients SET worker_id = 1, site = $2, attempt = attempt + 1 WHERE queue_id = $1", sub.ID, site)
	for _, reason := range []string{"a limit", "another limit", ""} {
		if note(reason); said() != reason {
			t.Errorf("%q is said, want %q", said(), reason)
		}
	}
	note("a limit")
	f.exec(t, "UPDATE waits SET noted_at = now() - interval '61 seconds'")
	if got := said(); got != "" {
		t.Errorf("%q is said by a home that has said nothing for a minute", got)
	}
}
