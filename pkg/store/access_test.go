package store_test

import (
	"bytes"
	"errors"
	"math"
	"net/netip"
	"net/url"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

func (f *fixture) tenant(t *testing.T, name string) {
	t.Helper()
	if err := f.CreateTenant(t.Context(), store.Tenant{Name: name}); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantError(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("err = %v, want %v", err, want)
	}
}

func TestTenants(t *testing.T) {
	f := setup(t)
	acme := store.Tenant{Name: "acme", Priority: 3, Limits: store.Limits{MessagesPerSecond: 2.5, RecipientsPerDay: 1000, BytesPerDay: 1 << 40}}
	must(t, f.CreateTenant(t.Context(), acme))
	f.tenant(t, "zeta")
	wantError(t, f.CreateTenant(t.Context(), acme), store.ErrExists)
	if err := f.CreateTenant(t.Context(), store.Tenant{Name: "Not a name"}); err == nil {
		t.Error("a tenant with spaces in its name was made")
	}
	until := time.Now().Add(time.Hour).Truncate(time.Microsecond)
	must(t, f.ChangeTenant(t.Context(), "acme", func(tn *store.Tenant) error {
		if tn.Limits != acme.Limits || tn.Priority != 3 || tn.Suspended(time.Now()) {
			t.Errorf("read %+v, want %+v", tn, acme)
		}
		tn.Limits.BytesPerDay, tn.SuspendedUntil, tn.SuspendReason = 7, until, "spam run"
		return nil
	}))
	all, err := f.Tenants(t.Context())
	must(t, err)
	if len(all) != 2 || all[0].Name != "acme" || all[0].Limits.BytesPerDay != 7 || !all[0].SuspendedUntil.Equal(until) ||
		all[0].SuspendReason != "spam run" || !all[0].Suspended(time.Now()) || all[0].CreatedAt.IsZero() || all[1].Name != "zeta" {
		t.Errorf("tenants %+v", all)
	}
	no := errors.New("no")
	wantError(t, f.ChangeTenant(t.Context(), "acme", func(tn *store.Tenant) error { tn.Priority = 9; return no }), no)
	if p := one[int](t, f, "SELECT priority FROM tenants WHERE tenant = 'acme'"); p != 3 {
		t.Errorf("priority %d after a change that failed", p)
	}
	wantError(t, f.ChangeTenant(t.Context(), "none", func(*store.Tenant) error { return nil }), store.ErrNotFound)
	wantError(t, f.DeleteTenant(t.Context(), "none", false), store.ErrNotFound)
	must(t, f.DeleteTenant(t.Context(), "zeta", false))
}

func TestDomains(t *testing.T) {
	f := setup(t)
	f.tenant(t, "acme")
	f.tenant(t, "zeta")
	must(t, f.AddDomain(t.Context(), store.TenantDomain{Domain: "example.com", Tenant: "acme"}))
	must(t, f.AddDomain(t.Context(), store.TenantDomain{Domain: "*.example.com", Tenant: "acme"}))
	wantError(t, f.AddDomain(t.Context(), store.TenantDomain{Domain: "example.com", Tenant: "zeta"}), store.ErrExists)
	wantError(t, f.AddDomain(t.Context(), store.TenantDomain{Domain: "example.net", Tenant: "none"}), store.ErrNotFound)
	for tenant, want := range map[string]int{"": 2, "acme": 2, "zeta": 0} {
		found, err := f.Domains(t.Context(), tenant)
		must(t, err)
		if len(found) != want {
			t.Errorf("%d domains of %q, want %d", len(found), tenant, want)
		}
	}
	wantError(t, f.DeleteTenant(t.Context(), "acme", false), store.ErrInUse)
	must(t, f.DeleteDomain(t.Context(), "example.com"))
	wantError(t, f.DeleteDomain(t.Context(), "example.com"), store.ErrNotFound)
	must(t, f.DeleteTenant(t.Context(), "acme", true))
	if n := one[int](t, f, "SELECT count(*) FROM domains"); n != 0 {
		t.Errorf("%d domains left", n)
	}
}

// credentials returns one of each kind, with everything set.
func credentials() []store.Credential {
	k := bytes.Repeat([]byte{7}, 32)
	return []store.Credential{
		{Name: "App@example.com", Tenant: "acme", Kind: store.PasswordCredential, Password: "$argon2id$...",
			SCRAM:        store.SCRAMKeys{Salt: []byte("salt"), Iterations: 4096, StoredKey: k, ServerKey: k},
			ReversePaths: []string{"example.com"}, FromDomains: []string{"*.example.com"},
			Networks:  []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
			Limits:    store.Limits{MessagesPerSecond: 1, RecipientsPerDay: 2, BytesPerDay: 3},
			ExpiresAt: time.Now().Add(time.Hour).Truncate(time.Microsecond), Disabled: true},
		{Name: "key", Tenant: "acme", Kind: store.APIKeyCredential, KeySHA256: k},
		{Name: "host", Tenant: "acme", Kind: store.CertificateCredential, Certificate: "relay.example.com"},
	}
}

// same reports whether two credentials say the same, but for CreatedAt and
// the way in which nothing is written.
func same(a, b store.Credential) bool {
	if !a.ExpiresAt.Equal(b.ExpiresAt) {
		return false
	}
	for _, c := range []*store.Credential{&a, &b} {
		c.ExpiresAt, c.CreatedAt = time.Time{}, time.Time{}
		c.ReversePaths, c.FromDomains = append([]string{}, c.ReversePaths...), append([]string{}, c.FromDomains...)
		c.Networks = append([]netip.Prefix{}, c.Networks...)
		c.SCRAM.Salt = append([]byte{}, c.SCRAM.Salt...)
	}
	return reflect.DeepEqual(a, b)
}

// public is a credential as everybody who may list them sees it.
func public(c store.Credential) store.Credential {
	c.Password, c.KeySHA256, c.SCRAM = "", nil, store.SCRAMKeys{Iterations: c.SCRAM.Iterations}
	return c
}

func TestCredentials(t *testing.T) {
	f := setup(t)
	f.tenant(t, "acme")
	must(t, f.AddDomain(t.Context(), store.TenantDomain{Domain: "example.com", Tenant: "acme"}))
	want := credentials()
	for _, c := range want {
		must(t, f.CreateCredential(t.Context(), c))
	}
	again := want[0]
	again.Name = "APP@EXAMPLE.COM"
	wantError(t, f.CreateCredential(t.Context(), again), store.ErrExists)
	again.Name, again.Tenant = "other", "none"
	wantError(t, f.CreateCredential(t.Context(), again), store.ErrNotFound)
	wrong := want[1]
	wrong.Name, wrong.Kind = "wrong", store.PasswordCredential
	if err := f.CreateCredential(t.Context(), wrong); err == nil {
		t.Error("a password credential without a password was made")
	}

	found, err := f.Credentials(t.Context(), "acme")
	must(t, err)
	if len(found) != 3 || !same(found[0], public(want[0])) || !same(found[1], public(want[2])) || !same(found[2], public(want[1])) {
		t.Errorf("credentials\n%+v, want\n%+v without their secrets", found, want)
	}
	if other, err := f.Credentials(t.Context(), "zeta"); err != nil || len(other) != 0 {
		t.Errorf("credentials of nobody: %v, %v", other, err)
	}
	f.lookUp(t, want)

	must(t, f.ChangeCredential(t.Context(), "app@EXAMPLE.com", func(c *store.Credential) error {
		c.Disabled, c.SCRAM, c.Networks, c.ExpiresAt = false, store.SCRAMKeys{}, nil, time.Time{}
		return nil
	}))
	g, err := f.Grant(t.Context(), "app@example.com")
	must(t, err)
	if c := g.Credential; c.Disabled || c.SCRAM.Iterations != 0 || len(c.Networks) != 0 || !c.ExpiresAt.IsZero() || c.Name != "App@example.com" {
		t.Errorf("after the change: %+v", c)
	}
	wantError(t, f.ChangeCredential(t.Context(), "none", func(*store.Credential) error { return nil }), store.ErrNotFound)
	must(t, f.DeleteCredential(t.Context(), "KEY"))
	wantError(t, f.DeleteCredential(t.Context(), "key"), store.ErrNotFound)
	must(t, f.DeleteTenant(t.Context(), "acme", true))
	if n := one[int](t, f, "SELECT count(*) FROM credentials"); n != 0 {
		t.Errorf("%d credentials left", n)
	}
}

// lookUp finds every credential in the way of its kind.
func (f *fixture) lookUp(t *testing.T, want []store.Credential) {
	t.Helper()
	g, err := f.Grant(t.Context(), "app@Example.COM")
	must(t, err)
	if !same(g.Credential, want[0]) || g.Tenant.Name != "acme" || !reflect.DeepEqual(g.Domains, []string{"example.com"}) {
		t.Errorf("grant %+v", g)
	}
	g, err = f.GrantOfKey(t.Context(), [32]byte(want[1].KeySHA256))
	if err != nil || g.Credential.Name != "key" {
		t.Errorf("grant of key %+v, %v", g, err)
	}
	g, err = f.GrantOfCertificate(t.Context(), []string{"sha256:00", "other.example.com", "relay.example.com"})
	if err != nil || g.Credential.Name != "host" {
		t.Errorf("grant of certificate %+v, %v", g, err)
	}
	_, err = f.Grant(t.Context(), "nobody")
	wantError(t, err, store.ErrNotFound)
	_, err = f.GrantOfKey(t.Context(), [32]byte{})
	wantError(t, err, store.ErrNotFound)
	_, err = f.GrantOfCertificate(t.Context(), nil)
	wantError(t, err, store.ErrNotFound)
}

func TestAnySCRAM(t *testing.T) {
	f := setup(t)
	f.tenant(t, "acme")
	any := func() bool {
		t.Helper()
		some, err := f.AnySCRAM(t.Context())
		must(t, err)
		return some
	}
	plain := store.Credential{Name: "plain", Tenant: "acme", Kind: store.PasswordCredential, Password: "$argon2id$x"}
	must(t, f.CreateCredential(t.Context(), plain))
	if any() {
		t.Error("a credential without keys is one for SCRAM")
	}
	plain.Name, plain.SCRAM = "keys", store.SCRAMKeys{Salt: make([]byte, 16), Iterations: 65536, StoredKey: make([]byte, 32), ServerKey: make([]byte, 32)}
	must(t, f.CreateCredential(t.Context(), plain))
	if !any() {
		t.Error("a credential with keys is none")
	}
	must(t, f.ChangeCredential(t.Context(), "keys", func(c *store.Credential) error { c.Disabled = true; return nil }))
	if any() {
		t.Error("a disabled credential is one for SCRAM")
	}
}

func TestFailuresAreCountedAndForgotten(t *testing.T) {
	f := setup(t)
	keys := []string{"user app", "address 192.0.2.1/32"}
	var wg sync.WaitGroup
	for range 8 { // in both orders: no two wait for each other
		wg.Go(func() {
			if _, err := f.AuthFailed(t.Context(), keys); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := f.AuthFailed(t.Context(), []string{keys[1], keys[0]}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	scores, err := f.AuthFailed(t.Context(), []string{keys[0], "user other"})
	must(t, err)
	if math.Abs(scores[0]-17) > 0.5 || scores[1] != 1 {
		t.Errorf("scores %v, want 17 and 1", scores)
	}
	f.exec(t, "UPDATE auth_failures SET failed_at = failed_at - $1::interval", 2*store.FailureHalfLife)
	standings, err := f.Standings(t.Context(), []string{"nobody", keys[1], keys[0]})
	must(t, err)
	if standings[0] != (store.Standing{}) || math.Abs(standings[1].Score-4) > 0.2 || math.Abs(standings[2].Score-17.0/4) > 0.2 {
		t.Errorf("after two half-lives: %+v", standings)
	}
	must(t, f.AuthForgiven(t.Context(), []string{keys[0], keys[1], "nobody"}, 3))
	standings, err = f.Standings(t.Context(), []string{"nobody", keys[1], keys[0]})
	must(t, err)
	if standings[0].Score != 0 || math.Abs(standings[1].Score-1) > 0.2 || math.Abs(standings[2].Score-5.0/4) > 0.2 {
		t.Errorf("after three were forgiven: %+v", standings)
	}
	must(t, f.AuthForgiven(t.Context(), keys, 100))
	if standings, err = f.Standings(t.Context(), keys); err != nil || standings[0].Score != 0 {
		t.Errorf("after more were forgiven than there were: %+v, %v", standings, err)
	}
	must(t, f.AuthSucceeded(t.Context(), keys[0]))
	must(t, f.AuthSucceeded(t.Context(), "client new"))
	standings, err = f.Standings(t.Context(), []string{keys[0], "client new"})
	must(t, err)
	if standings[0].Score != 0 || standings[0].SucceededAt.IsZero() || standings[1].SucceededAt.IsZero() {
		t.Errorf("after success: %+v", standings)
	}
	f.exec(t, "UPDATE auth_failures SET failed_at = failed_at - interval '2 days'")
	if n, err := f.ForgetAuth(t.Context(), time.Now().Add(-time.Hour)); err != nil || n != 2 {
		t.Errorf("forgot %d, %v, want the 2 that never succeeded", n, err)
	}
	if n, err := f.ForgetAuth(t.Context(), time.Now().Add(time.Hour)); err != nil || n != 2 {
		t.Errorf("forgot %d, %v, want the 2 left", n, err)
	}
}

func TestDecoyIsOneForEver(t *testing.T) {
	f := setup(t)
	a, err := f.Decoy(t.Context())
	must(t, err)
	b, err := f.Decoy(t.Context())
	must(t, err)
	if len(a) != 32 || !bytes.Equal(a, b) {
		t.Errorf("decoys %x and %x", a, b)
	}
}

func TestUsage(t *testing.T) {
	f := setup(t)
	day := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	add := []store.Usage{
		{Day: day, Tenant: "acme", Credential: "b", Messages: 1, Recipients: 10, Bytes: 100},
		{Day: day, Tenant: "acme", Credential: "a", Messages: 2, Recipients: 20, Bytes: 200},
		{Day: day, Tenant: "zeta", Credential: "z"},
	}
	credentials, tenants, err := f.AddUsage(t.Context(), add)
	must(t, err)
	if !reflect.DeepEqual(credentials, add) {
		t.Errorf("credentials %+v", credentials)
	}
	if sum := (store.Usage{Day: day, Tenant: "acme", Messages: 3, Recipients: 30, Bytes: 300}); tenants[0] != sum || tenants[1] != sum {
		t.Errorf("tenants %+v, want %+v", tenants, sum)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			mine := []store.Usage{add[i%2], add[1-i%2]}
			if _, _, err := f.AddUsage(t.Context(), mine); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	used, err := f.UsageOf(t.Context(), day.Add(5*time.Hour))
	must(t, err)
	if len(used) != 2 || used[0].Credential != "a" || used[0].Recipients != 9*20 || used[1].Messages != 9 {
		t.Errorf("used %+v", used)
	}
	if _, _, err := f.AddUsage(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// as returns a store whose sessions have a role of the migrations.
func (f *fixture) as(t *testing.T, role string) *store.Store {
	t.Helper()
	u, err := url.Parse(f.db.Config().ConnString())
	must(t, err)
	query := u.Query()
	query.Set("role", role)
	u.RawQuery = query.Encode()
	s, err := store.Open(t.Context(), store.Config{URL: u.String(), MaxConns: 2})
	must(t, err)
	t.Cleanup(s.Close)
	return s
}

// Operators decide who may relay; readers see all of it but what verifies a
// secret.
func TestRolesOfPeople(t *testing.T) {
	f := setup(t)
	operator, reader := f.as(t, "postrider_operator"), f.as(t, "postrider_reader")
	must(t, operator.CreateTenant(t.Context(), store.Tenant{Name: "acme"}))
	must(t, operator.AddDomain(t.Context(), store.TenantDomain{Domain: "example.com", Tenant: "acme"}))
	must(t, operator.CreateCredential(t.Context(), credentials()[0]))
	must(t, operator.ChangeCredential(t.Context(), "app@example.com", func(c *store.Credential) error { c.Disabled = false; return nil }))
	must(t, operator.ChangeTenant(t.Context(), "acme", func(tn *store.Tenant) error { tn.Priority = 1; return nil }))
	_, err := operator.UsageOf(t.Context(), time.Now())
	must(t, err)

	_, err = reader.Tenants(t.Context())
	must(t, err)
	_, err = reader.Domains(t.Context(), "")
	must(t, err)
	if found, err := reader.Credentials(t.Context(), ""); err != nil || len(found) != 1 || found[0].SCRAM.Iterations == 0 {
		t.Errorf("a reader sees %+v, %v; want the credential", found, err)
	}
	if _, err := reader.Grant(t.Context(), "app@example.com"); err == nil {
		t.Error("a reader read secrets")
	}
	must(t, operator.SetSource(t.Context(), store.Source{Name: "one", IPv4: netip.MustParseAddr("192.0.2.1"), Egress: "socks5://user:a@secret@proxy.example:1080"}))
	if all, err := reader.SourceList(t.Context()); err != nil || len(all.Sources) != 1 || all.Sources[0].Egress != "socks5://proxy.example:1080" {
		t.Errorf("a reader sees %+v, %v; want the source without the password of its proxy", all.Sources, err)
	}
	if _, err := reader.Decoy(t.Context()); err == nil {
		t.Error("a reader read the secret of the decoys")
	}
	if err := reader.CreateTenant(t.Context(), store.Tenant{Name: "mine"}); err == nil {
		t.Error("a reader made a tenant")
	}
	must(t, operator.DeleteTenant(t.Context(), "acme", true))
}

// What ingress does, its role may do; and nothing of what it has no business
// with.
func TestRoleOfIngress(t *testing.T) {
	f := setup(t)
	f.tenant(t, "acme")
	must(t, f.CreateCredential(t.Context(), credentials()[1]))
	s := f.as(t, "postrider_ingress")
	for name, call := range map[string]func() error{
		"ping":   func() error { return s.Ping(t.Context()) },
		"accept": func() error { return s.Accept(t.Context(), []*mail.Submission{submission(1)}) },
		"accept with BY": func() error {
			sub := submission(1)
			sub.Envelope.DeliverBy = mail.DeliverBy{At: time.Now().Add(time.Hour)}
			return s.Accept(t.Context(), []*mail.Submission{sub})
		},
		"grant":     func() error { _, err := s.Grant(t.Context(), "key"); return err },
		"standings": func() error { _, err := s.Standings(t.Context(), []string{"x"}); return err },
		"failed":    func() error { _, err := s.AuthFailed(t.Context(), []string{"x"}); return err },
		"succeeded": func() error { return s.AuthSucceeded(t.Context(), "x") },
		"forgiven":  func() error { return s.AuthForgiven(t.Context(), []string{"x"}, 1) },
		"any SCRAM": func() error { _, err := s.AnySCRAM(t.Context()); return err },
		"forget":    func() error { _, err := s.ForgetAuth(t.Context(), time.Now()); return err },
		"decoy":     func() error { _, err := s.Decoy(t.Context()); return err },
		"usage": func() error {
			_, _, err := s.AddUsage(t.Context(), []store.Usage{{Day: time.Now().UTC(), Tenant: "acme", Credential: "key", Messages: 1}})
			return err
		},
	} {
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.CreateTenant(t.Context(), store.Tenant{Name: "mine"}); err == nil {
		t.Error("ingress made a tenant")
	}
	if _, err := s.Queue(t.Context(), store.Filter{}, 1); err == nil {
		t.Error("ingress read the queue")
	}
}
