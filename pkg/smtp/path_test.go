package smtp

import (
	"errors"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/mail"
)

// RFC 5321 §4.1.2, §4.1.3, §4.5.3.1; RFC 6531 §3.3.
func TestParseForwardPath(t *testing.T) {
	local64 := strings.Repeat("l", 64)
	label63 := strings.Repeat("d", 63)
	tests := []struct {
		in       string
		nonASCII bool
		want     string // the canonical mailbox
		err      error
	}{
		{in: "<user@example.com>", want: "user@example.com"},
		{in: "<User@Example.COM>", want: "User@Example.COM"},
		{in: "<a.b.c@example.com>", want: "a.b.c@example.com"},
		{in: "<!#$%&'*+-/=?^_`{|}~@example.com>", want: "!#$%&'*+-/=?^_`{|}~@example.com"},
		{in: `<"a b"@example.com>`, want: `"a b"@example.com`},
		{in: `<"plain"@example.com>`, want: "plain@example.com"},
		{in: `<"a\b"@example.com>`, want: "ab@example.com"},
		{in: `<"a\"b\\c"@example.com>`, want: `"a\"b\\c"@example.com`},
		{in: `<"a@b"@example.com>`, want: `"a@b"@example.com`},
		{in: `<"a>b"@example.com>`, want: `"a>b"@example.com`},
		{in: `<""@example.com>`, want: `""@example.com`},
		{in: `<".a"@example.com>`, want: `".a"@example.com`},
		{in: "<@relay.example:user@example.com>", want: "user@example.com"},
		{in: "<@a.example,@b.example:user@example.com>", want: "user@example.com"},
		{in: "<@[192.0.2.1],@b.example:user@example.com>", want: "user@example.com"},
		{in: "<user@[192.0.2.1]>", want: "user@[192.0.2.1]"},
		{in: "<user@[IPv6:2001:DB8:0::1]>", want: "user@[IPv6:2001:db8::1]"},
		{in: "<user@[ipv6:::ffff:192.0.2.1]>", want: "user@[IPv6:::ffff:192.0.2.1]"},
		{in: "<user@under_score.example>", want: "user@under_score.example"},
		{in: "<user@localhost>", want: "user@localhost"},
		{in: "<postmaster>", want: "postmaster"},
		{in: "<PostMaster>", want: "postmaster"},
		{in: "<postmaster@example.com>", want: "postmaster@example.com"},
		{in: "<jürgen@bücher.example>", nonASCII: true, want: "jürgen@bücher.example"},
		{in: `<"jür gen"@example.com>`, nonASCII: true, want: `"jür gen"@example.com`},
		{in: "<" + local64 + "@example.com>", want: local64 + "@example.com"},
		{in: "<u@" + label63 + ".example>", want: "u@" + label63 + ".example"},
		// Longer than RFC 5321 §4.5.3.1.1 has it: addresses to reply to.
		{in: "<l" + local64 + "@example.com>", want: "l" + local64 + "@example.com"},
		{in: "<" + strings.Repeat(local64, 3) + local64[:50] + "@example.com>", want: strings.Repeat(local64, 3) + local64[:50] + "@example.com"},
		// Addresses that operators gave out leave as a Quoted-string.
		{in: "<.user@example.com>", want: `".user"@example.com`},
		{in: "<user.@example.com>", want: `"user."@example.com`},
		{in: "<us..er@example.com>", want: `"us..er"@example.com`},
		{in: "<us...er..@example.com>", want: `"us...er.."@example.com`},
		{in: "<jür..gen@example.com>", nonASCII: true, want: `"jür..gen"@example.com`},

		{in: "", err: ErrPath},
		{in: "user@example.com", err: ErrPath},
		{in: "<>", err: ErrPath},
		{in: "<user>", err: ErrNoDomain},
		{in: "<user@>", err: ErrDomain},
		{in: "<@example.com>", err: ErrPath},
		{in: "<user@example.com", err: ErrPath},
		{in: "<user @example.com>", err: ErrPath},
		{in: "<us er@example.com>", err: ErrPath},
		{in: "<.@example.com>", err: ErrPath},
		{in: "<..@example.com>", err: ErrPath},
		{in: "<us..e r@example.com>", err: ErrPath},
		{in: "<a@b@example.com>", err: ErrPath},
		{in: `<"open@example.com>`, err: ErrPath},
		{in: `<"a"b@example.com>`, err: ErrPath},
		{in: "<\"a\\\x01\"@example.com>", err: ErrPath},
		{in: "<user@example..com>", err: ErrDomain},
		{in: "<user@.example.com>", err: ErrDomain},
		{in: "<user@example.com.>", err: ErrDomain},
		{in: "<user@-example.com>", err: ErrDomain},
		{in: "<user@example-.com>", err: ErrDomain},
		{in: "<user@exa mple.com>", err: ErrPath},
		{in: "<user@exam!ple.com>", err: ErrPath},
		{in: "<user@d" + label63 + ".example>", err: ErrDomain},
		{in: "<user@[192.0.2.256]>", err: ErrLiteral},
		{in: "<user@[192.0.2.1>", err: ErrLiteral},
		{in: "<user@[2001:db8::1]>", err: ErrLiteral},
		{in: "<user@[IPv6:192.0.2.1]>", err: ErrLiteral},
		{in: "<user@[IPv6:fe80::1%eth0]>", err: ErrLiteral},
		{in: "<user@[x400:abc]>", err: ErrLiteral},
		{in: "<@relay.example user@example.com>", err: ErrPath},
		{in: "<@relay.example:>", err: ErrPath},
		{in: "<@relay.example,user@example.com>", err: ErrPath},
		{in: "<u@" + strings.Repeat("d.", 127) + "ee>", err: ErrLongDomain},
		{in: "<" + local64 + "@" + strings.Repeat("d.", 95) + "e>", err: ErrLongPath},
		{in: "<jürgen@example.com>", err: ErrNonASCII},
		{in: "<user@bücher.example>", err: ErrNonASCII},
		{in: "<ann\u200b@example.com>", nonASCII: true, err: ErrInvisible},
		{in: "<ann\u00a0@example.com>", nonASCII: true, err: ErrInvisible},
		{in: "<\ufeffann@example.com>", nonASCII: true, err: ErrInvisible},
		{in: "<ann@exam\u00adple.com>", nonASCII: true, err: ErrInvisible},
		{in: "<ann\u202e@example.com>", nonASCII: true, err: ErrInvisible},
		{in: "<\"ann\u2060\"@example.com>", nonASCII: true, err: ErrInvisible},
		{in: "<ann\u200d@example.com>", nonASCII: true, err: ErrInvisible},
		{in: "<\u0646\u0627\u0645\u0647\u200c\u0627\u06cc@example.com>", nonASCII: true, want: "\u0646\u0627\u0645\u0647\u200c\u0627\u06cc@example.com"},
		{in: "<a\xff@example.com>", nonASCII: true, err: ErrPath},
		{in: "<a\u0085@example.com>", nonASCII: true, err: ErrInvisible},
		{in: "<user@a\u2024b.example>", nonASCII: true, err: ErrDomain},
		{in: "<user@\u00ad.example>", nonASCII: true, err: ErrInvisible},
	}
	for _, tt := range tests {
		got, rest, err := ParseForwardPath(tt.in, tt.nonASCII)
		if !errors.Is(err, tt.err) || string(got) != tt.want || rest != "" {
			t.Errorf("ParseForwardPath(%q) = %q, %q, %v; want %q, %v", tt.in, got, rest, err, tt.want, tt.err)
		}
	}
}

func TestParseReversePath(t *testing.T) {
	path, rest, err := ParseReversePath("<> BODY=7BIT", false)
	if err != nil || !path.IsNull() || rest != " BODY=7BIT" {
		t.Errorf("null reverse-path: %q, %q, %v", path, rest, err)
	}
	path, rest, err = ParseReversePath("<a@example.com> X", false)
	if err != nil || path != "a@example.com" || rest != " X" {
		t.Errorf("path with rest: %q, %q, %v", path, rest, err)
	}
	if _, _, err = ParseReversePath("<postmaster>", false); !errors.Is(err, ErrNoDomain) {
		t.Errorf("MAIL FROM:<postmaster> has no meaning: %v", err)
	}
}

// RFC 5321 §4.5.3.1.3: 256 octets with the brackets, and not one more.
func TestPathLimit(t *testing.T) {
	path := func(n int) string {
		domain := strings.Repeat(strings.Repeat("d", 63)+".", 4)[:n-len("<local@>")-3] + "exx"
		return "<local@" + domain + ">"
	}
	for n := 250; n <= 260; n++ {
		_, _, forward := ParseForwardPath(path(n), false)
		_, _, reverse := ParseReversePath(path(n), false)
		if len(path(n)) != n || (forward == nil) != (n <= 256) || (reverse == nil) != (n <= 256) {
			t.Errorf("path of %d octets: %v, %v", len(path(n)), forward, reverse)
		}
	}
}

// RFC 5321 §4.1.3: Snum is decimal, zeros before it or not.
func TestLiterals(t *testing.T) {
	for text, want := range map[string]string{
		"[192.0.2.1]": "[192.0.2.1]", "[192.000.002.010]": "[192.0.2.10]", "[IPv6:2001:DB8::1]": "[IPv6:2001:db8::1]",
		"[ipv6:::ffff:192.0.2.1]": "[IPv6:::ffff:192.0.2.1]",
		"[192.0.2]":               "", "[192.0.2.256]": "", "[192.0.2.1.1]": "", "[192.0.2.0001]": "", "[192.0.2.+1]": "", "[192.0.2.]": "", "[::1]": "", "[x:y]": "",
	} {
		got, _, err := ParseForwardPath("<a@"+text+">", false)
		if want == "" && err == nil || want != "" && string(got) != "a@"+want {
			t.Errorf("%s: %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestParseHello(t *testing.T) {
	for hello, want := range map[string]bool{
		"mail.example.com": true, "localhost": true, "host_1": true, "[192.0.2.1]": true, "[IPv6:::1]": true,
		"": false, "a b": false, "[192.0.2]": false, "a..b": false, "(x)": false, "bücher.example": false, "a\x00": false,
	} {
		if got := ParseHello(hello); got != want {
			t.Errorf("ParseHello(%q) = %v", hello, got)
		}
	}
}

// A canonical path is a fixed point of the parser, within the limits, and has
// nothing that could end a line or a path.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{
		"<user@example.com>", `<"a \"b"@example.com> NOTIFY=NEVER`, "<@a,@b:u@[IPv6:::1]>", "<>", "<postmaster>",
		"<jürgen@bücher.example>", "<a..b@c>", "<\"@x", "<@:>", "<a@[1.2.3.4]", "<u@xn--a.example>",
	} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	f.Fuzz(func(t *testing.T, s string, nonASCII bool) {
		path, rest, err := ParseForwardPath(s, nonASCII)
		if err != nil {
			if path != "" {
				t.Fatalf("path %q with error %v", path, err)
			}
			return
		}
		if !strings.HasSuffix(s, rest) || len(path) > MaxPath-2 || strings.ContainsAny(string(path), "\r\n\x00") {
			t.Fatalf("ParseForwardPath(%q) = %q, %q", s, path, rest)
		}
		if !nonASCII && !isASCII(string(path)) {
			t.Fatalf("%q is not ASCII", path)
		}
		again, rest, err := ParseForwardPath(path.String(), nonASCII)
		if err != nil || again != path || rest != "" {
			t.Fatalf("canonical %q is read as %q, %q, %v", path, again, rest, err)
		}
		if path == Postmaster {
			return
		}
		if _, err := mail.ParseDomain(path.DomainText()); err != nil {
			t.Fatalf("domain of %q: %v", path, err)
		}
	})
}
