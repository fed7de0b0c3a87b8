package ingress

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/ingress/internal/access"
	"github.com/postrider/postrider/services/ingress/internal/certs"
	"github.com/postrider/postrider/services/ingress/internal/httpd"
	"github.com/postrider/postrider/services/ingress/internal/smtpd"
	"github.com/postrider/postrider/services/ingress/internal/spool"
)

// Config is what the environment says of ingress.
type Config struct {
	Listen      []string      `envconfig:"SMTP_LISTEN" default:"127.0.0.1:2525" desc:"Addresses of the relay listener, comma-separated: clients of the relay networks send without AUTH."`
	Submission  []string      `envconfig:"SUBMISSION_LISTEN" default:"127.0.0.1:2587" desc:"Addresses of the submission listener: every client must authenticate. Served only with a certificate, or with POSTRIDER_SMTP_PLAINTEXT_AUTH."`
	Submissions []string      `envconfig:"SUBMISSIONS_LISTEN" default:"127.0.0.1:2465" desc:"Addresses of the submission listener with implicit TLS. Served only with a certificate."`
	Listeners   listeners     `envconfig:"SMTP_LISTENERS" desc:"Any number of listeners more, each with its own networks, limits, TLS and AUTH: docs/listeners.md. Such as: 10.0.0.5:25 networks=10.0.0.0/8 tls=no; :2526 auth=required max-recipients=50"`
	Hostname    string        `envconfig:"HOSTNAME" required:"true" desc:"Name of this mail system, in EHLO, Received fields and reports: a fully qualified domain name."`
	StopDelay   time.Duration `envconfig:"INGRESS_STOP_DELAY" default:"5s" desc:"How long ingress takes new clients after a signal to stop, while /readyz says 503 already: as long as a load balancer needs to send them elsewhere. Then it closes its listeners. 0s where nothing is in front of it; postrider dev has that."`
	SMTP        smtpd.Config  // limits and policy of the sessions
	Spool       spool.Config
	HTTP        httpd.Config
	TLS         certs.Config
	Access      access.Config
	Shaping     shaping.Config
}

// Validate reports every setting that cannot work.
func (c *Config) Validate() error {
	var errs []error
	for _, address := range slices.Concat(c.Listen, c.Submission, c.Submissions) {
		if _, _, err := net.SplitHostPort(address); err != nil {
			errs = append(errs, fmt.Errorf("POSTRIDER_SMTP_LISTEN, SUBMISSION_LISTEN or SUBMISSIONS_LISTEN: %w", err))
		}
	}
	for i := range c.Listeners.all {
		if err := c.Listeners.all[i].validate(c.SMTP); err != nil {
			errs = append(errs, fmt.Errorf("POSTRIDER_SMTP_LISTENERS: %w", err))
		}
	}
	if !smtp.ParseHello(c.Hostname) {
		errs = append(errs, fmt.Errorf("POSTRIDER_HOSTNAME is %q, want a domain name in ASCII", c.Hostname))
	}
	if c.StopDelay < 0 || c.StopDelay > 5*time.Minute {
		errs = append(errs, fmt.Errorf("POSTRIDER_INGRESS_STOP_DELAY is %v, want 0s to 5m", c.StopDelay))
	}
	return errors.Join(errs...)
}
