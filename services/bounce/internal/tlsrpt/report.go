package tlsrpt

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"net/netip"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// Report is what one domain is told of one day.
type Report struct {
	Submitter    string // our host name
	Organization string
	Contact      string // a mailbox
	Domain       mail.Domain
	Day          time.Time // midnight in UTC
	Counts       []store.TLSCount
}

// ID names the report. It is the same each time that the report is sent, so
// that a receiver knows one that comes twice.
func (r *Report) ID() string {
	return r.Day.Format(time.DateOnly) + "_" + string(r.Domain) + "@" + r.Submitter
}

func (r *Report) end() time.Time { return r.Day.Add(24*time.Hour - time.Second) }

// The JSON of RFC 8460 §4.4.
type (
	document struct {
		Organization string `json:"organization-name"`
		Range        struct {
			Start time.Time `json:"start-datetime"`
			End   time.Time `json:"end-datetime"`
		} `json:"date-range"`
		Contact  string   `json:"contact-info"`
		ID       string   `json:"report-id"`
		Policies []policy `json:"policies"`
	}
	policy struct {
		Policy struct {
			Type   string   `json:"policy-type"`
			Lines  []string `json:"policy-string,omitempty"`
			Domain string   `json:"policy-domain"`
			MX     []string `json:"mx-host,omitempty"`
		} `json:"policy"`
		Summary struct {
			Succeeded int64 `json:"total-successful-session-count"`
			Failed    int64 `json:"total-failure-session-count"`
		} `json:"summary"`
		Failures []failure `json:"failure-details,omitempty"`
	}
	failure struct {
		Type          string `json:"result-type"`
		SendingIP     string `json:"sending-mta-ip,omitempty"`
		ReceivingHost string `json:"receiving-mx-hostname,omitempty"`
		ReceivingIP   string `json:"receiving-ip,omitempty"`
		Sessions      int64  `json:"failed-session-count"`
		Reason        string `json:"failure-reason-code,omitempty"`
	}
)

// JSON returns the report as application/tlsrpt+gzip: RFC 8460 §6.3.
func (r *Report) JSON() ([]byte, error) {
	d := document{Organization: r.Organization, Contact: r.Contact, ID: r.ID(), Policies: []policy{}}
	d.Range.Start, d.Range.End = r.Day, r.end()
	for i, c := range r.Counts {
		if last := len(r.Counts[:i]) - 1; last < 0 || !samePolicy(c, r.Counts[last]) {
			d.Policies = append(d.Policies, policyOf(c))
		}
		p := &d.Policies[len(d.Policies)-1]
		if c.Type == "" {
			p.Summary.Succeeded += c.Sessions
			continue
		}
		p.Summary.Failed += c.Sessions
		p.Failures = append(p.Failures, failure{c.Type, text(c.SendingIP), c.ReceivingHost, text(c.ReceivingIP), c.Sessions, c.Reason})
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if err := json.NewEncoder(w).Encode(d); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// samePolicy: the counts come sorted by policy.
func samePolicy(a, b store.TLSCount) bool {
	return a.PolicyType == b.PolicyType && a.PolicyDomain == b.PolicyDomain && a.Policy == b.Policy
}

func policyOf(c store.TLSCount) (p policy) {
	p.Policy.Type, p.Policy.Domain = c.PolicyType, c.PolicyDomain
	if c.Policy == "" {
		return p
	}
	p.Policy.Lines = strings.Split(c.Policy, "\n")
	for _, line := range p.Policy.Lines {
		if pattern, is := strings.CutPrefix(line, "mx:"); is {
			p.Policy.MX = append(p.Policy.MX, strings.TrimSpace(pattern))
		}
	}
	return p
}

func text(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.String()
}
