package tlsrpt

import (
	"slices"
	"strings"
	"testing"
)

func TestParseRecord(t *testing.T) {
	long := "mailto:" + strings.Repeat("a", maxURI)
	for _, tt := range []struct {
		name  string
		texts []string
		want  []string
	}{
		{"of RFC 8460 §3.1.1", []string{"v=TLSRPTv1;rua=mailto:reports@example.com"}, []string{"mailto:reports@example.com"}},
		{"of RFC 8460 §3.1.2", []string{"v=TLSRPTv1; rua=https://reporting.example.com/v1/tlsrpt"}, []string{"https://reporting.example.com/v1/tlsrpt"}},
		{"both", []string{"v=TLSRPTv1 ; rua=mailto:a@b.test , HTTPS://c.test/x?y=z;"}, []string{"mailto:a@b.test", "HTTPS://c.test/x?y=z"}},
		{"beside others", []string{"v=spf1 -all", "v=TLSRPTv1;rua=mailto:a@b.test", "v=TLSRPTv12;rua=mailto:c@d.test"}, []string{"mailto:a@b.test"}},
		{"extensions", []string{"v=TLSRPTv1;x=1;rua=mailto:a@b.test;rua=mailto:c@d.test"}, []string{"mailto:a@b.test"}},
		{"two records", []string{"v=TLSRPTv1;rua=mailto:a@b.test", "v=TLSRPTv1;rua=mailto:c@d.test"}, nil},
		{"no rua", []string{"v=TLSRPTv1;"}, nil},
		{"other case", []string{"V=TLSRPTv1;rua=mailto:a@b.test"}, nil},
		{"other scheme", []string{"v=TLSRPTv1;rua=http://a.test,ftp://b.test"}, nil},
		{"not a field", []string{"v=TLSRPTv1;rua=mailto:a@b.test;oops"}, nil},
		{"too long", []string{"v=TLSRPTv1;rua=" + long}, nil},
		{"line ends", []string{"v=TLSRPTv1;rua=mailto:a@b.test\r\nBcc:c@d.test"}, nil},
		{"too many", []string{"v=TLSRPTv1;rua=" + strings.Repeat("mailto:a@b.test,", 20)}, slices.Repeat([]string{"mailto:a@b.test"}, maxURIs)},
		{"none", nil, nil},
	} {
		got, ok := ParseRecord(tt.texts)
		if !slices.Equal(got, tt.want) || ok != (tt.want != nil) {
			t.Errorf("%s: got %q %v, want %q", tt.name, got, ok, tt.want)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add("v=TLSRPTv1; rua=mailto:a@b.test,https://c.test/")
	f.Fuzz(func(t *testing.T, text string) {
		rua, ok := ParseRecord([]string{text})
		if ok != (len(rua) > 0) || len(rua) > maxURIs {
			t.Fatalf("%q: %q %v", text, rua, ok)
		}
		// What was read can be written and read again.
		if ok {
			again, _ := ParseRecord([]string{"v=TLSRPTv1;rua=" + strings.Join(rua, ",")})
			if !slices.Equal(again, rua) {
				t.Fatalf("%q: %q, then %q", text, rua, again)
			}
		}
	})
}
