package mx

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
)

// Dial connects to a host that mail from outside has led to, such as the
// policy host of a domain: its addresses come from our name servers, and
// inside networks are refused as they are for mail.
func (r *Resolver) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return nil, fmt.Errorf("port %q: %w", port, err)
	}
	name, ok := hostName(host)
	if !ok {
		return nil, fmt.Errorf("%q is not a host name", host)
	}
	a := r.lookupHosts(ctx, []string{name})[0]
	switch {
	case a.usable():
	case a.unknown != "":
		return nil, fmt.Errorf("looking up the addresses of %s: %s", name, a.unknown)
	case a.refused > 0:
		return nil, fmt.Errorf("%s has only loopback, private or reserved addresses", name)
	default:
		return nil, fmt.Errorf("%s has no address", name)
	}
	var d net.Dialer
	var failed error
	for _, addr := range interleave(a.v4, a.v6) {
		conn, err := d.DialContext(ctx, network, net.JoinHostPort(addr.String(), port))
		if err == nil {
			return conn, nil
		}
		failed = errors.Join(failed, err)
	}
	return nil, failed
}
