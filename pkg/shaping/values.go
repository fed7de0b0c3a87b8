package shaping

import (
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
)

// Limits are the values that belong to a site: all mail for the site counts
// against them, whatever its domain.
type Limits struct {
	Connections           int  // connection_limit: open at once, 1 or more
	ConnectionRate        Rate // max_connection_rate
	MessageRate           Rate // max_message_rate
	MessagesPerConnection int  // max_deliveries_per_connection, 1 or more
	Ready                 int  // max_ready: requests of the site held in memory, 1 or more
}

// Values are all the values for one domain at one site.
type Values struct {
	Limits
	// Named is set when a block of the site's or domain's own name set one of
	// the limits, rather than a block that holds for many.
	Named bool

	RecipientsPerTransaction int           // max_recipients_per_batch, 1 or more
	IdleTimeout              time.Duration // idle_timeout: a connection without work is kept so long
	TLS                      mail.TLSLevel // enable_tls
	RetrySchedule            retry.Schedule
	MessageLifetime          time.Duration // max_age
	DelayNoticeAfter         time.Duration // delay_notice_after
}

// defaults are the values under every layer: FEATURES.md §0, column "ours".
// Retry schedule, lifetime and delay notice have theirs in Config.
func defaults() Values {
	return Values{
		Limits: Limits{
			Connections:           10,
			ConnectionRate:        Rate{Events: 100, Period: time.Minute},
			MessageRate:           Rate{Events: 100, Period: time.Second},
			MessagesPerConnection: 100,
			Ready:                 1000,
		},
		RecipientsPerTransaction: 100,
		IdleTimeout:              15 * time.Second,
		TLS:                      mail.TLSMay,
	}
}

// Stricter returns the smaller of each pair of limits. It settles what two
// domains of one site say differently.
func (l Limits) Stricter(other Limits) Limits {
	return Limits{
		Connections:           min(l.Connections, other.Connections),
		ConnectionRate:        l.ConnectionRate.Slower(other.ConnectionRate),
		MessageRate:           l.MessageRate.Slower(other.MessageRate),
		MessagesPerConnection: min(l.MessagesPerConnection, other.MessagesPerConnection),
		Ready:                 min(l.Ready, other.Ready),
	}
}
