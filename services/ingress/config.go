package ingress

import (
	"errors"
	"fmt"
	"net"

	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/ingress/internal/smtpd"
)

// Config is what the environment says of ingress.
type Config struct {
	Listen   string       `envconfig:"SMTP_LISTEN" default:"127.0.0.1:2525" desc:"Address on which SMTP clients are served."`
	Hostname string       `envconfig:"HOSTNAME" required:"true" desc:"Name of this mail system, in EHLO, Received fields and reports: a fully qualified domain name."`
	SMTP     smtpd.Config // limits and policy of the sessions
	Shaping  shaping.Config
}

// Validate reports every setting that cannot work.
func (c *Config) Validate() error {
	var errs []error
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		errs = append(errs, fmt.Errorf("POSTRIDER_SMTP_LISTEN: %w", err))
	}
	if !smtp.ParseHello(c.Hostname) {
		errs = append(errs, fmt.Errorf("POSTRIDER_HOSTNAME is %q, want a domain name in ASCII", c.Hostname))
	}
	return errors.Join(errs...)
}
