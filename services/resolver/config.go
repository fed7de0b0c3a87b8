package resolver

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/roots"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/services/resolver/internal/mx"
)

// Config is the configuration of the service.
type Config struct {
	Hostname         string         `envconfig:"HOSTNAME" required:"true" desc:"Name of this mail system, in EHLO, Received fields and reports: a fully qualified domain name."`
	DNSServers       []string       `envconfig:"DNS_SERVERS" desc:"Recursive DNS servers as ip or ip:port, separated by commas. Empty: those of /etc/resolv.conf."`
	DNSTimeout       time.Duration  `envconfig:"DNS_TIMEOUT" default:"5s" desc:"Time of one query to one DNS server; after two fifths of it, it is sent once more, without EDNS, which some routers drop. A look-up gives up after six times that, and is tried again as the retry schedule says."`
	RemotePort       uint16         `envconfig:"REMOTE_PORT" default:"25" desc:"Port of mail exchangers, and of smart hosts without a port of their own."`
	AllowTargets     []netip.Prefix `envconfig:"ALLOW_TARGETS" desc:"Networks that are loopback, private or otherwise inside, and may be relayed to all the same; separated by commas."`
	AddressLiterals  bool           `envconfig:"ADDRESS_LITERALS" default:"false" desc:"Relay mail to address literals such as user@[192.0.2.1]."`
	DNSTrustAD       bool           `envconfig:"DNS_TRUST_AD" default:"false" desc:"The DNS servers validate DNSSEC and nobody can change what they answer on its way, so that their word (the AD bit) counts: it turns DANE on. For servers on this machine, or behind a tunnel; being on loopback is not enough, it has to be said. It holds for all servers, so that nobody can get around the ones that are trusted by blocking them."`
	OwnNames         []string       `envconfig:"OWN_NAMES" desc:"Names of this mail system beside POSTRIDER_HOSTNAME, separated by commas: MX records that lead back to one are loops."`
	OwnAddresses     []netip.Prefix `envconfig:"OWN_ADDRESSES" desc:"Addresses or networks at which this mail system takes mail, such as that of a load balancer; separated by commas: mail exchangers there are loops. Empty: those of the resolver's machine."`
	MTASTS           bool           `envconfig:"MTA_STS" default:"true" desc:"Obey the MTA-STS policies of recipient domains (RFC 8461), which are fetched by HTTPS."`
	TLSReportContact string         `envconfig:"TLSRPT_CONTACT" desc:"Mailbox that is responsible for TLS reports (RFC 8460), and that they come from. Empty: no domain gets reports."`
	Roots            roots.Config
	Shaping          shaping.Config
}

// Validate reports everything that cannot work.
func (c Config) Validate() error {
	var errs []error
	if d, err := mail.ParseDomain(c.Hostname); err != nil || string(d) != strings.ToLower(c.Hostname) {
		errs = append(errs, errors.New("POSTRIDER_HOSTNAME is not a domain name in ASCII: "+c.Hostname))
	}
	for _, server := range c.DNSServers {
		if _, err := mx.ParseServer(server); err != nil {
			errs = append(errs, fmt.Errorf("POSTRIDER_DNS_SERVERS: %w", err))
		}
	}
	if c.DNSTimeout < 10*time.Millisecond || c.DNSTimeout > time.Minute {
		errs = append(errs, fmt.Errorf("POSTRIDER_DNS_TIMEOUT is %v, want 10ms to 1m", c.DNSTimeout))
	}
	if c.RemotePort == 0 {
		errs = append(errs, errors.New("POSTRIDER_REMOTE_PORT is 0, want 1 to 65535"))
	}
	return errors.Join(errs...)
}
