package postrider

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/auth"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
)

// commandLine runs commands against a database of its own.
type commandLine struct {
	t  *testing.T
	db *store.Store
	in string // standard input of the next command
}

func newCommandLine(t *testing.T) *commandLine {
	t.Helper()
	url := storetest.New(t)
	t.Setenv("POSTRIDER_POSTGRES_URL", url)
	db, err := store.Open(t.Context(), store.Config{URL: url, MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return &commandLine{t: t, db: db}
}

func (l *commandLine) run(args ...string) (string, error) {
	c := newCommand()
	var out bytes.Buffer
	c.SetOut(&out)
	c.SetIn(strings.NewReader(l.in))
	c.SetArgs(args)
	err := c.ExecuteContext(l.t.Context())
	return out.String(), err
}

// ok runs a command line that must work and print all of want.
func (l *commandLine) ok(line string, want ...string) string {
	l.t.Helper()
	out, err := l.run(strings.Fields(line)...)
	if err != nil {
		l.t.Fatalf("%s: %v", line, err)
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			l.t.Errorf("%s: no %q in\n%s", line, w, out)
		}
	}
	return out
}

// fails runs a command line that must fail with a text, and with exit code 2
// if it is the command line that is wrong.
func (l *commandLine) fails(line, want string, usage bool) {
	l.t.Helper()
	_, err := l.run(strings.Fields(strings.ReplaceAll(line, "''", " "))...)
	var wrong usageError
	if err == nil || !strings.Contains(err.Error(), want) || errors.As(err, &wrong) != usage {
		l.t.Errorf("%s: %v (%T), want %q, usage error: %v", line, err, err, want, usage)
	}
}

func (l *commandLine) grant(name string) store.Grant {
	l.t.Helper()
	g, err := l.db.Grant(l.t.Context(), name)
	if err != nil {
		l.t.Fatal(err)
	}
	return g
}

func TestTenantCommands(t *testing.T) {
	l := newCommandLine(t)
	l.ok("tenant add acme --recipients-per-day 1000 --bytes-per-day 2GiB --messages-per-second 2.5 --priority 3",
		"added tenant acme", "2.5 messages/s, 1000 recipients/day, 2 GiB/day")
	l.ok("tenant add zeta", "limits: none")
	l.fails("tenant add acme", "tenant acme exists already", false)
	l.fails("tenant add Acme", `tenant "Acme"`, true)
	l.fails("tenant add x --bytes-per-day lots", "want bytes such as", true)
	l.fails("tenant add x --messages-per-second -1", "0 (no bound) or more", true)
	l.fails("tenant add", "tenant add wants NAME", true)
	l.fails("tenant nonsense", "unknown command", true)
	l.ok("tenant set acme --bytes-per-day 0", "changed tenant acme")
	l.fails("tenant set acme", "nothing to change", true)
	l.fails("tenant set none --priority 1", "there is no tenant none", false)
	l.ok("tenant suspend acme --for 2h --reason spam", "suspended tenant acme for 2h")
	l.fails("tenant suspend acme --for 0s", "longer than zero", true)
	if _, _, err := l.db.AddUsage(t.Context(), []store.Usage{
		{Day: time.Now().UTC(), Tenant: "acme", Credential: "a", Messages: 1, Recipients: 2, Bytes: 2048},
		{Day: time.Now().UTC(), Tenant: "acme", Credential: "b", Messages: 1, Recipients: 2, Bytes: 2048},
	}); err != nil {
		t.Fatal(err)
	}
	l.ok("tenant list", "acme    3         2.5 messages/s, 1000 recipients/day  2 messages, 4 recipients, 4 KiB", "spam", "zeta")
	var lines []tenantLine
	if err := json.Unmarshal([]byte(l.ok("tenant list -o json")), &lines); err != nil {
		t.Fatal(err)
	}
	if len(lines) != 2 || lines[0].Limits.RecipientsPerDay != 1000 || lines[0].SuspendReason != "spam" || lines[0].Today.Bytes != 4096 {
		t.Errorf("JSON %+v", lines)
	}
	l.ok("tenant resume acme", "resumed")
	l.fails("tenant resume acme", "not suspended", false)
	l.ok("domain add example.com --tenant acme")
	l.fails("tenant delete acme", "--all", false)
	l.ok("tenant delete acme --all", "deleted tenant acme")
	l.fails("tenant delete acme", "there is no tenant acme", false)
	l.ok("tenant", "postrider tenant add acme") // the help
}

func TestDomainCommands(t *testing.T) {
	l := newCommandLine(t)
	l.ok("tenant add acme")
	l.ok("domain add Example.COM --tenant acme", "tenant acme may send in the name of example.com")
	l.ok("domain add *.bücher.example --tenant acme", "*.xn--bcher-kva.example")
	l.fails("domain add example.com --tenant acme", "domain example.com exists already", false)
	l.fails("domain add example.net --tenant none", "there is no tenant none", false)
	l.fails("domain add example.net", "--tenant is missing", true)
	for _, wrong := range []string{"*", "user@example.com", "a..b"} {
		l.fails("domain add "+wrong+" --tenant acme", "want example.com or *.example.com", true)
	}
	l.ok("domain list", "example.com", "acme")
	if out := l.ok("domain list --tenant other"); strings.Contains(out, "example") {
		t.Errorf("domains of nobody: %s", out)
	}
	var lines []domainLine
	if err := json.Unmarshal([]byte(l.ok("domain list -o json")), &lines); err != nil || len(lines) != 2 {
		t.Errorf("JSON %+v, %v", lines, err)
	}
	l.ok("domain delete EXAMPLE.com", "deleted domain example.com")
	l.fails("domain delete example.com", "there is no domain example.com", false)
}

func TestPasswordCredential(t *testing.T) {
	l := newCommandLine(t)
	l.ok("tenant add acme")
	hasher := auth.NewHasher(1)
	verifies := func(name, password string) bool {
		t.Helper()
		ok, err := hasher.Verify(t.Context(), l.grant(name).Credential.Password, password)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	out := l.ok("credential add app --tenant acme", "added credential app of tenant acme", "cannot be shown again", "postrider domain add DOMAIN --tenant acme")
	_, rest, _ := strings.Cut(out, "password: ")
	made, _, _ := strings.Cut(rest, "\n")
	if len(made) != 27 || !verifies("app", made) || l.grant("app").Credential.SCRAM.Iterations == 0 {
		t.Errorf("the password that was printed is not the one that is kept: %q", made)
	}
	l.in = "my own\r\nsecond line"
	if out := l.ok("credential add own --tenant acme --password-stdin --no-scram"); strings.Contains(out, "my own") || !verifies("own", "my own") {
		t.Errorf("own password: %s", out)
	}
	if l.grant("own").Credential.SCRAM.Iterations != 0 {
		t.Error("--no-scram keeps SCRAM keys")
	}
	l.in = ""
	l.fails("credential add none --tenant acme --password-stdin", "a password has", false)
	l.fails("credential add x --tenant none", "there is no tenant none", false)
	l.fails("credential add APP --tenant acme", "credential APP exists already", false)
	l.fails("credential add app2 --tenant acme -o xml", "text or json", true)
	l.fails("credential add app2 --tenant acme --api-key --password-stdin", "one of password, API key and certificate", true)
	l.fails("credential add app2", "--tenant is missing", true)

	l.ok("credential set app --reverse-path News@Example.com --reverse-path *.example.net --from * --network 192.0.2.77/24 --network 2001:db8::1"+
		" --expires 90d --recipients-per-day 5", "changed credential app")
	c := l.grant("app").Credential
	if strings.Join(c.ReversePaths, " ") != "News@example.com *.example.net" || strings.Join(c.FromDomains, " ") != "*" || len(c.Networks) != 2 ||
		c.Networks[0].String() != "192.0.2.0/24" || c.Networks[1].String() != "2001:db8::1/128" || c.Limits.RecipientsPerDay != 5 ||
		time.Until(c.ExpiresAt) < 89*24*time.Hour || !verifies("app", made) {
		t.Errorf("after set: %+v", c)
	}
	l.ok("credential list", "own", "active", "expires in 89d23h", "News@example.com *.example.net", "192.0.2.0/24 2001:db8::1/128", "tenant's domains")
	list := l.ok("credential list --tenant acme -o json")
	if strings.Contains(list, "argon2") || strings.Contains(list, made) {
		t.Errorf("a secret is listed: %s", list)
	}
	var lines []credentialLine
	if err := json.Unmarshal([]byte(list), &lines); err != nil || len(lines) != 2 || !lines[0].SCRAM || lines[1].SCRAM {
		t.Errorf("JSON %+v, %v", lines, err)
	}
	if _, err := l.run("credential", "set", "app", "--reverse-path", "", "--network", "", "--expires", "never", "--no-scram"); err != nil {
		t.Error(err)
	}
	if c := l.grant("app").Credential; len(c.ReversePaths)+len(c.Networks)+c.SCRAM.Iterations != 0 || !c.ExpiresAt.IsZero() {
		t.Errorf("after clearing: %+v", c)
	}
	l.ok("credential set app --new-password", "password: ")
	if verifies("app", made) {
		t.Error("the old password is still good")
	}
	for flag, want := range map[string]string{
		"--reverse-path a..b": "label", "--network here": "want 192.0.2.0/24", "--expires soon": "want 2027-01-31", "--new-api-key": "is of kind password",
	} {
		l.fails("credential set app "+flag, want, true)
	}
	l.fails("credential set app", "nothing to change", true)
	l.fails("credential set nobody --expires never", "there is no credential nobody", false)
	l.ok("credential disable App", "disabled credential App")
	if !l.grant("app").Credential.Disabled {
		t.Error("not disabled")
	}
	l.ok("credential list", "disabled")
	l.ok("credential enable app", "enabled credential app")
	l.ok("credential delete app", "deleted credential app")
	l.fails("credential delete app", "there is no credential app", false)
	l.fails("credential disable app", "there is no credential app", false)
}

func TestAPIKeyCredential(t *testing.T) {
	l := newCommandLine(t)
	l.ok("tenant add acme")
	var line credentialLine
	if err := json.Unmarshal([]byte(l.ok("credential add http --tenant acme --api-key -o json")), &line); err != nil {
		t.Fatal(err)
	}
	found := func(key string) bool {
		sum, ok := auth.KeySum(key)
		if !ok {
			t.Fatalf("no key: %q", key)
		}
		g, err := l.db.GrantOfKey(t.Context(), sum)
		return err == nil && g.Credential.Name == "http"
	}
	if !found(line.APIKey) || line.Kind != "api_key" {
		t.Errorf("%+v", line)
	}
	out := l.ok("credential set http --new-api-key", "API key: pr_")
	_, rest, _ := strings.Cut(out, "API key: ")
	key, _, _ := strings.Cut(rest, "\n")
	if !found(key) || found(line.APIKey) {
		t.Error("the new key is not in the place of the old one")
	}
}

func TestCertificateCredential(t *testing.T) {
	l := newCommandLine(t)
	l.ok("tenant add acme")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	l.ok("credential add mx1 --tenant acme --reverse-path * --certificate " + file)
	if got := l.grant("mx1").Credential.Certificate; got != auth.CertificateName(sha256.Sum256(der)) {
		t.Errorf("kept %s", got)
	}
	fingerprint := "sha256:" + strings.Repeat("AB:", 31) + "AB"
	l.ok("credential set mx1 --certificate " + fingerprint)
	if got := l.grant("mx1").Credential.Certificate; got != "sha256:"+strings.Repeat("ab", 32) {
		t.Errorf("kept %s", got)
	}
	l.ok("credential add mx2 --tenant acme --certificate-name Relay.Example.com")
	if got := l.grant("mx2").Credential.Certificate; got != "relay.example.com" {
		t.Errorf("kept %s", got)
	}
	l.fails("credential add mx3 --tenant acme --certificate-name relay.example.com", "exists already", false)
	l.fails("credential add mx3 --tenant acme --certificate sha256:00", "64 hex digits", true)
	l.fails("credential add mx3 --tenant acme --certificate /nowhere", "no such file", false)
	l.fails("credential add mx3 --tenant acme --certificate "+os.Args[0], "no certificate in PEM", false)
	l.fails("credential add mx3 --tenant acme --certificate-name a..b", "label", true)
	l.fails("credential add mx3 --tenant acme --certificate x --certificate-name y", "one of", true)
}

func TestSize(t *testing.T) {
	for text, want := range map[string]size{
		"0": 0, "1000": 1000, "500MB": 5e8, "2GiB": 2 << 30, "1.5 kib": 1536, "10 B": 10, "3tb": 3e12,
	} {
		var got size
		if err := got.Set(text); err != nil || got != want {
			t.Errorf("%q = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-1", "x", "1XB", "NaN", "1e30", "GiB"} {
		if err := new(size).Set(text); err == nil {
			t.Errorf("%q is a size", text)
		}
	}
	for s, want := range map[size]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 2 << 30: "2 GiB"} {
		if s.String() != want {
			t.Errorf("%d is %q, want %q", s, s.String(), want)
		}
	}
}
