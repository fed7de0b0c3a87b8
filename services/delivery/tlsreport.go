package delivery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

const (
	// countEvery is how often what was counted goes to Postgres. It is not
	// part of the settle: all workers count in the same rows, and whoever has
	// one waits for the disk with it.
	countEvery = 10 * time.Second
	// maxTLSResults bounds the kinds of result that wait for that; more are
	// not counted. 10,000 are 10 s of trouble with as many domains.
	maxTLSResults = 10_000
)

// The result types of RFC 8460 §4.3 that delivery finds. Those of a policy
// that could not be had come with the route.
const (
	noSTARTTLS     = "starttls-not-supported"
	wrongName      = "certificate-host-mismatch"
	expired        = "certificate-expired"
	untrusted      = "certificate-not-trusted"
	otherFailure   = "validation-failure"
	tlsaInvalid    = "tlsa-invalid"
	dnssecInvalid  = "dnssec-invalid"
	daneRequired   = "dane-required"
	noPolicyFound  = "no-policy-found"
	policyTypeTLSA = "tlsa"
	policyTypeSTS  = "sts"
)

// tlsReports counts how TLS goes with domains that asked for reports.
type tlsReports struct {
	store *store.Store

	mu     sync.Mutex
	counts map[store.TLSResult]int64 // guarded by mu
	rua    map[mail.Domain][]string  // guarded by mu
}

func newTLSReports(db *store.Store) *tlsReports {
	return &tlsReports{store: db, counts: map[store.TLSResult]int64{}, rua: map[mail.Domain][]string{}}
}

// run saves what was counted until ctx is done; the last of it is for flush.
func (r *tlsReports) run(ctx context.Context) error {
	failing := false
	for sleep(ctx, countEvery); ctx.Err() == nil; sleep(ctx, countEvery) {
		save, cancel := context.WithTimeout(ctx, storeWithin)
		err := r.flush(save)
		cancel()
		if err != nil && !failing && ctx.Err() == nil {
			slog.Warn("results for TLS reports cannot be saved; counting on", "error", err)
		}
		failing = err != nil
	}
	return nil
}

func (r *tlsReports) count(route *mail.TLSReport, result store.TLSResult) {
	result.Day, result.Domain = time.Now().UTC().Truncate(24*time.Hour), route.Domain
	if result.Type == "" {
		result.SendingIP, result.ReceivingIP, result.ReceivingHost = result.SendingIP.Unmap(), result.ReceivingIP.Unmap(), ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.counts[result]; known || len(r.counts) < maxTLSResults {
		r.counts[result]++
		r.rua[route.Domain] = route.RUA
	}
}

// flush saves what was counted. What cannot be saved is counted on with.
func (r *tlsReports) flush(ctx context.Context) error {
	r.mu.Lock()
	counts, rua := r.counts, r.rua
	r.counts, r.rua = map[store.TLSResult]int64{}, map[mail.Domain][]string{}
	r.mu.Unlock()
	if len(counts) == 0 {
		return nil
	}
	all := make([]store.TLSCount, 0, len(counts))
	for result, n := range counts {
		all = append(all, store.TLSCount{TLSResult: result, Sessions: n})
	}
	err := r.store.CountTLS(ctx, all, rua)
	if err == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for result, n := range counts {
		r.counts[result] += n
	}
	for domain, uris := range rua {
		if r.rua[domain] == nil {
			r.rua[domain] = uris
		}
	}
	return err
}

// reportTLS counts what a dial under the options said of TLS; with a refused
// demand there was no dial. It costs nothing where nobody asked for reports.
func (a *attempt) reportTLS(t target, o smtpclient.Options, answer smtpclient.Answer) {
	route, m := a.job.request.Route, &a.job.request.Message
	switch {
	case route.Report == nil:
		return
	case m.TLSOptional && !m.Envelope.RequireTLS:
		// The sender would not have the policy obeyed, so it was not. Reports
		// are such mail: nobody is to report on a report (RFC 8460 §5.3).
		return
	case a.demand.refused == nil && o.TLS == mail.TLSNone:
		return // nothing was tried: operators or a handshake before said so
	}
	kind, reason, counts := a.tlsFault(answer)
	if !counts {
		return
	}
	result := policyOf(route, t.host)
	if reason == "" {
		kind, reason = a.policyFault(route, t.host, kind)
	}
	if kind != "" {
		result.Type, result.Reason = kind, reason
		result.ReceivingHost, result.ReceivingIP, result.SendingIP = t.host.Name, t.addr.Addr().Unmap(), answer.Local.Addr()
		own := a.source.IPv4
		if familyOf(t.addr.Addr()) == onlyIPv6 {
			own = a.source.IPv6
		}
		if own.IsValid() {
			result.SendingIP = own
		}
	}
	fault := store.TLSResult{
		PolicyType: policyTypeSTS, PolicyDomain: string(route.Report.Domain), Type: route.Report.Fault, ReceivingHost: t.host.Name,
		ReceivingIP: t.addr.Addr().Unmap(),
	}
	switch {
	case fault.Type == "" || result.PolicyType == policyTypeTLSA:
		a.tlsReports.count(route.Report, result)
	case result.PolicyType == noPolicyFound:
		a.tlsReports.count(route.Report, fault)
	default: // the policy from before holds
		a.tlsReports.count(route.Report, result)
		a.tlsReports.count(route.Report, fault)
	}
}

// policyOf names the policy that a host is judged by: RFC 8460 §4.4, and for
// DANE the TLSA base domain (RFC 8460 §1.1).
func policyOf(route *mail.Route, h mail.Host) store.TLSResult {
	switch {
	case h.DANE != mail.DANENone:
		r := store.TLSResult{PolicyType: policyTypeTLSA, PolicyDomain: h.Name}
		if len(h.Names) > 0 {
			r.PolicyDomain = h.Names[0]
		}
		lines := make([]string, len(h.TLSA))
		for i, t := range h.TLSA {
			lines[i] = t.String()
		}
		r.Policy = strings.Join(lines, "\n")
		return r
	case route.STS != mail.STSNone:
		return store.TLSResult{PolicyType: policyTypeSTS, PolicyDomain: string(route.Report.Domain), Policy: strings.Join(route.Report.STSPolicy, "\n")}
	}
	return store.TLSResult{PolicyType: noPolicyFound, PolicyDomain: string(route.Report.Domain)}
}

// tlsFault returns the result type of a dial and what lies behind it, "" for
// success. It does not count if it says nothing of TLS.
func (a *attempt) tlsFault(answer smtpclient.Answer) (kind, reason string, counts bool) {
	err := answer.Err
	switch {
	case a.demand.refused != nil:
		kind, reason = refusedFault(a.demand.refused)
		return kind, reason, kind != ""
	case answer.Phase == "" && a.conn.TLS() == "":
		return noSTARTTLS, "STARTTLS was not offered or refused", true
	case answer.Phase == "":
		return "", "", true
	case answer.Phase != mail.PhaseStartTLS:
		return "", "", false
	case errors.Is(err, smtpclient.ErrNoTLS):
		return noSTARTTLS, "STARTTLS was not offered or refused", true
	case errors.Is(err, smtpclient.ErrUntrusted):
		kind, reason = certificateFault(err)
		return kind, reason, true
	case errors.Is(err, smtpclient.ErrHandshake) && !errors.Is(err, smtpclient.ErrStopped):
		return otherFailure, handshakeFault(err), true
	}
	return "", "", false
}

func refusedFault(refused error) (kind, reason string) {
	switch {
	case errors.Is(refused, errTLSAUnknown):
		return dnssecInvalid, "the TLSA records could not be looked up"
	case errors.Is(refused, errOutsideSTS):
		return otherFailure, "the policy does not name the host"
	case errors.Is(refused, errNoTLSA):
		return daneRequired, "no usable TLSA record that DNSSEC vouches for"
	}
	return "", ""
}

// policyFault is what a session that was not stopped says of a policy that
// stops nothing.
func (a *attempt) policyFault(route *mail.Route, h mail.Host, kind string) (string, string) {
	switch {
	case h.DANE == mail.DANEUnusable:
		return tlsaInvalid, "none of the TLSA records can be used"
	case h.DANE != mail.DANENone || route.STS != mail.STSTesting:
		return kind, ""
	case h.OutsideSTS:
		return refusedFault(errOutsideSTS)
	case a.conn.Distrust() != nil:
		return certificateFault(a.conn.Distrust())
	}
	return kind, ""
}

// certificateFault tells apart why a certificate did not verify. The reasons
// are few, so that equal failures are counted together.
func certificateFault(err error) (kind, reason string) {
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &name):
		return wrongName, "the certificate has another name"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return expired, "the certificate has expired or is not valid yet"
	case errors.As(err, &unknown):
		return untrusted, "the certificate is signed by an unknown authority"
	case errors.As(err, &invalid):
		return untrusted, "the certificate is invalid"
	}
	return untrusted, "no TLSA record matches the certificate"
}

func handshakeFault(err error) string {
	var alert tls.AlertError
	var record tls.RecordHeaderError
	var network net.Error
	switch {
	case errors.As(err, &alert):
		return "TLS alert: " + strings.TrimPrefix(alert.Error(), "tls: ")
	case errors.As(err, &record):
		return "the host did not answer with TLS"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed in the handshake"
	case errors.As(err, &network) && network.Timeout():
		return "timeout in the handshake"
	}
	return "the handshake failed"
}
