package mx

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/postrider/postrider/pkg/mail"
)

// maxTLSAData bounds a record, so that a hostile zone cannot make a route too
// large to hand on. The certificates of authorities are smaller.
const maxTLSAData = 2048

// dane is what TLSA records say of one host.
type dane struct {
	state   mail.DANE
	records []mail.TLSA
	names   []string
	expires time.Time
}

// lookupDANE finds the TLSA records of hosts whose names DNSSEC vouches for.
// more are the names beside its own that a host may prove by DANE-TA.
func (r *Resolver) lookupDANE(ctx context.Context, hosts []target, found []addresses, more []string) {
	var g sync.WaitGroup
	for i := range hosts {
		g.Go(func() {
			d := r.daneOf(ctx, hosts[i].name, hosts[i].port, found[i])
			switch {
			case slices.ContainsFunc(d.records, func(t mail.TLSA) bool { return t.Usage == mail.DANETA }):
				for _, name := range more {
					if !slices.Contains(d.names, name) {
						d.names = append(d.names, name)
					}
				}
			case len(d.names) > 0 && d.names[0] == hosts[i].name:
				d.names = nil // DANE-EE looks at no name: RFC 7672 §3.1.1
			case len(d.names) > 0:
				d.names = d.names[:1] // to be asked for: RFC 7672 §8.1
			}
			hosts[i].dane = d
		})
	}
	g.Wait()
}

// daneOf applies RFC 7672 §2.2.2 to one host: the records are looked for at
// the name behind its aliases, if DNSSEC vouches for those, then at the name
// itself.
func (r *Resolver) daneOf(ctx context.Context, host string, port uint16, a addresses) dane {
	none := dane{expires: a.expires}
	var bases []string
	switch {
	case !r.cfg.TrustAD: // nothing could be vouched for
		return none
	case a.secure && a.name != host:
		bases = []string{a.name, host}
	case a.secure:
		bases = []string{host}
	case a.name != host:
		// An alias from a signed zone into one that is not: the alias itself
		// may still be vouched for.
		if c := r.askOnce(ctx, host, dns.TypeCNAME); c.verdict == unknown {
			return dane{state: mail.DANEUnknown, expires: earlier(a.expires, c.expires)}
		} else if !c.secure {
			return none
		}
		bases = []string{host}
	default:
		return none // RFC 7672 §2.2.2: no question whose answer could not count
	}
	for _, base := range bases {
		t := r.ask(ctx, fmt.Sprintf("_%d._tcp.%s", port, base), dns.TypeTLSA)
		none.expires = earlier(none.expires, t.expires)
		switch {
		case t.verdict == unknown:
			// RFC 7672 §2.1.2: a forger would like us to go on without.
			return dane{state: mail.DANEUnknown, expires: none.expires}
		case t.verdict != found || !t.secure:
			continue
		}
		d := dane{state: mail.DANEUnusable, records: usableTLSA(t.tlsa), expires: none.expires}
		if len(d.records) > 0 {
			d.state = mail.DANEUsable
			d.names = []string{base}
			if base != host {
				d.names = append(d.names, host)
			}
		}
		return d
	}
	return none
}

// usableTLSA returns the records that SMTP can use: RFC 7672 §3.1.3 leaves out
// the usages that build on public authorities. Of the digests of one usage
// and selector only the strongest counts: RFC 7671 §9.
func usableTLSA(all []mail.TLSA) []mail.TLSA {
	type kind struct{ usage, selector uint8 }
	strongest := map[kind]uint8{}
	all = slices.DeleteFunc(slices.Clone(all), func(t mail.TLSA) bool { return !wellFormed(t) })
	for _, t := range all {
		k := kind{t.Usage, t.Selector}
		strongest[k] = max(strongest[k], t.Matching)
	}
	return slices.DeleteFunc(all, func(t mail.TLSA) bool {
		return t.Matching != 0 && t.Matching < strongest[kind{t.Usage, t.Selector}]
	})
}

func wellFormed(t mail.TLSA) bool {
	if t.Usage != mail.DANETA && t.Usage != mail.DANEEE || t.Selector > 1 || len(t.Data) > maxTLSAData {
		return false
	}
	var err error
	switch {
	case t.Matching == 1:
		return len(t.Data) == 32
	case t.Matching == 2:
		return len(t.Data) == 64
	case t.Matching != 0:
		return false
	case t.Selector == 0:
		_, err = x509.ParseCertificate(t.Data)
	default:
		_, err = x509.ParsePKIXPublicKey(t.Data)
	}
	return err == nil
}
