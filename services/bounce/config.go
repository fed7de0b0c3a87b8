package bounce

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/postrider/postrider/pkg/retry"
	"github.com/postrider/postrider/pkg/roots"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/bounce/internal/tlsrpt"
)

// Config is the configuration of the service.
type Config struct {
	Hostname string         `envconfig:"HOSTNAME" required:"true" desc:"Name of this mail system, in EHLO, Received fields and reports: a fully qualified domain name."`
	Lifetime retry.Duration `envconfig:"BOUNCE_LIFETIME" default:"1d" desc:"How long a report (DSN) is tried before it is dropped."`

	TLSReportContact      string         `envconfig:"TLSRPT_CONTACT" desc:"Mailbox that is responsible for TLS reports (RFC 8460), and that they come from. Empty: no domain gets reports."`
	TLSReportOrganization string         `envconfig:"TLSRPT_ORGANIZATION" desc:"Name of the organization that TLS reports are from. Empty: POSTRIDER_HOSTNAME."`
	DNSServers            []string       `envconfig:"DNS_SERVERS" desc:"Recursive DNS servers as ip or ip:port, separated by commas. Empty: those of /etc/resolv.conf."`
	AllowTargets          []netip.Prefix `envconfig:"ALLOW_TARGETS" desc:"Networks that are loopback, private or otherwise inside, and may be relayed to all the same; separated by commas."`
	Roots                 roots.Config
}

// organization is who TLS reports are from.
func (c Config) organization() string { return cmp.Or(c.TLSReportOrganization, c.Hostname) }

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
	if c.TLSReportContact != "" {
		if _, _, err := tlsrpt.ParseMailbox(c.TLSReportContact); err != nil {
			errs = append(errs, fmt.Errorf("POSTRIDER_TLSRPT_CONTACT is %q, want a mailbox in ASCII", c.TLSReportContact))
		}
	}
	return errors.Join(errs...)
}
