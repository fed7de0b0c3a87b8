package mail

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// SmartHost is a host that an operator chose, as the routing table names it.
type SmartHost struct {
	Name   string // A-label name in lower case without a final dot, or an address
	Port   uint16 // 0: that of the protocol
	Weight uint16 // its share among the hosts of its entry, 1 or more
	Speaks HostProtocol
}

// HostProtocol is what a smart host speaks.
type HostProtocol string

// The protocols, with the ports that they have unless one is given.
const (
	SpeaksSMTP  HostProtocol = "smtp"  // the port of mail exchangers
	SpeaksSMTPS HostProtocol = "smtps" // 465: TLS begins with the connection, RFC 8314 §3.3
	SpeaksLMTP  HostProtocol = "lmtp"  // 24: RFC 2033
)

// maxWeight bounds the share of a host.
const maxWeight = 1000

// ParseSmartHosts reads the hosts of a rule. Each entry is tried when none of
// those before it can be reached; "+" joins hosts that share the load, by the
// weight behind "*":
//
//	smart.example.net:587
//	smtps://a.example.net*3+b.example.net
//	lmtp://[2001:db8::1]:24
//
// The protocol of the first host is that of all. It returns the hosts of each
// entry.
func ParseSmartHosts(entries []string) ([][]SmartHost, error) {
	hosts := make([][]SmartHost, len(entries))
	speaks := SpeaksSMTP
	for i, entry := range entries {
		for j, text := range strings.Split(entry, "+") {
			scheme, rest, given := strings.Cut(text, "://")
			if !given {
				rest = text
			}
			if p := HostProtocol(strings.ToLower(scheme)); given && i == 0 && j == 0 {
				speaks = p
			} else if given && p != speaks {
				return nil, fmt.Errorf("host %q: all hosts of a rule speak what the first one does, %s", text, speaks)
			}
			h, err := parseSmartHost(rest)
			if err != nil {
				return nil, fmt.Errorf("host %q: %w", text, err)
			}
			h.Speaks = speaks
			hosts[i] = append(hosts[i], h)
		}
	}
	switch speaks {
	case SpeaksSMTP, SpeaksSMTPS, SpeaksLMTP:
		return hosts, nil
	}
	return nil, fmt.Errorf("host %q: want smtp://, smtps:// or lmtp://", entries[0])
}

// parseSmartHost reads "host", "host:port", "[host]:port", "[address]:port" and "address",
// with "*weight" behind it or not.
func parseSmartHost(text string) (SmartHost, error) {
	h := SmartHost{Weight: 1}
	place, weight, weighted := strings.Cut(text, "*")
	if weighted {
		n, err := strconv.ParseUint(weight, 10, 16)
		if err != nil || n < 1 || n > maxWeight {
			return h, fmt.Errorf("weight %q, want 1 to %d", weight, maxWeight)
		}
		h.Weight = uint16(n)
	}
	name, port := cutPort(place)
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return h, fmt.Errorf("port %q, want 1 to 65535", port)
		}
		h.Port = uint16(n)
	}
	if addr, err := netip.ParseAddr(name); err == nil {
		h.Name = addr.Unmap().WithZone("").String()
		return h, nil
	}
	domain, err := ParseDomain(name)
	if err != nil {
		return h, err
	}
	h.Name = string(domain)
	for i := range len(h.Name) {
		if c := h.Name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return h, errors.New("not a host name")
		}
	}
	return h, nil
}

// cutPort splits "host:port" and "[address]:port". An address of IPv6 without
// brackets has no port.
func cutPort(text string) (name, port string) {
	if inside, rest, ok := strings.Cut(strings.TrimPrefix(text, "["), "]"); ok && strings.HasPrefix(text, "[") {
		return inside, strings.TrimPrefix(rest, ":")
	}
	if strings.Count(text, ":") == 1 {
		name, port, _ = strings.Cut(text, ":")
		if port == "" {
			port = "0" // "host:" is a slip, not a default
		}
		return name, port
	}
	return text, ""
}

// String returns the canonical form, without the weight.
func (h SmartHost) String() string {
	text := h.Name
	if strings.Contains(text, ":") {
		text = "[" + text + "]"
	}
	if h.Port != 0 {
		text += ":" + strconv.Itoa(int(h.Port))
	}
	if h.Speaks != SpeaksSMTP {
		text = string(h.Speaks) + "://" + text
	}
	return text
}
