package tlsrpt

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"net/netip"
	"strings"
	"testing"
	"time"

	ours "github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

func report() *Report {
	day := time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)
	sts := store.TLSResult{Day: day, Domain: "a.test", PolicyType: "sts", PolicyDomain: "a.test", Policy: "version: STSv1\nmode: testing\nmx: *.a.test\nmx: b.test\nmax_age: 86400"}
	bad := sts
	bad.Type, bad.SendingIP, bad.ReceivingHost, bad.ReceivingIP = "certificate-expired", netip.MustParseAddr("192.0.2.1"), "mx.a.test", netip.MustParseAddr("2001:db8::1")
	none := store.TLSResult{Day: day, Domain: "a.test", PolicyType: "no-policy-found", PolicyDomain: "a.test"}
	return &Report{
		Submitter: "mta.postrider.test", Organization: "Ünternehmen", Contact: "tls@postrider.test", Domain: "a.test", Day: day,
		Counts: []store.TLSCount{{TLSResult: none, Sessions: 7}, {TLSResult: sts, Sessions: 5}, {TLSResult: bad, Sessions: 2}},
	}
}

// The document of RFC 8460 §4.4 and Appendix B, in its order.
const wantJSON = `{"organization-name":"Ünternehmen","date-range":{"start-datetime":"2026-11-26T00:00:00Z","end-datetime":"2026-11-26T23:59:59Z"},` +
	`"contact-info":"tls@postrider.test","report-id":"2026-11-26_a.test@mta.postrider.test","policies":[` +
	`{"policy":{"policy-type":"no-policy-found","policy-domain":"a.test"},"summary":{"total-successful-session-count":7,"total-failure-session-count":0}},` +
	`{"policy":{"policy-type":"sts","policy-string":["version: STSv1","mode: testing","mx: *.a.test","mx: b.test","max_age: 86400"],"policy-domain":"a.test","mx-host":["*.a.test","b.test"]},` +
	`"summary":{"total-successful-session-count":5,"total-failure-session-count":2},"failure-details":[` +
	`{"result-type":"certificate-expired","sending-mta-ip":"192.0.2.1","receiving-mx-hostname":"mx.a.test","receiving-ip":"2001:db8::1","failed-session-count":2}]}]}`

func unzip(t *testing.T, data []byte) string {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func TestJSON(t *testing.T) {
	data, err := report().JSON()
	if err != nil {
		t.Fatal(err)
	}
	if got := unzip(t, data); got != wantJSON {
		t.Errorf("got\n%s\nwant\n%s", got, wantJSON)
	}
	again, _ := report().JSON()
	if !bytes.Equal(data, again) {
		t.Error("the same report has other bytes")
	}
	// RFC 8460 §4.4: policies is an array, also without any.
	empty := &Report{Domain: "a.test"}
	if data, err := empty.JSON(); err != nil || !strings.Contains(unzip(t, data), `"policies":[]`) {
		t.Errorf("an empty report: %s, %v", unzip(t, data), err)
	}
}

// TestCompose: RFC 8460 §5.3.
func TestCompose(t *testing.T) {
	content, headerID, err := report().Compose("reports@a.test", ours.NewQueueID(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(content), "\r\n") {
		if len(line) > 78 && !strings.HasPrefix(line, "\tfilename=") || strings.ContainsAny(line, "\r\n") {
			t.Errorf("line %q", line)
		}
	}
	m, err := mail.ReadMessage(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]string{
		"From": "<tls@postrider.test>", "To": "<reports@a.test>", "TLS-Report-Domain": "a.test", "TLS-Report-Submitter": "mta.postrider.test",
		"TLS-Required": "No", "Message-ID": headerID,
		"Subject": "Report Domain: a.test Submitter: mta.postrider.test Report-ID: <2026-11-26_a.test@mta.postrider.test>",
	} {
		if got := m.Header.Get(field); got != want {
			t.Errorf("%s: got %q, want %q", field, got, want)
		}
	}
	media, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || media != "multipart/report" || params["report-type"] != "tlsrpt" {
		t.Fatalf("%s %v, %v", media, params, err)
	}
	parts := multipart.NewReader(m.Body, params["boundary"])
	if first, err := parts.NextPart(); err != nil || !strings.HasPrefix(first.Header.Get("Content-Type"), "text/plain") {
		t.Fatalf("the first part: %v, %v", first, err)
	}
	second, err := parts.NextPart()
	if err != nil || second.Header.Get("Content-Type") != "application/tlsrpt+gzip" || second.FileName() != "mta.postrider.test!a.test!1795651200!1795737599.json.gz" {
		t.Fatalf("the second part: %+v, %v", second, err)
	}
	data, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, second))
	if err != nil || unzip(t, data) != wantJSON {
		t.Errorf("%s, %v", data, err)
	}
}

func TestParseMailto(t *testing.T) {
	for uri, want := range map[string]string{
		"mailto:a@b.test": "a@b.test", "MAILTO:a%2Bc@b.test?subject=x": "a+c@b.test", "mailto:a@b.test,c@d.test": "",
		"mailto:": "", "mailto:a": "", "https://a.test": "", "mailto:a@b.test%0d%0aBcc:c@d.test": "", "mailto:a%": "", "mailto:a@[192.0.2.1]": "",
		"mailto:<a@b.test>": "",
	} {
		path, domain, err := ParseMailto(uri)
		if string(path) != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, ErrRUA) || want != "" && domain != "b.test" {
			t.Errorf("%s: got %q at %q, %v; want %q", uri, path, domain, err, want)
		}
	}
}

// TestPost: what is taken, what is refused, and whom nobody can make us
// connect to.
func TestPost(t *testing.T) {
	var got []byte
	host := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/tlsrpt+gzip":
			w.WriteHeader(http.StatusBadRequest)
		case r.URL.Path == "/elsewhere":
			http.Redirect(w, r, "/", http.StatusTemporaryRedirect)
		case r.URL.Path == "/full":
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			got, _ = io.ReadAll(r.Body)
			w.WriteHeader(http.StatusCreated)
		}
	}))
	defer host.Close()
	roots := host.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	for _, tt := range []struct {
		name, uri string
		cfg       PostConfig
		want      string // of the error
	}{
		{"taken", host.URL, PostConfig{Roots: roots, Allow: loopback}, ""},
		{"not verified", host.URL, PostConfig{Allow: loopback}, "certificate"},
		{"inside", host.URL, PostConfig{Roots: roots}, "loopback"},
		{"inside by name", strings.Replace(host.URL, "127.0.0.1", "localhost", 1), PostConfig{Roots: roots}, "loopback"},
		{"refused", host.URL + "/full", PostConfig{Roots: roots, Allow: loopback}, "503"},
		{"a redirect", host.URL + "/elsewhere", PostConfig{Roots: roots, Allow: loopback}, "307"},
		{"without TLS", strings.Replace(host.URL, "https", "http", 1), PostConfig{Roots: roots, Allow: loopback}, ErrRUA.Error()},
		{"with a password", strings.Replace(host.URL, "://", "://a:b@", 1), PostConfig{Roots: roots, Allow: loopback}, ErrRUA.Error()},
		{"no host", "https:///x", PostConfig{}, ErrRUA.Error()},
	} {
		got = nil
		err := NewPoster(tt.cfg).Post(t.Context(), tt.uri, []byte("report"))
		if tt.want == "" && (err != nil || string(got) != "report") || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || got != nil) {
			t.Errorf("%s: %v, host got %q; want %q", tt.name, err, got, tt.want)
		}
	}
}

func FuzzParseMailto(f *testing.F) {
	f.Add("mailto:tls%2Breports@example.com?subject=x")
	f.Fuzz(func(t *testing.T, uri string) {
		path, domain, err := ParseMailto(uri)
		if err != nil {
			return
		}
		if strings.ContainsAny(string(path), "\r\n\x00") || domain == "" || !json.Valid([]byte(`"`+string(domain)+`"`)) {
			t.Fatalf("%q: %q at %q", uri, path, domain)
		}
		r := report()
		content, _, err := r.Compose(path, ours.NewQueueID(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		m, err := mail.ReadMessage(bytes.NewReader(content))
		if err != nil || m.Header.Get("To") != "<"+string(path)+">" {
			t.Fatalf("%q makes the field %q, %v", uri, m.Header.Get("To"), err)
		}
	})
}
