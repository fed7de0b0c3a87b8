package shaping_test

import (
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/shaping"
)

func TestTimeouts(t *testing.T) {
	words := []string{
		"connect_timeout", "banner_timeout", "ehlo_timeout", "starttls_timeout", "mail_from_timeout", "rcpt_to_timeout",
		"data_timeout", "data_block_timeout", "data_dot_timeout", "rset_timeout",
	}
	var text strings.Builder
	text.WriteString("[\"slow.example\"]\n")
	want := shaping.Timeouts{}
	fields := []*time.Duration{
		&want.Connect, &want.Banner, &want.Hello, &want.StartTLS, &want.Mail, &want.Rcpt,
		&want.Data, &want.Block, &want.Dot, &want.Reset,
	}
	for i, word := range words {
		*fields[i] = time.Duration(i+1) * time.Minute
		text.WriteString(word + " = \"" + fields[i].String() + "\"\n")
	}
	s, err := load(t, text.String())
	if err != nil {
		t.Fatal(err)
	}
	if got := s.For(shaping.Query{Domain: "slow.example"}).Timeouts; got != want {
		t.Errorf("timeouts %+v, want %+v", got, want)
	}
	if got := s.For(shaping.Query{Domain: "other.example"}).Timeouts; got != shaping.DefaultTimeouts {
		t.Errorf("timeouts of another domain %+v", got)
	}
	// RFC 5321 §4.5.3.2.6: a client that gives up sooner sends the message
	// again to a host that has taken it.
	if shaping.DefaultTimeouts != (shaping.Timeouts{
		Connect: 30 * time.Second, Banner: time.Minute, Hello: time.Minute, StartTLS: time.Minute, Mail: 5 * time.Minute, Rcpt: 5 * time.Minute,
		Data: 2 * time.Minute, Block: 3 * time.Minute, Dot: 10 * time.Minute, Reset: 20 * time.Second,
	}) {
		t.Errorf("default timeouts %+v", shaping.DefaultTimeouts)
	}
}
