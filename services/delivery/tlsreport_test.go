package delivery

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"testing"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

// TestTLSFailuresHaveTheirResultType: RFC 8460 §4.3.
func TestTLSFailuresHaveTheirResultType(t *testing.T) {
	sts := mail.Route{STS: mail.STSEnforce, Report: &mail.TLSReport{Domain: "a.test", STSPolicy: []string{"version: STSv1", "mode: enforce"}}}
	dane := mail.Host{Name: "mx.a.test", DANE: mail.DANEUsable, Names: []string{"base.a.test"}, TLSA: []mail.TLSA{{Usage: 3, Selector: 1, Matching: 1, Data: []byte{1}}}}
	untrustedBy := func(err error) error {
		return fmt.Errorf("%w: %w: %w", smtpclient.ErrHandshake, smtpclient.ErrUntrusted, err)
	}
	broke := func(err error) error { return fmt.Errorf("%w: %w", smtpclient.ErrHandshake, err) }
	for _, tt := range []struct {
		name    string
		refused error
		err     error
		want    string
	}{
		{"no STARTTLS", nil, smtpclient.ErrNoTLS, "starttls-not-supported: STARTTLS was not offered or refused"},
		{"other name", nil, untrustedBy(x509.HostnameError{Certificate: &x509.Certificate{}}), "certificate-host-mismatch: the certificate has another name"},
		{"expired", nil, untrustedBy(x509.CertificateInvalidError{Reason: x509.Expired}), "certificate-expired: the certificate has expired or is not valid yet"},
		{"own signature", nil, untrustedBy(x509.UnknownAuthorityError{}), "certificate-not-trusted: the certificate is signed by an unknown authority"},
		{"other trouble", nil, untrustedBy(x509.CertificateInvalidError{Reason: x509.NotAuthorizedToSign}), "certificate-not-trusted: the certificate is invalid"},
		{"other key", nil, untrustedBy(errors.New("no TLSA record")), "certificate-not-trusted: no TLSA record matches the certificate"},
		{"alert", nil, broke(tls.AlertError(40)), "validation-failure: TLS alert: handshake failure"},
		{"closed", nil, broke(io.EOF), "validation-failure: connection closed in the handshake"},
		{"no TLS", nil, broke(tls.RecordHeaderError{}), "validation-failure: the host did not answer with TLS"},
		{"our own stop", nil, broke(smtpclient.ErrStopped), ": "},
		{"TLSA unknown", errTLSAUnknown, nil, "dnssec-invalid: the TLSA records could not be looked up"},
		{"outside the policy", errOutsideSTS, nil, "validation-failure: the policy does not name the host"},
		{"operators want DANE", errNoTLSA, nil, "dane-required: no usable TLSA record that DNSSEC vouches for"},
		{"REQUIRETLS", errNoRequireTLS, nil, ": "},
	} {
		a := &attempt{session: &session{demand: demand{refused: tt.refused}}}
		kind, reason, counts := a.tlsFault(smtpclient.Answer{Phase: mail.PhaseStartTLS, Err: tt.err})
		if got := kind + ": " + reason; got != tt.want || counts != (kind != "") {
			t.Errorf("%s: got %q %v, want %q", tt.name, got, counts, tt.want)
		}
	}
	a := &attempt{session: &session{}}
	if _, _, counts := a.tlsFault(smtpclient.Answer{Phase: mail.PhaseConnect, Err: io.EOF}); counts {
		t.Error("a connection that failed is counted as TLS")
	}
	for _, tt := range []struct {
		route mail.Route
		host  mail.Host
		want  store.TLSResult
	}{
		{sts, dane, store.TLSResult{PolicyType: "tlsa", PolicyDomain: "base.a.test", Policy: "3 1 1 01"}},
		{sts, mail.Host{Name: "mx.a.test", DANE: mail.DANEUnknown}, store.TLSResult{PolicyType: "tlsa", PolicyDomain: "mx.a.test"}},
		{sts, mail.Host{Name: "mx.a.test"}, store.TLSResult{PolicyType: "sts", PolicyDomain: "a.test", Policy: "version: STSv1\nmode: enforce"}},
		{mail.Route{Report: sts.Report}, mail.Host{}, store.TLSResult{PolicyType: "no-policy-found", PolicyDomain: "a.test"}},
	} {
		if got := policyOf(&tt.route, tt.host); got != tt.want {
			t.Errorf("policy %+v, want %+v", got, tt.want)
		}
	}
}

// TestReportsAreCountedFor: not for who asked for none, not reports, and not
// where operators switched TLS off.
func TestReportsAreCountedFor(t *testing.T) {
	asked := &mail.Route{Report: &mail.TLSReport{Domain: "a.test", RUA: []string{"mailto:a@a.test"}, Fault: "sts-policy-fetch-error"}}
	host := target{mail.Host{Name: "mx.a.test"}, netip.MustParseAddrPort("192.0.2.1:25")}
	for _, tt := range []struct {
		name    string
		request mail.DeliveryRequest
		level   mail.TLSLevel
		want    int
	}{
		{"asked", mail.DeliveryRequest{Route: asked}, mail.TLSMay, 1},
		{"not asked", mail.DeliveryRequest{Route: &mail.Route{}}, mail.TLSMay, 0},
		{"TLS-Required: No", mail.DeliveryRequest{Route: asked, Message: mail.Message{TLSOptional: true}}, mail.TLSMay, 0},
		{"switched off", mail.DeliveryRequest{Route: asked}, mail.TLSNone, 0},
	} {
		counted := newTLSReports(nil)
		a := &attempt{session: &session{worker: &worker{tlsReports: counted}, source: here}, job: &job{request: &tt.request}}
		a.reportTLS(host, smtpclient.Options{TLS: tt.level}, smtpclient.Answer{Phase: mail.PhaseStartTLS, Err: smtpclient.ErrNoTLS})
		if len(counted.counts) != tt.want {
			t.Errorf("%s: counted %+v, want %d", tt.name, counted.counts, tt.want)
		}
		for r := range counted.counts {
			if r.Type != "sts-policy-fetch-error" || r.PolicyType != "sts" {
				t.Errorf("%s: %+v, want the policy that could not be had", tt.name, r)
			}
		}
	}
}
