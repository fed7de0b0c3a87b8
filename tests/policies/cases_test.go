package policies

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/smtptest"
)

// expectation is what becomes of mail for a domain.
type expectation struct {
	name, domain string
	host         *smtptest.Server
	want         attempt
	reported     string // policy type and result type; "" is success without failures
}

// TestPolicies: each line is a domain of its own.
func TestPolicies(t *testing.T) {
	s := begin(t)
	relayed := attempt{state: "relayed", status: "2.", tls: "any"}
	plaintext := attempt{state: "relayed", status: "2."}
	closed := func(status string) attempt { return attempt{state: "queued", status: status} }
	var all []expectation
	expect := func(name, domain string, host *smtptest.Server, want attempt, reported string) {
		all = append(all, expectation{name, domain, host, want, reported})
	}

	config := s.selfSigned("ee.test")
	s.ee("ee.test", config)
	expect("DANE-EE", "ee.test", s.host("ee.test", config), relayed, "tlsa")

	config = s.must(s.private.Server("mx.ta.test"))
	config.Certificates[0].Certificate = append(config.Certificates[0].Certificate, s.authorityOf(s.private))
	s.tlsa("ta.test", "2 0 1", s.authorityOf(s.private))
	expect("DANE-TA", "ta.test", s.host("ta.test", config), relayed, "tlsa")

	config = s.must(s.private.Server("mx.other.test"))
	config.Certificates[0].Certificate = append(config.Certificates[0].Certificate, s.authorityOf(s.private))
	s.tlsa("taname.test", "2 0 1", s.authorityOf(s.private))
	expect("DANE-TA, other name", "taname.test", s.host("taname.test", config), closed("4.7.5"), "tlsa certificate-host-mismatch")

	s.tlsa("wrong.test", "3 1 1", []byte("another key"))
	expect("TLSA of another key", "wrong.test", s.host("wrong.test", s.trusted("wrong.test")), closed("4.7.5"), "tlsa certificate-not-trusted")

	s.tlsa("stripped.test", "3 1 1", []byte("a key"))
	expect("TLSA, and STARTTLS is stripped", "stripped.test", s.host("stripped.test", nil), closed("4.7.4"), "tlsa starttls-not-supported")

	config = s.selfSigned("refuses.test")
	s.ee("refuses.test", config)
	expect("TLSA, and STARTTLS is refused", "refuses.test",
		s.host("refuses.test", config, smtptest.Rule{At: smtptest.StartTLS, Do: smtptest.Reply(454, "4.7.0 TLS not available")}),
		closed("4.7.4"), "tlsa starttls-not-supported")

	config = s.selfSigned("broken.test")
	s.ee("broken.test", config)
	expect("TLSA, and the handshake is broken", "broken.test",
		s.host("broken.test", config, smtptest.Rule{At: smtptest.Handshake, Do: smtptest.Drop()}), closed("4.7.5"), "tlsa validation-failure")

	config = s.selfSigned("bogus.test")
	digest := s.tlsa("bogus.test", "3 1 1", []byte("the key that the zone's owner signed"))
	s.zone.forged[digest] = s.zone.digestOf(config)
	expect("a TLSA record with a bogus signature", "bogus.test", s.host("bogus.test", config), closed("4.7.5"), "tlsa dnssec-invalid")

	s.zone.forged["10 mx.bogusmx.test."] = "10 mx.ee.test."
	expect("an MX record with a bogus signature", "bogusmx.test", s.host("bogusmx.test", nil), closed("4.4.3"), "nothing")

	ip := s.address("mx.insecurehost.test")
	s.zone.below = append(s.zone.below, "d.insecure.test. 60 IN MX 10 mx.d.insecure.test.", "mx.d.insecure.test. 60 IN A "+ip,
		"_12625._tcp.mx.d.insecure.test. 60 IN TLSA 3 1 1 "+strings.Repeat("00", 32))
	expect("TLSA in a zone that is not signed", "d.insecure.test", smtptest.Start(t, smtptest.Script{Address: ip + ":12625"}), plaintext, "nothing")

	expect("no policy", "plain.test", s.host("plain.test", s.selfSigned("plain.test")), relayed, "no-policy-found")

	s.policy("sts.test", "enforce", "mx.sts.test")
	sts := s.host("sts.test", s.trusted("sts.test"))
	expect("MTA-STS", "sts.test", sts, relayed, "sts")

	s.policy("stsmx.test", "enforce", "mx.elsewhere.test")
	expect("MTA-STS names another host", "stsmx.test", s.host("stsmx.test", s.trusted("stsmx.test")), closed("4.7.5"), "sts validation-failure")

	s.policy("stscert.test", "enforce", "*.stscert.test")
	expect("MTA-STS, certificate of nobody", "stscert.test", s.host("stscert.test", s.selfSigned("stscert.test")), closed("4.7.5"), "sts certificate-not-trusted")

	s.policy("stsname.test", "enforce", "*.stsname.test")
	expect("MTA-STS, certificate of another", "stsname.test", s.host("stsname.test", s.trusted("sts.test")), closed("4.7.5"), "sts certificate-host-mismatch")

	s.policy("stsold.test", "enforce", "mx.stsold.test")
	expect("MTA-STS, certificate of the past", "stsold.test", s.host("stsold.test", s.must(s.public.Expired("mx.stsold.test"))), closed("4.7.5"), "sts certificate-expired")

	s.policy("stsstripped.test", "enforce", "mx.stsstripped.test")
	expect("MTA-STS, and STARTTLS is stripped", "stsstripped.test", s.host("stsstripped.test", nil), closed("4.7.4"), "sts starttls-not-supported")

	s.policy("testing.test", "testing", "mx.testing.test")
	expect("MTA-STS in testing, certificate of nobody", "testing.test", s.host("testing.test", s.selfSigned("testing.test")), relayed, "sts certificate-not-trusted")

	s.policy("testingmx.test", "testing", "mx.elsewhere.test")
	expect("MTA-STS in testing, another host", "testingmx.test", s.host("testingmx.test", s.trusted("testingmx.test")), relayed, "sts validation-failure")

	s.policy("testingplain.test", "testing", "mx.testingplain.test")
	expect("MTA-STS in testing, no STARTTLS", "testingplain.test", s.host("testingplain.test", nil), plaintext, "sts starttls-not-supported")

	s.policy("forged.test", "enforce", "mx.elsewhere.test")
	s.forged["forged.test"] = true
	expect("a policy host that nobody vouches for", "forged.test", s.host("forged.test", s.selfSigned("forged.test")), relayed, "sts sts-webpki-invalid")

	config = s.selfSigned("both.test")
	s.ee("both.test", config)
	s.policy("both.test", "enforce", "mx.elsewhere.test")
	expect("DANE before MTA-STS: it suffices", "both.test", s.host("both.test", config), relayed, "tlsa")

	s.tlsa("neither.test", "3 1 1", []byte("another key"))
	s.policy("neither.test", "enforce", "mx.neither.test")
	expect("DANE before MTA-STS: it is a must", "neither.test", s.host("neither.test", s.trusted("neither.test")), closed("4.7.5"), "tlsa certificate-not-trusted")

	// KumoMTA#484: one domain's policy must not stop others at the same host.
	s.policy("shared.test", "enforce", "mx.elsewhere.test")
	s.zone.add("shared.test. 60 IN MX 10 mx.sts.test.")
	expect("a policy that forbids a host others use", "shared.test", nil, closed("4.7.5"), "nothing")

	s.policy("cached.test", "enforce", "mx.cached.test")
	cached := s.host("cached.test", s.trusted("cached.test"))
	expect("a policy that is kept", "cached.test", cached, relayed, "sts")

	// Where the reports go, all TLS is broken.
	reports := s.host("reports.test", s.selfSigned("reports.test"))
	s.tlsa("reports.test", "3 1 1", []byte("another key"))
	s.zone.add("reports.test. 60 IN A %s", s.policyIP)
	expect("mail for people where reports go", "reports.test", nil, closed("4.7.5"), "tlsa certificate-not-trusted")

	s.zone.serve(t)
	ids := map[string]string{}
	for _, e := range all {
		ids[e.domain] = s.send(e.domain)
	}
	for _, e := range all {
		t.Run(e.name, func(t *testing.T) {
			s.wait(t, ids[e.domain], e.want)
			if e.host == nil {
				return
			}
			if e.want.state == "queued" && len(e.host.Transactions()) > 0 {
				t.Errorf("%s: the host was told of the mail: %+v", e.domain, e.host.Transactions())
			}
		})
	}
	t.Run("TLSA before plaintext at a host that is remembered as broken", func(t *testing.T) { s.rememberedBroken(t, all) })
	t.Run("policy host away, policy kept", func(t *testing.T) { s.downgradeCached(t, cached) })
	t.Run("reports", func(t *testing.T) { s.reports(t, all, reports) })
}

// rememberedBroken: broken-TLS memory never overrides a policy.
func (s *stage) rememberedBroken(t *testing.T, all []expectation) {
	for _, domain := range []string{"ee.test", "sts.test"} {
		i := slices.IndexFunc(all, func(e expectation) bool { return e.domain == domain })
		host := all[i].host
		if _, err := s.DB.Exec(t.Context(), `INSERT INTO postrider.broken_tls (address, port, host, fault, evidence, until)
			VALUES ($1, $2, $3, 'starttls', 'EOF', now() + interval '1 day')`, host.Addr().Addr(), host.Addr().Port(), "mx."+domain); err != nil {
			t.Fatal(err)
		}
	}
	s.restart(t)
	for _, domain := range []string{"ee.test", "sts.test"} {
		s.wait(t, s.send(domain), attempt{state: "relayed", status: "2.", tls: "any"})
	}
}

// restart has resolver and delivery forget what they have in memory.
func (s *stage) restart(t *testing.T) {
	t.Helper()
	for _, name := range []string{"delivery", "resolver"} {
		service := s.Service(name, 0)
		if err := service.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := service.Start(); err != nil {
			t.Fatal(err)
		}
		if err := service.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// downgradeCached: who blocks the policy host and strips STARTTLS does not
// get the mail of a domain whose policy is kept.
func (s *stage) downgradeCached(t *testing.T, host *smtptest.Server) {
	s.mu.Lock()
	delete(s.policies, "cached.test")
	s.mu.Unlock()
	// The TXT record has another id than the policy that is kept.
	if _, err := s.DB.Exec(t.Context(), `UPDATE postrider.sts_policies SET id = 'before' WHERE domain = 'cached.test'`); err != nil {
		t.Fatal(err)
	}
	had := len(host.Transactions())
	s.restart(t)
	host.SetRules(smtptest.Rule{At: smtptest.Hello, Do: smtptest.Offer("PIPELINING")})
	s.wait(t, s.send("cached.test"), attempt{state: "queued", status: "4.7.4"})
	if n := len(host.Transactions()); n != had {
		t.Errorf("the host was told of the mail: %d transactions, want %d", n, had)
	}
}

// reports lets the day pass and looks at what the domains are told, by mail
// and by HTTPS.
func (s *stage) reports(t *testing.T, all []expectation, host *smtptest.Server) {
	wants := map[string]string{}
	for _, e := range all {
		if e.reported != "nothing" {
			wants[e.domain] = e.reported
		}
	}
	wants["cached.test"] = "sts, sts starttls-not-supported, sts sts-policy-fetch-error"
	s.Eventually(t, deadline, "counts of all domains", func(ctx context.Context) error {
		for domain, want := range wants {
			var kinds int
			if err := s.DB.QueryRow(ctx, `SELECT count(DISTINCT (policy_type, result)) FROM postrider.tls_results WHERE domain = $1`, domain).Scan(&kinds); err != nil {
				return err
			}
			if kinds < len(strings.Split(want, ", ")) {
				return fmt.Errorf("%s has %d kinds of results, want %s", domain, kinds, want)
			}
		}
		return nil
	})
	if _, err := s.DB.Exec(t.Context(), `
		WITH results AS (UPDATE postrider.tls_results SET day = day - 1)
		UPDATE postrider.tls_reports SET day = day - 1, next_at = now()`); err != nil {
		t.Fatal(err)
	}
	host.WaitMessages(t, len(wants), deadline)
	s.Eventually(t, deadline, "all reports sent", func(ctx context.Context) error {
		var open int
		err := s.DB.QueryRow(ctx, `SELECT count(*) FROM postrider.tls_reports WHERE sent_at IS NULL AND day < (now() AT TIME ZONE 'UTC')::date`).Scan(&open)
		if err == nil && open > 0 {
			err = fmt.Errorf("%d are not sent", open)
		}
		return err
	})
	mailed := map[string][]tlsReport{}
	for _, m := range host.Messages() {
		report, domain, err := fromMail(m.Content)
		if err != nil || domain != report.domain() {
			t.Fatalf("a report of %s for %s: %v\n%s", domain, report.domain(), err, m.Content)
		}
		if err := s.verifySignature(t, m.Content); err != nil {
			t.Errorf("the report for %s: %v\n%s", domain, err, m.Content)
		}
		mailed[domain] = append(mailed[domain], report)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for domain, want := range wants {
		for way, got := range map[string][]tlsReport{"mail": mailed[domain], "HTTPS": s.posted[domain]} {
			if len(got) != 1 {
				t.Errorf("%s: %d reports by %s, want 1", domain, len(got), way)
				continue
			}
			if found := summary(got[0]); found != want {
				t.Errorf("%s by %s: reported %q, want %q\n%+v", domain, way, found, want, got[0])
			}
			if r := got[0]; r.Organization != "Postrider" || r.Contact != "tls@postrider.test" {
				t.Errorf("%s: %+v", domain, r)
			}
		}
	}
	for domain := range mailed {
		if wants[domain] == "" {
			t.Errorf("%s got a report and asked for none", domain)
		}
	}
}

// summary names the policies of a report with the results that they had.
func summary(r tlsReport) string {
	var all []string
	for _, p := range r.Policies {
		if p.Summary.Succeeded > 0 {
			all = append(all, p.Policy.Type)
		}
		failed := 0
		for _, f := range p.Failures {
			all = append(all, p.Policy.Type+" "+f.Type)
			failed += f.Sessions
			if f.Host == "" {
				all = append(all, "a failure without its host")
			}
		}
		if failed != p.Summary.Failed || p.Policy.Domain == "" {
			all = append(all, "sums that do not agree")
		}
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), ", ")
}
