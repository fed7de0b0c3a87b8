package mx

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

// submissionsPort and lmtpPort are where hosts speak SMTP over implicit TLS
// (RFC 8314 §7.3) and LMTP.
const (
	submissionsPort = 465
	lmtpPort        = 24
)

// findSmartHosts turns an operator's hosts into a plan.
func (r *Resolver) findSmartHosts(ctx context.Context, entries []string) (Result, time.Time) {
	// Operators change their minds: what they wrote holds no longer than what
	// DNS says of an absent name.
	expires := time.Now().Add(r.ttl.negative)
	valid := expires
	hosts, speaks, err := parseSmartHosts(entries, r.cfg.Port)
	if err != nil {
		return transient(cannotRouteNow, "no smart host can be used: "+err.Error()), earlier(expires, time.Now().Add(r.ttl.failure))
	}
	names := make([]string, len(hosts))
	for i, h := range hosts {
		names[i] = h.name
	}
	site := smartSite(hosts)
	var wrong []string
	usable := hosts[:0]
	var found []addresses
	for i, a := range r.lookupHosts(ctx, names) {
		expires = earlier(expires, a.expires)
		switch {
		case a.usable():
			hosts[i].v4, hosts[i].v6 = a.v4, a.v6
			valid = earlier(valid, a.valid)
			usable = append(usable, hosts[i])
			found = append(found, a)
		case a.unknown != "":
			wrong = append(wrong, fmt.Sprintf("%s: %s", names[i], a.unknown))
		case a.refused > 0:
			wrong = append(wrong, fmt.Sprintf("%s: its address is not in an allowed network (POSTRIDER_ALLOW_TARGETS)", names[i]))
		default:
			wrong = append(wrong, fmt.Sprintf("%s: no address", names[i]))
		}
	}
	if len(usable) > 0 {
		// RFC 7672 §2.2.3: a next hop that was configured is as trusted as a
		// secure MX record.
		r.lookupDANE(ctx, usable, found, nil)
		for _, h := range usable {
			expires, valid = earlier(expires, h.dane.expires), earlier(valid, h.dane.expires)
		}
		least := time.Now().Add(min(r.ttl.min, r.ttl.failure))
		expires, valid = later(expires, least), later(valid, least)
		plan := newPlan(site, usable, &policy{secureMX: true}, valid)
		plan.smartHost, plan.speaks = true, speaks
		plan.Key += " " + string(speaks)
		return Result{Plan: plan}, expires
	}
	if len(wrong) == 0 {
		wrong = []string{"none is configured"}
	}
	return transient(cannotRouteNow, "no smart host can be used: "+strings.Join(wrong, "; ")), earlier(expires, time.Now().Add(r.ttl.failure))
}

// SmartSite returns the hosts of a rule, without their addresses, and their
// site. It does not ask DNS.
func SmartSite(entries []string, port uint16) ([]mail.Host, mail.Site, error) {
	targets, _, err := parseSmartHosts(entries, port)
	if err != nil {
		return nil, "", err
	}
	hosts := make([]mail.Host, len(targets))
	for i, t := range targets {
		hosts[i] = mail.Host{Name: t.name, Preference: t.preference, Port: t.port}
	}
	return hosts, smartSite(targets), nil
}

// parseSmartHosts reads the hosts of a rule. The place of an entry is the
// preference of its hosts.
func parseSmartHosts(entries []string, port uint16) (hosts []target, speaks mail.HostProtocol, err error) {
	parsed, err := mail.ParseSmartHosts(entries)
	if err != nil {
		return nil, "", err
	}
	for i, entry := range parsed {
		for _, h := range entry {
			t := target{name: h.Name, preference: uint16(min(i, 1<<16-1)), port: h.Port, weight: h.Weight}
			speaks = h.Speaks
			switch {
			case t.port != 0:
			case speaks == mail.SpeaksSMTPS:
				t.port = submissionsPort
			case speaks == mail.SpeaksLMTP:
				t.port = lmtpPort
			default:
				t.port = port
			}
			hosts = append(hosts, t)
		}
	}
	return hosts, speaks, nil
}

// smartSite names the site of smart hosts. It depends on the set alone, as
// that of a set of MX hosts: in another order they are the same hosts, with
// the same limits.
func smartSite(hosts []target) mail.Site {
	names := make([]string, len(hosts))
	for i, h := range hosts {
		names[i] = mail.SmartHost{Name: h.name, Port: h.port, Speaks: mail.SpeaksSMTP}.String()
	}
	slices.Sort(names)
	return bounded(strings.Join(slices.Compact(names), ","))
}
