package mail

import (
	"hash/fnv"
	"net/netip"
	"strings"
	"time"
)

// Slots is the number of slots that sites hash into. Each slot has one home
// worker at a time.
const Slots = 64

// Site is a set of hosts that work, or fail, together: the rollup of a sorted
// MX set, or host:port of a smart host. Breaker, parked mail and the limits of
// a destination belong to it. A set of a provider with limits for all of its
// sets is written "provider:NAME/SET": see OfProvider.
type Site string

// ofProvider begins the names of the sites of a provider, and of the provider
// itself where operators name all of them: "provider:NAME".
const ofProvider = "provider:"

// OfProvider returns the name of the site of a provider whose limits hold for
// all of its sites. Such sites share a slot, so that one worker counts for
// all. The name of the provider must not contain "/".
func (s Site) OfProvider(name string) Site { return Site(ofProvider + name + "/" + string(s)) }

// Provider returns the name of the provider that the site is named after, or
// "".
func (s Site) Provider() string {
	of, found := strings.CutPrefix(string(s.Group()), ofProvider)
	if !found {
		return ""
	}
	return of
}

// Group returns the name for all sites of the provider that the site is named
// after, "provider:NAME"; of any other site its own name.
func (s Site) Group() Site {
	if !strings.HasPrefix(string(s), ofProvider) {
		return s
	}
	group, _, _ := strings.Cut(string(s), "/")
	return Site(group)
}

// Within reports whether the site is the named one, or one of the provider
// that is named.
func (s Site) Within(named Site) bool { return s == named || s.Group() == named }

// Slot returns the slot that the site hashes into, 0 to Slots-1: its home, or
// that of its first part if it is divided. It must never change for a site
// while any mail waits for it. All sites of a provider have the same.
func (s Site) Slot() int16 {
	h := fnv.New32a()
	h.Write([]byte(s.Group()))
	return int16(h.Sum32() % Slots)
}

// Host is one mail exchanger of a route.
type Host struct {
	Name       string // A-label name without a final dot, or an address literal
	Preference uint16
	Port       uint16
	Addresses  []netip.Addr // in the order to be tried

	DANE       DANE     `json:",omitempty"`
	TLSA       []TLSA   `json:",omitempty"` // for DANEUsable: the records that can be used
	Names      []string `json:",omitempty"` // that a certificate found by way of DANE-TA may have: RFC 7672 §3.2.2
	OutsideSTS bool     `json:",omitempty"` // no mx pattern of the MTA-STS policy matches it
}

// Route is the way to a next hop: RFC 5321 §5.1. Recipients with equal
// routes can share a transaction.
type Route struct {
	Site      Site
	Hosts     []Host // best preference first; never empty
	TLS       TLSLevel
	SmartHost bool // from the routing table, not from MX records
	ExpiresAt time.Time

	Rule        int32  // of the routing table, and its version: every change of a rule gives it a new one; 0: none
	Pool        string // of source addresses; "": whatever shaping says
	Credential  string // the name of what we authenticate by, which only delivery can look up; "": no AUTH
	LMTP        bool   // the hosts speak LMTP: RFC 2033
	ImplicitTLS bool   // TLS begins with the connection: RFC 8314 §3.3

	// The TLS policy of the recipient domain. Domains with different ones never
	// share a route, whatever hosts they share.
	STS      STS  `json:",omitempty"`
	SecureMX bool `json:",omitempty"` // DNSSEC vouches for the MX records

	// Report says that the recipient domain wants to hear how TLS went: such a
	// route is of one domain only. nil: nobody asked.
	Report *TLSReport `json:",omitempty"`
}

// DeliveryRequest is the unit that is handed to delivery: the recipients of
// one message that go one route.
type DeliveryRequest struct {
	Message    Message
	Route      *Route // shared between requests; read only
	Recipients []Pending

	part int16 // of the site, as the distance of its slot from the first one's
}

// Slot returns the slot of the part of the site that the request goes to. It
// does not travel with the request: who takes it knows the division better.
func (r *DeliveryRequest) Slot() int16 { return (r.Route.Site.Slot() + r.part) % Slots }

// SetSlot chooses the part of the site.
func (r *DeliveryRequest) SetSlot(slot int16) { r.part = (slot - r.Route.Site.Slot() + Slots) % Slots }

// WorkerID names one delivery process for as long as it lives. Ids are never
// used again.
type WorkerID int32
