package bounce

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/postrider/postrider/pkg/retry"
	"github.com/postrider/postrider/pkg/smtp"
)

// Config is the configuration of the service.
type Config struct {
	Hostname string         `envconfig:"HOSTNAME" required:"true" desc:"Name of this mail system, in EHLO, Received fields and reports: a fully qualified domain name."`
	Lifetime retry.Duration `envconfig:"BOUNCE_LIFETIME" default:"1d" desc:"How long a report (DSN) is tried before it is dropped."`
}

// Validate reports a configuration that cannot work.
func (c Config) Validate() error {
	var errs []error
	// The name stands in header fields as it is.
	nonASCII := strings.IndexFunc(c.Hostname, func(r rune) bool { return r >= utf8.RuneSelf }) >= 0
	if nonASCII || !smtp.ParseHello(c.Hostname) {
		errs = append(errs, fmt.Errorf("POSTRIDER_HOSTNAME is %q, want a domain name in ASCII", c.Hostname))
	}
	if time.Duration(c.Lifetime) < time.Minute {
		errs = append(errs, errors.New("POSTRIDER_BOUNCE_LIFETIME is shorter than a minute"))
	}
	return errors.Join(errs...)
}
