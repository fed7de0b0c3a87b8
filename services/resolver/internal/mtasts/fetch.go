package mtasts

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strings"
	"time"
)

// FetchConfig says how policy hosts are reached.
type FetchConfig struct {
	Dial    func(ctx context.Context, network, address string) (net.Conn, error)
	Roots   *x509.CertPool // nil: those of the system
	Timeout time.Duration  // of a whole fetch
}

// fetcher fetches policies: RFC 8461 §3.3.
type fetcher struct {
	client  http.Client
	timeout time.Duration
}

func newFetcher(cfg FetchConfig) fetcher {
	return fetcher{timeout: cfg.Timeout, client: http.Client{
		Transport: &http.Transport{
			DialContext:            cfg.Dial,
			TLSClientConfig:        &tls.Config{RootCAs: cfg.Roots, MinVersion: tls.VersionTLS12},
			DisableKeepAlives:      true, // the next policy is on another host
			DisableCompression:     true,
			MaxResponseHeaderBytes: 16 << 10,
			ForceAttemptHTTP2:      true,
		},
		// RFC 8461 §3.3: "HTTP 3xx redirects MUST NOT be followed".
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// errInvalid says that what was fetched is no policy.
var errInvalid = errors.New("no policy")

func (f *fetcher) fetch(ctx context.Context, domain string) (Policy, error) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://mta-sts."+domain+"/.well-known/mta-sts.txt", nil)
	if err != nil {
		return Policy{}, err
	}
	req.Header.Set("User-Agent", "postrider")
	resp, err := f.client.Do(req)
	if err != nil {
		return Policy{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return Policy{}, fmt.Errorf("the policy host answered %s", resp.Status)
	}
	// RFC 8461 §3.2: "text/plain" keeps users of a host from publishing a
	// policy by uploading a file.
	if media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || !strings.EqualFold(media, "text/plain") {
		return Policy{}, fmt.Errorf("%w: Content-Type is %.60q, want text/plain", errInvalid, resp.Header.Get("Content-Type"))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxPolicy+1))
	if err != nil {
		return Policy{}, err
	}
	p, err := Parse(string(body))
	if err != nil {
		return Policy{}, fmt.Errorf("%w: %w", errInvalid, err)
	}
	return p, nil
}

// faultOf returns the result type of RFC 8460 §4.3 for a failed fetch.
func faultOf(err error) string {
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.Is(err, errInvalid):
		return "sts-policy-invalid"
	case errors.As(err, &certificate):
		return "sts-webpki-invalid"
	}
	return "sts-policy-fetch-error"
}
