package smtpd

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/auth"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
)

// Config is how the server treats its clients.
type Config struct {
	RelayNetworks            []netip.Prefix `envconfig:"RELAY_NETWORKS" desc:"Networks whose clients may send mail to any domain without AUTH, such as 10.0.0.0/8,::1/128. Not for submission."`
	OpenRelay                bool           `envconfig:"OPEN_RELAY" desc:"Allow relay networks that hold a good part of the Internet, such as 0.0.0.0/0: whoever reaches the listener may send to anybody. Only where something else keeps strangers away."`
	RelayDomains             []string       `envconfig:"RELAY_DOMAINS" desc:"Domains to which everybody may send mail: example.com, or *.example.com for all below it."`
	ProxyNetworks            []netip.Prefix `envconfig:"PROXY_NETWORKS" desc:"Load balancers: each of their connections must begin with a PROXY header, version 1 or 2, and is that of the client it names."`
	XClientNetworks          []netip.Prefix `envconfig:"XCLIENT_NETWORKS" desc:"Peers that may use XCLIENT and XFORWARD: they say who their client is, and are believed."`
	PlaintextAuth            bool           `envconfig:"SMTP_PLAINTEXT_AUTH" desc:"Take passwords without TLS too. Only for networks that nobody else can listen to."`
	AuthSCRAM                bool           `envconfig:"SMTP_AUTH_SCRAM" default:"true" desc:"Offer SCRAM-SHA-256 to clients, if any credential has keys for it. Clients that choose by themselves take it, and some do not fall back where a credential was made with --no-scram."`
	HideClients              bool           `envconfig:"SMTP_HIDE_CLIENTS" desc:"Leave name and address of clients that authenticate out of the Received field."`
	BinaryMIME               bool           `envconfig:"SMTP_BINARYMIME" desc:"Offer BINARYMIME (RFC 3030). Such a message fails at every next hop that does not."`
	KeepBcc                  bool           `envconfig:"SMTP_KEEP_BCC" desc:"Relay the Bcc and Resent-Bcc fields of clients that send without a credential. Everybody who gets the message sees them."`
	AddMissing               bool           `envconfig:"SMTP_ADD_MISSING" desc:"Add Date and Message-ID where they are missing or empty, in messages of relay networks too: for printers, scripts and devices. Clients with a credential always get them."`
	NormalizeNewlines        bool           `envconfig:"SMTP_NORMALIZE_NEWLINES" desc:"Take an LF alone for a line end, and make it CR LF, instead of refusing the message. For applications that cannot do better; the end of a message is CR LF . CR LF all the same."`
	MaxMessageBytes          int64          `envconfig:"MAX_MESSAGE_BYTES" default:"26214400" desc:"Largest message, in bytes; offered as SIZE."`
	MaxRecipients            int            `envconfig:"MAX_RECIPIENTS" default:"1000" desc:"Recipients of one message; the rest gets 452 and is sent again by the client."`
	MaxMessages              int            `envconfig:"SMTP_MAX_MESSAGES" default:"1000" desc:"Messages of one connection, then 421, so that long-lived clients spread again over the servers."`
	MaxSessionRcpts          int            `envconfig:"SMTP_MAX_SESSION_RECIPIENTS" default:"100000" desc:"Recipients of all messages of one connection, then 421."`
	MaxLine                  int            `envconfig:"SMTP_MAX_LINE" default:"998" desc:"Longest line of a message in octets, without CR LF. RFC 5321 lets servers refuse longer ones than 998, so many do; 0 is no limit."`
	MendLines                bool           `envconfig:"SMTP_MEND_LINES" default:"true" desc:"Encode a body part anew (quoted-printable or base64) whose lines are longer than that, in messages of up to 8 MiB, instead of refusing the message. What is signed is never changed."`
	MaxErrors                int            `envconfig:"SMTP_MAX_ERRORS" default:"20" desc:"Commands that were refused for good, on one connection since its last message that was accepted, then 421. So do commands without use (NOOP, RSET, VRFY and such) beyond 100, and recipients refused for now beyond 1,000."`
	MaxConnections           int            `envconfig:"SMTP_MAX_CONNECTIONS" default:"20000" desc:"Connections at a time, then 421."`
	MaxConnectionsPerIP      int            `envconfig:"SMTP_MAX_CONNECTIONS_PER_IP" default:"200" desc:"Connections at a time from one address, then 421."`
	MaxConnectionsPerNetwork int            `envconfig:"SMTP_MAX_CONNECTIONS_PER_NETWORK" default:"2000" desc:"Connections at a time from one /24 of IPv4 or /48 of IPv6, then 421; 0 is no limit."`
	ConnectionRate           int            `envconfig:"SMTP_CONNECTION_RATE" default:"0" desc:"New connections in a minute from one address, at each process, then 421; 0 is no limit."`
	MessageRate              int            `envconfig:"SMTP_MESSAGE_RATE" default:"0" desc:"Messages in a minute from one address, at each process, then 450; 0 is no limit."`
	IdleTimeout              time.Duration  `envconfig:"SMTP_IDLE_TIMEOUT" default:"5m" desc:"How long a client may be silent (RFC 5321 asks for 5 minutes or more)."`
	MinDataRate              int64          `envconfig:"SMTP_MIN_DATA_RATE" default:"1024" desc:"Bytes per second that a client must reach while it sends content, in any time longer than one idle timeout. So a message is here or given up after its size at this rate and one idle timeout."`
	MemoryBytes              int64          `envconfig:"SMTP_MEMORY_BYTES" default:"67108864" desc:"Memory for content and recipients of all sessions of a process at a time, in bytes; one client gets at most half of it. Content that has no room goes to POSTRIDER_SPOOL_DIRECTORY; what needs memory all the same gets 452."`
	Streams                  int            `envconfig:"SMTP_STREAMS" default:"2" desc:"Messages over 1 MiB that are written to Postgres at a time, once they are here whole. Each needs a connection of its own, so keep it below POSTRIDER_POSTGRES_MAX_CONNS by 2."`
	CommitTimeout            time.Duration  `envconfig:"SMTP_COMMIT_TIMEOUT" default:"10s" desc:"How long a client waits for the commit of its message before it gets 451."`
	DrainTimeout             time.Duration  `envconfig:"SMTP_DRAIN_TIMEOUT" default:"20s" desc:"How long sessions may go on receiving content after a signal to stop."`
	ReportLifetime           retry.Duration `envconfig:"BOUNCE_LIFETIME" default:"1d" desc:"How long a report (DSN) is tried before it is dropped."`

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
		{"SMTP_MAX_SESSION_RECIPIENTS", int64(c.MaxSessionRcpts), 100},
		{"SMTP_MAX_LINE", int64(c.MaxLine), 0},
		{"SMTP_MAX_CONNECTIONS_PER_NETWORK", int64(c.MaxConnectionsPerNetwork), 0},
		{"SMTP_CONNECTION_RATE", int64(c.ConnectionRate), 0},
		{"SMTP_MESSAGE_RATE", int64(c.MessageRate), 0},
		{"SMTP_MAX_ERRORS", int64(c.MaxErrors), 1},
		{"SMTP_MAX_CONNECTIONS", int64(c.MaxConnections), 1},
		{"SMTP_MAX_CONNECTIONS_PER_IP", int64(c.MaxConnectionsPerIP), 1},
		{"SMTP_MIN_DATA_RATE", c.MinDataRate, 1},
		{"SMTP_MEMORY_BYTES", c.MemoryBytes, 2 << 20},
		{"SMTP_STREAMS", int64(c.Streams), 1},
	} {
		if v.value < v.min {
			errs = append(errs, fmt.Errorf("POSTRIDER_%s is %d, want at least %d", v.name, v.value, v.min))
		}
	}
	for _, network := range c.Wide() {
		if !c.OpenRelay {
			errs = append(errs, fmt.Errorf("POSTRIDER_RELAY_NETWORKS has %s: that many strangers could send to anybody (an open relay); name the networks of your clients, or set POSTRIDER_OPEN_RELAY=true if strangers cannot reach the listener", network))
		}
	}
	for _, pattern := range c.RelayDomains {
		if _, err := auth.ParsePattern(pattern); err != nil || strings.ContainsRune(pattern, '@') || pattern == "*" {
			errs = append(errs, fmt.Errorf("POSTRIDER_RELAY_DOMAINS has %q, want example.com or *.example.com", pattern))
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

// relays reports whether everybody may send to the domain.
func (c *Config) relays(domain mail.Domain) bool {
	for _, pattern := range c.RelayDomains {
		below, wild := strings.CutPrefix(strings.ToLower(pattern), "*")
		if wild && strings.HasSuffix(string(domain), below) || string(domain) == below {
			return true
		}
	}
	return false
}

// What a relay network has at least, in bits, where its addresses are public: no
// customer of a registry has more.
const (
	leastIPv4 = 8
	leastIPv6 = 19
)

// Wide returns the relay networks that nobody has for itself.
func (c *Config) Wide() (wide []netip.Prefix) {
	for _, network := range c.RelayNetworks {
		a, bits := network.Masked().Addr(), network.Bits()
		if a.Is4In6() {
			a, bits = a.Unmap(), bits-96
		}
		least := leastIPv4
		switch {
		case a.Is6() && a.IsPrivate():
			least = 7 // RFC 4193 §3
		case a.Is6() && a.IsLinkLocalUnicast():
			least = 10 // RFC 4291 §2.4
		case a.Is6():
			least = leastIPv6
		}
		if bits < least {
			wide = append(wide, network)
		}
	}
	return wide
}

func contains(networks []netip.Prefix, client netip.Addr) bool {
	for _, network := range networks {
		if network.Contains(client) {
			return true
		}
	}
	return false
}
