package store

import (
	"context"
	"fmt"

	"github.com/postrider/postrider/pkg/mail"
)

// Wait is why the mail of a site, or of a part of one, that is claimed does not
// leave at the moment.
type Wait struct {
	Site   mail.Site
	Slot   int16
	Reason string // a limit, who set it, until when; "": it waits no more
}

// NoteWaits says why mail waits, for people. What is noted holds for a minute.
func (s *Store) NoteWaits(ctx context.Context, waits []Wait) error {
	if len(waits) == 0 {
		return nil
	}
	var sites, reasons []string
	var slots []int16
	for _, w := range waits {
		sites, slots, reasons = append(sites, string(w.Site)), append(slots, w.Slot), append(reasons, w.Reason)
	}
	const q = `WITH said AS (SELECT * FROM unnest($1::text[], $2::smallint[], $3::text[]) t (site, slot, reason)),
over AS (DELETE FROM waits w USING said WHERE w.site = said.site AND w.slot = said.slot AND said.reason = '')
INSERT INTO waits (site, slot, reason)
SELECT site, slot, reason FROM said WHERE reason <> ''
ON CONFLICT (site, slot) DO UPDATE SET reason = excluded.reason, noted_at = now()`
	if _, err := s.plain.Exec(ctx, q, sites, slots, reasons); err != nil {
		return fmt.Errorf("note waits: %w", err)
	}
	return nil
}

// waitOf is what a row of the queue waits for: its home says so.
const waitOf = `(SELECT w.reason FROM waits w
    WHERE w.site = q.site AND w.noted_at > now() - interval '1 minute' AND q.place IN ('claimed', 'parked')
    ORDER BY w.noted_at DESC LIMIT 1)`
