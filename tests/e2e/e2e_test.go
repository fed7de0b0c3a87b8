// Package e2e sends mail through postrider as it runs in production, two
// processes of every service, and looks at what arrives: every promise of
// the walk that does not need a kill. The kills are in package chaos.
package e2e

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/otlp"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

// deadline is how long a test waits for mail to move. It is far above what
// is needed, for slow machines; nothing waits that long when all is well.
const deadline = 60 * time.Second

// shared has short retries, and domains with lives of their own.
var shared = &world.Shared{Options: world.Options{
	Copies: 2,
	Env: map[string]string{
		"POSTRIDER_RETRY_SCHEDULE": "1s,1s,2s",
		"OTEL_TRACES_SAMPLER":      "always_on",
		"OTEL_BSP_SCHEDULE_DELAY":  "200", // ms
	},
	Shaping: `
["default"]
max_connection_rate = "unlimited"

["busy.test"]
mx_rollup = false
max_message_rate = "unlimited"

["crowd0.test"]
mx_rollup = false
max_message_rate = "unlimited"
max_recipients_per_batch = 1
["crowd1.test"]
mx_rollup = false
max_message_rate = "unlimited"
max_recipients_per_batch = 1
["crowd2.test"]
mx_rollup = false
max_message_rate = "unlimited"
max_recipients_per_batch = 1
["crowd3.test"]
mx_rollup = false
max_message_rate = "unlimited"
max_recipients_per_batch = 1

["expiry.test"]
mx_rollup = false
max_age = "4 seconds"

["unresolved.test"]
mx_rollup = false
max_age = "4 seconds"

["late.test"]
mx_rollup = false
delay_notice_after = "2 seconds"
`,
}}

func TestMain(m *testing.M) {
	collector = otlp.Start()
	shared.Options.Env["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.URL()
	world.Main(m, shared)
}

// content returns a small message whose subject names it.
func content(subject string) []byte {
	return []byte("From: Sender <sender@sender.test>\r\n" +
		"To: somebody@example.test\r\n" +
		"Subject: " + subject + "\r\n" +
		"Date: Mon, 02 Nov 2026 09:15:00 +0000\r\n" +
		"Message-ID: <" + strings.ReplaceAll(subject, " ", ".") + "@sender.test>\r\n" +
		"\r\n" +
		"Hello,\r\n.\r\n..leading dots, and the end.\r\n")
}

// send submits through the given copy of ingress.
func send(t *testing.T, w *world.World, ingress int, m submit.Message) string {
	t.Helper()
	id, err := submit.Send(t.Context(), w.SMTP(ingress), m)
	if err != nil {
		t.Fatalf("submit: %v", err)
	}
	return id
}

// recipient is what the queue table says of a recipient.
type recipient struct {
	State string
	Tries int
}

func (r recipient) String() string { return fmt.Sprintf("%s after %d delays", r.State, r.Tries) }

func states(ctx context.Context, w *world.World, id string) ([]recipient, error) {
	rows, err := w.DB.Query(ctx, `SELECT state::text, tries FROM postrider.recipients WHERE queue_id = $1 ORDER BY recipient_no`, id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []recipient
	for rows.Next() {
		var r recipient
		if err := rows.Scan(&r.State, &r.Tries); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

// waitState waits until all recipients of a message are in one state.
func waitState(t *testing.T, w *world.World, id, state string) {
	t.Helper()
	w.Eventually(t, deadline, "message "+id+" "+state, func(ctx context.Context) error {
		all, err := states(ctx, w, id)
		if err != nil {
			return err
		}
		if len(all) == 0 || slices.ContainsFunc(all, func(r recipient) bool { return r.State != state }) {
			return fmt.Errorf("recipients are %v", all)
		}
		return nil
	})
}

// received is the trace field that ingress puts before the content: RFC 5321
// §4.4.
var received = regexp.MustCompile(`^Received: [^\r\n]+\r\n([ \t][^\r\n]+\r\n)*$`)

// wantIntact checks that a message arrived as it was sent, with one Received
// field before it.
func wantIntact(t *testing.T, got smtptest.Transaction, sent []byte) {
	t.Helper()
	if !strings.HasSuffix(string(got.Content), "\r\n"+string(sent)) {
		t.Fatalf("the content changed: sent %d bytes, got %d; they begin\n%.300q\n%.600q", len(sent), len(got.Content), sent, got.Content)
	}
	if head := got.Content[:len(got.Content)-len(sent)]; !received.Match(head) {
		t.Errorf("before the content stands %q, want one Received field", head)
	}
}

// only returns the one message that a host took.
func only(t *testing.T, host *smtptest.Server) smtptest.Transaction {
	t.Helper()
	all := host.Messages()
	if len(all) != 1 {
		t.Fatalf("the host took %d messages, want 1", len(all))
	}
	return all[0]
}
