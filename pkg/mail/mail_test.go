package mail_test

import (
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

func TestQueueID(t *testing.T) {
	before := time.Now().Add(-time.Millisecond)
	id := mail.NewQueueID()
	if id.Time().Before(before.Truncate(time.Millisecond)) || id.Time().After(time.Now()) {
		t.Errorf("time of a fresh id is %v", id.Time())
	}
	if back, err := mail.ParseQueueID(id.String()); err != nil || back != id {
		t.Errorf("%v read back as %v, %v", id, back, err)
	}
	if next := mail.NewQueueID(); next.String() <= id.String() {
		t.Errorf("%v came after %v", next, id)
	}
	at := time.UnixMilli(1_700_000_000_123).UTC()
	if first := mail.FirstQueueID(at); !first.Time().Equal(at) || first.IsZero() {
		t.Errorf("bound of %v is %v, whose time is %v", at, first, first.Time())
	}
	for _, bad := range []string{"", "x", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"} {
		if _, err := mail.ParseQueueID(bad); err == nil {
			t.Errorf("%q was read as a queue id", bad)
		}
	}
}

func TestParseDomain(t *testing.T) {
	long := strings.Repeat("a", 63)
	for text, want := range map[string]mail.Domain{
		"Example.ORG":                   "example.org",
		"example.org.":                  "example.org",
		"bücher.example":                "xn--bcher-kva.example",
		"_dmarc.example":                "_dmarc.example",
		"xn--bcher-kva.example":         "xn--bcher-kva.example",
		"[192.0.2.1]":                   "[192.0.2.1]",
		"[IPv6:2001:DB8::1]":            "[ipv6:2001:db8::1]",
		long + ".example":               mail.Domain(long + ".example"),
		long + "a.example":              "",
		"":                              "",
		".":                             "",
		"a..b":                          "",
		"exa mple.org":                  "",
		"example.org\r\nx":              "",
		"a\x00b.example":                "",
		"user@example.org":              "",
		strings.Repeat("a.", 128) + "b": "",
	} {
		got, err := mail.ParseDomain(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("ParseDomain(%q) = %q, %v; want %q", text, got, err, want)
		}
	}
	if !mail.Domain("[192.0.2.1]").IsLiteral() || mail.Domain("example.org").IsLiteral() {
		t.Error("address literals are not told from names")
	}
}

func TestDomainText(t *testing.T) {
	for path, want := range map[string]string{
		"user@Example.org": "Example.org", `"a@b"@example.org`: "example.org", "postmaster": "", "": "",
	} {
		if got := mail.ForwardPath(path).DomainText(); got != want {
			t.Errorf("forward-path %q: domain %q, want %q", path, got, want)
		}
		if got := mail.ReversePath(path).DomainText(); got != want {
			t.Errorf("reverse-path %q: domain %q, want %q", path, got, want)
		}
	}
}

func TestNotify(t *testing.T) { // RFC 3461 §4.1
	const success, failure, delay, never = mail.NotifySuccess, mail.NotifyFailure, mail.NotifyDelay, mail.NotifyNever
	for _, c := range []struct {
		n                       mail.Notify
		text                    string
		success, failure, delay bool
	}{
		{0, "", false, true, true},
		{never, "NEVER", false, false, false},
		{success, "SUCCESS", true, false, false},
		{failure | delay, "FAILURE,DELAY", false, true, true},
		{success | failure, "SUCCESS,FAILURE", true, true, false},
	} {
		if c.n.String() != c.text || c.n.Wants(success) != c.success || c.n.Wants(failure) != c.failure || c.n.Wants(delay) != c.delay {
			t.Errorf("NOTIFY=%s: success %v, failure %v, delay %v", c.n, c.n.Wants(success), c.n.Wants(failure), c.n.Wants(delay))
		}
	}
}

func TestPlanReport(t *testing.T) {
	accepted := time.Now()
	sender := mail.Message{AcceptedAt: accepted, Envelope: mail.Envelope{ReversePath: "a@example.com"}}
	null := mail.Message{AcceptedAt: accepted}
	by := func(by mail.DeliverBy) mail.Message {
		return mail.Message{AcceptedAt: accepted, Envelope: mail.Envelope{ReversePath: "a@example.com", DeliverBy: by}}
	}
	notify := func(n mail.Notify) mail.Pending { return mail.Pending{Recipient: mail.Recipient{Notify: n}} }
	second := mail.Pending{Tries: 1}
	notice := accepted.Add(4 * time.Hour)
	for name, c := range map[string]struct {
		m    mail.Message
		p    mail.Pending
		o    mail.Outcome
		next mail.Promise
		want time.Time
	}{
		"failure":                               {m: sender, o: mail.Outcome{Action: mail.Failed}, want: accepted},
		"expiry":                                {m: sender, o: mail.Outcome{Action: mail.Expired}, want: accepted},
		"failure, NOTIFY=NEVER":                 {m: sender, p: notify(mail.NotifyNever), o: mail.Outcome{Action: mail.Failed}},
		"failure, NOTIFY=SUCCESS":               {m: sender, p: notify(mail.NotifySuccess), o: mail.Outcome{Action: mail.Failed}},
		"RFC 5321 §4.5.5: null reverse-path":    {m: null, o: mail.Outcome{Action: mail.Failed}},
		"relayed":                               {m: sender, o: mail.Outcome{Action: mail.Relayed}},
		"relayed, NOTIFY=SUCCESS":               {m: sender, p: notify(mail.NotifySuccess), o: mail.Outcome{Action: mail.Relayed}, want: accepted},
		"RFC 3461 §5.2.2: handed on":            {m: sender, p: notify(mail.NotifySuccess), o: mail.Outcome{Action: mail.Relayed}, next: mail.Promise{DSN: true}},
		"first delay":                           {m: sender, o: mail.Outcome{Action: mail.Delayed}, want: notice},
		"second delay":                          {m: sender, p: second, o: mail.Outcome{Action: mail.Delayed}},
		"delay without an attempt":              {m: sender, o: mail.Outcome{Action: mail.Delayed, Untried: true}},
		"delay, NOTIFY=FAILURE":                 {m: sender, p: notify(mail.NotifyFailure), o: mail.Outcome{Action: mail.Delayed}},
		"cancelled":                             {m: sender, o: mail.Outcome{Action: mail.Cancelled}},
		"RFC 2852 §4: N has its own time":       {m: by(mail.DeliverBy{At: notice}), o: mail.Outcome{Action: mail.Delayed}},
		"RFC 2852 §4: R has not":                {m: by(mail.DeliverBy{At: notice, Return: true}), o: mail.Outcome{Action: mail.Delayed}, want: notice},
		"RFC 2852 §4.1.4: N, handed on":         {m: by(mail.DeliverBy{At: notice}), o: mail.Outcome{Action: mail.Relayed}, next: mail.Promise{DeliverBy: true}},
		"RFC 2852 §4.1.4: N, to a host without": {m: by(mail.DeliverBy{At: notice}), o: mail.Outcome{Action: mail.Relayed}, next: mail.Promise{DSN: true}, want: accepted},
		"RFC 2852 §4.1.4: N, NEVER":             {m: by(mail.DeliverBy{At: notice}), p: notify(mail.NotifyNever), o: mail.Outcome{Action: mail.Relayed}},
		"RFC 2852 §4: a trace":                  {m: by(mail.DeliverBy{At: notice, Trace: true}), o: mail.Outcome{Action: mail.Relayed}, next: mail.Promise{DSN: true, DeliverBy: true}, want: accepted},
		"RFC 2852 §4: a trace, NEVER":           {m: by(mail.DeliverBy{At: notice, Trace: true}), p: notify(mail.NotifyNever), o: mail.Outcome{Action: mail.Relayed}},
	} {
		c.o.PlanReport(c.m, c.p, 4*time.Hour, c.next)
		if !c.o.ReportAt.Equal(c.want) {
			t.Errorf("%s: report at %v, want %v", name, c.o.ReportAt, c.want)
		}
	}
}

func TestReply(t *testing.T) {
	r := mail.Reply{Code: 550, Enhanced: mail.EnhancedCode{Class: 5, Subject: 1, Detail: 1}, Lines: []string{"no such", "user"}}
	if r.String() != "550 5.1.1 no such user" || !r.Permanent() || r.Transient() || r.Positive() {
		t.Errorf("reply %q", r)
	}
	if s := (mail.Reply{Code: 250}).String(); s != "250" {
		t.Errorf("reply %q", s)
	}
}

func TestSlot(t *testing.T) {
	// A slot is stored: it must never change for a site.
	for site, want := range map[mail.Site]int16{"": 5, "mx.example.org": 44, "(alt1|alt2)?.aspmx.l.google.com": 13} {
		if got := site.Slot(); got != want {
			t.Errorf("slot of %q is %d, want %d", site, got, want)
		}
	}
}

func TestSitesOfAProviderAreToldByItsName(t *testing.T) {
	set := mail.Site("(mx1|mx2).big.test")
	site := set.OfProvider("big")
	if site != "provider:big/(mx1|mx2).big.test" || site.Group() != "provider:big" || site.Provider() != "big" || set.Provider() != "" || set.Group() != set {
		t.Errorf("%q is of %q, %q", site, site.Group(), site.Provider())
	}
	if other := mail.Site("mx.else.test").OfProvider("big"); other.Slot() != site.Slot() || site.Slot() != mail.Site("provider:big").Slot() {
		t.Errorf("sites of one provider live in slots %d and %d", site.Slot(), other.Slot())
	}
	for _, c := range []struct {
		site, named mail.Site
		want        bool
	}{
		{site, site, true}, {site, "provider:big", true}, {site, set, false}, {site, "provider:bi", false}, {site, "provider:bigger", false},
		{set, set, true}, {set, "provider:big", false}, {"provider:big", site, false}, {"a", "", false},
	} {
		if got := c.site.Within(c.named); got != c.want {
			t.Errorf("%q within %q: %v", c.site, c.named, got)
		}
		m := mail.Measure{Kind: mail.MeasureSuspend, Site: c.named, Source: "one"}
		if got := m.Covers(mail.Traffic{Site: c.site, Source: "one"}); got != (c.want || c.named == "") {
			t.Errorf("a measure about %q covers %q: %v", c.named, c.site, got)
		}
	}
}
