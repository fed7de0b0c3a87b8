package bus

import (
	"errors"
	"fmt"
	"strings"

	"github.com/postrider/postrider/pkg/mail"
)

// Bounds of what a route and a path may be: more than anything that a resolver
// makes of the worst DNS, or a door takes.
const (
	maxHosts     = 256
	maxAddresses = 64   // of a host
	maxSite      = 512  // octets
	maxPath      = 1024 // octets, and more than SMTPUTF8 allows
)

// checkRoute reports a route that nothing can be relayed by: what is claimed
// for one would stay claimed.
func checkRoute(r *mail.Route) error {
	switch {
	case r.Site == "":
		return errors.New("no site")
	case len(r.Site) > maxSite:
		return fmt.Errorf("a site of %d octets", len(r.Site))
	case len(r.Hosts) == 0:
		return errors.New("no hosts")
	case len(r.Hosts) > maxHosts:
		return fmt.Errorf("%d hosts", len(r.Hosts))
	}
	for i := range r.Hosts {
		h := &r.Hosts[i]
		switch {
		case h.Name == "" || len(h.Name) > 255 || !printable(h.Name):
			return fmt.Errorf("host %.300q is no name", h.Name)
		case h.Port == 0:
			return fmt.Errorf("host %q: port 0", h.Name)
		case len(h.Addresses) == 0:
			return fmt.Errorf("host %q: no address", h.Name)
		case len(h.Addresses) > maxAddresses:
			return fmt.Errorf("host %q: %d addresses", h.Name, len(h.Addresses))
		}
		for _, a := range h.Addresses {
			if !a.IsValid() {
				return fmt.Errorf("host %q: an empty address", h.Name)
			}
		}
	}
	return nil
}

// checkMessage reports a message that no door takes.
func checkMessage(m *mail.Message) error {
	path := string(m.Envelope.ReversePath)
	switch {
	case len(path) > maxPath || !printable(path):
		return fmt.Errorf("%.100q is no reverse-path", path)
	case m.SizeBytes < 0:
		return fmt.Errorf("size of %d octets", m.SizeBytes)
	}
	return nil
}

// checkRecipient reports a recipient that no door takes.
func checkRecipient(p *mail.Pending) error {
	path := string(p.ForwardPath)
	if path == "" || len(path) > maxPath || !printable(path) {
		return fmt.Errorf("%.100q is no forward-path", path)
	}
	if p.No <= 0 || p.Attempt < 0 || p.Tries < 0 {
		return fmt.Errorf("number %d, attempt %d, tries %d", p.No, p.Attempt, p.Tries)
	}
	if domain := string(p.Domain); len(domain) > maxPath || !printable(domain) {
		return fmt.Errorf("%.100q is no domain", domain) // other faults the resolver reports to the sender
	}
	return nil
}

// printable reports whether there is no control character of ASCII in text:
// one could end a command.
func printable(text string) bool {
	return strings.IndexFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) < 0
}
