package tlsrpt

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/postrider/postrider/pkg/inside"
)

// PostConfig says how hosts that take reports are reached.
type PostConfig struct {
	Servers []string       // DNS servers, "ip" or "ip:port"; none: those of the system
	Allow   []netip.Prefix // networks inside that may be connected to all the same
	Roots   *x509.CertPool // nil: those of the system
}

// postWithin bounds one request.
const postWithin = 30 * time.Second

// Poster sends reports by HTTPS: RFC 8460 §5.4.
type Poster struct{ client http.Client }

// NewPoster returns a Poster. It connects to no address inside, whatever the
// URI or DNS says, and follows no redirect.
func NewPoster(cfg PostConfig) *Poster {
	dialer := &net.Dialer{Control: func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if inside.Refuses(to.Addr(), cfg.Allow) {
			return fmt.Errorf("%s is a loopback, private or reserved address", to.Addr())
		}
		return nil
	}}
	if len(cfg.Servers) > 0 {
		dialer.Resolver = resolverOf(cfg.Servers)
	}
	return &Poster{http.Client{
		Timeout: postWithin,
		Transport: &http.Transport{
			DialContext:            dialer.DialContext,
			TLSClientConfig:        &tls.Config{RootCAs: cfg.Roots, MinVersion: tls.VersionTLS12},
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: 16 << 10,
			ForceAttemptHTTP2:      true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// resolverOf asks the servers in turn.
func resolverOf(servers []string) *net.Resolver {
	var next atomic.Uint32
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		server := strings.Trim(strings.TrimSpace(servers[int(next.Add(1)-1)%len(servers)]), "[]")
		if addr, err := netip.ParseAddr(server); err == nil {
			server = netip.AddrPortFrom(addr, 53).String()
		}
		var d net.Dialer
		return d.DialContext(ctx, network, server)
	}}
}

// Post sends a report to a URI of https.
func (p *Poster) Post(ctx context.Context, uri string, report []byte) error {
	to, err := url.Parse(uri)
	if err != nil || !strings.EqualFold(to.Scheme, "https") || to.Host == "" || to.User != nil {
		return ErrRUA
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to.String(), bytes.NewReader(report))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRUA, err)
	}
	req.Header.Set("Content-Type", "application/tlsrpt+gzip")
	req.Header.Set("User-Agent", "postrider")
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // what it says beside the status does not matter
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("the host answered %s", resp.Status)
	}
	return nil
}
