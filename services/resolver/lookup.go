package resolver

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/services/resolver/internal/mx"
)

// DNSConfig is how Exchangers asks DNS: a part of Config, without what only a
// running service needs.
type DNSConfig struct {
	DNSServers   []string       `envconfig:"DNS_SERVERS" desc:"Recursive DNS servers as ip or ip:port, separated by commas. Empty: those of /etc/resolv.conf."`
	AllowTargets []netip.Prefix `envconfig:"ALLOW_TARGETS" desc:"Networks that are loopback, private or otherwise inside, and may be relayed to all the same; separated by commas."`
}

// Exchangers returns the hosts of a domain and the rollup of their names, as
// the service would find them now. A domain without any has trouble.
func Exchangers(ctx context.Context, cfg DNSConfig, domain mail.Domain) (hosts []mail.Host, site mail.Site, err error) {
	finder, err := mx.New(mx.Config{Servers: cfg.DNSServers, Allow: cfg.AllowTargets})
	if err != nil {
		return nil, "", fmt.Errorf("resolver: %w", err)
	}
	defer finder.Close()
	res, err := finder.Lookup(ctx, domain)
	if err != nil {
		return nil, "", err
	}
	if res.Trouble != nil {
		return nil, "", fmt.Errorf("%s: %s", domain, res.Trouble.Text)
	}
	return res.Plan.Hosts, res.Plan.Site, nil
}
