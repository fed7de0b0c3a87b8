package delivery

import (
	"errors"
	"testing"

	"github.com/postrider/postrider/pkg/mail"
)

// TestDemands: what a job asks of a host, by what operators, the domain and
// the sender say.
func TestDemands(t *testing.T) {
	record := []mail.TLSA{{Usage: 3, Selector: 1, Matching: 1, Data: []byte("digest")}}
	plain := mail.Host{Name: "mx.test"}
	usable := mail.Host{Name: "mx.test", DANE: mail.DANEUsable, TLSA: record}
	unusable := mail.Host{Name: "mx.test", DANE: mail.DANEUnusable}
	unknown := mail.Host{Name: "mx.test", DANE: mail.DANEUnknown}
	outside := mail.Host{Name: "mx.test", OutsideSTS: true}
	enforce, testing := mail.Route{STS: mail.STSEnforce}, mail.Route{STS: mail.STSTesting}
	level := func(l mail.TLSLevel, r mail.Route) mail.Route { r.TLS = l; return r }
	secure := mail.Route{SecureMX: true}
	smart := mail.Route{SmartHost: true}
	require := mail.Message{Envelope: mail.Envelope{RequireTLS: true}}
	optional := mail.Message{TLSOptional: true}
	for _, c := range []struct {
		name    string
		route   mail.Route
		host    mail.Host
		message mail.Message
		want    mail.TLSLevel
		refused error
	}{
		{"nothing said", mail.Route{}, plain, mail.Message{}, mail.TLSMay, nil},
		{"operator", level(mail.TLSEncrypt, mail.Route{}), plain, mail.Message{}, mail.TLSEncrypt, nil},
		{"operator wants none", level(mail.TLSNone, enforce), usable, mail.Message{}, mail.TLSNone, nil},
		{"an unknown word is the strictest", level("future", mail.Route{}), plain, mail.Message{}, "future", errNoTLSA},
		{"DANE", mail.Route{}, usable, mail.Message{}, mail.TLSDANE, nil},
		{"DANE before MTA-STS", enforce, mail.Host{Name: "mx.test", DANE: mail.DANEUsable, TLSA: record, OutsideSTS: true}, mail.Message{}, mail.TLSDANE, nil},
		{"DANE authenticates where verify is asked for", level(mail.TLSVerify, mail.Route{}), usable, mail.Message{}, mail.TLSDANE, nil},
		{"unusable records", mail.Route{}, unusable, mail.Message{}, mail.TLSEncrypt, nil},
		{"unusable records and MTA-STS", enforce, unusable, mail.Message{}, mail.TLSVerify, nil},
		{"records unknown", mail.Route{}, unknown, mail.Message{}, mail.TLSMay, errTLSAUnknown},
		{"a word of DANE unknown", mail.Route{}, mail.Host{DANE: "future"}, mail.Message{}, mail.TLSMay, errTLSAUnknown},
		{"DANE demanded, none there", level(mail.TLSDANE, mail.Route{}), plain, mail.Message{}, mail.TLSDANE, errNoTLSA},
		{"enforce", enforce, plain, mail.Message{}, mail.TLSVerify, nil},
		{"enforce, another host", enforce, outside, mail.Message{}, mail.TLSMay, errOutsideSTS},
		{"testing stops nothing", testing, outside, mail.Message{}, mail.TLSMay, nil},
		{"a mode unknown is enforce", mail.Route{STS: "future"}, plain, mail.Message{}, mail.TLSVerify, nil},
		{"TLS-Required: No before MTA-STS", enforce, outside, optional, mail.TLSMay, nil},
		{"TLS-Required: No before DANE", mail.Route{}, unknown, optional, mail.TLSMay, nil},
		{"TLS-Required: No, but operators want more", level(mail.TLSVerify, enforce), outside, optional, mail.TLSVerify, nil},
		{"REQUIRETLS, nobody vouches", mail.Route{}, plain, require, mail.TLSVerify, errNoRequireTLS},
		{"REQUIRETLS, DNSSEC", secure, plain, require, mail.TLSVerify, nil},
		{"REQUIRETLS, DANE", secure, usable, require, mail.TLSDANE, nil},
		{"REQUIRETLS, MTA-STS", enforce, plain, require, mail.TLSVerify, nil},
		{"REQUIRETLS, MTA-STS in testing", testing, plain, require, mail.TLSVerify, nil},
		{"REQUIRETLS, outside MTA-STS in testing", testing, outside, require, mail.TLSVerify, errNoRequireTLS},
		{"REQUIRETLS, smart host", smart, plain, require, mail.TLSVerify, nil},
		{"REQUIRETLS, operator wants none", level(mail.TLSNone, secure), plain, require, mail.TLSVerify, nil},
		{"REQUIRETLS is above TLS-Required: No", enforce, outside, mail.Message{TLSOptional: true, Envelope: mail.Envelope{RequireTLS: true}}, mail.TLSMay, errOutsideSTS},
	} {
		d := demandOf(&mail.DeliveryRequest{Message: c.message, Route: &c.route}, c.host)
		if d.level != c.want || !errors.Is(d.refused, c.refused) || (d.refused == nil) != (c.refused == nil) {
			t.Errorf("%s: got %s, %v; want %s, %v", c.name, d.level, d.refused, c.want, c.refused)
		}
		if d.refused == nil && (len(d.records) > 0) != (d.level == mail.TLSDANE) {
			t.Errorf("%s: level %s with records %v", c.name, d.level, d.records)
		}
	}
}

// TestConnectionsAreNotSharedAcrossDemands: recipients with different TLS
// policy never share a connection, whatever hosts they share.
func TestConnectionsAreNotSharedAcrossDemands(t *testing.T) {
	one := []mail.TLSA{{Usage: 3, Selector: 1, Matching: 1, Data: []byte{1}}}
	two := []mail.TLSA{{Usage: 3, Selector: 1, Matching: 1, Data: []byte{2}}}
	all := []demand{
		{level: mail.TLSMay}, {level: mail.TLSEncrypt}, {level: mail.TLSVerify}, {level: mail.TLSDANE, records: one}, {level: mail.TLSDANE, records: two},
		{level: mail.TLSDANE, records: one, names: []string{"a.test"}}, {level: mail.TLSDANE, records: one, names: []string{"b.test"}},
	}
	for i, a := range all {
		for j, b := range all {
			if a.equals(b) != (i == j) {
				t.Errorf("%+v and %+v: %v", a, b, i != j)
			}
		}
	}
	if bad := (demand{refused: errNoTLSA}); bad.equals(bad) {
		t.Error("a host that must not be used is used")
	}
}
