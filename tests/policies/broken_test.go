package policies

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/smtptest"
)

// TestBrokenTLS: without a policy a handshake that fails costs a while and no
// mail; what helped twice is remembered, shown, and forgotten when an operator
// says so. A smaller ClientHello is tried before plaintext, which comes with
// another attempt.
func TestBrokenTLS(t *testing.T) {
	s := begin(t)
	dead := s.host("dead.test", s.selfSigned("dead.test"), smtptest.Rule{At: smtptest.Handshake, Do: smtptest.Drop()})
	config := s.selfSigned("old.test")
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedCurves, tls.X25519MLKEM768) {
			return nil, errors.New("a ClientHello of two packets")
		}
		return nil, nil
	}
	// Each message comes over a connection of its own.
	old := s.host("old.test", config, smtptest.Rule{At: smtptest.Dot, Do: smtptest.Then(smtptest.Reply(250, "2.0.0 ok"), smtptest.Drop())})
	s.zone.serve(t)

	inPlaintext, inTLS := attempt{state: "relayed", status: "2."}, attempt{state: "relayed", status: "2.", tls: "any"}
	s.wait(t, s.send("old.test"), inTLS)
	s.wait(t, s.send("dead.test"), inPlaintext)
	s.wait(t, s.send("old.test"), inTLS) // once more, and a while later
	s.remembers(t, "mx.dead.test", "starttls")
	s.remembers(t, "mx.old.test", "large hello")
	first := handshakes(dead)
	if first < 4 || first%2 != 0 {
		t.Errorf("STARTTLS was tried %d times before plaintext, want at least 4: as it is and small, in two attempts", first)
	}
	if n := handshakes(old); n != 4 {
		t.Errorf("STARTTLS was tried %d times, want 2 for each message", n)
	}

	s.restart(t) // another worker knows it, too
	s.wait(t, s.send("dead.test"), inPlaintext)
	s.wait(t, s.send("old.test"), inTLS)
	if n, m := handshakes(dead), handshakes(old); n != first || m != 5 {
		t.Errorf("remembered: STARTTLS was tried %d and %d times, want %d and 5", n, m, first)
	}

	out, err := s.Output(t.Context(), "tls", "forget", "mx.dead.test")
	if err != nil || out != "addresses forgotten: 1\n" {
		t.Fatalf("forget: %q, %v", out, err)
	}
	s.restart(t)
	s.wait(t, s.send("dead.test"), inPlaintext)
	if n := handshakes(dead); n < first+4 {
		t.Errorf("forgotten: STARTTLS was tried %d times, want at least %d", n, first+4)
	}
	for _, m := range slices.Concat(dead.Messages(), old.Messages()) {
		if !m.Delivered() {
			t.Errorf("%+v", m)
		}
	}
}

// remembers waits until postrider tls lists a host with a fault.
func (s *stage) remembers(t *testing.T, host, fault string) {
	t.Helper()
	s.Eventually(t, deadline, host+" is remembered", func(ctx context.Context) error {
		out, err := s.Output(ctx, "tls", "broken")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, host+" ") && strings.Contains(line, fault) {
				return nil
			}
		}
		return fmt.Errorf("listed:\n%s", out)
	})
}

// handshakes counts the STARTTLS commands that a host has seen.
func handshakes(host *smtptest.Server) (n int) {
	for _, c := range host.Connections() {
		for _, verb := range c.Commands {
			if verb == "STARTTLS" {
				n++
			}
		}
	}
	return n
}
