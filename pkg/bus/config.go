package bus

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Config says where NATS is and how the streams are kept.
type Config struct {
	URL         string `envconfig:"NATS_URL" required:"true" secret:"true" desc:"NATS servers, separated by commas: nats://user:password@host:4222 or tls://..."`
	Credentials string `envconfig:"NATS_CREDENTIALS" desc:"Path of a NATS credentials file (JWT and key)."`
	CA          string `envconfig:"NATS_CA" desc:"Path of a PEM file with the authorities that sign the certificates of NATS. Empty: those of the system."`
	Replicas    int    `envconfig:"NATS_REPLICAS" default:"1" desc:"Copies of each stream, 1 to 5; 3 for a cluster of three nodes."`
	Storage     string `envconfig:"NATS_STORAGE" default:"memory" desc:"Where the streams are kept: memory or file. A lost hint is rung again, so memory is safe."`
	StreamBytes int64  `envconfig:"NATS_STREAM_BYTES" default:"134217728" desc:"Bound of each stream in bytes. Beyond it the oldest hints are dropped, and rung again when due."`
}

// minStreamBytes holds a few frames: less would drop every second one.
const minStreamBytes = 1 << 20

// Validate reports every setting that cannot work. An empty URL is allowed
// here, because `postrider dev` fills it in; Connect refuses it.
func (c Config) Validate() error {
	var errs []error
	for server := range strings.SplitSeq(c.URL, ",") {
		u, err := url.Parse(strings.TrimSpace(server))
		switch {
		case c.URL == "":
		case err != nil:
			errs = append(errs, fmt.Errorf("POSTRIDER_NATS_URL: %w", err))
		case u.Host == "":
			errs = append(errs, fmt.Errorf("POSTRIDER_NATS_URL: %q names no host, want nats://host:port", server))
		}
	}
	if c.Replicas < 0 || c.Replicas > 5 {
		errs = append(errs, fmt.Errorf("POSTRIDER_NATS_REPLICAS: %d, want 1 to 5", c.Replicas))
	}
	if c.Storage != "" && c.Storage != "memory" && c.Storage != "file" {
		errs = append(errs, fmt.Errorf("POSTRIDER_NATS_STORAGE: %q, want memory or file", c.Storage))
	}
	if c.StreamBytes != 0 && c.StreamBytes < minStreamBytes {
		errs = append(errs, fmt.Errorf("POSTRIDER_NATS_STREAM_BYTES: %d, want at least %d", c.StreamBytes, minStreamBytes))
	}
	return errors.Join(errs...)
}

// withDefaults fills in the zero values, for callers that do not come through
// package boot.
func (c Config) withDefaults() Config {
	if c.Replicas == 0 {
		c.Replicas = 1
	}
	if c.Storage == "" {
		c.Storage = "memory"
	}
	if c.StreamBytes == 0 {
		c.StreamBytes = 128 << 20
	}
	return c
}
