package smtpd

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/auth"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/ingress/internal/access"
	"github.com/postrider/postrider/services/ingress/internal/certs"
)

// fakeAccess holds credentials for a real access.Keeper. All passwords are
// "secret". Package access has the tests with Postgres.
type fakeAccess struct {
	mu      sync.Mutex
	grants  map[string]store.Grant
	revoked bool // guarded by mu: there are no credentials any more
}

func (f *fakeAccess) Grant(_ context.Context, name string) (store.Grant, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if name == "broken" {
		return store.Grant{}, errDown
	}
	g, ok := f.grants[name]
	if !ok || f.revoked {
		return g, store.ErrNotFound
	}
	return g, nil
}

func (f *fakeAccess) GrantOfKey(context.Context, [32]byte) (store.Grant, error) {
	return store.Grant{}, store.ErrNotFound
}

func (f *fakeAccess) GrantOfCertificate(_ context.Context, names []string) (store.Grant, error) {
	if g := f.grants["robot"]; slices.Contains(names, g.Credential.Certificate) {
		return g, nil
	}
	return store.Grant{}, store.ErrNotFound
}

func (f *fakeAccess) Standings(_ context.Context, keys []string) ([]store.Standing, error) {
	standings := make([]store.Standing, len(keys))
	for i, key := range keys {
		if strings.HasPrefix(key, "user locked") {
			standings[i].Score = 1000
		}
	}
	return standings, nil
}

func (f *fakeAccess) AuthFailed(_ context.Context, keys []string) ([]float64, error) {
	return make([]float64, len(keys)), nil
}
func (f *fakeAccess) AuthSucceeded(context.Context, string) error          { return nil }
func (f *fakeAccess) AuthForgiven(context.Context, []string, int) error    { return nil }
func (f *fakeAccess) AnySCRAM(context.Context) (bool, error)               { return true, nil }
func (f *fakeAccess) ForgetAuth(context.Context, time.Time) (int64, error) { return 0, nil }
func (f *fakeAccess) Decoy(context.Context) ([]byte, error)                { return []byte("decoy"), nil }
func (f *fakeAccess) AddUsage(_ context.Context, add []store.Usage) (credentials, tenants []store.Usage, err error) {
	for _, u := range add {
		credentials = append(credentials, u)
		u.Credential = ""
		tenants = append(tenants, u)
	}
	return credentials, tenants, nil
}

// fixtures are made once: hashes are slow on purpose.
var fixtures = sync.OnceValues(func() (map[string]store.Grant, error) {
	hash, err := auth.NewHasher(1).Hash(context.Background(), "secret")
	if err != nil {
		return nil, err
	}
	keys, err := auth.NewSCRAMKeys("secret")
	if err != nil {
		return nil, err
	}
	acme := store.Tenant{Name: "acme", Priority: 10}
	grants := map[string]store.Grant{}
	for _, c := range []store.Credential{
		{Name: "user"},
		{Name: "any", ReversePaths: []string{"*"}},
		{Name: "author", ReversePaths: []string{"*"}, FromDomains: []string{"author@example.com", "*.example.com"}},
		{Name: "quota", Limits: store.Limits{RecipientsPerDay: 1}},
		{Name: "disabled", Disabled: true},
		{Name: "locked"},
	} {
		c.Tenant, c.Kind, c.Password, c.SCRAM = "acme", store.PasswordCredential, hash, store.SCRAMKeys(keys)
		grants[c.Name] = store.Grant{Credential: c, Tenant: acme, Domains: []string{"example.com"}}
	}
	grants["robot"] = store.Grant{
		Credential: store.Credential{Name: "robot", Tenant: "acme", Kind: store.CertificateCredential, Certificate: "robot.example.com"},
		Tenant:     acme, Domains: []string{"example.com"},
	}
	return grants, nil
})

func newAccess(t testing.TB) (*access.Keeper, *fakeAccess) {
	t.Helper()
	grants, err := fixtures()
	if err != nil {
		t.Fatal(err)
	}
	db := &fakeAccess{grants: grants}
	keeper, err := access.New(db, access.Config{MaxFailures: 10, Parallel: 2})
	if err != nil {
		t.Fatal(err)
	}
	return keeper, db
}

var selfSigned = sync.OnceValues(func() (*certs.Holder, error) {
	return certs.Load(certs.Config{SelfSigned: true}, "mx.example")
})

func newCertificates(t testing.TB) *certs.Holder {
	t.Helper()
	h, err := selfSigned()
	if err != nil {
		t.Fatal(err)
	}
	if h == nil {
		t.Fatal(errors.New("no certificate"))
	}
	return h
}

// What the store refuses does not count against a quota, in memory or spooled.
func TestWhatTheStoreRefusesDoesNotCount(t *testing.T) {
	for name, size := range map[string]int{"small": 10, "large": 2 << 20} {
		t.Run(name, func(t *testing.T) {
			keeper, _ := newAccess(t)
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			cfg, down := testConfig(), &fakeStore{}
			cfg.PlaintextAuth = true
			c := startDoor(t, cfg, down, Door{Listener: listener, Submission: true}, Deps{Access: keeper}).client(t)
			c.expect("220")
			c.send("EHLO client.example\r\nAUTH PLAIN " + encoded("\x00quota\x00secret") + "\r\n")
			c.expect("250")
			c.expect("235")
			content := "From: <a@example.com>\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 1+size/72) + ".\r\n"
			for _, try := range []struct {
				err   error
				reply string
			}{{errDown, "451 4.3.0"}, {errDown, "451 4.3.0"}, {nil, "250"}, {nil, "452 4.7.1"}} {
				down.fail(try.err)
				c.send("MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n")
				c.expect("250")
				c.expect("250")
				c.expect("354")
				c.send(content)
				c.expect(try.reply)
			}
		})
	}
}
