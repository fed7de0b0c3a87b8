package store_test

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

func TestRuleKeepsAllThatItSays(t *testing.T) {
	f := setup(t)
	must(t, f.SetRelayCredential(t.Context(), store.RelayCredential{Name: "relay", Username: "u@example.net", Secret: "s"}))
	want := store.RoutingRule{
		Match: store.RouteMatch{Domain: "*.example.org", Sender: "a@shop.test", Tenant: "Acme"},
		Hosts: []string{"a.test:587*3+b.test", "c.test"}, TLS: mail.TLSVerify, Credential: "relay", Pool: "warm",
		Fallback: store.Fallback{Hosts: []string{"f.test:25"}, TLS: mail.TLSEncrypt, Tries: 4, After: 90 * time.Minute},
		Hold:     "being moved",
	}
	_, err := f.SetRoute(t.Context(), want)
	must(t, err)
	rules, err := f.Routing(t.Context())
	must(t, err)
	first := rules[0]
	want.Version, want.UpdatedAt = first.Version, first.UpdatedAt
	if len(rules) != 1 || !reflect.DeepEqual(first, want) {
		t.Errorf("got  %+v\nwant %+v", rules, want)
	}
	want.Pool = "cold"
	_, err = f.SetRoute(t.Context(), want)
	must(t, err)
	rules, err = f.Routing(t.Context())
	must(t, err)
	if len(rules) != 1 || rules[0].Pool != "cold" || rules[0].Version <= first.Version {
		t.Errorf("after a change: %+v, want a newer version than %d", rules, first.Version)
	}
}

func TestTLSLevelOfARuleByDefault(t *testing.T) {
	f := setup(t)
	must(t, f.SetRelayCredential(t.Context(), store.RelayCredential{Name: "relay", Username: "u", Secret: "s"}))
	for domain, rule := range map[string]store.RoutingRule{
		"verify.test": {Hosts: []string{"a.test"}, Credential: "relay"},
		"may.test":    {Hosts: []string{"a.test"}},
		"none.test":   {Pool: "warm"},
	} {
		rule.Match.Domain = domain
		_, err := f.SetRoute(t.Context(), rule)
		must(t, err)
	}
	rules, err := f.Routing(t.Context())
	must(t, err)
	for _, r := range rules {
		if want := strings.TrimSuffix(r.Match.Domain, ".test"); want != string(r.TLS) && (want != "none" || r.TLS != "") {
			t.Errorf("%s has TLS %q", r.Match, r.TLS)
		}
	}
}

func TestRulesThatMakeNoSense(t *testing.T) {
	f := setup(t)
	must(t, f.SetRelayCredential(t.Context(), store.RelayCredential{Name: "relay", Username: "u", Secret: "s"}))
	hosts := []string{"a.test:25"}
	for name, rule := range map[string]store.RoutingRule{
		"says nothing":                      {},
		"a credential without verified TLS": {Hosts: hosts, Credential: "relay", TLS: mail.TLSEncrypt},
		"a credential for MX records":       {Credential: "relay", TLS: mail.TLSVerify},
		"a credential that there is not":    {Hosts: hosts, Credential: "other"},
		"a fallback at no time":             {Fallback: store.Fallback{Hosts: hosts}},
		"a time without a fallback":         {Hosts: hosts, Fallback: store.Fallback{Tries: 3}},
		"discarded and sent":                {Hosts: hosts, Discard: "test"},
		"an unknown TLS level":              {Hosts: hosts, TLS: "strict"},
	} {
		rule.Match.Domain = "example.org"
		if _, err := f.SetRoute(t.Context(), rule); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	_, err := f.SetRoute(t.Context(), store.RoutingRule{Match: store.RouteMatch{Domain: "*"}, Hosts: hosts, Credential: "relay"})
	must(t, err)
	if err := f.DeleteRelayCredential(t.Context(), "relay"); !errors.Is(err, store.ErrInUse) {
		t.Errorf("a credential that a rule names: %v", err)
	}
}

// Whatever a rule may concern is looked up again, and nothing else.
func TestRouteAgain(t *testing.T) {
	f := setup(t)
	of := func(sender mail.ReversePath, tenant string, domains ...mail.Domain) *mail.Submission {
		sub := submission(len(domains))
		sub.Envelope.ReversePath, sub.Tenant = sender, tenant
		for i, d := range domains {
			sub.Recipients[i].Domain, sub.Recipients[i].ForwardPath = d, mail.ForwardPath("r@"+string(d))
		}
		return sub
	}
	f.accept(t, of("Bob@Shop.test", "acme", "example.org", "a.example.org", "b.a.example.org", "example.com"),
		of("", "", "example.org"), of("carol@news.shop.test", "", "example.net"))
	for _, c := range []struct {
		match store.RouteMatch
		want  int64
	}{
		{store.RouteMatch{Domain: "*"}, 6},
		{store.RouteMatch{Domain: "example.org"}, 2},
		{store.RouteMatch{Domain: "*.example.org"}, 2},
		{store.RouteMatch{Domain: "*", Sender: "<>"}, 1},
		{store.RouteMatch{Domain: "*", Sender: "bob@shop.test"}, 4},
		{store.RouteMatch{Domain: "*", Sender: "shop.test"}, 4},
		{store.RouteMatch{Domain: "*", Sender: "*.shop.test"}, 1},
		{store.RouteMatch{Domain: "*", Tenant: "acme"}, 4},
		{store.RouteMatch{Domain: "example.org", Tenant: "acme"}, 1},
		{store.RouteMatch{Domain: "example.org", Tenant: "other"}, 0},
	} {
		n, err := f.SetRoute(t.Context(), store.RoutingRule{Match: c.match, Pool: "warm"})
		if err != nil || n != c.want {
			t.Errorf("%s: %d looked up again, %v, want %d", c.match, n, err, c.want)
		}
	}
}

// Two recipients of one domain and site that go under different rules keep
// their routes.
func TestParkedRecipientsKeepTheRouteOfTheirRule(t *testing.T) {
	f := setup(t)
	plain, ruled, other := submission(1), submission(1), submission(1)
	f.accept(t, plain, ruled, other)
	const site = mail.Site("smart.example")
	free, strict, pooled := route(site), route(site), route(site)
	strict.Rule, strict.TLS, strict.Credential = 7, mail.TLSVerify, "relay"
	pooled.Rule, pooled.Pool, pooled.LMTP = 8, "warm", true
	must(t, f.Park(t.Context(), 0, []*mail.DeliveryRequest{request(plain, free), request(ruled, strict), request(other, pooled)}))
	got := f.pull(t, f.worker(t), site, 10)
	if len(got) != 3 {
		t.Fatalf("pulled %d", len(got))
	}
	for _, r := range got {
		want := map[mail.QueueID]*mail.Route{plain.ID: free, ruled.ID: strict, other.ID: pooled}[r.Message.ID]
		if r.Route.Rule != want.Rule || r.Route.TLS != want.TLS || r.Route.Credential != want.Credential || r.Route.Pool != want.Pool || r.Route.LMTP != want.LMTP {
			t.Errorf("rule %d: pulled with %+v", want.Rule, r.Route)
		}
	}
}

func TestHoldUnclaimed(t *testing.T) {
	f := setup(t)
	sub := submission(2)
	f.accept(t, sub)
	hold := func(attempt int32) []store.RecipientRef {
		t.Helper()
		st := mail.Settlement{Message: sub.Message, Transaction: mail.Transaction{StartedAt: time.Now()}}
		for no := int32(1); no <= 2; no++ {
			st.Outcomes = append(st.Outcomes, mail.Outcome{RecipientNo: no, Attempt: attempt, Action: mail.Delayed, Phase: mail.PhaseRoute,
				Untried: true, Reply: mail.Reply{Lines: []string{"held by the rule for example.org: moving"}}})
		}
		released, err := f.HoldUnclaimed(t.Context(), []mail.Settlement{st})
		must(t, err)
		return released
	}
	if released := hold(0); len(released) != 0 {
		t.Fatalf("released before: %v", released)
	}
	if n := one[int](t, f, "SELECT count(*) FROM queue WHERE place = 'held' AND last_reply = 'held by the rule for example.org: moving'"); n != 2 {
		t.Errorf("%d held with the reason, want 2", n)
	}
	hold(0) // a repeated hint
	if n := one[int](t, f, "SELECT count(*) FROM attempts"); n != 1 {
		t.Errorf("%d lines of history, want 1", n)
	}
	if n, err := f.Operate(t.Context(), store.Release, store.Filter{ID: sub.ID}, ""); err != nil || n != 2 {
		t.Fatalf("released %d, %v", n, err)
	}
	released := hold(1)
	if !slices.Contains(released, store.RecipientRef{ID: sub.ID, No: 1}) || len(released) != 2 {
		t.Errorf("released before: %v, want both", released)
	}
	if n := one[int](t, f, "SELECT count(*) FROM recipients WHERE state = 'queued'"); n != 2 {
		t.Errorf("%d are queued, want 2", n)
	}
	f.balanced(t)
}

func TestRelayCredentials(t *testing.T) {
	f := setup(t)
	operator, delivery, reader, resolver := f.as(t, "postrider_operator"), f.as(t, "postrider_delivery"), f.as(t, "postrider_reader"), f.as(t, "postrider_resolver")
	must(t, operator.SetRelayCredential(t.Context(), store.RelayCredential{Name: "relay", Username: "u", Secret: "first"}))
	must(t, operator.SetRelayCredential(t.Context(), store.RelayCredential{Name: "relay", Username: "u2", Secret: "second"}))
	c, err := delivery.RelayCredential(t.Context(), "relay")
	if err != nil || c.Username != "u2" || c.Secret != "second" {
		t.Errorf("credential %+v, %v", c, err)
	}
	if _, err := delivery.RelayCredential(t.Context(), "other"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("no such credential: %v", err)
	}
	list, err := reader.RelayCredentials(t.Context())
	if err != nil || len(list) != 1 || list[0].Username != "u2" || list[0].Secret != "" {
		t.Errorf("list %+v, %v", list, err)
	}
	for name, s := range map[string]*store.Store{"operator": operator, "reader": reader, "resolver": resolver, "scheduler": f.as(t, "postrider_scheduler"),
		"ingress": f.as(t, "postrider_ingress"), "bounce": f.as(t, "postrider_bounce")} {
		if c, err := s.RelayCredential(t.Context(), "relay"); err == nil {
			t.Errorf("%s reads a secret: %+v", name, c)
		}
	}
	_, err = operator.SetRoute(t.Context(), store.RoutingRule{Match: store.RouteMatch{Domain: "*"}, Hosts: []string{"a.test"}, Credential: "relay"})
	must(t, err)
	rules, err := resolver.Routing(t.Context())
	if err != nil || len(rules) != 1 || rules[0].Credential != "relay" {
		t.Errorf("the resolver reads %+v, %v", rules, err)
	}
	_, err = operator.DeleteRoute(t.Context(), store.RouteMatch{Domain: "*"})
	must(t, err)
	must(t, operator.DeleteRelayCredential(t.Context(), "relay"))
	if err := operator.DeleteRelayCredential(t.Context(), "relay"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("second delete: %v", err)
	}
}

// A resolver of the version before 0013 reads and writes the table as it was.
func TestRoutingBefore(t *testing.T) {
	f := setup(t)
	f.exec(t, "SET ROLE postrider_operator")
	f.exec(t, "INSERT INTO routing (domain, hosts, tls) VALUES ('old.test', '{smart.test:25}', 'may')")
	f.exec(t, "RESET ROLE")
	for domain, rule := range map[string]store.RoutingRule{
		"sender.test": {Match: store.RouteMatch{Sender: "a.test"}, Hosts: []string{"x.test:25"}},
		"hold.test":   {Hold: "moving"}, "smtps.test": {Hosts: []string{"smtps://x.test"}}, "pool.test": {Pool: "warm"},
	} {
		rule.Match.Domain = domain
		_, err := f.SetRoute(t.Context(), rule)
		must(t, err)
	}
	if got := one[string](t, f, "SELECT string_agg(domain || ' ' || hosts[1] || ' ' || tls, ', ') FROM routing"); got != "old.test smart.test:25 may" {
		t.Errorf("it reads %s", got)
	}
	f.exec(t, "DELETE FROM routing WHERE domain = 'old.test'")
	if n := one[int](t, f, "SELECT count(*) FROM routing_rules WHERE domain = 'old.test'"); n != 0 {
		t.Error("its delete had no effect")
	}
}

func TestForgetRoutes(t *testing.T) {
	f := setup(t)
	f.exec(t, `INSERT INTO parked_routes VALUES ('a.test', 's', 1, '{}', now() - interval '2 hours'), ('b.test', 's', 0, '{}', now())`)
	if n, err := f.as(t, "postrider_scheduler").ForgetRoutes(t.Context()); err != nil || n != 1 {
		t.Errorf("forgot %d, %v, want 1", n, err)
	}
}
