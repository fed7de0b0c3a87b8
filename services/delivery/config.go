package delivery

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/inside"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/roots"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/services/delivery/internal/egress"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

// Config is the configuration of the service.
type Config struct {
	Hostname     string        `envconfig:"HOSTNAME" required:"true" desc:"Name of this mail system, in EHLO, Received fields and reports: a fully qualified domain name."`
	DrainTimeout time.Duration `envconfig:"DELIVERY_DRAIN_TIMEOUT" default:"30s" desc:"How long transactions in progress may go on after a signal to stop. One that is cut off behind its final dot may become a duplicate."`
	Lease        time.Duration `envconfig:"WORKER_LEASE" default:"5s" desc:"A delivery worker that does not renew its lease for so long is dead, and others take over. Equal for all workers."`
	HomeLease    time.Duration `envconfig:"HOME_LEASE" default:"2s" desc:"A delivery worker that does not renew for so long serves its sites no more, and others do. At most WORKER_LEASE; equal for all workers."`
	ReadyLimit   int64         `envconfig:"DELIVERY_READY_LIMIT" default:"10000" desc:"Delivery requests held in memory, over all sites; the others wait in Postgres."`
	ContentBytes int64         `envconfig:"DELIVERY_CONTENT_BYTES" default:"33554432" desc:"Bytes of content held in memory, over all transactions."`
	Connections  int64         `envconfig:"DELIVERY_CONNECTION_LIMIT" default:"500" desc:"Connections to remote hosts of one process, over all sites."`
	SettleLinger time.Duration `envconfig:"DELIVERY_SETTLE_LINGER" default:"10ms" desc:"How long outcomes wait for others, to be settled together, while they come often. The window for duplicates after a crash grows by as much."`
	PlainAfter   time.Duration `envconfig:"TLS_PLAINTEXT_AFTER" default:"5m" desc:"Mail to a host whose TLS is broken leaves in plaintext when it is this old and TLS failed there in an earlier attempt, too; where TLS is optional. 0: at once."`
	Conversion   string        `envconfig:"CONVERT_8BIT" default:"always" desc:"What becomes of 8-bit content for a host without 8BITMIME: always converted to 7-bit, converted if unsigned, or never: then it comes back (5.6.3)."`
	EgressListen string        `envconfig:"EGRESS_LISTEN" desc:"Address and port where other delivery workers connect from the addresses that this one has (SOCKS5); empty: they cannot."`
	EgressName   string        `envconfig:"EGRESS_ADVERTISE" desc:"Host and port by which other workers reach EGRESS_LISTEN; empty: the host name of this machine, and its port."`
	EgressPorts  []uint16      `envconfig:"EGRESS_PORTS" default:"25,465,587,24" desc:"Ports of remote hosts that other workers may reach through EGRESS_LISTEN."`
	// AllowTargets is as for the resolver: what it says of a route is not taken
	// for granted where a connection begins.
	AllowTargets []netip.Prefix `envconfig:"ALLOW_TARGETS" desc:"Networks that are loopback, private or otherwise inside, and may be relayed to all the same; separated by commas."`
	Roots        roots.Config
	Shaping      shaping.Config

	// HasAddress reports whether this machine has an address; nil: by trying.
	HasAddress func(netip.Addr) bool `ignored:"true"`
}

// Validate reports a configuration that cannot work.
func (c Config) Validate() error {
	var errs []error
	if d, err := mail.ParseDomain(c.Hostname); err != nil || string(d) != strings.ToLower(c.Hostname) {
		errs = append(errs, fmt.Errorf("POSTRIDER_HOSTNAME is %q, want a domain name in ASCII", c.Hostname))
	}
	for _, v := range []struct {
		name       string
		value, min int64
	}{
		{"WORKER_LEASE", int64(c.Lease), int64(2 * time.Second)},
		{"HOME_LEASE", int64(c.HomeLease), int64(time.Second)},
		{"DELIVERY_DRAIN_TIMEOUT", int64(c.DrainTimeout), 0},
		{"DELIVERY_READY_LIMIT", c.ReadyLimit, 1},
		{"DELIVERY_CONTENT_BYTES", c.ContentBytes, 1},
		{"DELIVERY_CONNECTION_LIMIT", c.Connections, 1},
		{"DELIVERY_SETTLE_LINGER", int64(c.SettleLinger), 0},
		{"TLS_PLAINTEXT_AFTER", int64(c.PlainAfter), 0},
	} {
		if v.value < v.min {
			errs = append(errs, fmt.Errorf("POSTRIDER_%s is too small", v.name))
		}
	}
	if c.HomeLease > c.Lease {
		errs = append(errs, errors.New("POSTRIDER_HOME_LEASE is longer than POSTRIDER_WORKER_LEASE"))
	}
	switch smtpclient.Conversion(c.Conversion) {
	case "", smtpclient.ConvertAlways, smtpclient.ConvertUnsigned, smtpclient.ConvertNever:
	default:
		errs = append(errs, fmt.Errorf("POSTRIDER_CONVERT_8BIT is %q, want always, unsigned or never", c.Conversion))
	}
	for _, address := range []string{c.EgressListen, c.EgressName} {
		if _, _, err := net.SplitHostPort(address); address != "" && err != nil {
			errs = append(errs, fmt.Errorf("POSTRIDER_EGRESS_LISTEN, POSTRIDER_EGRESS_ADVERTISE: %w", err))
		}
	}
	return errors.Join(errs...)
}

func (c Config) hasAddress(a netip.Addr) bool {
	if c.HasAddress != nil {
		return c.HasAddress(a)
	}
	return egress.Has(a)
}

// mayReach reports whether other workers may reach a target through our egress
// listener.
func (c Config) mayReach(target netip.AddrPort) bool {
	return slices.Contains(c.EgressPorts, target.Port()) && !inside.Refuses(target.Addr(), c.AllowTargets)
}

// advertised returns where other workers reach the egress listener; "" if
// there is none.
func (c Config) advertised(on net.Listener) string {
	if on == nil || c.EgressName != "" {
		return c.EgressName
	}
	at, err := netip.ParseAddrPort(on.Addr().String())
	if err != nil || !at.Addr().IsUnspecified() {
		return on.Addr().String()
	}
	host, err := os.Hostname()
	if err != nil {
		return ""
	}
	return net.JoinHostPort(host, strconv.Itoa(int(at.Port())))
}
