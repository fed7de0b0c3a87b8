package shaping_test

import (
	"testing"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
)

// The limits of a smart host hold for every rule that names it: with a port or
// without, with a credential, among others; what is said more closely is over
// what is said of all.
func TestBlocksOfSmartHosts(t *testing.T) {
	s, _, err := shaping.Build(shaping.Config{}, shaping.Text{From: "test", TOML: `
["smart.test"]
connection_limit = 7000
max_deliveries_per_connection = 3

["smart.test:587"]
connection_limit = 20

["acct@smart.test:587"]
connection_limit = 2

["192.0.2.1"]
connection_limit = 5

["2001:db8::1"]
connection_limit = 6

["one.test:25,two.test:25"]
connection_limit = 8
`})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		site        mail.Site
		connections int
		messages    int // per connection
		named       bool
	}{
		{"smart.test:25", 7000, 3, true},
		{"smart.test:587", 20, 3, true},
		{"acct@smart.test:587", 2, 3, true},
		{"Other@smart.test:587", 20, 3, true},
		{"another.test:25,smart.test:587", 20, 3, true},
		{"acct@another.test:25,smart.test:25", 7000, 3, true},
		{"192.0.2.1:2525", 5, 100, true},
		{"[2001:db8::1]:24", 6, 100, true},
		{"one.test:25,two.test:25", 8, 100, true},
		{"acct@one.test:25,two.test:25", 8, 100, true},
		{"one.test:25", 10, 100, false},
		{"not-smart.test:25", 10, 100, false},
		{"mx1.smart.test", 10, 100, false},
		{"domain:smart.tests", 10, 100, false},
	} {
		v := s.For(shaping.Query{Domain: "to.example", Site: c.site})
		if v.Connections != c.connections || v.MessagesPerConnection != c.messages || v.Named != c.named {
			t.Errorf("%s: %d connections, %d messages on each, named %v, want %d, %d, %v", c.site, v.Connections, v.MessagesPerConnection, v.Named, c.connections, c.messages, c.named)
		}
	}
}
