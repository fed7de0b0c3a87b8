package delivery_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
)

// campaignSize is how much waits in TestPasswordResetIsNotHeldUp: 50,000, or
// what POSTRIDER_TEST_CAMPAIGN says. docs/operations.md has the
// figures of 1,000,000.
func campaignSize(t *testing.T) int {
	text := os.Getenv("POSTRIDER_TEST_CAMPAIGN")
	if text == "" {
		return 50_000
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// parkCampaign writes n parked messages of one campaign, as accept and park
// leave them, older than all others.
func (r *rig) parkCampaign(n int, site mail.Site, domain mail.Domain) {
	r.t.Helper()
	db, err := pgx.Connect(r.t.Context(), r.url)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = db.Close(context.Background()) }()
	const id = `(lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '70008000' || lpad(to_hex(i), 12, '0'))::uuid`
	tx, err := db.Begin(r.t.Context()) // one transaction, one now(): the same ids
	if err != nil {
		r.t.Fatal(err)
	}
	for _, q := range []string{
		`INSERT INTO postrider.messages (queue_id, accepted_at, recipient_count, size_bytes, reverse_path, tenant, campaign)
		 SELECT ` + id + `, now(), 1, 17, 'news@origin.test', 'acme', 'spring' FROM generate_series(1, $1::bigint) AS i WHERE $2::text <> '' AND $3::text <> ''`,
		`INSERT INTO postrider.contents (queue_id, chunk_no, content)
		 SELECT ` + id + `, 0, convert_to('Subject: news' || E'\r\n\r\n', 'UTF8') FROM generate_series(1, $1::bigint) AS i WHERE $2::text <> '' AND $3::text <> ''`,
		`INSERT INTO postrider.recipients (queue_id, recipient_no, attempt, next_attempt_at, expires_at, slot, site, domain, forward_path, tenant, campaign)
		 SELECT ` + id + `, 1, 1, now() + interval '1 day', now() + interval '1 day', postrider.site_slot($2), $2, $3, 'r' || i || '@' || $3, 'acme', 'spring'
		 FROM generate_series(1, $1::bigint) AS i`,
	} {
		if _, err := tx.Exec(r.t.Context(), q, n, string(site), string(domain)); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := tx.Commit(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	if _, err := db.Exec(r.t.Context(), `ANALYZE postrider.recipients`); err != nil {
		r.t.Fatal(err)
	}
}

// fresh accepts one message and returns its delivery request.
func (r *rig) fresh(m message, campaign string) *mail.DeliveryRequest {
	r.t.Helper()
	s := &mail.Submission{Content: []byte("Subject: reset\r\n\r\n")}
	s.ID, s.AcceptedAt, s.SizeBytes = mail.NewQueueID(), time.Now(), int64(len(s.Content))
	s.Envelope.ReversePath = "reset@origin.test"
	s.Tenant, s.Campaign, s.Priority = m.tenant, campaign, m.priority
	s.Recipients = []mail.Recipient{{
		No: 1, Domain: m.domain, ForwardPath: mail.ForwardPath(fmt.Sprintf("%s@%s", s.ID, m.domain)), ExpiresAt: s.AcceptedAt.Add(time.Hour),
	}}
	if err := r.db.Accept(r.t.Context(), []*mail.Submission{s}); err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return &mail.DeliveryRequest{Message: s.Message, Route: r.routes[m.domain], Recipients: []mail.Pending{{Recipient: s.Recipients[0]}}}
}

// A site takes 100 messages a second, and a campaign has so many waiting that
// it takes hours. What is new goes within a second: no more than 100 messages
// of the campaign go before it. Postal and KumoMTA: one large campaign, and
// all others wait.
func TestPasswordResetIsNotHeldUp(t *testing.T) {
	t.Parallel()
	const perSecond = 100
	n := campaignSize(t)
	r := newRig(t)
	mx := smtptest.Start(t, smtptest.Script{Discard: true})
	r.route("example.test", "mx.example.test", mx.Addr())
	began := time.Now()
	first := r.fresh(message{domain: "example.test", tenant: "acme"}, "spring")
	if err := r.db.Park(t.Context(), 0, []*mail.DeliveryRequest{first}); err != nil {
		t.Fatal(err) // the route of those that follow
	}
	r.parkCampaign(n, "mx.example.test", "example.test")
	t.Logf("%d parked in %v", n, time.Since(began))
	began = time.Now()
	r.start(r.config(fmt.Sprintf("[\"default\"]\nmax_message_rate = \"%d/s\"\nmax_connection_rate = \"unlimited\"", perSecond)))
	mx.WaitMessages(t, 1, 60*time.Second)
	t.Logf("the first arrives after %v", time.Since(began))
	mx.WaitMessages(t, 3*perSecond, 60*time.Second)
	for _, c := range []struct {
		name     string
		m        message
		campaign string
		parked   bool // there is no bus: the home finds it at its next look, within a second
	}{
		{"another tenant", message{domain: "example.test", tenant: "other"}, "", false},
		{"another campaign of the tenant", message{domain: "example.test", tenant: "acme"}, "reset", false},
		{"a higher priority", message{domain: "example.test", tenant: "acme", priority: 1}, "spring", false},
		{"another tenant, without the bus", message{domain: "example.test", tenant: "third"}, "", true},
		{"a higher priority, without the bus", message{domain: "example.test", tenant: "acme", priority: 2}, "spring", true},
	} {
		req := r.fresh(c.m, c.campaign)
		before, at := mx.Count(), time.Now()
		if c.parked {
			if err := r.db.Park(t.Context(), 0, []*mail.DeliveryRequest{req}); err != nil {
				t.Fatal(err)
			}
		} else if err := r.send(t.Context(), []*mail.DeliveryRequest{req}); err != nil {
			t.Fatal(err)
		}
		place := 0
		r.until(c.name+" has arrived", 60*time.Second, func() bool {
			for i, m := range mx.Messages()[before:] {
				if m.Accepted()[0] == string(req.Recipients[0].ForwardPath) {
					place = i
					return true
				}
			}
			return false
		})
		limit := perSecond
		if c.parked {
			limit = 2 * perSecond
		}
		t.Logf("%s: %d messages before it, after %v", c.name, place, time.Since(at))
		if place > limit {
			t.Errorf("%s: %d messages of the campaign go before it, want at most %d", c.name, place, limit)
		}
	}
	if a, err := r.db.Accounting(t.Context()); err != nil || a.Queued < int64(n)/2 {
		t.Errorf("%d of the campaign are still queued, %v: it was too short to show anything", a.Queued, err)
	}
}
