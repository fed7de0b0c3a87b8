package smtpd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/smtp"
)

// talker is one of two sessions that hear the same.
type talker struct {
	conn net.Conn
	in   *bufio.Reader
}

func newTalker(t *testing.T, address string) *talker {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	k := &talker{conn, bufio.NewReader(conn)}
	if code := k.hear(t); code != 220 {
		t.Fatalf("greeted with %d", code)
	}
	return k
}

// say sends octets and returns the code of the reply; 0: there was none.
func (k *talker) say(t *testing.T, octets string) int {
	t.Helper()
	if _, err := io.WriteString(k.conn, octets); err != nil {
		return 0 // it has gone
	}
	return k.hear(t)
}

func (k *talker) hear(t *testing.T) int {
	t.Helper()
	reply, err := smtp.ReadReply(k.in)
	switch {
	case err == nil:
		return reply.Code
	case errors.Is(err, os.ErrDeadlineExceeded):
		t.Fatal("no reply: the two do not agree on what a command is")
	}
	return 0
}

// TestLikePostfix has random dialogues with us and with Postfix, command by
// command. Where the codes of the replies are not the same there is a reason
// in the table. POSTRIDER_DIALOGUES=100000 is how many more than the few that
// are always the same.
func TestLikePostfix(t *testing.T) {
	dialogues := 400
	if text := os.Getenv("POSTRIDER_DIALOGUES"); text != "" {
		var err error
		if dialogues, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	cfg := testConfig()
	cfg.MaxErrors = 1000
	server := startServer(t, cfg, &fakeStore{})
	postfix := startPostfix(t, server.address, "defer_transports = smtp, relay", "smtpd_error_sleep_time = 0", "smtpd_soft_error_limit = 1000",
		"smtpd_hard_error_limit = 1001", "smtpd_junk_command_limit = 1000", "smtpd_client_connection_count_limit = 0", "smtpd_forbid_bare_newline = yes", "smtpd_forbid_bare_newline_exclusions =", "smtpd_helo_required = yes", "strict_rfc821_envelopes = yes")
	times, commands := map[string]int{}, 0
	for seed := range dialogues {
		dialogue := grammar{rand.New(rand.NewPCG(3, uint64(seed)))}.dialogue()
		commands += len(dialogue)
		if unexplained := converse(t, server.address, postfix.address, dialogue, times); unexplained != "" {
			t.Errorf("dialogue %d: %s", seed, unexplained)
		}
	}
	t.Logf("%d dialogues, %d commands", dialogues, commands)
	for i := range explained {
		t.Logf("%6d times: %s", times[explained[i].why], explained[i].why)
	}
}

// converse has one dialogue and returns the first difference without a reason.
func converse(t *testing.T, ours, theirs string, dialogue []unit, times map[string]int) string {
	us, them := newTalker(t, ours), newTalker(t, theirs)
	defer us.conn.Close()
	defer them.conn.Close()
	chunks := false // a message has begun in chunks
	for at, u := range dialogue {
		a, b := us.say(t, u.line), them.say(t, u.line)
		if a == 354 && b == 354 {
			u = unit{content: u.content}
			a, b = us.say(t, u.content), them.say(t, u.content)
		}
		switch {
		case a == b && a == 0: // both have ended it
			return ""
		case a == b:
			// RFC 3030 §2: a client resets after a chunk that is refused. What is
			// no chunk where one is due ends the message with us, and not with
			// Postfix.
			bdat := u.verb() == "BDAT"
			if (bdat && a >= 400 || !bdat && chunks) && (us.say(t, "RSET\r\n") != 250 || them.say(t, "RSET\r\n") != 250) {
				return ""
			}
			chunks = bdat && a == 250 && !strings.Contains(strings.ToUpper(u.line), " LAST")
			continue
		}
		chunks = false
		why := explain(u, a, b)
		if why == "" {
			return fmt.Sprintf("%.300q: we say %d, Postfix %d, after %.600q", u, a, b, dialogue[:at])
		}
		times[why]++
		if a == 0 || b == 0 {
			return ""
		}
		// Whoever waits for content gets its end; then both begin anew.
		for _, k := range []struct {
			*talker
			code int
		}{{us, a}, {them, b}} {
			if k.code == 354 {
				k.say(t, ".\r\n")
			}
			if k.say(t, "EHLO client.example\r\n") != 250 {
				return ""
			}
		}
	}
	return ""
}
