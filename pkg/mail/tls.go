package mail

import "fmt"

// TLSLevel says what a route demands of TLS at the next hop.
type TLSLevel string

// The TLS levels, weakest first.
const (
	TLSNone    TLSLevel = "none"    // no STARTTLS, whatever the domain's policy
	TLSMay     TLSLevel = "may"     // STARTTLS when offered, any certificate, plaintext when it fails
	TLSEncrypt TLSLevel = "encrypt" // STARTTLS, any certificate
	TLSVerify  TLSLevel = "verify"  // STARTTLS, certificate verified for the host name; by DANE where the host has usable TLSA records
	TLSDANE    TLSLevel = "dane"    // STARTTLS, host authenticated by its TLSA records, else no mail
)

// TLSLevels are all levels, weakest first.
var TLSLevels = []TLSLevel{TLSNone, TLSMay, TLSEncrypt, TLSVerify, TLSDANE}

// DANE is what DNS says of the TLSA records of a host: RFC 7672 §2.1.
type DANE string

// The findings. Only a validating resolver that is trusted gives another one
// than the first.
const (
	DANENone     DANE = ""         // there is none, or DNS is not signed: RFC 7672 asks nothing of the host
	DANEUsable   DANE = "usable"   // Host.TLSA authenticates the host
	DANEUnusable DANE = "unusable" // records, and none can be used: TLS, without authentication (RFC 7672 §2.2)
	DANEUnknown  DANE = "unknown"  // the look-up failed: the host must not be used (RFC 7672 §2.1.2)
)

// TLSA is a DANE record: RFC 6698 §2.1.
type TLSA struct {
	Usage, Selector, Matching uint8
	Data                      []byte
}

// The certificate usages that SMTP has a use for: RFC 7672 §3.1.
const (
	DANETA uint8 = 2 // Data is of a certificate authority of the host
	DANEEE uint8 = 3 // Data is of the certificate or key of the host itself
)

// String returns the record in presentation form: RFC 6698 §2.2.
func (t TLSA) String() string {
	return fmt.Sprintf("%d %d %d %x", t.Usage, t.Selector, t.Matching, t.Data)
}

// STS is the mode of the MTA-STS policy of a domain: RFC 8461 §5.
type STS string

// The modes. Mode none of RFC 8461 is as good as no policy.
const (
	STSNone    STS = ""
	STSTesting STS = "testing" // failures are reported and stop nothing
	STSEnforce STS = "enforce"
)

// TLSReport is what a domain wants that asks for reports on TLS: RFC 8460 §3.
type TLSReport struct {
	Domain    Domain
	RUA       []string // where reports go: URIs of mailto or https
	STSPolicy []string `json:",omitempty"` // the lines of its MTA-STS policy, as they were published
	Fault     string   `json:",omitempty"` // why the MTA-STS policy that it has now could not be had: a result type of §4.3
}
