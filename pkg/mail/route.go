package mail

import (
	"hash/fnv"
	"net/netip"
	"time"
)

// Slots is the number of slots that sites hash into. Each slot has one home
// worker at a time.
const Slots = 64

// Site is the identity to which limits apply: a provider block, the rollup
// of a sorted MX set, or host:port of a smart host.
type Site string

// Slot returns the slot that the site hashes into, 0 to Slots-1: its home, or
// that of its first part if it is divided. It must never change for a site
// while any mail waits for it.
func (s Site) Slot() int16 {
	h := fnv.New32a()
	h.Write([]byte(s))
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
