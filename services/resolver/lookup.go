package resolver

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/resolver/internal/mx"
)

// DNSConfig is how Exchangers asks DNS: a part of Config, without what only a
// running service needs.
type DNSConfig struct {
	DNSServers   []string       `envconfig:"DNS_SERVERS" desc:"Recursive DNS servers as ip or ip:port, separated by commas. Empty: those of /etc/resolv.conf."`
	AllowTargets []netip.Prefix `envconfig:"ALLOW_TARGETS" desc:"Networks that are loopback, private or otherwise inside, and may be relayed to all the same; separated by commas."`
	RemotePort   uint16         `envconfig:"REMOTE_PORT" default:"25" desc:"Port of mail exchangers, and of smart hosts without a port of their own."`
}

// SmartHosts returns the hosts that the routing table has for mail to a domain
// from anybody, and their site; none if that goes by MX records.
func SmartHosts(cfg DNSConfig, rules []store.RoutingRule, domain mail.Domain) (hosts []mail.Host, site mail.Site, err error) {
	for rule := range NewTable(rules).Matches(Query{Domain: domain}) {
		if rule.Match.Sender != "" || rule.Match.Tenant != "" {
			continue
		}
		if len(rule.Hosts) > 0 {
			hosts, site, err = mx.SmartSite(rule.Hosts, cfg.RemotePort)
			site = siteBy(rule.Credential, site)
		}
		break
	}
	return hosts, site, err
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
