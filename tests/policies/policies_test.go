// Package policies relays mail to hosts that DANE and MTA-STS speak of, by the
// real services, a signed zone that Debian's unbound validates, and a policy
// host that is asked by HTTPS: what must be relayed is, every downgrade fails
// closed with its code, and the domains get their reports (RFC 8460).
package policies

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

const deadline = 60 * time.Second

func TestMain(m *testing.M) { world.Main(m) }

// stage is a world with a signed zone and a policy host.
type stage struct {
	*world.World
	t       *testing.T
	zone    signedZone
	public  *smtptest.Authority // that postrider trusts
	private *smtptest.Authority // that only TLSA records vouch for

	policyIP string

	mu       sync.Mutex
	policies map[string]string      // guarded by mu; by domain
	forged   map[string]bool        // guarded by mu; the policy host of a domain has a certificate that nobody trusts
	posted   map[string][]tlsReport // guarded by mu; by domain
}

func begin(t *testing.T) *stage {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("policy hosts are at port 443, which wants root")
	}
	s := &stage{t: t, policies: map[string]string{}, forged: map[string]bool{}, posted: map[string][]tlsReport{}}
	s.zone.dir, s.zone.forged = t.TempDir(), map[string]string{}
	var err error
	if s.public, err = smtptest.NewAuthority(); err != nil {
		t.Fatal(err)
	}
	if s.private, err = smtptest.NewAuthority(); err != nil {
		t.Fatal(err)
	}
	if s.zone.address, err = freePort(); err != nil {
		t.Fatal(err)
	}
	roots := filepath.Join(s.zone.dir, "authority.pem")
	if err := os.WriteFile(roots, s.public.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	s.publishKey()
	s.World = world.Start(t, world.Options{Env: map[string]string{
		"POSTRIDER_DNS_SERVERS":          s.zone.address,
		"POSTRIDER_DNS_TRUST_AD":         "true",
		"POSTRIDER_TLS_CA_FILE":          roots,
		"POSTRIDER_TLSRPT_CONTACT":       "tls@postrider.test",
		"POSTRIDER_TLSRPT_ORGANIZATION":  "Postrider",
		"POSTRIDER_TLSRPT_DKIM_KEY_FILE": filepath.Join(s.zone.dir, "dkim.pem"),
		"POSTRIDER_TLSRPT_DKIM_SELECTOR": "tls",
		"POSTRIDER_RETRY_SCHEDULE":       "1s,1s,2s",
		"POSTRIDER_TLS_PLAINTEXT_AFTER":  "500ms",
	}})
	s.policyIP = s.address("mta-sts.test")
	s.listen()
	return s
}

// address gives a name an address of the world's network.
func (s *stage) address(name string) string {
	s.t.Helper()
	address, err := s.Remote(name)
	if err != nil {
		s.t.Fatal(err)
	}
	ip, _, err := net.SplitHostPort(address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.zone.add("%s. 60 IN A %s", name, ip)
	return ip
}

// listen serves policies, and takes reports.
func (s *stage) listen() {
	s.t.Helper()
	l, err := net.Listen("tcp", s.policyIP+":443")
	if err != nil {
		s.t.Fatal(err)
	}
	server := &http.Server{
		Handler:  http.HandlerFunc(s.serveHTTP),
		ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			s.mu.Lock()
			forged := s.forged[strings.TrimPrefix(hello.ServerName, "mta-sts.")]
			s.mu.Unlock()
			if forged {
				return smtptest.SelfSigned(hello.ServerName)
			}
			return s.public.Server(hello.ServerName)
		}},
	}
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(l, "", "") }()
	s.t.Cleanup(func() {
		if err := server.Close(); err != nil {
			s.t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			s.t.Error(err)
		}
	})
}

func (s *stage) serveHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method == http.MethodPost && r.Host == "reports.test" {
		report, err := readReport(r.Body)
		if err != nil || r.Header.Get("Content-Type") != "application/tlsrpt+gzip" {
			s.t.Errorf("a report by HTTPS: %v, %s", err, r.Header.Get("Content-Type"))
		}
		s.posted[report.domain()] = append(s.posted[report.domain()], report)
		w.WriteHeader(http.StatusCreated)
		return
	}
	policy, ok := s.policies[strings.TrimPrefix(r.Host, "mta-sts.")]
	if !ok || r.URL.Path != "/.well-known/mta-sts.txt" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	fmt.Fprint(w, policy)
}

// policy publishes an MTA-STS policy.
func (s *stage) policy(domain, mode, mx string) {
	s.zone.add("_mta-sts.%s. 60 IN TXT \"v=STSv1; id=1;\"", domain)
	s.zone.add("mta-sts.%s. 60 IN A %s", domain, s.policyIP)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.policies[domain] = fmt.Sprintf("version: STSv1\r\nmode: %s\r\nmx: %s\r\nmax_age: 86400\r\n", mode, mx)
}

// host runs a mail exchanger of a domain.
func (s *stage) host(domain string, config *tls.Config, rules ...smtptest.Rule) *smtptest.Server {
	s.t.Helper()
	name := "mx." + domain
	s.zone.add("%s. 60 IN MX 10 %s.", domain, name)
	s.zone.add("_smtp._tls.%s. 60 IN TXT \"v=TLSRPTv1; rua=mailto:tls@reports.test,https://reports.test/v1\"", domain)
	ip := s.address(name)
	return smtptest.Start(s.t, smtptest.Script{Address: net.JoinHostPort(ip, fmt.Sprint(world.RemotePort)), Hostname: name, TLS: config, Rules: rules})
}

func (s *stage) must(config *tls.Config, err error) *tls.Config {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	return config
}

// selfSigned and trusted are certificates of the host of a domain.
func (s *stage) selfSigned(domain string) *tls.Config {
	return s.must(smtptest.SelfSigned("mx." + domain))
}
func (s *stage) trusted(domain string) *tls.Config { return s.must(s.public.Server("mx." + domain)) }

// tlsa publishes a record for the host of a domain, and returns its digest.
func (s *stage) tlsa(domain string, kind string, data []byte) string {
	digest := fmt.Sprintf("%x", sha256.Sum256(data))
	s.zone.add("_%d._tcp.mx.%s. 60 IN TLSA %s %s", world.RemotePort, domain, kind, digest)
	return digest
}

// ee publishes the key of a certificate: DANE-EE(3) SPKI(1) SHA2-256(1).
func (s *stage) ee(domain string, config *tls.Config) string {
	s.t.Helper()
	c, err := x509.ParseCertificate(config.Certificates[0].Certificate[0])
	if err != nil {
		s.t.Fatal(err)
	}
	return s.tlsa(domain, "3 1 1", c.RawSubjectPublicKeyInfo)
}

func (s *stage) send(domain string) string {
	s.t.Helper()
	id, err := submit.Send(s.t.Context(), s.SMTP(0), submit.Message{From: "me@sender.test", To: []string{"you@" + domain}, Content: []byte("Subject: hello\r\n\r\nHello.\r\n")})
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// attempt is the last one at a message.
type attempt struct{ state, status, tls, reply string }

func (s *stage) wait(t *testing.T, id string, want attempt) {
	t.Helper()
	s.Eventually(t, deadline, "an attempt at "+id, func(ctx context.Context) error {
		var a attempt
		if err := s.DB.QueryRow(ctx, `SELECT r.state::text, h.status, h.tls, h.reply
			FROM postrider.recipients r JOIN postrider.history h USING (queue_id)
			WHERE r.queue_id = $1 ORDER BY h.attempt DESC LIMIT 1`, id).Scan(&a.state, &a.status, &a.tls, &a.reply); err != nil {
			return err
		}
		if a.state != want.state || !strings.HasPrefix(a.status, want.status) || (a.tls != "") != (want.tls != "") || !strings.Contains(a.reply, want.reply) {
			return fmt.Errorf("it is %+v, want %+v", a, want)
		}
		return nil
	})
}

// tlsReport is what the tests look at of a report: RFC 8460 §4.4.
type tlsReport struct {
	Organization string `json:"organization-name"`
	Contact      string `json:"contact-info"`
	ID           string `json:"report-id"`
	Policies     []struct {
		Policy struct {
			Type   string   `json:"policy-type"`
			Lines  []string `json:"policy-string"`
			Domain string   `json:"policy-domain"`
		} `json:"policy"`
		Summary struct {
			Succeeded int `json:"total-successful-session-count"`
			Failed    int `json:"total-failure-session-count"`
		} `json:"summary"`
		Failures []struct {
			Type      string `json:"result-type"`
			SendingIP string `json:"sending-mta-ip"`
			Host      string `json:"receiving-mx-hostname"`
			Sessions  int    `json:"failed-session-count"`
		} `json:"failure-details"`
	} `json:"policies"`
}

func readReport(from io.Reader) (r tlsReport, err error) {
	text, err := gzip.NewReader(from)
	if err != nil {
		return r, err
	}
	return r, json.NewDecoder(text).Decode(&r)
}

// domain is the one that a report is for.
func (r tlsReport) domain() string {
	_, after, _ := strings.Cut(r.ID, "_")
	domain, _, _ := strings.Cut(after, "@")
	return domain
}

// fromMail reads the report of a message, and which domain it says it is of.
func fromMail(content []byte) (r tlsReport, domain string, err error) {
	m, err := mail.ReadMessage(bytes.NewReader(content))
	if err != nil {
		return r, "", err
	}
	domain = m.Header.Get("TLS-Report-Domain")
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		return r, domain, err
	}
	for parts := multipart.NewReader(m.Body, params["boundary"]); ; {
		part, err := parts.NextPart()
		if err != nil {
			return r, domain, err
		}
		if part.Header.Get("Content-Type") == "application/tlsrpt+gzip" {
			r, err = readReport(base64.NewDecoder(base64.StdEncoding, part))
			return r, domain, err
		}
	}
}

func (s *stage) authorityOf(a *smtptest.Authority) []byte {
	block, _ := pem.Decode(a.PEM())
	return block.Bytes
}
