package delivery

import (
	"errors"
	"fmt"
	"slices"

	"github.com/postrider/postrider/pkg/mail"
)

// demand is what a job asks of TLS at one host: what operators say (routing
// table, shaping), what the recipients' domain publishes (DANE before
// MTA-STS), and what the sender wants (RFC 8689).
type demand struct {
	level   mail.TLSLevel
	records []mail.TLSA // for mail.TLSDANE
	names   []string
	refused error // the host must not be used at all
}

// Why a host must not be used.
var (
	errPolicy       = errors.New("the TLS policy forbids this host")
	errTLSAUnknown  = fmt.Errorf("%w: its TLSA records cannot be looked up", errPolicy)
	errOutsideSTS   = fmt.Errorf("%w: the MTA-STS policy of the domain does not name it", errPolicy)
	errNoTLSA       = fmt.Errorf("%w: it has no usable TLSA record that DNSSEC vouches for", errPolicy)
	errNoRequireTLS = errors.New("REQUIRETLS: nothing vouches for this host being the domain's")
)

// demandOf returns what a request asks of a host of its route. A word that
// this version does not know has the strictest meaning.
func demandOf(r *mail.DeliveryRequest, h mail.Host) demand {
	route, m := r.Route, &r.Message
	d := demand{level: route.TLS}
	if d.level == "" {
		d.level = mail.TLSMay
	}
	if route.ImplicitTLS {
		d.atLeast(mail.TLSEncrypt) // there is no plaintext to fall back to
	}
	if d.level == mail.TLSNone {
		if !m.Envelope.RequireTLS {
			return d
		}
		d.level = mail.TLSMay
	}
	// RFC 8689 §3: the sender would rather have the mail arrive than obey the
	// domain. What operators demand stands.
	if !m.TLSOptional || m.Envelope.RequireTLS {
		d.obey(route, h)
	}
	if d.refused == nil && rank(d.level) >= rank(mail.TLSVerify) && h.DANE == mail.DANEUsable {
		d.level = mail.TLSDANE
	}
	switch {
	case d.refused != nil:
	case rank(d.level) >= rank(mail.TLSDANE) && h.DANE != mail.DANEUsable:
		d.refused = errNoTLSA
	case m.Envelope.RequireTLS && rank(d.level) < rank(mail.TLSVerify):
		// RFC 8689 §4.2.1: DNSSEC or MTA-STS, or who configured the next hop,
		// must vouch for the host's name; its certificate for the host.
		if !route.SecureMX && !route.SmartHost && (route.STS == mail.STSNone || h.OutsideSTS) {
			d.refused = errNoRequireTLS
		}
		d.level = mail.TLSVerify
	}
	if d.level == mail.TLSDANE {
		d.records, d.names = h.TLSA, h.Names
	}
	return d
}

// obey raises the demand to the policy of the domain.
func (d *demand) obey(route *mail.Route, h mail.Host) {
	switch h.DANE {
	case mail.DANENone:
	case mail.DANEUsable:
		d.level = mail.TLSDANE
		return // RFC 8461 §2: DANE is above MTA-STS
	case mail.DANEUnusable:
		d.atLeast(mail.TLSEncrypt)
	default:
		d.refused = errTLSAUnknown
		return
	}
	switch {
	case route.STS == mail.STSNone, route.STS == mail.STSTesting:
	case h.OutsideSTS:
		d.refused = errOutsideSTS
	default:
		d.atLeast(mail.TLSVerify)
	}
}

func (d *demand) atLeast(level mail.TLSLevel) {
	if rank(d.level) < rank(level) {
		d.level = level
	}
}

// rank orders the levels; one that is not known is above all.
func rank(level mail.TLSLevel) int {
	if i := slices.Index(mail.TLSLevels, level); i >= 0 {
		return i
	}
	return len(mail.TLSLevels)
}

// equals reports whether a connection that was opened under one demand may
// carry mail under the other.
func (d demand) equals(o demand) bool {
	return d.refused == nil && o.refused == nil && d.level == o.level && slices.Equal(d.names, o.names) &&
		slices.EqualFunc(d.records, o.records, func(a, b mail.TLSA) bool { return a.String() == b.String() })
}
