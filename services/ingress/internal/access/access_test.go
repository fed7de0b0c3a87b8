package access

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/xdg-go/scram"

	"github.com/postrider/postrider/pkg/auth"
	"github.com/postrider/postrider/pkg/devpg"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil)))
	m.Run()
}

const (
	password = "correct horse"
	maxFails = 3
)

// hash is that of password, made once: it is slow by design.
var hash = sync.OnceValues(func() (string, error) {
	return auth.NewHasher(1).Hash(context.Background(), password)
})

var scramKeys = sync.OnceValues(func() (auth.SCRAMKeys, error) { return auth.NewSCRAMKeys(password) })

// world is a database with a tenant and credentials.
type world struct {
	t      *testing.T
	url    string
	store  *store.Store
	apiKey string
}

var (
	here     = netip.MustParseAddr("192.0.2.1")
	there    = netip.MustParseAddr("198.51.100.7")
	pinned   = Certificate{SHA256: [32]byte{1, 2, 3}}
	byName   = Certificate{SHA256: [32]byte{9}, Names: []string{"Relay.example.com"}}
	byNobody = Certificate{SHA256: [32]byte{8}, Names: []string{"other.example.com"}}
)

func setup(t *testing.T, url string) *world {
	t.Helper()
	w := &world{t: t, url: url}
	w.store = w.open()
	phc, err := hash()
	w.must(err)
	keys, err := scramKeys()
	w.must(err)
	w.must(w.store.CreateTenant(t.Context(), store.Tenant{Name: "acme", Priority: 4}))
	w.must(w.store.AddDomain(t.Context(), store.TenantDomain{Domain: "example.com", Tenant: "acme"}))
	var sum [32]byte
	w.apiKey, sum = auth.NewKey()
	local := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	for _, c := range []store.Credential{
		{Name: "App", Kind: store.PasswordCredential, Password: phc, SCRAM: store.SCRAMKeys(keys)},
		{Name: "plain", Kind: store.PasswordCredential, Password: phc, ReversePaths: []string{"news@example.net"}, FromDomains: []string{"*"}},
		{Name: "disabled", Kind: store.PasswordCredential, Password: phc, SCRAM: store.SCRAMKeys(keys), Disabled: true},
		{Name: "expired", Kind: store.PasswordCredential, Password: phc, SCRAM: store.SCRAMKeys(keys), ExpiresAt: time.Now().Add(-time.Second)},
		{Name: "local", Kind: store.PasswordCredential, Password: phc, SCRAM: store.SCRAMKeys(keys), Networks: local},
		{Name: "key", Kind: store.APIKeyCredential, KeySHA256: sum[:], Networks: local},
		{Name: "pinned", Kind: store.CertificateCredential, Certificate: auth.CertificateName(pinned.SHA256)},
		{Name: "named", Kind: store.CertificateCredential, Certificate: "relay.example.com"},
	} {
		c.Tenant = "acme"
		w.must(w.store.CreateCredential(t.Context(), c))
	}
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// open returns a store of its own, as another process has.
func (w *world) open() *store.Store {
	w.t.Helper()
	s, err := store.Open(w.t.Context(), store.Config{URL: w.url, MaxConns: 4})
	w.must(err)
	w.t.Cleanup(s.Close)
	return s
}

// keeper returns the keeper of another ingress process.
func (w *world) keeper() *Keeper {
	w.t.Helper()
	k, err := New(w.open(), Config{MaxFailures: maxFails, Parallel: 2})
	w.must(err)
	return k
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.url)
	w.must(err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(w.t.Context(), sql, args...)
	w.must(err)
}

// eventually waits until f holds.
func (w *world) eventually(what string, f func() bool) {
	w.t.Helper()
	deadline := time.After(10 * time.Second)
	for !f() {
		select {
		case <-deadline:
			w.t.Fatalf("not within 10 s: %s", what)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// address returns a client that was never seen.
var address = func() func() netip.Addr {
	var n atomic.Uint32
	return func() netip.Addr {
		i := n.Add(1)
		return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	}
}()

func tooMany(err error) bool {
	var e *TooManyError
	return errors.As(err, &e) && e.RetryAfter >= time.Second && e.RetryAfter < time.Hour
}

func TestPassword(t *testing.T) {
	w := setup(t, storetest.New(t))
	k := w.keeper()
	for range 2 { // the second time from memory
		for _, user := range []string{"App", "app", "APP"} {
			id, err := k.Password(t.Context(), here, user, password)
			w.must(err)
			if id.Credential != "App" || id.Tenant != "acme" || id.Method != ByPassword || id.Priority != 4 {
				t.Errorf("%s: %+v", user, id)
			}
		}
	}
	if _, err := k.Password(t.Context(), netip.MustParseAddr("::ffff:192.0.2.9"), "local", password); err != nil {
		t.Errorf("from its own network: %v", err)
	}
	var wg sync.WaitGroup
	for _, c := range []struct{ user, password string }{
		{"app", "wrong"}, {"app", ""}, {"app", password + "\x00"}, {"nobody", password}, {"", password}, {"disabled", password},
		{"expired", password}, {"local", password}, {"key", password}, {"key", w.apiKey}, {"pinned", password}, {"\xff\x00", password},
		{strings.Repeat("x", 5000), password}, {"app\r\n", password}, {"plain", "wrong"},
	} {
		wg.Go(func() {
			id, err := k.Password(t.Context(), address(), c.user, c.password)
			if !errors.Is(err, ErrRefused) || err.Error() != ErrRefused.Error() || id.Tenant != "" || id.MayReversePath("a@example.com") || id.MayReversePath("") {
				t.Errorf("%.20q, %q: %+v, %v", c.user, c.password, id, err)
			}
		})
	}
	wg.Wait()
	// A right password from a place that is not allowed is no way in, also
	// when it is known in memory.
	if _, err := k.Password(t.Context(), there, "local", password); !errors.Is(err, ErrRefused) {
		t.Errorf("from another network: %v", err)
	}
}

// work is what a refusal costs: where the cost is the same, so is the time.
// That of a hash that does not exist is that of one that does, as
// TestNobodyTakesTheSameTime of package auth shows.
type work struct {
	*store.Store
	verifier
	hashes, standings, failures atomic.Int32
}

var errAtOnce = errors.New("failed")

func (w *work) Turn(ctx context.Context) (auth.Turn, error) {
	w.hashes.Add(1)
	return w.verifier.Turn(ctx)
}

func (w *work) Standings(ctx context.Context, keys []string) ([]store.Standing, error) {
	w.standings.Add(int32(len(keys)))
	return w.Store.Standings(ctx, keys)
}

// AuthFailed lets a failure cost no delay.
func (w *work) AuthFailed(_ context.Context, keys []string) ([]float64, error) {
	w.failures.Add(int32(len(keys)))
	return nil, errAtOnce
}

func (w *work) done() [3]int32 {
	return [3]int32{w.hashes.Swap(0), w.standings.Swap(0), w.failures.Swap(0)}
}

func TestNobodyStandsOutByTime(t *testing.T) {
	w := setup(t, storetest.New(t))
	counted := &work{Store: w.store, verifier: auth.NewHasher(1)}
	k, err := New(counted, Config{MaxFailures: 1000, Parallel: 1})
	w.must(err)
	k.known, k.unknown = counted, counted
	for _, method := range []struct {
		name string
		try  func(user, password string) error
		want [3]int32
	}{
		{"password", func(user, password string) error {
			_, err := k.Password(t.Context(), there, user, password)
			return err
		}, [3]int32{1, 6, 2}},
		{"SCRAM", func(user, password string) error { _, err := login(t, k, there, user, password); return err }, [3]int32{0, 6, 2}},
	} {
		for _, c := range []struct{ user, password string }{
			{"app", "wrong"}, {"app", strings.Repeat("x", 900)}, {"plain", "wrong"},
			{"nobody", password}, {"nobody", "wrong"}, {strings.Repeat("x", 255), password},
			{"disabled", password}, {"disabled", "wrong"}, {"expired", password}, {"expired", "wrong"},
			{"local", password}, {"local", "wrong"}, {"key", password}, {"pinned", password},
		} {
			for range 2 { // what was found is known the second time, and so is what was not
				if err := method.try(c.user, c.password); !errors.Is(err, errAtOnce) {
					t.Errorf("%s of %.10s: %v", method.name, c.user, err)
				}
				if did := counted.done(); did != method.want {
					t.Errorf("%s of %.10s, %.10q: hashes, standings and failures %v, want %v", method.name, c.user, c.password, did, method.want)
				}
			}
		}
	}
	expired, sum := auth.NewKey()
	w.must(w.store.CreateCredential(t.Context(), store.Credential{Name: "old", Tenant: "acme", Kind: store.APIKeyCredential, KeySHA256: sum[:], ExpiresAt: time.Now().Add(-time.Second)}))
	nobodys, _ := auth.NewKey()
	for name, key := range map[string]string{"nobody's": nobodys, "expired": expired, "of another network": w.apiKey, "malformed": "pr_x"} {
		if _, err := k.APIKey(t.Context(), there, key); !errors.Is(err, errAtOnce) {
			t.Errorf("key, %s: %v", name, err)
		}
		if did := counted.done(); did != [3]int32{0, 1, 1} {
			t.Errorf("key, %s: hashes, standings and failures %v", name, did)
		}
	}
}

func TestBruteForceIsAnsweredByAll(t *testing.T) {
	w := setup(t, storetest.New(t))
	a, b := w.keeper(), w.keeper()
	began := time.Now()
	for i, k := range []*Keeper{a, b, a} {
		if _, err := k.Password(t.Context(), there, "app", "wrong"); !errors.Is(err, ErrRefused) {
			t.Fatalf("failure %d: %v", i+1, err)
		}
	}
	if took := time.Since(began); took < firstDelay*(1+2+4)*9/10 {
		t.Errorf("three failures took %s, want growing delays", took)
	}
	for _, k := range []*Keeper{a, b} {
		if _, err := k.Password(t.Context(), there, "app", "wrong"); !tooMany(err) {
			t.Errorf("after the limit: %v", err)
		}
		if _, err := k.Password(t.Context(), there, "app", password); !tooMany(err) {
			t.Errorf("after the limit, with the right password: %v", err)
		}
		if _, err := k.Password(t.Context(), there, "nobody", "x"); !tooMany(err) {
			t.Errorf("after the limit, another user: %v", err)
		}
		if _, err := k.APIKey(t.Context(), there, "pr_x"); !tooMany(err) {
			t.Errorf("after the limit, a key: %v", err)
		}
	}
	if _, err := b.Password(t.Context(), here, "app", password); err != nil {
		t.Errorf("from another address: %v", err)
	}
	w.exec("UPDATE postrider.auth_failures SET failed_at = failed_at - interval '1 hour'")
	if _, err := a.Password(t.Context(), there, "app", password); err != nil {
		t.Errorf("an hour later: %v", err)
	}
}

// Strangers who guess at a user do not shut it out where it is known, but
// they get no further.
func TestStrangersDoNotShutOut(t *testing.T) {
	w := setup(t, storetest.New(t))
	if _, err := w.keeper().Password(t.Context(), here, "app", password); err != nil {
		t.Fatal(err)
	}
	k := w.keeper() // without the memory of the first
	var wg sync.WaitGroup
	for range 2 * maxFails {
		wg.Go(func() {
			if _, err := k.Password(t.Context(), address(), "App", address().String()); err == nil {
				t.Error("guessed")
			}
		})
	}
	wg.Wait()
	if _, err := k.Password(t.Context(), address(), "app", password); !tooMany(err) {
		t.Errorf("from a network that is not known: %v", err)
	}
	if _, err := k.Password(t.Context(), here, "app", password); err != nil {
		t.Errorf("from the known network: %v", err)
	}
}

// A flood of passwords to verify does not delay who is known.
func TestKnownClientsDoNotQueue(t *testing.T) {
	w := setup(t, storetest.New(t))
	if _, err := w.keeper().Password(t.Context(), here, "app", password); err != nil {
		t.Fatal(err)
	}
	k := w.keeper()
	unknown := auth.NewHasher(1)
	k.unknown = unknown
	const slow = "$argon2id$v=19$m=65536,t=6,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
	const flood = 4
	var done atomic.Int32
	var wg sync.WaitGroup
	for range flood {
		wg.Go(func() {
			if _, err := unknown.Verify(t.Context(), slow, "x"); err != nil {
				t.Error(err)
			}
			done.Add(1)
		})
	}
	if _, err := k.Password(t.Context(), here, "app", password); err != nil {
		t.Error(err)
	}
	if n := done.Load(); n == flood {
		t.Error("the known client waited for the flood")
	}
	wg.Wait()
}

func TestParallelAttempts(t *testing.T) {
	w := setup(t, storetest.New(t))
	k := w.keeper()
	var in, refused, blocked atomic.Int32
	try := func(client netip.Addr, password func(int) string) {
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				switch _, err := k.Password(t.Context(), client, "app", password(i)); {
				case err == nil:
					in.Add(1)
				case errors.Is(err, ErrRefused):
					refused.Add(1)
				case tooMany(err):
					blocked.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	try(here, func(int) string { return password })
	if in.Load() != 20 {
		t.Errorf("%d of 20 connections of one client got in", in.Load())
	}
	try(there, func(int) string { return "the same wrong one" })
	if refused.Load() != 20 {
		t.Errorf("%d of 20 equal attempts refused, want all, as one failure", refused.Load())
	}
	refused.Store(0)
	try(there, func(i int) string { return strings.Repeat("x", i+1) })
	if refused.Load() > maxFails || refused.Load()+blocked.Load() != 20 {
		t.Errorf("%d guesses refused and %d blocked, want at most %d refused", refused.Load(), blocked.Load(), maxFails)
	}
}

// A right guess behind many wrong ones, all at once, is not heard: who waits
// for a turn is looked at again.
func TestRightGuessAmongMany(t *testing.T) {
	w := setup(t, storetest.New(t))
	for name, guess := range map[string]func(k *Keeper, password string) error{
		"password": func(k *Keeper, password string) error {
			_, err := k.Password(t.Context(), there, "app", password)
			return err
		},
		"SCRAM": func(k *Keeper, password string) error { _, err := login(t, k, there, "app", password); return err },
	} {
		k := w.keeper()
		looks := &looks{accessStore: k.store}
		k.guard.store = looks
		var turns []auth.Turn
		for range cap(k.proofs) { // all are taken
			k.proofs <- struct{}{}
			turn, err := k.unknown.Turn(t.Context())
			w.must(err)
			turns = append(turns, turn)
		}
		var wg sync.WaitGroup
		var in atomic.Int32
		for i := range int32(11) {
			wg.Go(func() {
				word := password
				if i < 10 {
					word = strings.Repeat("x", int(i)+1)
				}
				if err := guess(k, word); err == nil {
					in.Add(1)
				} else if !tooMany(err) && !errors.Is(err, ErrRefused) {
					t.Error(err)
				}
			})
			if i >= 9 {
				w.eventually("they wait for a turn", func() bool { return looks.n.Load() > i })
			}
		}
		for range cap(k.proofs) {
			<-k.proofs
		}
		for _, turn := range turns {
			turn.End()
		}
		wg.Wait()
		if in.Load() > 0 {
			t.Errorf("%s: a right guess got in behind ten wrong ones", name)
		}
		w.exec("DELETE FROM postrider.auth_failures")
	}
}

// looks counts how often guesses were looked at.
type looks struct {
	accessStore
	n atomic.Int32
}

func (l *looks) Standings(ctx context.Context, keys []string) ([]store.Standing, error) {
	defer l.n.Add(1)
	return l.accessStore.Standings(ctx, keys)
}

// A client that tries SCRAM first where its credential has no keys for it, and
// then its password, has guessed nothing: however often it logs in, it is let in
// at once, and so are others at its address.
func TestSCRAMWithoutKeysIsNoGuess(t *testing.T) {
	w := setup(t, storetest.New(t))
	for range 3 * maxFails {
		k := w.keeper() // without what the last one remembers
		if _, err := login(t, k, here, "plain", password); !errors.Is(err, ErrRefused) {
			t.Fatalf("SCRAM without keys: %v", err)
		}
		if id, err := k.Password(t.Context(), here, "plain", password); err != nil || id.Credential != "plain" {
			t.Fatalf("the password then: %+v, %v", id, err)
		}
	}
	standings, err := w.store.Standings(t.Context(), []string{"address 192.0.2.1/32", "user plain"})
	w.must(err)
	for _, s := range standings {
		if s.Score > 0.1 {
			t.Errorf("a score of %v is left", s.Score)
		}
	}
	// Where the user is not known it is a guess as any other.
	k := w.keeper()
	for range maxFails {
		if _, err := login(t, k, there, "plain", password); !errors.Is(err, ErrRefused) {
			t.Fatal(err)
		}
	}
	if _, err := login(t, k, there, "plain", password); !tooMany(err) {
		t.Errorf("guesses without keys from elsewhere: %v", err)
	}
}

// What nobody can use is not offered.
func TestMaySCRAM(t *testing.T) {
	w := setup(t, storetest.New(t))
	k := w.keeper()
	if k.lookForSCRAM(t.Context()); !k.MaySCRAM() {
		t.Error("there are credentials with keys")
	}
	w.exec("UPDATE postrider.credentials SET scram_salt = NULL, scram_iterations = NULL, scram_stored_key = NULL, scram_server_key = NULL WHERE credential <> 'disabled'")
	if k.lookForSCRAM(t.Context()); k.MaySCRAM() {
		t.Error("only a disabled credential has keys")
	}
}

// Letters that only some locales fold do not tell a user from nobody: Kelvin
// sign, dotted capital i, long s.
func TestNobodyStandsOutByLetters(t *testing.T) {
	w := setup(t, storetest.New(t))
	phc, err := hash()
	w.must(err)
	keys, err := scramKeys()
	w.must(err)
	w.must(w.store.CreateCredential(t.Context(), store.Credential{
		Name: "kiosk", Tenant: "acme", Kind: store.PasswordCredential, Password: phc, SCRAM: store.SCRAMKeys(keys)}))
	k := w.keeper()
	salt := func(user string) string {
		e, err := k.SCRAM(address(), Binding{})
		w.must(err)
		reply, _, err := e.Step(t.Context(), "n,,n="+user+",r=abc")
		w.must(err)
		_, rest, _ := strings.Cut(reply, ",s=")
		return rest
	}
	for _, user := range []string{"kiosk", "kiosx"} { // one of them is nobody
		own := salt(user)
		if own != salt(strings.ToUpper(user)) {
			t.Errorf("%s: another salt for capitals", user)
		}
		for _, other := range []string{"\u212a" + user[1:], strings.Replace(user, "i", "\u0130", 1), strings.Replace(user, "s", "\u017f", 1)} {
			if salt(other) == own {
				t.Errorf("%s and %s share a salt", user, other)
			}
		}
	}
	if _, err := k.Password(t.Context(), address(), "\u212aiosk", password); !errors.Is(err, ErrRefused) {
		t.Errorf("the password of kiosk for another name: %v", err)
	}
}

// A change by an operator takes effect within seconds, for new sessions and
// for those that last.
func TestChangesTakeEffect(t *testing.T) {
	w := setup(t, storetest.New(t))
	k := w.keeper()
	id, err := k.Password(t.Context(), here, "app", password)
	w.must(err)
	w.must(w.store.ChangeTenant(t.Context(), "acme", func(tn *store.Tenant) error { tn.Priority = 9; return nil }))
	w.eventually("new priority", func() bool {
		id, err = k.Renew(t.Context(), here, id)
		w.must(err)
		return id.Priority == 9
	})
	other, err := auth.NewHasher(1).Hash(t.Context(), "another")
	w.must(err)
	w.must(w.store.ChangeCredential(t.Context(), "app", func(c *store.Credential) error { c.Password = other; return nil }))
	w.eventually("new password ends the session", func() bool {
		_, err := k.Renew(t.Context(), here, id)
		return errors.Is(err, ErrRefused)
	})
	if _, err := k.Password(t.Context(), here, "app", password); !errors.Is(err, ErrRefused) {
		t.Errorf("old password: %v", err)
	}
	id, err = k.Password(t.Context(), here, "app", "another")
	w.must(err)
	w.must(w.store.DeleteCredential(t.Context(), "app"))
	w.eventually("deleted", func() bool {
		_, err := k.Renew(t.Context(), here, id)
		return errors.Is(err, ErrRefused)
	})
	if id, err := k.Renew(t.Context(), here, Network()); err != nil || !id.MayFrom("x@anywhere.example") {
		t.Errorf("network: %+v, %v", id, err)
	}
}

func TestPostgresAway(t *testing.T) {
	pg := storetest.NewServer(t, devpg.Options{})
	w := setup(t, pg.URL())
	k := w.keeper()
	id, err := k.APIKey(t.Context(), here, w.apiKey)
	w.must(err)
	w.must(k.Take(t.Context(), id, 1, 100))
	w.must(pg.Kill())
	w.eventually("Postgres is away", func() bool { // its backends die a moment later
		return w.store.Ping(t.Context()) != nil && k.store.(*store.Store).Ping(t.Context()) != nil
	})
	temporary := func(err error) bool {
		var many *TooManyError
		var quota *QuotaError
		return err != nil && !errors.Is(err, ErrRefused) && !errors.As(err, &many) && !errors.As(err, &quota)
	}
	fresh, err := New(w.store, Config{MaxFailures: maxFails, Parallel: 1})
	w.must(err)
	exchange, err := fresh.SCRAM(here, Binding{})
	w.must(err)
	for name, call := range map[string]func() error{
		"password":    func() error { _, err := fresh.Password(t.Context(), here, "app", password); return err },
		"key":         func() error { _, err := fresh.APIKey(t.Context(), here, w.apiKey); return err },
		"bad key":     func() error { _, err := fresh.APIKey(t.Context(), here, "pr_x"); return err },
		"certificate": func() error { _, err := fresh.Certificate(t.Context(), here, pinned); return err },
		"renew":       func() error { _, err := fresh.Renew(t.Context(), here, id); return err },
		"take":        func() error { return fresh.Take(t.Context(), id, 1, 1) },
		"flush":       func() error { return k.flush(t.Context()) },
		"scram":       func() error { _, _, err := exchange.Step(t.Context(), "n,,n=app,r=x"); return err },
	} {
		if err := call(); !temporary(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.must(pg.Restart(t.Context()))
	w.eventually("usage is written", func() bool { return k.flush(t.Context()) == nil })
	used, err := w.store.UsageOf(t.Context(), time.Now())
	w.must(err)
	if len(used) != 1 || used[0].Bytes != 100 {
		t.Errorf("used %+v", used)
	}
}

func login(t *testing.T, k *Keeper, client netip.Addr, user, password string) (Identity, error) {
	t.Helper()
	c, err := scram.SHA256.NewClient(user, password, "")
	if err != nil {
		t.Fatal(err)
	}
	conversation := c.NewConversation()
	exchange, err := k.SCRAM(client, Binding{})
	if err != nil {
		t.Fatal(err)
	}
	challenge := ""
	for {
		message, err := conversation.Step(challenge)
		if err != nil {
			t.Fatal(err)
		}
		reply, done, err := exchange.Step(t.Context(), message)
		if err != nil {
			return exchange.Identity(), err
		}
		if done {
			if _, err := conversation.Step(reply); err != nil || !conversation.Valid() {
				t.Fatalf("the server's signature: %v", err)
			}
			return exchange.Identity(), nil
		}
		challenge = reply
	}
}

func TestSCRAM(t *testing.T) {
	w := setup(t, storetest.New(t))
	k := w.keeper()
	id, err := login(t, k, here, "app", password)
	if err != nil || id.Credential != "App" || id.Method != BySCRAM || !id.MayFrom("a@example.com") {
		t.Fatalf("%+v, %v", id, err)
	}
	if _, err := k.Renew(t.Context(), here, id); err != nil {
		t.Errorf("renew: %v", err)
	}
	for _, c := range []struct{ user, password string }{
		{"app", "wrong"}, {"nobody", password}, {"plain", password}, {"disabled", password}, {"key", password},
	} {
		if id, err := login(t, k, address(), c.user, c.password); !errors.Is(err, ErrRefused) || id.Method != "" {
			t.Errorf("%s, %s: %+v, %v", c.user, c.password, id, err)
		}
	}
	for range maxFails - 1 {
		if _, err := login(t, k, there, "nobody", "x"); !errors.Is(err, ErrRefused) {
			t.Fatal(err)
		}
	}
	if _, err := login(t, k, there, "disabled", password); !errors.Is(err, ErrRefused) {
		t.Fatal(err)
	}
	if _, err := login(t, k, there, "app", password); !tooMany(err) {
		t.Errorf("after the limit: %v", err)
	}
	exchange, err := k.SCRAM(address(), Binding{})
	w.must(err)
	if _, _, err := exchange.Step(t.Context(), "hello"); !errors.Is(err, ErrExchange) {
		t.Errorf("malformed: %v", err)
	}
	if _, err := k.SCRAM(here, Binding{Required: true}); err == nil {
		t.Error("channel binding without a channel")
	}
}

// The salt of a user who does not exist is the same for ever, everywhere.
func TestSaltsOfNobody(t *testing.T) {
	w := setup(t, storetest.New(t))
	salt := func(k *Keeper, user string) string {
		e, err := k.SCRAM(address(), Binding{})
		w.must(err)
		reply, _, err := e.Step(t.Context(), "n,,n="+user+",r=abc")
		w.must(err)
		_, rest, _ := strings.Cut(reply, ",s=")
		return rest
	}
	a, b := w.keeper(), w.keeper()
	for _, user := range []string{"nobody", "plain", "app"} {
		if one, other := salt(a, user), salt(b, user); one != other || one == "" {
			t.Errorf("%s: salts %q and %q", user, one, other)
		}
	}
	if salt(a, "nobody") == salt(a, "plain") {
		t.Error("users share a salt")
	}
	if x, y := salt(a, "nobody"), salt(a, "app"); len(x) != len(y) || x[strings.Index(x, ",i="):] != y[strings.Index(y, ",i="):] {
		t.Errorf("nobody %q stands out beside app %q", x, y)
	}
}

func TestKeysAndCertificates(t *testing.T) {
	w := setup(t, storetest.New(t))
	k := w.keeper()
	id, err := k.APIKey(t.Context(), here, w.apiKey)
	if err != nil || id.Credential != "key" || id.Method != ByAPIKey {
		t.Errorf("key: %+v, %v", id, err)
	}
	if _, err := k.Renew(t.Context(), here, id); err != nil {
		t.Errorf("renew: %v", err)
	}
	other, _ := auth.NewKey()
	for _, key := range []string{"", "pr_", other, password} {
		if _, err := k.APIKey(t.Context(), address(), key); !errors.Is(err, ErrRefused) {
			t.Errorf("key %q: %v", key, err)
		}
	}
	if _, err := k.APIKey(t.Context(), there, w.apiKey); !errors.Is(err, ErrRefused) {
		t.Errorf("key from another network: %v", err)
	}
	for name, c := range map[string]Certificate{"pinned": pinned, "named": byName} {
		if id, err := k.Certificate(t.Context(), here, c); err != nil || id.Credential != name || id.Method != ByCertificate {
			t.Errorf("%s: %+v, %v", name, id, err)
		}
	}
	unverified := byName
	unverified.Names = nil
	for _, c := range []Certificate{byNobody, unverified, {}} {
		if _, err := k.Certificate(t.Context(), here, c); !errors.Is(err, ErrRefused) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestWhatAnIdentityMayName(t *testing.T) {
	w := setup(t, storetest.New(t))
	k := w.keeper()
	app, err := k.Password(t.Context(), here, "app", password)
	w.must(err)
	plain, err := k.Password(t.Context(), here, "plain", password)
	w.must(err)
	for _, c := range []struct {
		name string
		id   Identity
		path string
		may  bool
		from bool
	}{
		{"tenant's domain", app, "a@Example.com", true, true},
		{"other domain", app, "a@example.net", false, false},
		{"stated path", plain, "news@example.net", true, true},
		{"tenant's domain, but others stated", plain, "a@example.com", false, true},
		{"network", Network(), "a@anywhere.example", true, true},
		{"null", app, "", true, false},
		{"null of network", Network(), "", true, false},
		{"nobody", Identity{}, "a@example.com", false, false},
		{"null of nobody", Identity{}, "", false, false},
	} {
		if may := c.id.MayReversePath(mail.ReversePath(c.path)); may != c.may {
			t.Errorf("%s: reverse-path %v, want %v", c.name, may, c.may)
		}
		if from := c.id.MayFrom(c.path); from != c.from {
			t.Errorf("%s: From %v, want %v", c.name, from, c.from)
		}
	}
	if text := fmt.Sprintf("%+v", app); strings.Contains(text, "argon2") {
		t.Errorf("a log would show %s", text)
	}
	if app.MayFrom("a@example.com", "b@example.net") || app.MayFrom() {
		t.Error("one of several, or none, is enough")
	}
}
