package auth_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/auth"
)

// reference is the hash of "password" in the test suite of the reference
// implementation of argon2.
const reference = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"

func TestHash(t *testing.T) {
	h := auth.NewHasher(2)
	for _, password := range []string{"secret", strings.Repeat("long", 256), "пароль", " with spaces ", "I\u00adX"} {
		hash, err := h.Hash(t.Context(), password)
		if err != nil || !strings.HasPrefix(hash, "$argon2id$v=19$m=19456,t=2,p=1$") {
			t.Errorf("Hash(%q) = %q, %v", password, hash, err)
			continue
		}
		for other, want := range map[string]bool{password: true, password + "x": false, "": false, strings.ToUpper(password) + "!": false} {
			if ok, err := h.Verify(t.Context(), hash, other); err != nil || ok != want {
				t.Errorf("%q against the hash of %q: %v, %v, want %v", other, password, ok, err, want)
			}
		}
	}
	a, _ := h.Hash(t.Context(), "secret")
	if b, _ := h.Hash(t.Context(), "secret"); a == b {
		t.Error("two hashes of a password are equal: no salt")
	}
	if ok, err := h.Verify(t.Context(), reference, "password"); !ok || err != nil {
		t.Errorf("reference: %v, %v", ok, err)
	}
	// RFC 4013 §3: what looks the same is the same.
	hash, err := h.Hash(t.Context(), "\u2168")
	if err != nil {
		t.Fatal(err)
	}
	if ok, _ := h.Verify(t.Context(), hash, "IX"); !ok {
		t.Error("the Roman nine is not IX")
	}
}

func TestPasswordsThatCannotBeUsed(t *testing.T) {
	h := auth.NewHasher(1)
	for _, password := range []string{"", strings.Repeat("x", 1025), "a\x00b", "a\nb", "\xff", "\u00ad"} {
		if hash, err := h.Hash(t.Context(), password); !errors.Is(err, auth.ErrPassword) {
			t.Errorf("Hash(%.20q) = %q, %v", password, hash, err)
		}
		if _, err := auth.NewSCRAMKeys(password); !errors.Is(err, auth.ErrPassword) {
			t.Errorf("NewSCRAMKeys(%q): %v", password, err)
		}
		if ok, err := h.Verify(t.Context(), reference, password); ok || err != nil {
			t.Errorf("Verify(%.20q) = %v, %v", password, ok, err)
		}
	}
}

func TestHashesThatCannotBeRead(t *testing.T) {
	h := auth.NewHasher(1)
	const salt, sum = "$c29tZXNhbHQ", "$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
	for _, hash := range []string{
		"x", "$2y$05$abcdefghijklmnopqrstuu", "$argon2id", "$argon2i$v=19$m=65536,t=2,p=1" + salt + sum,
		"$argon2id$v=16$m=65536,t=2,p=1" + salt + sum, "$argon2id$v=19$m=65536,t=2" + salt + sum,
		"$argon2id$v=19$m=65536,t=2,p=1,x=2" + salt + sum, "$argon2id$v=19$m=4294967295,t=2,p=1" + salt + sum,
		"$argon2id$v=19$m=65536,t=0,p=1" + salt + sum, "$argon2id$v=19$m=65536,t=99,p=1" + salt + sum,
		"$argon2id$v=19$m=65536,t=2,p=0" + salt + sum, "$argon2id$v=19$m=65536,t=2,p=1$$",
		"$argon2id$v=19$m=65536,t=2,p=1$c29t" + sum, "$argon2id$v=19$m=65536,t=2,p=1" + salt + "$AAAA",
		"$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ=" + sum, "$argon2id$v=19$m=65536,t=2,p=1" + salt + sum + "$",
	} {
		if ok, err := h.Verify(t.Context(), hash, "password"); ok || err == nil {
			t.Errorf("Verify(%q) = %v, %v", hash, ok, err)
		}
	}
}

// A user who does not exist costs what one who does costs.
func TestNobodyTakesTheSameTime(t *testing.T) {
	h := auth.NewHasher(1)
	hash, err := h.Hash(t.Context(), "secret")
	if err != nil {
		t.Fatal(err)
	}
	somebody, nobody := time.Hour, time.Hour // the fastest of each, measured in turn
	for range 10 {
		for hash, best := range map[string]*time.Duration{hash: &somebody, "": &nobody} {
			began := time.Now()
			if ok, err := h.Verify(t.Context(), hash, "guess"); ok || err != nil {
				t.Fatal(ok, err)
			}
			*best = min(*best, time.Since(began))
		}
	}
	if nobody < somebody/3 || nobody > somebody*3 { // without the work it would be a thousandth
		t.Errorf("somebody takes %s, nobody %s", somebody, nobody)
	}
}

func TestHashesAreBounded(t *testing.T) {
	h := auth.NewHasher(1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Hash(ctx, "secret"); !errors.Is(err, context.Canceled) {
		t.Errorf("Hash after the end: %v", err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if ok, err := h.Verify(t.Context(), "", "x"); ok || err != nil {
				t.Error(ok, err)
			}
		})
	}
	wg.Wait()
}

func TestKeys(t *testing.T) {
	key, sum := auth.NewKey()
	other, _ := auth.NewKey()
	if len(key) != 46 || !strings.HasPrefix(key, "pr_") || key == other || sum != sha256.Sum256([]byte(key)) {
		t.Errorf("NewKey = %q, %x", key, sum)
	}
	if got, ok := auth.KeySum(key); !ok || got != sum {
		t.Errorf("KeySum = %x, %v", got, ok)
	}
	for _, bad := range []string{"", "pr_", key[3:], key + "A", key[:45], "PR_" + key[3:], key[:45] + "!", "pr_" + strings.Repeat("A", 1<<16)} {
		if _, ok := auth.KeySum(bad); ok {
			t.Errorf("%.60q has the form of a key", bad)
		}
	}
	if p := auth.NewPassword(); len(p) != 27 || p == auth.NewPassword() {
		t.Errorf("NewPassword = %q", p)
	}
	if got := auth.CertificateName([32]byte{0xab}); got != "sha256:ab"+strings.Repeat("0", 62) {
		t.Errorf("CertificateName = %q", got)
	}
}

func TestParsePattern(t *testing.T) {
	for text, want := range map[string]string{
		"*": "*", "example.com": "example.com", "Example.COM.": "example.com", "*.Example.com": "*.example.com",
		"User@EXAMPLE.com": "User@example.com", "bücher.example": "xn--bcher-kva.example", `"a@b"@example.com`: `"a@b"@example.com`,
		"a@[192.0.2.1]": "a@[192.0.2.1]",
		// Not patterns:
		"": "", "@example.com": "", "*@example.com*": "", "a*b.example": "", "*.*.example": "", "a..b": "", "user@": "", "user@*.example.com": "", "**": "", "a b": "",
	} {
		got, err := auth.ParsePattern(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("ParsePattern(%q) = %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		patterns auth.Patterns
		address  string
		want     bool
	}{
		{nil, "a@example.com", false},
		{auth.Patterns{"*"}, "a@example.com", true},
		{auth.Patterns{"*"}, "", false},
		{auth.Patterns{"*"}, "example.com", false},
		{auth.Patterns{"example.com"}, "a@example.com", true},
		{auth.Patterns{"example.com"}, "a@EXAMPLE.com", true},
		{auth.Patterns{"example.com"}, "a@sub.example.com", false},
		{auth.Patterns{"example.com"}, "a@notexample.com", false},
		{auth.Patterns{"example.com"}, `"x@evil.example"@example.com`, true},
		{auth.Patterns{"example.com"}, `"a@example.com"@evil.example`, false},
		{auth.Patterns{"*.example.com"}, "a@sub.example.com", true},
		{auth.Patterns{"*.example.com"}, "a@b.sub.example.com", true},
		{auth.Patterns{"*.example.com"}, "a@example.com", false},
		{auth.Patterns{"*.example.com"}, "a@evilexample.com", false},
		{auth.Patterns{"user@example.com"}, "USER@example.com", true},
		{auth.Patterns{"user@example.com"}, "other@example.com", false},
		{auth.Patterns{"k@example.com"}, "\u212a@example.com", false}, // the Kelvin sign
		{auth.Patterns{"xn--bcher-kva.example"}, "a@bücher.example", true},
		{auth.Patterns{"example.net", "example.com"}, "a@example.com", true},
		{auth.Patterns{"example.com"}, "@example.com", false},
		{auth.Patterns{"[192.0.2.1]"}, "a@[192.0.2.1]", true},
		{auth.Patterns{`"a b"@example.com`}, `"A b"@example.com`, true},
		{auth.Patterns{`"a b"@example.com`}, `"a\ b"@example.com`, true},
		{auth.Patterns{`"a b"@example.com`}, `"a  b"@example.com`, false},
		{auth.Patterns{`"ab"@example.com`}, `ab@example.com`, true},
		{auth.Patterns{`ab@example.com`}, `"ab"@example.com`, true},
		{auth.Patterns{`ab@example.com`}, `"ab" @example.com`, false},
		{auth.Patterns{`"a@b"@example.com`}, `"a@b"@example.com`, true},
	} {
		if got := c.patterns.Match(c.address); got != c.want {
			t.Errorf("%q matches %q: %v, want %v", c.patterns, c.address, got, c.want)
		}
	}
}
