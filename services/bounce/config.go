package bounce

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/postrider/postrider/pkg/dkim"
	"github.com/postrider/postrider/pkg/retry"
	"github.com/postrider/postrider/pkg/roots"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/bounce/internal/tlsrpt"
)

// Config is the configuration of the service.
type Config struct {
	Hostname  string         `envconfig:"HOSTNAME" required:"true" desc:"Name of this mail system, in EHLO, Received fields and reports: a fully qualified domain name."`
	Lifetime  retry.Duration `envconfig:"BOUNCE_LIFETIME" default:"1d" desc:"How long a report (DSN) is tried before it is dropped."`
	Strangers bool           `envconfig:"REPORT_TO_STRANGERS" desc:"Report also to senders of mail that was taken for POSTRIDER_RELAY_DOMAINS alone. Their reverse-paths are often forged, and such reports reach people who sent nothing."`

	TLSReports   TLSReportConfig
	DNSServers   []string       `envconfig:"DNS_SERVERS" desc:"Recursive DNS servers as ip or ip:port, separated by commas. Empty: those of /etc/resolv.conf."`
	AllowTargets []netip.Prefix `envconfig:"ALLOW_TARGETS" desc:"Networks that are loopback, private or otherwise inside, and may be relayed to all the same; separated by commas."`
	Roots        roots.Config
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

// TLSReportConfig says who reports on TLS (RFC 8460) are from, and how those
// that go by mail are signed.
type TLSReportConfig struct {
	Contact      string `envconfig:"TLSRPT_CONTACT" desc:"Mailbox that is responsible for TLS reports (RFC 8460), and that they come from. Empty: no domain gets reports."`
	Organization string `envconfig:"TLSRPT_ORGANIZATION" desc:"Name of the organization that TLS reports are from. Empty: POSTRIDER_HOSTNAME."`
	Key          string `envconfig:"TLSRPT_DKIM_KEY" secret:"true" desc:"Private key in PEM that TLS reports by mail are signed with for the domain of the contact: RSA of 2048 bits (PKCS#8, PKCS#1), or Ed25519. Empty: reports go by HTTPS only."`
	Selector     string `envconfig:"TLSRPT_DKIM_SELECTOR" desc:"DKIM selector of that key."`
	Unsigned     bool   `envconfig:"TLSRPT_UNSIGNED" desc:"Without a key, send TLS reports by mail all the same: a smart host on their way signs them."`
}

// Validate reports a configuration that cannot work.
func (c TLSReportConfig) Validate() error {
	var errs []error
	if c.Contact != "" {
		if _, _, err := tlsrpt.ParseMailbox(c.Contact); err != nil {
			errs = append(errs, fmt.Errorf("POSTRIDER_TLSRPT_CONTACT is %q, want a mailbox in ASCII", c.Contact))
		}
	}
	if c.Key != "" {
		if _, err := dkim.ParseKey(c.Key); err != nil {
			errs = append(errs, fmt.Errorf("POSTRIDER_TLSRPT_DKIM_KEY is %w", err))
		}
		if c.Unsigned {
			errs = append(errs, errors.New("POSTRIDER_TLSRPT_DKIM_KEY and POSTRIDER_TLSRPT_UNSIGNED are both set"))
		}
	}
	switch {
	case c.Selector != "":
		if err := dkim.ParseSelector(c.Selector); err != nil {
			errs = append(errs, fmt.Errorf("POSTRIDER_TLSRPT_DKIM_SELECTOR is %w", err))
		}
		if c.Key == "" {
			errs = append(errs, errors.New("POSTRIDER_TLSRPT_DKIM_SELECTOR is set, and POSTRIDER_TLSRPT_DKIM_KEY is not"))
		}
	case c.Key != "":
		errs = append(errs, errors.New("POSTRIDER_TLSRPT_DKIM_KEY is set, and POSTRIDER_TLSRPT_DKIM_SELECTOR is not"))
	}
	return errors.Join(errs...)
}

// Signer returns who signs reports by mail; nil if nobody here does.
func (c TLSReportConfig) Signer() (*dkim.Signer, error) {
	if c.Key == "" || c.Contact == "" {
		return nil, nil
	}
	_, domain, err := tlsrpt.ParseMailbox(c.Contact)
	if err != nil {
		return nil, err
	}
	key, err := dkim.ParseKey(c.Key)
	if err != nil {
		return nil, err
	}
	return &dkim.Signer{Domain: domain, Selector: c.Selector, Key: key}, nil
}
