package e2e

import (
	"context"
	"fmt"
	"testing"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/otlp"
	"github.com/postrider/postrider/tests/internal/submit"
)

// collector has the traces of the shared world.
var collector *otlp.Collector

// TestOneTrace: the steps of a message through all services are spans of
// one trace, the root of which is its acceptance.
func TestOneTrace(t *testing.T) {
	w := shared.Get(t)
	sender(t, w, "trace-sender.test")
	w.Host(t, "mx.trace.test", smtptest.Script{Rules: []smtptest.Rule{{At: smtptest.Rcpt, Do: smtptest.Reply(550, "5.1.1 no")}}})
	w.MX(t, "trace.test", "10 mx.trace.test")
	id := send(t, w, 0, submit.Message{From: "me@trace-sender.test", To: []string{"a@trace.test"}, Content: content("traced")})
	waitState(t, w, id, "failed")
	var trace string
	if err := w.DB.QueryRow(t.Context(), `SELECT split_part(traceparent, '-', 2) FROM postrider.messages WHERE queue_id = $1`, id).Scan(&trace); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{ // span: service
		"ingress.accept": "ingress", "resolver.resolve": "resolver", "delivery.attempt": "delivery",
		"settle": "delivery", "bounce.report": "bounce",
	}
	w.Eventually(t, deadline, "all spans of trace "+trace, func(context.Context) error {
		spans, errs := collector.Trace(trace)
		for _, err := range errs {
			t.Errorf("collector: %v", err)
		}
		seen := map[string]bool{}
		for _, s := range spans {
			if service, ok := want[s.Name]; ok && s.Service == service {
				seen[s.Name] = true
			}
			if s.Name == "ingress.accept" && s.Parent != "" {
				t.Errorf("ingress.accept has parent %s", s.Parent)
			}
		}
		if len(seen) < len(want) {
			return fmt.Errorf("spans of the walk so far: %v of %+v", seen, spans)
		}
		return nil
	})
}
