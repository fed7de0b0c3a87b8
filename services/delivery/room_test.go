package delivery_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
)

// TestSitesThatCrawlLeaveRoom: sites that hold every connection and every octet
// of content that they get have half of it at most, and all together leave some
// to one that does not.
func TestSitesThatCrawlLeaveRoom(t *testing.T) {
	t.Parallel()
	const large = 200 << 10
	for _, c := range []struct {
		name        string
		connections int64
		bytes       int64
		size        int
		half        int // connections of a crawling site, at most
	}{
		{"connections", 10, 8 << 20, 1000, 5},
		{"contents", 100, 8 << 20, large, 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			hang := smtptest.Rule{At: smtptest.Dot, Do: smtptest.Later(time.Minute, smtptest.Reply(250, "2.0.0 at last"))}
			crawling := make([]*smtptest.Server, 3)
			for i := range crawling {
				crawling[i] = smtptest.Start(t, smtptest.Script{Discard: true, Rules: []smtptest.Rule{hang}})
				r.route(mail.Domain(fmt.Sprintf("crawl%d.test", i)), mail.Site(fmt.Sprintf("mx.crawl%d.test", i)), crawling[i].Addr())
			}
			good := smtptest.Start(t, smtptest.Script{Discard: true})
			r.route("good.test", "mx.good.test", good.Addr())
			config := r.config("[\"default\"]\nmax_message_rate = \"unlimited\"\nmax_connection_rate = \"unlimited\"\nconnection_limit = 50\n")
			config.Connections, config.ContentBytes, config.DrainTimeout = c.connections, c.bytes, time.Second
			r.start(config)
			r.settled(1)
			for i, host := range crawling {
				r.accept(30, message{domain: mail.Domain(fmt.Sprintf("crawl%d.test", i)), content: make([]byte, c.size)})
				r.ring()
				r.until("the site crawls", 10*time.Second, func() bool { return host.Open() > 0 })
			}
			r.accept(30, message{domain: "good.test", content: make([]byte, c.size)})
			r.ring()
			good.WaitMessages(t, 30, 20*time.Second)
			for i, host := range crawling {
				if n := host.HighWater(); n > c.half {
					t.Errorf("crawling site %d held %d connections, at most %d leave as many", i, n, c.half)
				}
			}
		})
	}
}
