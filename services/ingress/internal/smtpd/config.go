package smtpd

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
)

// Config is how the server treats its clients.
type Config struct {
	RelayNetworks       []netip.Prefix `envconfig:"RELAY_NETWORKS" desc:"Networks whose clients may send mail to any domain, such as 10.0.0.0/8,::1/128. Empty: nobody may."`
	MaxMessageBytes     int64          `envconfig:"MAX_MESSAGE_BYTES" default:"26214400" desc:"Largest message, in bytes; offered as SIZE."`
	MaxRecipients       int            `envconfig:"MAX_RECIPIENTS" default:"1000" desc:"Recipients of one message; the rest gets 452 and is sent again by the client."`
	MaxMessages         int            `envconfig:"SMTP_MAX_MESSAGES" default:"1000" desc:"Messages of one connection, then 421, so that long-lived clients spread again over the servers."`
	MaxErrors           int            `envconfig:"SMTP_MAX_ERRORS" default:"20" desc:"Commands of one connection that were refused for good, then 421."`
	MaxConnections      int            `envconfig:"SMTP_MAX_CONNECTIONS" default:"20000" desc:"Connections at a time, then 421."`
	MaxConnectionsPerIP int            `envconfig:"SMTP_MAX_CONNECTIONS_PER_IP" default:"200" desc:"Connections at a time from one address, then 421."`
	IdleTimeout         time.Duration  `envconfig:"SMTP_IDLE_TIMEOUT" default:"5m" desc:"How long a client may be silent (RFC 5321 asks for 5 minutes or more)."`
	MinDataRate         int64          `envconfig:"SMTP_MIN_DATA_RATE" default:"1024" desc:"Bytes per second that a client must reach while it sends content, beyond one idle timeout."`
	MemoryBytes         int64          `envconfig:"SMTP_MEMORY_BYTES" default:"67108864" desc:"Content that all sessions of a process hold at a time, in bytes; more gets 452. A large message counts as 1.25 MiB."`
	Streams             int            `envconfig:"SMTP_STREAMS" default:"2" desc:"Messages over 1 MiB that are written to Postgres at a time. Each needs a connection of its own, so keep it below POSTRIDER_POSTGRES_MAX_CONNS by 2."`
	CommitTimeout       time.Duration  `envconfig:"SMTP_COMMIT_TIMEOUT" default:"10s" desc:"How long a client waits for the commit of its message before it gets 451."`
	DrainTimeout        time.Duration  `envconfig:"SMTP_DRAIN_TIMEOUT" default:"20s" desc:"How long sessions may go on receiving content after a signal to stop."`
	ReportLifetime      retry.Duration `envconfig:"BOUNCE_LIFETIME" default:"1d" desc:"How long a report (DSN) is tried before it is dropped."`

	// Hostname is our name in the greeting and in trace fields.
	Hostname string `ignored:"true"`
	// Lifetime is how long a recipient of the domain stays in the queue.
	Lifetime func(mail.Domain) time.Duration `ignored:"true"`
}

// Validate reports every setting that cannot work.
func (c *Config) Validate() error {
	var errs []error
	for _, v := range []struct {
		name       string
		value, min int64
	}{
		{"MAX_MESSAGE_BYTES", c.MaxMessageBytes, 64 << 10}, // RFC 5321 §4.5.3.1.7
		{"MAX_RECIPIENTS", int64(c.MaxRecipients), 100},    // RFC 5321 §4.5.3.1.8
		{"SMTP_MAX_MESSAGES", int64(c.MaxMessages), 1},
		{"SMTP_MAX_ERRORS", int64(c.MaxErrors), 1},
		{"SMTP_MAX_CONNECTIONS", int64(c.MaxConnections), 1},
		{"SMTP_MAX_CONNECTIONS_PER_IP", int64(c.MaxConnectionsPerIP), 1},
		{"SMTP_MIN_DATA_RATE", c.MinDataRate, 1},
		{"SMTP_MEMORY_BYTES", c.MemoryBytes, 2 * streamMemory},
		{"SMTP_STREAMS", int64(c.Streams), 1},
	} {
		if v.value < v.min {
			errs = append(errs, fmt.Errorf("POSTRIDER_%s is %d, want at least %d", v.name, v.value, v.min))
		}
	}
	for _, v := range []struct {
		name  string
		value time.Duration
	}{
		{"SMTP_IDLE_TIMEOUT", c.IdleTimeout},
		{"SMTP_COMMIT_TIMEOUT", c.CommitTimeout},
		{"SMTP_DRAIN_TIMEOUT", c.DrainTimeout},
		{"BOUNCE_LIFETIME", time.Duration(c.ReportLifetime)},
	} {
		if v.value < time.Second {
			errs = append(errs, fmt.Errorf("POSTRIDER_%s is %s, want at least 1s", v.name, v.value))
		}
	}
	return errors.Join(errs...)
}

// mayRelay reports whether clients at the address may send to any domain.
func (c *Config) mayRelay(client netip.Addr) bool {
	for _, network := range c.RelayNetworks {
		if network.Contains(client) {
			return true
		}
	}
	return false
}
