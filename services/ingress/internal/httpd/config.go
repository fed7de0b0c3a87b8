package httpd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

// Config is how the server treats its clients.
type Config struct {
	Listen                   string         `envconfig:"HTTP_LISTEN" default:"127.0.0.1:8025" desc:"Address on which messages are taken by HTTP (POST /v1/messages, docs/openapi.json). Empty: nowhere. For networks that are trusted, and for proxies that speak TLS."`
	ListenTLS                string         `envconfig:"HTTPS_LISTEN" desc:"The same with TLS, with the certificates of POSTRIDER_TLS_CERT_FILES."`
	ProxyNetworks            []netip.Prefix `envconfig:"HTTP_PROXY_NETWORKS" desc:"Load balancers whose HTTP connections begin with a PROXY header, version 1 or 2, and are those of the clients it names."`
	MaxBodyBytes             int64          `envconfig:"HTTP_MAX_BODY_BYTES" default:"8388608" desc:"Largest JSON request, in bytes. It is held in memory; larger messages come as message/rfc822, up to POSTRIDER_MAX_MESSAGE_BYTES."`
	MemoryBytes              int64          `envconfig:"HTTP_MEMORY_BYTES" default:"67108864" desc:"Memory for all requests of a process at a time, in bytes, and a quarter more for header sections over 4 KiB; more gets 429. JSON counts three times its size, and what its messages become; a message/rfc822 twice its size, and no more than 2 MiB; larger ones go to POSTRIDER_SPOOL_DIRECTORY."`
	MaxConnections           int            `envconfig:"HTTP_MAX_CONNECTIONS" default:"1000" desc:"HTTP connections at a time; more wait."`
	MaxConnectionsPerIP      int            `envconfig:"HTTP_MAX_CONNECTIONS_PER_IP" default:"200" desc:"HTTP connections at a time from one address (of IPv6: one /64), then 429 and the end; 0 is no limit. A proxy that hides its clients is one address."`
	MaxConnectionsPerNetwork int            `envconfig:"HTTP_MAX_CONNECTIONS_PER_NETWORK" default:"500" desc:"The same for one /24 of IPv4 or /48 of IPv6; 0 is no limit."`
	ReadTimeout              time.Duration  `envconfig:"HTTP_READ_TIMEOUT" default:"30s" desc:"How long a client may take for a request, and one second more for each KiB of it."`

	// What ingress has for all its clients.
	Hostname        string                          `ignored:"true"`
	MendLines       bool                            `ignored:"true"`
	MaxMessageBytes int64                           `ignored:"true"`
	MaxRecipients   int                             `ignored:"true"`
	DrainTimeout    time.Duration                   `ignored:"true"`
	Lifetime        func(mail.Domain) time.Duration `ignored:"true"` // of a recipient
	ReportLifetime  time.Duration                   `ignored:"true"` // with a null reverse-path
}

// Validate reports every setting that cannot work.
func (c *Config) Validate() error {
	var errs []error
	for _, v := range []struct{ name, address string }{{"HTTP_LISTEN", c.Listen}, {"HTTPS_LISTEN", c.ListenTLS}} {
		if v.address == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(v.address); err != nil {
			errs = append(errs, fmt.Errorf("POSTRIDER_%s: %w", v.name, err))
		}
	}
	for _, v := range []struct {
		name       string
		value, min int64
	}{
		{"HTTP_MAX_BODY_BYTES", c.MaxBodyBytes, 64 << 10},
		{"HTTP_MEMORY_BYTES", c.MemoryBytes, max((jsonFactor+1)*c.MaxBodyBytes, 2<<20)},
		{"HTTP_MAX_CONNECTIONS", int64(c.MaxConnections), 1},
		{"HTTP_MAX_CONNECTIONS_PER_IP", int64(c.MaxConnectionsPerIP), 0},
		{"HTTP_MAX_CONNECTIONS_PER_NETWORK", int64(c.MaxConnectionsPerNetwork), 0},
	} {
		if v.value < v.min {
			errs = append(errs, fmt.Errorf("POSTRIDER_%s is %d, want at least %d", v.name, v.value, v.min))
		}
	}
	if c.ReadTimeout < time.Second {
		errs = append(errs, fmt.Errorf("POSTRIDER_HTTP_READ_TIMEOUT is %s, want at least 1s", c.ReadTimeout))
	}
	return errors.Join(errs...)
}
